//! Layers that keep a state, over m new tokens of a sequence that has begun already: the convolution of n channels, four
//! taps each, and the gated delta rule.

use super::{Case, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::gemm::Encoding;
use crate::launch::recurrent::{MAX_KEY_DIM, convolve, delta_rule};
use crate::params::{ConvolveParams, DeltaRuleParams, Dtype, Stretch};

/// From state 0 to state 1.
fn stretch(device: &mut dyn Device, rows: usize) -> *const Stretch {
    device.alloc(&bytes_of(&Stretch { first_row: 0, rows: rows as i32, from: 0, to: 1 })) as *const Stretch
}

pub fn prepare_convolve(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    const TAPS: usize = 4;
    let &Shape { m, n, .. } = shape;
    let numbers = pattern(Encoding::F32);
    let (x, state) = (device.repeat(&numbers, m * n * 4)?, (TAPS - 1) * n);
    let params = ConvolveParams {
        x: x as *mut f32,
        weight: device.repeat(&numbers, n * TAPS * 4)? as *const f32,
        states: device.repeat(&numbers, 2 * state * 4)? as *mut f32,
        stretches: stretch(device, m),
        stride: n as i64,
        stretch_count: 1,
        channels: n as i32,
        taps: TAPS as i32,
    };
    Ok(Case {
        name: format!("convolve {m} tokens of {n} channels"),
        steps: vec![(convolve(&params), bytes_of(&params))],
        bytes: ((2 * m * n + n * TAPS + 2 * state) * 4) as u64,
        flops: (2 * m * n * TAPS) as u64,
        out: Output { address: x, len: m * n, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}

pub fn prepare_delta_rule(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, heads, kv_heads: key_heads, head_dim: dim, .. } = shape;
    if key_heads == 0 || !heads.is_multiple_of(key_heads) || heads == 0 || dim == 0 || dim > MAX_KEY_DIM {
        return Err(format!(
            "{heads} heads and {key_heads} key heads of {dim}: each at least 1, the first a multiple of the second, the \
             last at most {MAX_KEY_DIM}"
        ));
    }
    let numbers = pattern(Encoding::F32);
    let (width, state, values) = ((2 * key_heads + heads) * dim, heads * dim * dim, heads * dim);
    let mut repeat = |len: usize| device.repeat(&numbers, len * 4);
    let params = DeltaRuleParams {
        mixed: repeat(m * width)? as *const f32,
        decay: repeat(m * heads)? as *const f32,
        write: repeat(m * heads)? as *const f32,
        log_decay: repeat(heads)? as *const f32,
        decay_bias: repeat(heads)? as *const f32,
        states: repeat(2 * state)? as *mut f32,
        out: device.repeat(&[0xff; 4], m * values * 4)? as *mut f32,
        stretches: stretch(device, m),
        mixed_stride: width as i64,
        decay_stride: heads as i64,
        write_stride: heads as i64,
        out_stride: values as i64,
        stretch_count: 1,
        key_heads: key_heads as i32,
        value_heads: heads as i32,
        key_dim: dim as i32,
        value_dim: dim as i32,
    };
    Ok(Case {
        name: format!("delta_rule {heads}/{key_heads} x {dim}, {m} tokens"),
        steps: vec![(delta_rule(&params), bytes_of(&params))],
        bytes: ((m * (width + 2 * heads + values) + 2 * heads + 2 * state) * 4) as u64,
        flops: (m * 7 * state) as u64,
        out: Output { address: params.out as u64, len: m * values, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}

//! The rotation of queries and keys of m rows, fused with the append to the KV cache: of new rows of as many sequences.

use super::{Case, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::gemm::Encoding;
use crate::launch::rope::rope;
use crate::params::{Dtype, RopeParams, Sequence};

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, heads, kv_heads, head_dim: dim, .. } = shape;
    if heads == 0 || kv_heads == 0 || dim == 0 || !dim.is_multiple_of(2) {
        return Err(format!("{heads} heads and {kv_heads} key heads of {dim}: each at least 1, and the last even"));
    }
    let numbers = pattern(Encoding::F32);
    let (q, kv, angles) = (m * heads * dim, m * kv_heads * dim, m * dim / 2);
    let sequence = |row: usize| {
        let cache_row = (row * kv_heads) as i64;
        bytes_of(&Sequence { cache_row, capacity: 1, first_row: row as i32, rows: 1, start: 0 })
    };
    let rows: Vec<u8> = (0..m as i32).flat_map(i32::to_le_bytes).collect();
    let turned = device.repeat(&numbers, q * 4)?;
    let params = RopeParams {
        q: turned as *mut f32,
        k: device.repeat(&numbers, kv * 4)? as *const f32,
        v: device.repeat(&numbers, kv * 4)? as *const f32,
        cos: device.repeat(&numbers, angles * 4)? as *const f32,
        sin: device.repeat(&numbers, angles * 4)? as *const f32,
        keys: device.repeat(&[0xff; 2], kv * 2)? as *mut _,
        values: device.repeat(&[0xff; 2], kv * 2)? as *mut _,
        sequences: device.alloc(&(0..m).flat_map(sequence).collect::<Vec<u8>>()) as *const Sequence,
        row_sequence: device.alloc(&rows) as *const i32,
        q_stride: (heads * dim) as i64,
        k_stride: (kv_heads * dim) as i64,
        v_stride: (kv_heads * dim) as i64,
        k_head_stride: dim as i32,
        v_head_stride: dim as i32,
        rows: m as i32,
        q_heads: heads as i32,
        kv_heads: kv_heads as i32,
        dim: dim as i32,
        v_dim: dim as i32,
        rotary_dim: dim as i32,
        cache_dtype: Dtype::DTYPE_BF16,
        ..RopeParams::default()
    };
    Ok(Case {
        name: format!("rope {heads}/{kv_heads} x {dim} m {m}"),
        steps: vec![(rope(&params), bytes_of(&params))],
        bytes: (q * 8 + kv * (8 + 4) + angles * 8) as u64,
        flops: (3 * (q + kv)) as u64,
        out: Output { address: turned, len: q, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}

//! Matrix multiplies: y = x W^T for a weight of n x k in any encoding, by m rows of activations.

use half::{bf16, f16};

use super::{Case, Shape, bytes_of, f32_bytes, numbers};
use crate::check::{Device, Output};
use crate::launch::gemm::{Encoding, MAX_DECODE_ROWS, decode};
use crate::params::{Dtype, GemmParams, Weights};

/// log2 of the elements that share a scale: what bitsandbytes does by default, and DeepSeek's 128 x 128.
const BLOCK: i32 = 6;
const FP8_BLOCK: i32 = 7;

/// Numbers that are made; more are these over and over.
const PATTERN: usize = 1 << 18;

/// Bytes of an element of activations.
fn operand_bytes(encoding: Encoding) -> usize {
    if encoding == Encoding::F32 { 4 } else { 2 }
}

fn encode(encoding: Encoding, numbers: impl Iterator<Item = f32>) -> Vec<u8> {
    match encoding {
        Encoding::F32 => f32_bytes(numbers),
        Encoding::F16 => numbers.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
        Encoding::Bf16 => numbers.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        Encoding::Int8 => numbers.map(|v| (v * 127.0) as i8 as u8).collect(),
        // Any bits but those of 0x7f, which would be NaN elsewhere.
        Encoding::Fp8 => {
            numbers.map(|v| (v * 126.0) as i8 as u8).map(|q| if q & 0x7f == 0x7f { 0 } else { q }).collect()
        }
        Encoding::Nf4 => numbers.map(|v| (v * 127.0) as i8 as u8).collect(),
    }
}

/// Bytes of the weight, and how many scales it has.
fn sizes(shape: &Shape) -> (usize, usize) {
    let elements = shape.n * shape.k;
    match shape.encoding {
        Encoding::F32 => (elements * 4, 0),
        Encoding::F16 | Encoding::Bf16 => (elements * 2, 0),
        Encoding::Int8 => (elements, elements.div_ceil(1 << BLOCK)),
        Encoding::Nf4 => (elements.div_ceil(2), elements.div_ceil(1 << BLOCK)),
        Encoding::Fp8 => (elements, shape.n.div_ceil(1 << FP8_BLOCK) * shape.k.div_ceil(1 << FP8_BLOCK)),
    }
}

/// What decode multiplies are meant to reach, of copy bandwidth, where n and k are at least 4096 and m is at most 8.
fn goal(shape: &Shape) -> Option<f64> {
    let counts = shape.n >= 4096 && shape.k >= 4096 && shape.m <= 8;
    match shape.encoding {
        Encoding::Bf16 if counts => Some(0.85),
        Encoding::Int8 | Encoding::Nf4 if counts => Some(0.75),
        _ => None,
    }
}

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, n, k, encoding, .. } = shape;
    if !(1..=MAX_DECODE_ROWS).contains(&m) {
        return Err(format!("gemm takes 1 to {MAX_DECODE_ROWS} rows of activations (--m), not {m}"));
    }
    let (weight_bytes, scales) = sizes(shape);
    let operand = if operand_bytes(encoding) == 4 || encoding == Encoding::F16 { encoding } else { Encoding::Bf16 };
    let x_stride = k.next_multiple_of(8);
    let w = Weights {
        data: device.repeat(&encode(encoding, numbers(PATTERN)), weight_bytes)? as *const _,
        scale: device.repeat(&f32_bytes(numbers(4096).map(|v| 0.01 + v * 0.001)), scales * 4)? as *const _,
        block_shift: BLOCK,
        row_shift: FP8_BLOCK,
        column_shift: FP8_BLOCK,
        ..Weights::default()
    };
    let out = device.repeat(&[0xff; 4], m * n * 4)?;
    let params = GemmParams {
        w,
        x: device.alloc(&encode(operand, numbers(m * x_stride))) as *const _,
        out: out as *mut f32,
        x_stride: x_stride as i64,
        out_stride: n as i64,
        m: m as i32,
        n: n as i32,
        k: k as i32,
        ..GemmParams::default()
    };
    Ok(Case {
        name: format!("gemm {encoding:?} n {n} k {k} m {m}").to_lowercase(),
        steps: vec![(decode(encoding, &params), bytes_of(&params))],
        bytes: (weight_bytes + scales * 4 + m * k * operand_bytes(encoding) + m * n * 4) as u64,
        flops: 2 * (m * n * k) as u64,
        out: Output { address: out, len: m * n, dtype: Dtype::DTYPE_F32 },
        goal: goal(shape),
    })
}

//! Matrix multiplies: y = x W^T for a weight of n x k in any encoding, by m rows of activations, and for a weight that is
//! stored as its transpose; the lengths of a weight's rows.

use half::bf16;

use super::{Case, Goal, Peer, Shape, bytes_of, f32_bytes, numbers, pattern};
use crate::check::{Device, Output, lossless};
use crate::launch::Launch;
use crate::launch::gemm::{Encoding, MAX_DECODE_ROWS, decode};
use crate::launch::gemm_prefill::prefill;
use crate::launch::transposed::Stored;
use crate::launch::{lengths, transposed};
use crate::params::{Dtype, GemmParams, PrefillParams, RowLengthsParams, TransposedParams, Weights};

/// log2 of the elements that share a scale: what bitsandbytes does by default, and DeepSeek's 128 x 128.
const BLOCK: i32 = 6;
const FP8_BLOCK: i32 = 7;

/// Bytes of an element of activations.
fn operand_bytes(encoding: Encoding) -> usize {
    if encoding == Encoding::F32 { 4 } else { 2 }
}

/// Bytes of the weight and of its scales.
fn sizes(shape: &Shape) -> (usize, usize) {
    let elements = shape.n * shape.k;
    let scales = shape.n * shape.k.div_ceil(1 << BLOCK);
    match shape.encoding {
        Encoding::F32 => (elements * 4, 0),
        Encoding::F16 | Encoding::Bf16 => (elements * 2, 0),
        Encoding::Int8 | Encoding::Int8Zero | Encoding::Offset8 => (elements, scales * 4),
        Encoding::Nf4 | Encoding::Fp4 | Encoding::Offset4 => (shape.n * shape.k.div_ceil(2), scales * 4),
        // Rows bring their scales along.
        Encoding::Nf4d => (shape.n * nf4d_row_bytes(shape.k), 0),
        Encoding::Lossless => (shape.n * lossless_row(shape.k).len(), 0),
        Encoding::Mxfp4 => (elements.div_ceil(2), elements.div_ceil(32)),
        Encoding::Fp8 => (elements, shape.n.div_ceil(1 << FP8_BLOCK) * shape.k.div_ceil(1 << FP8_BLOCK) * 4),
        Encoding::Q8_0 => (elements / 32 * 34, 0),
        Encoding::Q4_0 => (elements / 32 * 18, 0),
        Encoding::Q4_1 => (elements / 32 * 20, 0),
        Encoding::Q5_0 => (elements / 32 * 22, 0),
        Encoding::Q5_1 => (elements / 32 * 24, 0),
        Encoding::Q4K => (elements / 256 * 144, 0),
        Encoding::Q5K => (elements / 256 * 176, 0),
        Encoding::Q6K => (elements / 256 * 210, 0),
    }
}

/// Bytes of a row of nf4d: codes, their scales in a byte each, a factor for each 256 of these, and an offset.
fn nf4d_row_bytes(k: usize) -> usize {
    let blocks = k.div_ceil(64);
    (blocks * 32 + blocks.next_multiple_of(4) + (blocks.div_ceil(256) + 1) * 4).next_multiple_of(16)
}

/// A packed row, of which the weight is made: with an escape for each 128 numbers, about.
fn lossless_row(k: usize) -> Vec<u8> {
    let numbers: Vec<u16> = numbers(k).map(|v| bf16::from_f32(v).to_bits()).collect();
    lossless::pack(&numbers, k, [120, 121])
}

/// How the rows of a weight, and of its scales, follow each other.
fn strides(shape: &Shape) -> Weights {
    let k = shape.k as i32;
    let scaled = |row_bytes: i32| Weights {
        row_bytes,
        scale_stride: ((k - 1) >> BLOCK) + 1,
        column_shift: BLOCK,
        ..Weights::default()
    };
    match shape.encoding {
        Encoding::Int8 | Encoding::Int8Zero | Encoding::Offset8 => scaled(k),
        Encoding::Nf4 | Encoding::Fp4 | Encoding::Offset4 => scaled((k + 1) / 2),
        Encoding::Nf4d => {
            let row_bytes = nf4d_row_bytes(shape.k) as i32;
            Weights { scale_stride: row_bytes, ..scaled(row_bytes) }
        }
        Encoding::Lossless => Weights { row_bytes: lossless_row(shape.k).len() as i32, ..Weights::default() },
        Encoding::Mxfp4 => Weights { scale_stride: k / 32, column_shift: 5, ..scaled(k / 2) },
        Encoding::Fp8 => {
            let scale_stride = ((k - 1) >> FP8_BLOCK) + 1;
            Weights { scale_stride, row_shift: FP8_BLOCK, column_shift: FP8_BLOCK, ..scaled(k) }
        }
        _ => Weights::default(),
    }
}

/// What decode multiplies are meant to reach, of copy bandwidth, where n and k are at least 4096 and m is at most 8.
fn goal(shape: &Shape) -> Option<Goal> {
    let counts = shape.n >= 4096 && shape.k >= 4096 && shape.m <= 8;
    match shape.encoding {
        Encoding::Bf16 if counts => Some(Goal::Copy(0.85)),
        Encoding::Int8 | Encoding::Nf4 if counts => Some(Goal::Copy(0.75)),
        _ => None,
    }
}

/// A weight, activations, and a product of m rows that is NaN. Also returns the bytes of all.
fn product(device: &mut dyn Device, shape: &Shape) -> Result<(GemmParams, usize), String> {
    let &Shape { m, n, k, encoding, .. } = shape;
    let multiple = encoding.multiple();
    if !k.is_multiple_of(multiple) {
        return Err(format!("rows of {encoding:?} are whole blocks: --k is a multiple of {multiple}"));
    }
    let (weight_bytes, scale_bytes) = sizes(shape);
    let scales = match encoding {
        Encoding::Mxfp4 => vec![120],
        _ => f32_bytes(numbers(4096).map(|v| 0.01 + v * 0.001)),
    };
    let operand = if matches!(encoding, Encoding::F32 | Encoding::F16) { encoding } else { Encoding::Bf16 };
    let x_stride = k.next_multiple_of(8);
    let stored = if encoding == Encoding::Lossless { lossless_row(k) } else { pattern(encoding) };
    let data = device.repeat(&stored, weight_bytes)?;
    let scale = match encoding {
        Encoding::Nf4d => data + k.div_ceil(64) as u64 * 32,
        _ => device.repeat(&scales, scale_bytes)?,
    };
    let w = Weights { data: data as *const _, scale: scale as *const _, ..strides(shape) };
    let params = GemmParams {
        w,
        x: device.repeat(&pattern(operand), m * x_stride * operand_bytes(encoding))? as *const _,
        out: device.repeat(&[0xff; 4], m * n * 4)? as *mut f32,
        x_stride: x_stride as i64,
        out_stride: n as i64,
        m: m as i32,
        n: n as i32,
        k: k as i32,
        ..GemmParams::default()
    };
    Ok((params, weight_bytes + scale_bytes + m * k * operand_bytes(encoding) + m * n * 4))
}

fn case(bench: &str, shape: &Shape, step: (Launch, Vec<u8>), out: *mut f32, bytes: usize, goal: Option<Goal>) -> Case {
    let &Shape { m, n, k, encoding, .. } = shape;
    Case {
        name: format!("{bench} {encoding:?} n {n} k {k} m {m}").to_lowercase(),
        steps: vec![step],
        bytes: bytes as u64,
        flops: 2 * (m * n * k) as u64,
        out: Output { address: out as u64, len: m * n, dtype: Dtype::DTYPE_F32 },
        goal,
    }
}

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    if shape.m > MAX_DECODE_ROWS {
        return Err(format!("gemm takes up to {MAX_DECODE_ROWS} rows (--m); gemm_prefill takes {}", shape.m));
    }
    let (params, bytes) = product(device, shape)?;
    let step = (decode(shape.encoding, &params), bytes_of(&params));
    Ok(case("gemm", shape, step, params.out, bytes, goal(shape)))
}

pub fn prepare_prefill(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, n, k, encoding, .. } = shape;
    let (product, bytes) = product(device, shape)?;
    let params = PrefillParams { product, ..PrefillParams::default() };
    let step = (prefill(encoding, &params), bytes_of(&params));
    let counts = m >= 2048 && encoding == Encoding::Bf16;
    let goal = counts.then_some(Goal::Peer(0.55, Peer::Matmul { m, n, k }));
    Ok(case("gemm_prefill", shape, step, product.out, bytes, goal))
}

pub fn prepare_transposed(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, n, k, .. } = shape;
    let params = TransposedParams {
        w: device.repeat(&pattern(Encoding::Bf16), n * k * 2)? as *const _,
        x: device.repeat(&pattern(Encoding::F32), m * k * 4)? as *const f32,
        out: device.repeat(&[0xff; 4], m * n * 4)? as *mut f32,
        x_stride: k as i64,
        out_stride: n as i64,
        m: m as i32,
        n: n as i32,
        k: k as i32,
        dtype: Dtype::DTYPE_BF16,
        ..TransposedParams::default()
    };
    let step = (transposed::product(Stored::Numbers, &params), bytes_of(&params));
    let shape = Shape { encoding: Encoding::Bf16, ..*shape };
    Ok(case("transposed", &shape, step, params.out, n * k * 2 + m * (k + n) * 4, None))
}

pub fn prepare_lengths(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (product, _) = product(device, &Shape { m: 1, ..*shape })?;
    let out = device.repeat(&[0xff; 4], shape.n * 4)?;
    let params = RowLengthsParams { w: product.w, lengths: out as *mut f32, n: product.n, k: product.k };
    let (bytes, scales) = sizes(shape);
    Ok(Case {
        name: format!("lengths {:?} n {} k {}", shape.encoding, shape.n, shape.k).to_lowercase(),
        steps: vec![(lengths::row_lengths(shape.encoding, &params), bytes_of(&params))],
        bytes: (bytes + scales + shape.n * 4) as u64,
        flops: 2 * (shape.n * shape.k) as u64,
        out: Output { address: out, len: shape.n, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}

//! Launches of gemm.cu: the multiply for decode and verification, 1 to 64 rows of activations, in every encoding.

use super::{Launch, to_u32};
use crate::params::GemmParams;

/// How weights are stored; the formats are described at `struct Weights` in params.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    F32,
    F16,
    Bf16,
    Int8,
    Fp8,
    Nf4,
    Mxfp4,
}

/// Rows of activations that [`decode`] takes.
pub const MAX_DECODE_ROWS: usize = 64;

/// The multiply for decode and verification: 1 to 64 rows of activations. A row's result is the same, bit for bit, for
/// every number of rows.
pub fn decode(encoding: Encoding, params: &GemmParams) -> Launch {
    let m = params.m as usize;
    assert!((1..=MAX_DECODE_ROWS).contains(&m), "decode takes 1 to {MAX_DECODE_ROWS} rows of activations, not {m}");
    use Encoding::*;
    let (kernel, rows) = match (encoding, m <= 8) {
        (F32, true) => ("gemm_f32_m8", 16),
        (F32, false) => ("gemm_f32_m64", 32),
        (F16, true) => ("gemm_f16_m8", 16),
        (F16, false) => ("gemm_f16_m64", 32),
        (Bf16, true) => ("gemm_bf16_m8", 16),
        (Bf16, false) => ("gemm_bf16_m64", 32),
        (Int8, true) => ("gemm_int8_m8", 16),
        (Int8, false) => ("gemm_int8_m64", 32),
        (Fp8, true) => ("gemm_fp8_m8", 16),
        (Fp8, false) => ("gemm_fp8_m64", 32),
        (Nf4, true) => ("gemm_nf4_m8", 16),
        (Nf4, false) => ("gemm_nf4_m64", 32),
        (Mxfp4, true) => ("gemm_mxfp4_m8", 16),
        (Mxfp4, false) => ("gemm_mxfp4_m64", 32),
    };
    Launch::linear(kernel, (params.n as usize).div_ceil(rows), 256)
}

/// The naive twin: one output a thread, any number of rows.
pub fn naive(encoding: Encoding, params: &GemmParams) -> Launch {
    let kernel = match encoding {
        Encoding::F32 => "naive_gemm_f32",
        Encoding::F16 => "naive_gemm_f16",
        Encoding::Bf16 => "naive_gemm_bf16",
        Encoding::Int8 => "naive_gemm_int8",
        Encoding::Fp8 => "naive_gemm_fp8",
        Encoding::Nf4 => "naive_gemm_nf4",
        Encoding::Mxfp4 => "naive_gemm_mxfp4",
    };
    let columns = to_u32((params.n as usize).div_ceil(256));
    Launch { kernel, grid: [columns, params.m as u32, 1], block: [256, 1, 1], shared: 0 }
}

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
    Nf4d,
    Lossless,
    Fp4,
    Int8Zero,
    Offset8,
    Offset4,
    Mxfp4,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

impl Encoding {
    /// Numbers that a row is a multiple of.
    pub fn multiple(self) -> usize {
        match self {
            Encoding::Fp4 | Encoding::Offset4 => 2,
            Encoding::Mxfp4 | Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q5_0 | Encoding::Q5_1 => 32,
            Encoding::Q4K | Encoding::Q5K | Encoding::Q6K => 256,
            _ => 1,
        }
    }
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
        (Nf4d, true) => ("gemm_nf4d_m8", 16),
        (Nf4d, false) => ("gemm_nf4d_m64", 32),
        (Lossless, true) => ("gemm_lossless_m8", 16),
        (Lossless, false) => ("gemm_lossless_m64", 32),
        (Fp4, true) => ("gemm_fp4_m8", 16),
        (Fp4, false) => ("gemm_fp4_m64", 32),
        (Int8Zero, true) => ("gemm_int8z_m8", 16),
        (Int8Zero, false) => ("gemm_int8z_m64", 32),
        (Offset8, true) => ("gemm_offset8_m8", 16),
        (Offset8, false) => ("gemm_offset8_m64", 32),
        (Offset4, true) => ("gemm_offset4_m8", 16),
        (Offset4, false) => ("gemm_offset4_m64", 32),
        (Mxfp4, true) => ("gemm_mxfp4_m8", 16),
        (Mxfp4, false) => ("gemm_mxfp4_m64", 32),
        (Q8_0, true) => ("gemm_q8_0_m8", 16),
        (Q8_0, false) => ("gemm_q8_0_m64", 32),
        (Q4_0, true) => ("gemm_q4_0_m8", 16),
        (Q4_0, false) => ("gemm_q4_0_m64", 32),
        (Q4_1, true) => ("gemm_q4_1_m8", 16),
        (Q4_1, false) => ("gemm_q4_1_m64", 32),
        (Q5_0, true) => ("gemm_q5_0_m8", 16),
        (Q5_0, false) => ("gemm_q5_0_m64", 32),
        (Q5_1, true) => ("gemm_q5_1_m8", 16),
        (Q5_1, false) => ("gemm_q5_1_m64", 32),
        (Q4K, true) => ("gemm_q4_k_m8", 16),
        (Q4K, false) => ("gemm_q4_k_m64", 32),
        (Q5K, true) => ("gemm_q5_k_m8", 16),
        (Q5K, false) => ("gemm_q5_k_m64", 32),
        (Q6K, true) => ("gemm_q6_k_m8", 16),
        (Q6K, false) => ("gemm_q6_k_m64", 32),
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
        Encoding::Nf4d => "naive_gemm_nf4d",
        Encoding::Lossless => "naive_gemm_lossless",
        Encoding::Fp4 => "naive_gemm_fp4",
        Encoding::Int8Zero => "naive_gemm_int8z",
        Encoding::Offset8 => "naive_gemm_offset8",
        Encoding::Offset4 => "naive_gemm_offset4",
        Encoding::Mxfp4 => "naive_gemm_mxfp4",
        Encoding::Q8_0 => "naive_gemm_q8_0",
        Encoding::Q4_0 => "naive_gemm_q4_0",
        Encoding::Q4_1 => "naive_gemm_q4_1",
        Encoding::Q5_0 => "naive_gemm_q5_0",
        Encoding::Q5_1 => "naive_gemm_q5_1",
        Encoding::Q4K => "naive_gemm_q4_k",
        Encoding::Q5K => "naive_gemm_q5_k",
        Encoding::Q6K => "naive_gemm_q6_k",
    };
    let columns = to_u32((params.n as usize).div_ceil(256));
    Launch { kernel, grid: [columns, params.m as u32, 1], block: [256, 1, 1], shared: 0 }
}

//! Launches of transposed.cu: the product with a matrix that is stored as its transpose.

use super::{Launch, to_u32};
use crate::params::TransposedParams;

/// What such a matrix is made of; the formats are described at `struct TransposedParams` in params.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Numbers of `dtype`.
    Numbers,
    Gptq4,
    Gptq8,
    Awq4,
}

/// One thread an output of 8 or of 32 rows of activations; the bits are the same.
pub fn product(stored: Stored, params: &TransposedParams) -> Launch {
    use Stored::*;
    let (kernel, rows) = match (stored, params.m <= 8) {
        (Numbers, true) => ("gemm_transposed_m8", 8),
        (Numbers, false) => ("gemm_transposed_m32", 32),
        (Gptq4, true) => ("gemm_transposed_gptq4_m8", 8),
        (Gptq4, false) => ("gemm_transposed_gptq4_m32", 32),
        (Gptq8, true) => ("gemm_transposed_gptq8_m8", 8),
        (Gptq8, false) => ("gemm_transposed_gptq8_m32", 32),
        (Awq4, true) => ("gemm_transposed_awq4_m8", 8),
        (Awq4, false) => ("gemm_transposed_awq4_m32", 32),
    };
    let (across, down) = ((params.n as usize).div_ceil(128), (params.m as usize).div_ceil(rows));
    Launch { kernel, grid: [to_u32(across), to_u32(down), 1], block: [128, 1, 1], shared: 0 }
}

/// The naive twin: one thread an output.
pub fn naive(stored: Stored, params: &TransposedParams) -> Launch {
    let kernel = match stored {
        Stored::Numbers => "naive_gemm_transposed",
        Stored::Gptq4 => "naive_gemm_transposed_gptq4",
        Stored::Gptq8 => "naive_gemm_transposed_gptq8",
        Stored::Awq4 => "naive_gemm_transposed_awq4",
    };
    let across = to_u32((params.n as usize).div_ceil(128));
    Launch { kernel, grid: [across, params.m as u32, 1], block: [128, 1, 1], shared: 0 }
}

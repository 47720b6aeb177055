//! Launches of transposed.cu: the product with a matrix that is stored as its transpose.

use super::{Launch, to_u32};
use crate::params::TransposedParams;

/// One thread an output of 8 or of 32 rows of activations; the bits are the same.
pub fn product(params: &TransposedParams) -> Launch {
    let (kernel, rows) = if params.m <= 8 { ("gemm_transposed_m8", 8) } else { ("gemm_transposed_m32", 32) };
    let (across, down) = ((params.n as usize).div_ceil(128), (params.m as usize).div_ceil(rows));
    Launch { kernel, grid: [to_u32(across), to_u32(down), 1], block: [128, 1, 1], shared: 0 }
}

/// The naive twin: one thread an output.
pub fn naive(params: &TransposedParams) -> Launch {
    let across = to_u32((params.n as usize).div_ceil(128));
    Launch { kernel: "naive_gemm_transposed", grid: [across, params.m as u32, 1], block: [128, 1, 1], shared: 0 }
}

//! Launches of lengths.cu: the Euclidean lengths of rows of weights, in every encoding.

use super::Launch;
use super::gemm::Encoding;
use crate::params::RowLengthsParams;

/// One warp a row.
pub fn row_lengths(encoding: Encoding, params: &RowLengthsParams) -> Launch {
    let kernel = match encoding {
        Encoding::F32 => "row_lengths_f32",
        Encoding::F16 => "row_lengths_f16",
        Encoding::Bf16 => "row_lengths_bf16",
        Encoding::Int8 => "row_lengths_int8",
        Encoding::Fp8 => "row_lengths_fp8",
        Encoding::Nf4 => "row_lengths_nf4",
        Encoding::Nf4d => "row_lengths_nf4d",
        Encoding::Lossless => "row_lengths_lossless",
        Encoding::Fp4 => "row_lengths_fp4",
        Encoding::Int8Zero => "row_lengths_int8z",
        Encoding::Offset8 => "row_lengths_offset8",
        Encoding::Offset4 => "row_lengths_offset4",
        Encoding::Mxfp4 => "row_lengths_mxfp4",
        Encoding::Q8_0 => "row_lengths_q8_0",
        Encoding::Q4_0 => "row_lengths_q4_0",
        Encoding::Q4_1 => "row_lengths_q4_1",
        Encoding::Q5_0 => "row_lengths_q5_0",
        Encoding::Q5_1 => "row_lengths_q5_1",
        Encoding::Q4K => "row_lengths_q4_k",
        Encoding::Q5K => "row_lengths_q5_k",
        Encoding::Q6K => "row_lengths_q6_k",
    };
    Launch::linear(kernel, (params.n as usize).div_ceil(8), 256)
}

/// The naive twin: one thread a row.
pub fn naive(encoding: Encoding, params: &RowLengthsParams) -> Launch {
    let kernel = match encoding {
        Encoding::F32 => "naive_row_lengths_f32",
        Encoding::F16 => "naive_row_lengths_f16",
        Encoding::Bf16 => "naive_row_lengths_bf16",
        Encoding::Int8 => "naive_row_lengths_int8",
        Encoding::Fp8 => "naive_row_lengths_fp8",
        Encoding::Nf4 => "naive_row_lengths_nf4",
        Encoding::Nf4d => "naive_row_lengths_nf4d",
        Encoding::Lossless => "naive_row_lengths_lossless",
        Encoding::Fp4 => "naive_row_lengths_fp4",
        Encoding::Int8Zero => "naive_row_lengths_int8z",
        Encoding::Offset8 => "naive_row_lengths_offset8",
        Encoding::Offset4 => "naive_row_lengths_offset4",
        Encoding::Mxfp4 => "naive_row_lengths_mxfp4",
        Encoding::Q8_0 => "naive_row_lengths_q8_0",
        Encoding::Q4_0 => "naive_row_lengths_q4_0",
        Encoding::Q4_1 => "naive_row_lengths_q4_1",
        Encoding::Q5_0 => "naive_row_lengths_q5_0",
        Encoding::Q5_1 => "naive_row_lengths_q5_1",
        Encoding::Q4K => "naive_row_lengths_q4_k",
        Encoding::Q5K => "naive_row_lengths_q5_k",
        Encoding::Q6K => "naive_row_lengths_q6_k",
    };
    Launch::linear(kernel, (params.n as usize).div_ceil(128), 128)
}

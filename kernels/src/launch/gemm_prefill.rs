//! Launches of gemm_prefill.cu: the multiply for any number of rows, in every encoding.

use super::gemm::Encoding;
use super::{Launch, to_u32};
use crate::params::{PrefillParams, Weights};

/// Outputs on a side of a block's tile.
const TILE: usize = 128;
/// Two stages of a slice of activations and one of weights, 128 rows of 64 numbers of 16 bits each; the kernels without
/// tensor cores, which have these names on sm_75, need less.
const TENSOR_SHARED: u32 = 2 * 2 * 128 * 64 * 2;
/// Two stages of 8 rows of 128 numbers of float32 and a gap of 4, of activations and of weights.
const SIMT_SHARED: u32 = 2 * 2 * 8 * (128 + 4) * 4;

/// Whether tensor cores can multiply by rows of k weights: whole steps, each with one scale (`whole_steps` of dequant.cuh).
/// A property of the weight, so that bits do not depend on the tile or on who shares the batch.
fn whole_steps(encoding: Encoding, w: &Weights, k: i32) -> bool {
    match encoding {
        Encoding::F32 => false,
        Encoding::F16 | Encoding::Bf16 | Encoding::Lossless => k % 32 == 0,
        Encoding::Int8
        | Encoding::Int8Zero
        | Encoding::Offset8
        | Encoding::Offset4
        | Encoding::Fp8
        | Encoding::Nf4
        | Encoding::Nf4d
        | Encoding::Fp4 => k % 64 == 0 && w.column_shift >= 6 && w.index.is_null(),
        Encoding::Mxfp4
        | Encoding::Q8_0
        | Encoding::Q4_0
        | Encoding::Q4_1
        | Encoding::Q5_0
        | Encoding::Q5_1
        | Encoding::Q4K
        | Encoding::Q5K
        | Encoding::Q6K => k % 64 == 0,
    }
}

/// The multiply for prefill: any number of rows of activations, one at least. A row's result is the same, bit for bit,
/// whoever shares the launch; it is not that of [`super::gemm::decode`].
pub fn prefill(encoding: Encoding, params: &PrefillParams) -> Launch {
    use Encoding::*;
    let product = &params.product;
    let (kernel, shared) = match (encoding, whole_steps(encoding, &product.w, product.k)) {
        (F32, _) => ("gemm_prefill_f32_simt", SIMT_SHARED),
        (F16, true) => ("gemm_prefill_f16", TENSOR_SHARED),
        (F16, false) => ("gemm_prefill_f16_simt", SIMT_SHARED),
        (Bf16, true) => ("gemm_prefill_bf16", TENSOR_SHARED),
        (Bf16, false) => ("gemm_prefill_bf16_simt", SIMT_SHARED),
        (Int8, true) => ("gemm_prefill_int8", TENSOR_SHARED),
        (Int8, false) => ("gemm_prefill_int8_simt", SIMT_SHARED),
        (Fp8, true) => ("gemm_prefill_fp8", TENSOR_SHARED),
        (Fp8, false) => ("gemm_prefill_fp8_simt", SIMT_SHARED),
        (Nf4, true) => ("gemm_prefill_nf4", TENSOR_SHARED),
        (Nf4, false) => ("gemm_prefill_nf4_simt", SIMT_SHARED),
        (Nf4d, true) => ("gemm_prefill_nf4d", TENSOR_SHARED),
        (Nf4d, false) => ("gemm_prefill_nf4d_simt", SIMT_SHARED),
        (Lossless, true) => ("gemm_prefill_lossless", TENSOR_SHARED),
        (Lossless, false) => ("gemm_prefill_lossless_simt", SIMT_SHARED),
        (Fp4, true) => ("gemm_prefill_fp4", TENSOR_SHARED),
        (Fp4, false) => ("gemm_prefill_fp4_simt", SIMT_SHARED),
        (Int8Zero, true) => ("gemm_prefill_int8z", TENSOR_SHARED),
        (Int8Zero, false) => ("gemm_prefill_int8z_simt", SIMT_SHARED),
        (Offset8, true) => ("gemm_prefill_offset8", TENSOR_SHARED),
        (Offset8, false) => ("gemm_prefill_offset8_simt", SIMT_SHARED),
        (Offset4, true) => ("gemm_prefill_offset4", TENSOR_SHARED),
        (Offset4, false) => ("gemm_prefill_offset4_simt", SIMT_SHARED),
        (Mxfp4, true) => ("gemm_prefill_mxfp4", TENSOR_SHARED),
        (Mxfp4, false) => ("gemm_prefill_mxfp4_simt", SIMT_SHARED),
        (Q8_0, true) => ("gemm_prefill_q8_0", TENSOR_SHARED),
        (Q8_0, false) => ("gemm_prefill_q8_0_simt", SIMT_SHARED),
        (Q4_0, true) => ("gemm_prefill_q4_0", TENSOR_SHARED),
        (Q4_0, false) => ("gemm_prefill_q4_0_simt", SIMT_SHARED),
        (Q4_1, true) => ("gemm_prefill_q4_1", TENSOR_SHARED),
        (Q4_1, false) => ("gemm_prefill_q4_1_simt", SIMT_SHARED),
        (Q5_0, true) => ("gemm_prefill_q5_0", TENSOR_SHARED),
        (Q5_0, false) => ("gemm_prefill_q5_0_simt", SIMT_SHARED),
        (Q5_1, true) => ("gemm_prefill_q5_1", TENSOR_SHARED),
        (Q5_1, false) => ("gemm_prefill_q5_1_simt", SIMT_SHARED),
        (Q4K, true) => ("gemm_prefill_q4_k", TENSOR_SHARED),
        (Q4K, false) => ("gemm_prefill_q4_k_simt", SIMT_SHARED),
        (Q5K, true) => ("gemm_prefill_q5_k", TENSOR_SHARED),
        (Q5K, false) => ("gemm_prefill_q5_k_simt", SIMT_SHARED),
        (Q6K, true) => ("gemm_prefill_q6_k", TENSOR_SHARED),
        (Q6K, false) => ("gemm_prefill_q6_k_simt", SIMT_SHARED),
    };
    let tiles = |n: i32| usize::try_from(n).expect("sizes are not negative").div_ceil(TILE);
    Launch { shared, ..Launch::linear(kernel, tiles(product.m) * tiles(product.n), 128) }
}

/// The naive twin: one output a thread.
pub fn naive(encoding: Encoding, params: &PrefillParams) -> Launch {
    let kernel = match encoding {
        Encoding::F32 => "naive_gemm_prefill_f32",
        Encoding::F16 => "naive_gemm_prefill_f16",
        Encoding::Bf16 => "naive_gemm_prefill_bf16",
        Encoding::Int8 => "naive_gemm_prefill_int8",
        Encoding::Fp8 => "naive_gemm_prefill_fp8",
        Encoding::Nf4 => "naive_gemm_prefill_nf4",
        Encoding::Nf4d => "naive_gemm_prefill_nf4d",
        Encoding::Lossless => "naive_gemm_prefill_lossless",
        Encoding::Fp4 => "naive_gemm_prefill_fp4",
        Encoding::Int8Zero => "naive_gemm_prefill_int8z",
        Encoding::Offset8 => "naive_gemm_prefill_offset8",
        Encoding::Offset4 => "naive_gemm_prefill_offset4",
        Encoding::Mxfp4 => "naive_gemm_prefill_mxfp4",
        Encoding::Q8_0 => "naive_gemm_prefill_q8_0",
        Encoding::Q4_0 => "naive_gemm_prefill_q4_0",
        Encoding::Q4_1 => "naive_gemm_prefill_q4_1",
        Encoding::Q5_0 => "naive_gemm_prefill_q5_0",
        Encoding::Q5_1 => "naive_gemm_prefill_q5_1",
        Encoding::Q4K => "naive_gemm_prefill_q4_k",
        Encoding::Q5K => "naive_gemm_prefill_q5_k",
        Encoding::Q6K => "naive_gemm_prefill_q6_k",
    };
    let columns = to_u32((params.product.n as usize).div_ceil(256));
    Launch { kernel, grid: [columns, params.product.m as u32, 1], block: [256, 1, 1], shared: 0 }
}

//! Launches of attention_prefill.cu and attention_decode.cu.
//!
//! Which of the two computes a row is for the caller to say, by phase; their bits differ. Which kernel of either does it
//! follows from the model and the cache alone.

use super::{Launch, to_u32};
use crate::params::{AttentionParams, Dtype};

/// Positions in a split of the keys (SPLIT_KEYS of attention.cuh).
const SPLIT_KEYS: usize = 256;

/// What a launch needs to know of a problem.
struct Shape {
    /// Queries of the longest sequence that share a key head.
    queries: usize,
    kv_heads: usize,
    sequences: usize,
    dim: usize,
    v_dim: usize,
}

impl Shape {
    fn new(params: &AttentionParams) -> Shape {
        let n = |value: i32| usize::try_from(value).expect("counts and sizes are not negative");
        let shape = Shape {
            queries: n(params.most_rows) * n(params.heads / params.kv_heads),
            kv_heads: n(params.kv_heads),
            sequences: n(params.sequence_count),
            dim: n(params.dim),
            v_dim: n(params.v_dim),
        };
        assert!(params.heads % params.kv_heads == 0, "{} heads share {} key heads", params.heads, params.kv_heads);
        assert!(shape.dim.max(shape.v_dim) <= 256, "head dims {} and {}: at most 256", shape.dim, shape.v_dim);
        shape
    }

    /// Bytes of shared memory of the kernels without tensor cores (SimtShared of attention_simt.cuh).
    fn simt_shared(&self) -> usize {
        let stride = self.dim.max(self.v_dim).next_multiple_of(4) + 4;
        ((16 + 32) * stride + 16 * 32 + 3 * 16) * size_of::<f32>()
    }

    /// The kernel's suffix and its shared memory, for tiles of `keys[0]` keys up to head dim 128 and `keys[1]` above. On
    /// sm_75 kernels of every name do without tensor cores, so there is room for either kind.
    fn variant(&self, params: &AttentionParams, keys: [usize; 2]) -> (usize, usize) {
        let whole = self.dim.is_multiple_of(16) && self.v_dim.is_multiple_of(16);
        let aligned = (params.keys as usize).is_multiple_of(16) && (params.values as usize).is_multiple_of(16);
        let base = match params.cache_dtype {
            Dtype::DTYPE_BF16 if whole && aligned => 0,
            Dtype::DTYPE_F16 if whole && aligned => 2,
            _ => return (4, self.simt_shared()),
        };
        let wide = usize::from(self.dim.max(self.v_dim) > 128);
        let shared = 2 * keys[wide] * [128, 256][wide] * 2;
        (base + wide, shared.max(self.simt_shared()))
    }
}

/// Attention of any number of rows: 64 queries a block.
pub fn prefill(params: &AttentionParams) -> Launch {
    const KERNELS: [&str; 5] = [
        "attention_prefill_bf16_128",
        "attention_prefill_bf16_256",
        "attention_prefill_f16_128",
        "attention_prefill_f16_256",
        "attention_prefill_simt",
    ];
    let shape = Shape::new(params);
    let (kernel, shared) = shape.variant(params, [64, 32]);
    let grid = [shape.queries.div_ceil(64), shape.kv_heads, shape.sequences].map(to_u32);
    Launch { kernel: KERNELS[kernel], grid, block: [128, 1, 1], shared: to_u32(shared) }
}

/// Attention of few rows a sequence: sixteen queries and one split of the keys a block, then a block for each row and head
/// that adds the splits. The workspace has [`decode_workspace`] floats.
pub fn decode(params: &AttentionParams) -> [Launch; 2] {
    const KERNELS: [&str; 5] = [
        "attention_decode_bf16_128",
        "attention_decode_bf16_256",
        "attention_decode_f16_128",
        "attention_decode_f16_256",
        "attention_decode_simt",
    ];
    let shape = Shape::new(params);
    let (kernel, shared) = shape.variant(params, [64, 64]);
    let tiles = shape.queries.div_ceil(16) * shape.sequences;
    let splits = (params.most_keys as usize).div_ceil(SPLIT_KEYS);
    let grid = [splits, shape.kv_heads, tiles].map(to_u32);
    let partials = Launch { kernel: KERNELS[kernel], grid, block: [128, 1, 1], shared: to_u32(shared) };
    let grid = [params.most_rows as usize, params.heads as usize, shape.sequences].map(to_u32);
    [partials, Launch { kernel: "attention_combine", grid, block: [256, 1, 1], shared: 0 }]
}

/// Floats in the workspace of a decode.
pub fn decode_workspace(params: &AttentionParams) -> usize {
    let rows = params.sequence_count as usize * params.most_rows as usize * params.heads as usize;
    rows * (params.most_keys as usize).div_ceil(SPLIT_KEYS) * (params.v_dim as usize + 2)
}

/// The naive twin: a thread for each row and head. The workspace has [`naive_workspace`] floats.
pub fn naive_attention(params: &AttentionParams) -> Launch {
    let items = params.most_rows as usize * params.heads as usize;
    let grid = [to_u32(items.div_ceil(64)), to_u32(params.sequence_count as usize), 1];
    Launch { kernel: "naive_attention", grid, block: [64, 1, 1], shared: 0 }
}

/// Floats in the workspace of the naive twin.
pub fn naive_workspace(params: &AttentionParams) -> usize {
    let rows = params.sequence_count as usize * params.most_rows as usize * params.heads as usize;
    rows * params.most_keys as usize
}

//! Launches of sample.cu: the soft cap on logits, argmax and candidates.

use super::{Launch, to_u32};
use crate::params::{SoftCapParams, TOP_K_PIECE, TopKParams};

/// The largest `k` of [`top_k`].
pub const MAX_TOP_K: usize = TOP_K_PIECE as usize / 2;

/// The soft cap on logits: four elements a thread.
pub fn soft_cap(params: &SoftCapParams) -> Launch {
    let pieces = to_u32((params.n as usize).div_ceil(1024));
    Launch { kernel: "soft_cap", grid: [params.rows as u32, pieces, 1], block: [256, 1, 1], shared: 0 }
}

/// The naive twin: one element a thread.
pub fn naive_soft_cap(params: &SoftCapParams) -> Launch {
    let pieces = to_u32((params.n as usize).div_ceil(128));
    Launch { kernel: "naive_soft_cap", grid: [params.rows as u32, pieces, 1], block: [128, 1, 1], shared: 0 }
}

/// The `k` largest logits of each row: two launches, one after the other. With k = 1 the first of the largest.
///
/// # Panics
/// If `k` is 0, more than `n` or more than [`MAX_TOP_K`].
pub fn top_k(params: &TopKParams) -> [Launch; 2] {
    let k = params.k as usize;
    assert!((1..=MAX_TOP_K.min(params.n as usize)).contains(&k), "the {k} largest of {}, of {MAX_TOP_K}", params.n);
    let (pieces, row) = if k == 1 { ("argmax_pieces", "argmax") } else { ("top_k_pieces", "top_k") };
    let launch = |kernel, y| Launch { kernel, grid: [params.rows as u32, to_u32(y), 1], block: [256, 1, 1], shared: 0 };
    [launch(pieces, top_k_pieces(params)), launch(row, 1)]
}

/// Numbers that `parts` has to have room for.
pub fn top_k_parts(params: &TopKParams) -> usize {
    params.rows as usize * top_k_pieces(params) * params.k as usize
}

fn top_k_pieces(params: &TopKParams) -> usize {
    (params.n as usize).div_ceil(TOP_K_PIECE as usize)
}

/// The naive twin: one row a thread.
pub fn naive_top_k(params: &TopKParams) -> Launch {
    Launch::linear("naive_top_k", (params.rows as usize).div_ceil(32), 32)
}

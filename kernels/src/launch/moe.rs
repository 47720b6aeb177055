//! Launches of moe.cu: routing, the lists of rows that each expert gets, and the sum of what experts made.

use super::{Launch, to_u32};
use crate::params::{ExpertListsParams, RouteParams, SumExpertsParams};

/// Experts that [`route`] can choose from: what fits into shared memory.
pub const MAX_EXPERTS: usize = 1024;

/// Rows that a block of `route` has, one a warp.
const ROUTE_ROWS: usize = 4;

/// The choice of experts: one row a warp.
///
/// # Panics
/// If `params` ask for more experts than there are to choose from, or for groups that do not divide them.
pub fn route(params: &RouteParams) -> Launch {
    check_route(params);
    let blocks = to_u32((params.rows as usize).div_ceil(ROUTE_ROWS));
    // An 8-byte rank and a 4-byte score for each.
    let shared = to_u32(ROUTE_ROWS * params.experts as usize * 12);
    Launch { kernel: "route", grid: [blocks, 1, 1], block: [32 * ROUTE_ROWS as u32, 1, 1], shared }
}

/// The naive twin: one row a thread.
pub fn naive_route(params: &RouteParams) -> Launch {
    check_route(params);
    Launch::linear("naive_route", (params.rows as usize).div_ceil(32), 32)
}

fn check_route(p: &RouteParams) {
    assert!((1..=MAX_EXPERTS as i32).contains(&p.experts), "{} experts, expected 1 to {MAX_EXPERTS}", p.experts);
    assert!((1..=32).contains(&p.groups) && p.experts % p.groups == 0, "{} experts in {} groups", p.experts, p.groups);
    let size = p.experts / p.groups;
    assert!((1..=p.groups).contains(&p.top_groups), "{} of {} groups", p.top_groups, p.groups);
    assert!((1..=2.min(size)).contains(&p.group_best), "a group of {size} judged by its best {}", p.group_best);
    assert!((1..=p.top_groups * size).contains(&p.top_k), "{} of {} groups of {size}", p.top_k, p.top_groups);
}

/// The lists of rows: one expert a block.
pub fn expert_lists(params: &ExpertListsParams) -> Launch {
    Launch::linear("expert_lists", params.experts as usize, 256)
}

/// The naive twin: one thread.
pub fn naive_expert_lists(_: &ExpertListsParams) -> Launch {
    Launch::linear("naive_expert_lists", 1, 1)
}

/// The weighted sum of experts' outputs: four elements a thread, a piece of a row a block.
pub fn sum_experts(params: &SumExpertsParams) -> Launch {
    let pieces = to_u32((params.dim as usize).div_ceil(1024));
    Launch { kernel: "sum_experts", grid: [params.rows as u32, pieces, 1], block: [256, 1, 1], shared: 0 }
}

/// The naive twin: one element a thread.
pub fn naive_sum_experts(params: &SumExpertsParams) -> Launch {
    let pieces = to_u32((params.dim as usize).div_ceil(128));
    Launch { kernel: "naive_sum_experts", grid: [params.rows as u32, pieces, 1], block: [128, 1, 1], shared: 0 }
}

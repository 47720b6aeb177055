//! Launches of rope.cu: the rotation of queries and keys, fused with the append to the KV cache.

use super::Launch;
use crate::params::RopeParams;

/// Heads that are turned, copied or both.
fn items(params: &RopeParams) -> usize {
    params.rows as usize * (params.q_heads + 2 * params.kv_heads) as usize
}

/// Turns queries and keys, and appends keys and values: one warp a head of a row.
pub fn rope(params: &RopeParams) -> Launch {
    Launch::linear("rope", items(params).div_ceil(8), 256)
}

/// The naive twin: one thread a head of a row.
pub fn naive_rope(params: &RopeParams) -> Launch {
    Launch::linear("naive_rope", items(params).div_ceil(128), 128)
}

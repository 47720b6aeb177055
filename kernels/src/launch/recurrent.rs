//! Launches of recurrent.cu: layers that keep a state of each sequence.

use super::{Launch, to_u32};
use crate::params::{ConvolveParams, DeltaRuleParams};

/// Columns of a state that a block has (COLUMNS times WARPS of recurrent.cu).
const BLOCK_COLUMNS: usize = 16;

/// The most key dimensions that a head may have.
pub const MAX_KEY_DIM: usize = 256;

fn blocks(items: usize, a_block: usize, stretches: i32) -> [u32; 3] {
    [to_u32(items.div_ceil(a_block)), stretches as u32, 1]
}

/// The convolution over tokens: one channel of a stretch a thread.
pub fn convolve(params: &ConvolveParams) -> Launch {
    let grid = blocks(params.channels as usize, 64, params.stretch_count);
    Launch { kernel: "convolve", grid, block: [64, 1, 1], shared: 0 }
}

/// The naive twin: the same, a token at a time.
pub fn naive_convolve(params: &ConvolveParams) -> Launch {
    Launch { kernel: "naive_convolve", ..convolve(params) }
}

/// The gated delta rule: four columns of a head's state a warp.
pub fn delta_rule(params: &DeltaRuleParams) -> Launch {
    let DeltaRuleParams { key_dim, value_dim, key_heads, value_heads, stretch_count, .. } = *params;
    assert!(key_dim as usize <= MAX_KEY_DIM, "heads of {key_dim} key dimensions: at most {MAX_KEY_DIM}");
    assert!(value_heads % key_heads == 0, "{value_heads} heads share {key_heads} key heads");
    let kernel = if key_dim <= 128 { "delta_rule_128" } else { "delta_rule_256" };
    let pieces = (value_dim as usize).div_ceil(BLOCK_COLUMNS);
    let grid = [value_heads as u32, to_u32(pieces), stretch_count as u32];
    Launch { kernel, grid, block: [128, 1, 1], shared: 0 }
}

/// The naive twin: one column of a head's state a thread.
pub fn naive_delta_rule(params: &DeltaRuleParams) -> Launch {
    let grid = blocks(params.value_heads as usize * params.value_dim as usize, 64, params.stretch_count);
    Launch { kernel: "naive_delta_rule", grid, block: [64, 1, 1], shared: 0 }
}

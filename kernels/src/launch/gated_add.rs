//! Launches of gated_add.cu: sums of rows, and rows times a gate.

use super::{Launch, to_u32};
use crate::params::GatedAddParams;

/// `x · sigmoid(gate) + add`: four elements a thread, a piece of a row a block.
pub fn gated_add(params: &GatedAddParams) -> Launch {
    let pieces = (params.n as usize).div_ceil(1024);
    Launch { kernel: "gated_add", grid: [params.rows as u32, to_u32(pieces), 1], block: [256, 1, 1], shared: 0 }
}

/// The naive twin: one element a thread.
pub fn naive_gated_add(params: &GatedAddParams) -> Launch {
    let pieces = (params.n as usize).div_ceil(128);
    Launch { kernel: "naive_gated_add", grid: [params.rows as u32, to_u32(pieces), 1], block: [128, 1, 1], shared: 0 }
}

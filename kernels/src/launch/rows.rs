//! Launches of rows.cu: rows multiplied by a number each.

use super::{Launch, to_u32};
use crate::params::ScaleRowsParams;

/// Four elements a thread, a piece of a row a block.
pub fn scale_rows(params: &ScaleRowsParams) -> Launch {
    let pieces = (params.n as usize).div_ceil(1024);
    Launch { kernel: "scale_rows", grid: [params.rows as u32, to_u32(pieces), 1], block: [256, 1, 1], shared: 0 }
}

/// The naive twin: one element a thread.
pub fn naive_scale_rows(params: &ScaleRowsParams) -> Launch {
    let pieces = (params.n as usize).div_ceil(128);
    Launch { kernel: "naive_scale_rows", grid: [params.rows as u32, to_u32(pieces), 1], block: [128, 1, 1], shared: 0 }
}

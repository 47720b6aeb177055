//! Launches of norm.cu: RMSNorm of rows and of heads, with and without a residual, and LayerNorm.

use super::Launch;
use crate::params::NormParams;

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    Rms,
    Layer,
}

/// Rows up to this long belong to a warp, longer ones to a block. Decided by the row, never by how many there are.
const WARP_ROW: i32 = 512;

/// The launch for `params`: one row a warp or one a block.
pub fn norm(norm: Norm, params: &NormParams) -> Launch {
    let rows = params.rows as usize;
    if params.dim <= WARP_ROW {
        let kernel = if norm == Norm::Rms { "rms_norm_heads" } else { "layer_norm_heads" };
        Launch::linear(kernel, rows.div_ceil(8), 256)
    } else {
        let kernel = if norm == Norm::Rms { "rms_norm" } else { "layer_norm" };
        Launch::linear(kernel, rows, 256)
    }
}

/// The naive twin: one row a thread.
pub fn naive_norm(norm: Norm, params: &NormParams) -> Launch {
    let kernel = if norm == Norm::Rms { "naive_rms_norm" } else { "naive_layer_norm" };
    Launch::linear(kernel, (params.rows as usize).div_ceil(128), 128)
}

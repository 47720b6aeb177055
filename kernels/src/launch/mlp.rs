//! Launches of mlp.cu: what an MLP does between its products, with a gate and without.

use super::{Launch, to_u32};
use crate::params::{ActivateParams, GluParams};

/// The activation of a gated MLP: four elements a thread, a piece of a row a block.
pub fn glu(params: &GluParams) -> Launch {
    let pieces = (params.dim as usize).div_ceil(1024);
    Launch { kernel: "glu", grid: [params.rows as u32, to_u32(pieces), 1], block: [256, 1, 1], shared: 0 }
}

/// The naive twin: one element a thread.
pub fn naive_glu(params: &GluParams) -> Launch {
    let pieces = (params.dim as usize).div_ceil(128);
    Launch { kernel: "naive_glu", grid: [params.rows as u32, to_u32(pieces), 1], block: [128, 1, 1], shared: 0 }
}

/// An activation alone: as [`glu`].
pub fn activate(params: &ActivateParams) -> Launch {
    let pieces = (params.dim as usize).div_ceil(1024);
    Launch { kernel: "activate", grid: [params.rows as u32, to_u32(pieces), 1], block: [256, 1, 1], shared: 0 }
}

/// The naive twin: one element a thread.
pub fn naive_activate(params: &ActivateParams) -> Launch {
    let pieces = (params.dim as usize).div_ceil(128);
    Launch { kernel: "naive_activate", grid: [params.rows as u32, to_u32(pieces), 1], block: [128, 1, 1], shared: 0 }
}

//! Launches of factors.cu: the factors of a matrix as products take them.

use super::Launch;
use crate::params::FactorParams;

/// One thread a stored element.
pub fn factors(params: &FactorParams) -> Launch {
    Launch::linear("factors", (params.count as usize).div_ceil(256), 256)
}

/// The naive twin: one thread an output.
pub fn naive(params: &FactorParams) -> Launch {
    Launch::linear("naive_factors", (params.outputs as usize).div_ceil(128), 128)
}

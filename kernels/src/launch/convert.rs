//! Launches of convert.cu: gathers of rows and conversions between element types.

use super::Launch;
use crate::params::ConvertParams;

/// Picks, scales and converts rows: one thread eight elements.
pub fn convert(params: &ConvertParams) -> Launch {
    let eights = params.rows as usize * (params.cols as usize).div_ceil(8);
    Launch::linear("convert", eights.div_ceil(256), 256)
}

/// The naive twin: one thread an element.
pub fn naive_convert(params: &ConvertParams) -> Launch {
    let elements = params.rows as usize * params.cols as usize;
    Launch::linear("naive_convert", elements.div_ceil(128), 128)
}

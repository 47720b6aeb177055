//! Launches of convert.cu: gathers of rows and conversions between element types.

use super::Launch;
use super::gemm::Encoding;
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

/// The same of rows of GGUF's blocks, one thread sixteen elements, and of packed bfloat16, one thread eight.
///
/// # Panics
/// For an encoding without blocks of its own.
pub fn convert_blocks(encoding: Encoding, params: &ConvertParams) -> Launch {
    let (kernel, chunk) = match encoding {
        Encoding::Q8_0 => ("convert_q8_0", 16),
        Encoding::Q4_0 => ("convert_q4_0", 16),
        Encoding::Q4_1 => ("convert_q4_1", 16),
        Encoding::Q5_0 => ("convert_q5_0", 16),
        Encoding::Q5_1 => ("convert_q5_1", 16),
        Encoding::Q4K => ("convert_q4_k", 16),
        Encoding::Q5K => ("convert_q5_k", 16),
        Encoding::Q6K => ("convert_q6_k", 16),
        Encoding::Lossless => ("convert_lossless", 8),
        other => panic!("{other:?} has no blocks"),
    };
    let chunks = params.rows as usize * (params.cols as usize).div_ceil(chunk);
    Launch::linear(kernel, chunks.div_ceil(256), 256)
}

/// The naive twin of [`convert_blocks`]: one thread an element.
pub fn naive_convert_blocks(encoding: Encoding, params: &ConvertParams) -> Launch {
    let kernel = match encoding {
        Encoding::Q8_0 => "naive_convert_q8_0",
        Encoding::Q4_0 => "naive_convert_q4_0",
        Encoding::Q4_1 => "naive_convert_q4_1",
        Encoding::Q5_0 => "naive_convert_q5_0",
        Encoding::Q5_1 => "naive_convert_q5_1",
        Encoding::Q4K => "naive_convert_q4_k",
        Encoding::Q5K => "naive_convert_q5_k",
        Encoding::Q6K => "naive_convert_q6_k",
        Encoding::Lossless => "naive_convert_lossless",
        other => panic!("{other:?} has no blocks"),
    };
    Launch::linear(kernel, (params.rows as usize * params.cols as usize).div_ceil(128), 128)
}

//! Launches of peak.cu: what a card can do at best.

use super::Launch;

/// Threads of a block of every kernel in peak.cu.
pub const THREADS: usize = 256;

/// Floating-point operations that a block does in a round of `peak_mma`: a multiply and an add count as two.
pub const FLOPS_PER_ROUND: u64 = (THREADS as u64 / 32) * crate::params::PEAK_CHAINS as u64 * 2 * 16 * 8 * 16;

/// `peak_copy`, `peak_read` or `peak_mma` on so many blocks. Any number does; a few for each multiprocessor do it fast.
pub fn peak(kernel: &'static str, blocks: usize) -> Launch {
    Launch::linear(kernel, blocks, THREADS)
}

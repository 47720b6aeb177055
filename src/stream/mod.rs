//! Streaming: weights flow from drives through a fixed ring of memory to whoever multiplies with them, in the same order
//! pass after pass.
//!
//! A [`Conveyor`] reads ahead of its consumer as far as the ring has room, across the end of a pass into the next, so that
//! the drives never wait for arithmetic. Some tiles may be resident: read by the first pass that meets them, kept for ever,
//! here or by whoever took them.
//!
//! [`Experts`] streams what no fixed order can have: tiles of experts, read when a router has chosen them.

mod cache;
mod conveyor;
mod experts;
mod forecast;
mod ring;
mod schedule;
mod speed;
#[cfg(all(feature = "cuda", feature = "cli"))]
pub(crate) mod upload;
mod worker;

#[cfg(test)]
mod experts_tests;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::checkpoint::Span;
use crate::disk::ReaderKind;
use crate::disk::align::enclose;
use crate::disk::memory::HUGE_PAGE;
use crate::plan::Tier;

pub use conveyor::{Conveyor, Tile};
pub use experts::{ExpertTile, Experts, block_bytes};
pub use speed::measure;

#[cfg(feature = "cuda")]
pub(crate) use forecast::Forecast;
#[cfg(feature = "cli")]
pub(crate) use worker::{Verdict, judge};

/// A tile to be streamed: a run of bytes of one weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileRead {
    pub span: Span,
    /// Where it stays after its first read: nowhere, in the conveyor's memory, or with the consumer, who then is not
    /// given it again.
    pub tier: Tier,
}

/// What a [`Conveyor`] has done so far, and with what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StreamStats {
    /// Bytes that the drives delivered.
    pub bytes_read: u64,
    /// Bytes that were compared with their checksums, and right, in tiles of whatever tier.
    pub bytes_checked: u64,
    /// Reads that the drives completed.
    pub reads: u64,
    /// How long the consumer has waited for bytes.
    pub consumer_wait: Duration,
    /// How long readers had nothing in flight because the ring was full, summed over threads.
    pub reader_wait: Duration,
    /// Bytes of the ring.
    pub ring_bytes: usize,
    /// Bytes of the ring that really lie on 2 MiB pages.
    pub huge_bytes: usize,
    /// Bytes reserved for resident tiles.
    pub resident_bytes: usize,
    /// The most bytes of one disk read.
    pub chunk_bytes: usize,
    /// The original, then the replicas.
    pub drives: Vec<DriveStats>,
}

/// What one drive has done so far, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DriveStats {
    /// The reader that really runs.
    pub reader: ReaderKind,
    /// Reads in flight.
    pub depth: usize,
    /// Whether the ring is registered with the kernel (`io_uring` only).
    pub registered: bool,
    /// Bytes that this drive delivered.
    pub bytes_read: u64,
}

/// A tile of an expert, to be read on demand: the bytes of some rows, and of what else is needed to decode them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemandTile {
    /// Runs of bytes, in whatever order the consumer expects them.
    pub spans: Vec<Span>,
    /// Layers are counted in the order in which a pass meets them; only those with experts count.
    pub layer: usize,
    /// Within its layer.
    pub expert: usize,
}

/// What [`Experts`] have done so far, and with what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DemandStats {
    /// Bytes that the drives delivered.
    pub bytes_read: u64,
    /// Bytes that were compared with their checksums, and right, read now or kept.
    pub bytes_checked: u64,
    /// Reads that the drives completed.
    pub reads: u64,
    /// Bytes of tiles that the consumer took, or still had on a GPU.
    pub bytes_used: u64,
    /// Of these, the bytes of tiles that were still in memory, here or there.
    pub bytes_hit: u64,
    /// How long the consumer has waited for bytes.
    pub consumer_wait: Duration,
    /// Tiles of other weights that were queued to be copied to a GPU in these times.
    pub meanwhile: u64,
    /// Bytes of memory, which are the cache.
    pub memory_bytes: usize,
    /// Tiles that it holds.
    pub blocks: usize,
    /// The original, then the replicas.
    pub drives: Vec<DriveStats>,
}

impl DemandStats {
    /// The share of bytes that needed no read; nothing before anything was used.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.bytes_used > 0).then(|| self.bytes_hit as f64 / self.bytes_used as f64)
    }
}

/// The smallest ring, in bytes, through which `tiles` can be streamed: the largest tile that is not kept here, as it is
/// read (see [`resident_bytes`] for `align`). More is needed for reading ahead.
pub fn ring_floor(tiles: &[TileRead], align: usize) -> usize {
    streamed(tiles, align).max().unwrap_or(0)
}

/// Exactly the bytes that a [`Conveyor`] allocates for `tiles` and a ring of `ring_bytes`, where direct reads are aligned
/// to `align` bytes (4096 nearly everywhere). No ring is made larger than all that has to pass through it.
pub fn resident_bytes(tiles: &[TileRead], ring_bytes: usize, align: usize) -> usize {
    ring_len(tiles, ring_bytes, align) + arena_len(tiles, align)
}

fn ring_len(tiles: &[TileRead], ring_bytes: usize, align: usize) -> usize {
    ring_bytes.min(streamed(tiles, align).sum()).next_multiple_of(HUGE_PAGE)
}

fn arena_len(tiles: &[TileRead], align: usize) -> usize {
    let resident = tiles.iter().filter(|tile| tile.tier == Tier::Host);
    resident.map(|tile| enclose(tile.span, align).len).sum::<usize>().next_multiple_of(HUGE_PAGE)
}

/// The lengths, as read, of the tiles that pass through the ring.
fn streamed(tiles: &[TileRead], align: usize) -> impl Iterator<Item = usize> {
    tiles.iter().filter(|tile| tile.tier != Tier::Host).map(move |tile| enclose(tile.span, align).len)
}

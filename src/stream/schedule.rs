//! What to read next, and where it goes: the order of tiles, the ring and the arena of resident tiles, without any
//! threads or drives.
//!
//! Two places move through the endless sequence of tiles: `cursor`, the tile of which chunks are being asked for, and
//! `head`, the tile that the consumer takes next. `cursor` runs ahead by at most one pass, as far as the ring has room. The
//! consumer may hold several tiles; each leaves room for others when it is given back.

use crate::disk::Read;
use crate::disk::align::{Enclosing, chunk_size, enclose};
use crate::disk::memory::Region;
use crate::plan::Tier;

use super::TileRead;
use super::ring::Ring;

/// A tile and where it is at the moment.
struct Entry {
    file: usize,
    run: Enclosing,
    /// Bytes of the span.
    len: usize,
    tier: Tier,
    stage: Stage,
}

enum Stage {
    /// Not in memory, and nothing is on its way.
    Absent,
    /// A resident tile's own place, not filled yet.
    Empty(Region),
    /// Chunks are asked for from the front of `rest`, and come back in any order.
    Reading { rest: Region, landed: Vec<Region> },
    /// All there.
    Ready(Region),
    /// In the consumer's hands.
    Lent,
    /// The consumer has it for good.
    Gone,
}

pub(super) struct Schedule {
    tiles: Vec<Entry>,
    ring: Ring,
    chunk: usize,
    align: usize,
    head: u64,
    cursor: u64,
    /// A tile was given back as if it had not been taken, so that it has to come again.
    again: bool,
}

/// A whole tile, to be given back to the schedule that lent it.
pub(super) struct Lent {
    /// Which tile.
    pub index: usize,
    pub region: Region,
    /// Where in the region the span is.
    pub span: std::ops::Range<usize>,
}

impl Schedule {
    /// `ring` and `arena` are as large as [`super::ring_len`] and [`super::arena_len`] say for these tiles.
    pub(super) fn new(tiles: &[TileRead], ring: Region, mut arena: Region, chunk: usize, align: usize) -> Schedule {
        let entry = |tile: &TileRead| {
            let run = enclose(tile.span, align);
            let stage = if tile.tier == Tier::Host { Stage::Empty(arena.split_to(run.len)) } else { Stage::Absent };
            let (file, len) = (tile.span.file.0 as usize, tile.span.len as usize);
            Entry { file, run, len, tier: tile.tier, stage }
        };
        let tiles = tiles.iter().map(entry).collect();
        Schedule { tiles, ring: Ring::new(ring), chunk, align, head: 0, cursor: 0, again: false }
    }

    /// The next chunk to read; `None` until the consumer gives a tile back.
    pub(super) fn next_read(&mut self) -> Option<Read> {
        let passes = self.tiles.len() as u64;
        while self.cursor - self.head < passes {
            let token = self.cursor % passes;
            let tile = &mut self.tiles[token as usize];
            match std::mem::replace(&mut tile.stage, Stage::Absent) {
                Stage::Absent => {
                    let rest = self.ring.place(tile.run.len)?;
                    tile.stage = Stage::Reading { rest, landed: Vec::new() };
                }
                Stage::Empty(rest) => tile.stage = Stage::Reading { rest, landed: Vec::new() },
                Stage::Reading { mut rest, landed } => {
                    let offset = tile.run.offset + (tile.run.len - rest.len()) as u64;
                    let chunk = chunk_size(tile.run.len, self.chunk, self.align).min(rest.len());
                    let region = rest.split_to(chunk);
                    if rest.is_empty() {
                        self.cursor += 1;
                    }
                    tile.stage = Stage::Reading { rest, landed };
                    return Some(Read { token, file: tile.file, offset, region, filled: 0, attempts: 0 });
                }
                // Its place is free again once the consumer has given it back.
                Stage::Lent if tile.tier == Tier::Disk => {
                    tile.stage = Stage::Lent;
                    return None;
                }
                // A resident tile that an earlier pass has read.
                kept => {
                    tile.stage = kept;
                    self.cursor += 1;
                }
            }
        }
        None
    }

    /// Takes back a chunk, full; says whether the tile that the consumer is to get next is now complete.
    pub(super) fn landed(&mut self, read: Read) -> bool {
        let tile = &mut self.tiles[read.token as usize];
        let Stage::Reading { landed, .. } = &mut tile.stage else { unreachable!("a chunk of a tile that is not read") };
        landed.push(read.region);
        if landed.iter().map(|chunk| chunk.len()).sum::<usize>() == tile.run.len {
            let whole = join(std::mem::take(landed)).expect("a tile has at least one chunk");
            tile.stage = Stage::Ready(whole);
        }
        self.head_is_ready()
    }

    fn head_index(&self) -> usize {
        (self.head % self.tiles.len() as u64) as usize
    }

    fn head_is_ready(&self) -> bool {
        matches!(self.tiles[self.head_index()].stage, Stage::Ready(_))
    }

    /// Whether the consumer is about to take the first tile, and all others after it.
    pub(super) fn at_start(&self) -> bool {
        self.head_index() == 0 && !self.again
    }

    /// Whether the consumer still holds the tile at `head` from the pass before.
    pub(super) fn head_is_lent(&self) -> bool {
        matches!(self.tiles[self.head_index()].stage, Stage::Lent)
    }

    /// Hands out the tile at `head` if it is complete; the one after it becomes the head.
    pub(super) fn take(&mut self) -> Option<Lent> {
        let index = self.head_index();
        let tile = &mut self.tiles[index];
        match std::mem::replace(&mut tile.stage, Stage::Lent) {
            Stage::Ready(region) => {
                let span = tile.run.skip..tile.run.skip + tile.len;
                self.advance();
                Some(Lent { index, region, span })
            }
            other => {
                tile.stage = other;
                None
            }
        }
    }

    fn advance(&mut self) {
        self.head += 1;
        self.pass_over_gone();
        self.cursor = self.cursor.max(self.head);
    }

    /// Moves `head` to a tile that there still is, if there is one.
    fn pass_over_gone(&mut self) {
        for _ in 0..self.tiles.len() {
            if !matches!(self.tiles[self.head_index()].stage, Stage::Gone) {
                return;
            }
            self.head += 1;
        }
    }

    /// Takes back what [`Schedule::take`] handed out.
    pub(super) fn give_back(&mut self, index: usize, region: Region) {
        let tile = &mut self.tiles[index];
        tile.stage = match tile.tier {
            Tier::Host => Stage::Ready(region),
            Tier::Disk | Tier::Device => {
                self.ring.free(region);
                if tile.tier == Tier::Disk { Stage::Absent } else { Stage::Gone }
            }
        };
        self.pass_over_gone();
        self.cursor = self.cursor.max(self.head);
    }

    /// Takes back what [`Schedule::take`] handed out to a consumer who has not looked at it, and who rewinds next: it comes
    /// again, even if it was to stay with the consumer.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn give_back_unused(&mut self, index: usize, region: Region) {
        self.give_back(index, region);
        let tile = &mut self.tiles[index];
        if matches!(tile.stage, Stage::Gone) {
            tile.stage = Stage::Absent;
        }
        self.again = true;
    }

    /// Starts over at the first tile, keeping the resident tiles that are complete. No read may be in flight, and the
    /// consumer has given everything back.
    pub(super) fn rewind(&mut self) {
        for tile in &mut self.tiles {
            let (region, complete) = match std::mem::replace(&mut tile.stage, Stage::Absent) {
                Stage::Reading { rest, mut landed } => {
                    landed.push(rest);
                    (join(landed).expect("just pushed one"), false)
                }
                Stage::Ready(region) => (region, true),
                other => {
                    tile.stage = other;
                    continue;
                }
            };
            match (tile.tier, complete) {
                (Tier::Host, true) => tile.stage = Stage::Ready(region),
                (Tier::Host, false) => tile.stage = Stage::Empty(region),
                (Tier::Disk | Tier::Device, _) => self.ring.free(region),
            }
        }
        (self.head, self.cursor, self.again) = (0, 0, false);
        self.pass_over_gone();
        self.cursor = self.head;
    }
}

/// Joins chunks that came back in any order.
pub(super) fn join(mut chunks: Vec<Region>) -> Option<Region> {
    chunks.sort_by_key(Region::end);
    chunks.into_iter().reduce(Region::join)
}

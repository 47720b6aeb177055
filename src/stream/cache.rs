//! Which expert tiles are in memory, and which must give way: the queue of tiles that were asked for, the blocks that hold
//! tiles, and the order of reads, without any threads or drives.
//!
//! A block that holds a used tile keeps it until another tile needs the block. Then the tile goes that is expected to be
//! needed last ([`Forecast`]).

use std::ops::Range;
use std::sync::Arc;

use crate::disk::Read;
use crate::disk::align::{Enclosing, chunk_size, enclose};
use crate::disk::memory::Region;

use super::DemandTile;
use super::forecast::Forecast;
use super::schedule::join;

/// So many evictable tiles are compared for one eviction, so that its cost does not grow with the cache.
const CANDIDATES: usize = 512;

/// A tile and where it is at the moment.
struct Entry {
    parts: Vec<Part>,
    stage: Stage,
    /// Its place in the queue while the consumer has yet to take it.
    wanted: Option<usize>,
}

/// One run of bytes of a tile.
struct Part {
    file: usize,
    run: Enclosing,
    /// Bytes of the span.
    len: usize,
}

enum Stage {
    Absent,
    /// Chunks are asked for from the front of `rest`, and come back in any order.
    Reading {
        rest: Region,
        landed: Vec<Region>,
        /// Bytes of the block that this tile does not need.
        spare: Region,
    },
    /// All there. Held by the consumer, too, while it uses the tile.
    Ready(Arc<Region>),
}

/// Bytes of tiles that were taken, and of those that needed no read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uses {
    pub taken: u64,
    pub hits: u64,
}

pub(super) struct Cache {
    tiles: Vec<Entry>,
    forecast: Forecast,
    free: Vec<Region>,
    /// Tiles that are [`Stage::Ready`], in no order.
    ready: Vec<usize>,
    /// Where in `ready` the search for a tile to evict goes on.
    hand: usize,
    queue: Vec<usize>,
    /// The place in the queue that the consumer takes next, and the first place that has no block yet.
    head: usize,
    cursor: usize,
    /// The tile whose chunks are being asked for.
    partial: Option<usize>,
    chunk: usize,
    align: usize,
    uses: Uses,
}

/// A whole tile in the consumer's hands: its block, and where in it each span is.
pub(super) struct Lent {
    pub tile: usize,
    pub region: Arc<Region>,
    pub parts: Vec<Range<usize>>,
}

/// Bytes that a tile takes in memory.
pub(super) fn tile_len(tile: &DemandTile, align: usize) -> usize {
    tile.spans.iter().map(|span| enclose(*span, align).len).sum()
}

impl Cache {
    /// `memory` is cut into blocks of `block` bytes, the largest tile's.
    pub(super) fn new(tiles: &[DemandTile], mut memory: Region, block: usize, chunk: usize, align: usize) -> Cache {
        let part = |span: &crate::checkpoint::Span| Part {
            file: span.file.0 as usize,
            run: enclose(*span, align),
            len: span.len as usize,
        };
        let entry = |tile: &DemandTile| Entry {
            parts: tile.spans.iter().map(part).collect(),
            stage: Stage::Absent,
            wanted: None,
        };
        let entries = tiles.iter().map(entry).collect();
        let mut free: Vec<_> = (0..memory.len() / block).map(|_| memory.split_to(block)).collect();
        // Blocks are taken from the end: the first ones first.
        free.reverse();
        Cache {
            tiles: entries,
            forecast: Forecast::new(tiles.iter().map(|tile| (tile.layer, tile.expert))),
            free,
            ready: Vec::new(),
            hand: 0,
            queue: Vec::new(),
            head: 0,
            cursor: 0,
            partial: None,
            chunk,
            align,
            uses: Uses::default(),
        }
    }

    pub(super) fn uses(&self) -> Uses {
        self.uses
    }

    /// Counts a tile of so many bytes that the consumer still had itself.
    #[cfg(feature = "cuda")]
    pub(super) fn had(&mut self, bytes: u64) {
        self.uses.taken += bytes;
        self.uses.hits += bytes;
    }

    /// Asks for these tiles, all of one layer, to be taken in this order.
    pub(super) fn request(&mut self, layer: usize, tiles: impl IntoIterator<Item = usize>) {
        assert!(self.head == self.queue.len(), "a request while tiles of the one before are still to be taken");
        self.queue.clear();
        self.queue.extend(tiles);
        (self.head, self.cursor) = (0, 0);
        self.forecast.request(layer, self.queue.iter().copied());
        for (place, &tile) in self.queue.iter().enumerate() {
            let entry = &mut self.tiles[tile];
            assert!(entry.wanted.is_none(), "a tile twice in one request");
            entry.wanted = Some(place);
        }
    }

    /// Forgets the tiles that are still to be taken. Reads in flight will land as if they had been wanted.
    pub(super) fn cancel(&mut self) {
        for tile in self.queue.drain(..) {
            self.tiles[tile].wanted = None;
        }
        (self.head, self.cursor) = (0, 0);
    }

    /// The next chunk to read; `None` until another request, or until the consumer gives a tile back.
    pub(super) fn next_read(&mut self) -> Option<Read> {
        loop {
            if let Some(tile) = self.partial {
                return Some(self.next_chunk(tile));
            }
            let tile = *self.queue.get(self.cursor)?;
            if matches!(self.tiles[tile].stage, Stage::Absent) {
                let mut rest = self.block()?;
                let entry = &mut self.tiles[tile];
                let spare = rest.split_to(entry.parts.iter().map(|part| part.run.len).sum());
                let (rest, spare) = (spare, rest);
                entry.stage = Stage::Reading { rest, landed: Vec::new(), spare };
                self.partial = Some(tile);
            } else {
                self.uses.hits += self.tiles[tile].len();
            }
            self.cursor += 1;
        }
    }

    fn next_chunk(&mut self, tile: usize) -> Read {
        let entry = &mut self.tiles[tile];
        let Stage::Reading { rest, .. } = &mut entry.stage else {
            unreachable!("a tile of which chunks are asked for")
        };
        let whole: usize = entry.parts.iter().map(|part| part.run.len).sum();
        let mut done = whole - rest.len();
        let part = entry.parts.iter().find(|part| {
            let here = done < part.run.len;
            done -= if here { 0 } else { part.run.len };
            here
        });
        let part = part.expect("bytes are left to ask for");
        let chunk = chunk_size(part.run.len, self.chunk, self.align).min(part.run.len - done);
        let region = rest.split_to(chunk);
        if rest.is_empty() {
            self.partial = None;
        }
        let offset = part.run.offset + done as u64;
        Read { token: tile as u64, file: part.file, offset, region, filled: 0, attempts: 0 }
    }

    /// Takes back a chunk, full; says whether the tile that the consumer is to get next is now complete.
    pub(super) fn landed(&mut self, read: Read) -> bool {
        let tile = read.token as usize;
        let entry = &mut self.tiles[tile];
        let Stage::Reading { rest, landed, .. } = &mut entry.stage else {
            unreachable!("a chunk of a tile that is not read")
        };
        landed.push(read.region);
        let whole: usize = entry.parts.iter().map(|part| part.run.len).sum();
        if rest.is_empty() && landed.iter().map(|chunk| chunk.len()).sum::<usize>() == whole {
            let Stage::Reading { landed, spare, .. } = std::mem::replace(&mut entry.stage, Stage::Absent) else {
                unreachable!("just looked")
            };
            let region = join(landed).expect("a tile has at least one chunk").join(spare);
            entry.stage = Stage::Ready(Arc::new(region));
            self.ready.push(tile);
        }
        self.head_is_ready()
    }

    pub(super) fn head_is_ready(&self) -> bool {
        self.queue.get(self.head).is_some_and(|&tile| matches!(self.tiles[tile].stage, Stage::Ready(_)))
    }

    /// Hands out the next tile of the request if it is complete.
    pub(super) fn take(&mut self) -> Option<Lent> {
        let tile = *self.queue.get(self.head).expect("a tile was asked for before it is taken");
        let entry = &mut self.tiles[tile];
        let Stage::Ready(region) = &entry.stage else { return None };
        let region = Arc::clone(region);
        entry.wanted = None;
        let mut start = 0;
        let place = |part: &Part| {
            let from = start + part.run.skip;
            start += part.run.len;
            from..from + part.len
        };
        let parts = entry.parts.iter().map(place).collect();
        let len = entry.len();
        self.uses.taken += len;
        self.head += 1;
        if self.cursor < self.head {
            self.cursor = self.head;
            self.uses.hits += len;
        }
        Some(Lent { tile, region, parts })
    }

    /// A free block, or that of the tile that is expected to be needed last, if that is after the tile at `cursor`.
    fn block(&mut self) -> Option<Region> {
        if let Some(block) = self.free.pop() {
            return Some(block);
        }
        let count = self.ready.len();
        let (mut last, mut seen) = (None, 0);
        for step in 0..count {
            let at = (self.hand + step) % count;
            let tile = self.ready[at];
            let entry = &self.tiles[tile];
            let Stage::Ready(region) = &entry.stage else { unreachable!("it is among the ready ones") };
            let soon = entry.wanted.is_some_and(|place| place < self.cursor);
            // Lent tiles have a second owner; only this cache makes new ones.
            if soon || Arc::strong_count(region) > 1 {
                continue;
            }
            let distance = self.distance(tile);
            if last.is_none_or(|(_, most)| distance > most) {
                last = Some((at, distance));
            }
            seen += 1;
            if seen == CANDIDATES {
                break;
            }
        }
        let (at, _) = last?;
        self.hand = at;
        let tile = self.ready.swap_remove(at);
        let Stage::Ready(region) = std::mem::replace(&mut self.tiles[tile].stage, Stage::Absent) else {
            unreachable!("it is among the ready ones")
        };
        Some(Arc::into_inner(region).expect("nobody else holds it"))
    }

    /// In how many layers a tile is expected to be needed.
    fn distance(&self, tile: usize) -> f64 {
        match self.tiles[tile].wanted {
            // Now, and in this order.
            Some(place) => place as f64 / self.queue.len() as f64,
            None => self.forecast.distance(tile),
        }
    }
}

impl Entry {
    /// Bytes of the spans.
    fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len as u64).sum()
    }
}

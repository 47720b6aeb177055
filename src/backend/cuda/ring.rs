//! The ring on the GPU: tiles are placed one after the other and leave in the same order. Pure bookkeeping; who places a
//! tile is told which earlier one has to be out of the way before its bytes may come.

use std::collections::VecDeque;
use std::ops::Range;

/// Tiles of which the ring keeps account, and so the most that may be between their copy and their use.
pub const MOST: usize = 64;

/// The tiles whose bytes the ring still holds, oldest first.
pub struct Ring {
    len: usize,
    /// Where the latest tile ends.
    head: usize,
    /// How many were placed, which is the number of the next one.
    placed: u64,
    live: VecDeque<Live>,
}

struct Live {
    number: u64,
    range: Range<usize>,
    /// What multiplies with it has been queued.
    used: bool,
}

/// A place for a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Counts all tiles that were ever placed.
    pub number: u64,
    pub at: usize,
    /// The tile that may still be read where this one goes, and so have those before it: its use comes first.
    pub after: Option<u64>,
}

impl Ring {
    pub fn new(len: usize) -> Ring {
        Ring { len, head: 0, placed: 0, live: VecDeque::with_capacity(MOST) }
    }

    /// A place for `len` bytes, behind the latest tile or at the beginning; 0 bytes need none but are counted. `None` while
    /// there are tiles in the way that have not been used.
    pub fn place(&mut self, len: usize) -> Option<Placed> {
        assert!(len <= self.len, "a tile of {len} bytes in a ring of {}", self.len);
        let at = if self.head + len <= self.len { self.head } else { 0 };
        let range = at..at + len;
        let overlaps = |live: &Live| live.range.start < range.end && range.start < live.range.end;
        let in_the_way = self.live.iter().rposition(overlaps).map_or(0, |last| last + 1);
        let go = in_the_way.max((self.live.len() + 1).saturating_sub(MOST));
        if !self.live.iter().take(go).all(|live| live.used) {
            return None;
        }
        let after = self.live.drain(..go).next_back().map(|live| live.number);
        let number = self.placed;
        self.placed += 1;
        if len > 0 {
            self.head = range.end;
        }
        self.live.push_back(Live { number, range, used: false });
        Some(Placed { number, at, after })
    }

    /// Says that what uses the tile has been queued.
    pub fn used(&mut self, number: u64) {
        // One that has left was used before.
        if let Some(live) = self.live.iter_mut().find(|live| live.number == number) {
            live.used = true;
        }
    }

    /// Forgets all tiles, which nothing uses any more.
    pub fn clear(&mut self) {
        self.live.clear();
        self.head = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However tiles are placed and used in order: a place overlaps no tile but such as were used, and of these the
        /// latest is named; an empty ring never refuses.
        #[test]
        fn tiles_wait_for_all_that_they_overwrite(
            len in 1usize..400,
            tiles in prop::collection::vec((0usize..400, 0usize..4), 1..300),
        ) {
            let mut ring = Ring::new(len);
            // Every tile that was placed: its range, and the latest one that is known to be out of the way since.
            let mut all: Vec<Range<usize>> = Vec::new();
            let (mut used, mut waited) = (0, 0);
            for (size, uses) in tiles {
                let size = size.min(len);
                for _ in 0..uses {
                    if used < all.len() {
                        ring.used(used as u64);
                        used += 1;
                    }
                }
                let placed = loop {
                    if let Some(placed) = ring.place(size) {
                        break placed;
                    }
                    prop_assert!(used < all.len(), "refused though everything was used");
                    ring.used(used as u64);
                    used += 1;
                };
                prop_assert_eq!(placed.number as usize, all.len());
                prop_assert!(placed.at + size <= len);
                if let Some(after) = placed.after {
                    prop_assert!((after as usize) < used, "told to wait for what has not been queued");
                    waited = waited.max(after as usize + 1);
                }
                let range = placed.at..placed.at + size;
                for other in &all[waited..] {
                    prop_assert!(other.end <= range.start || range.end <= other.start, "{other:?} and {range:?}");
                }
                prop_assert!(all.len() < waited + MOST);
                all.push(range);
            }
        }
    }
}

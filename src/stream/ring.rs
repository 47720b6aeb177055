//! The ring: fixed memory in which tiles are placed one after the other and freed in the same order. A tile is always one
//! contiguous run: one that does not fit before the end starts again at the beginning.

use crate::disk::memory::Region;

/// The free part of a ring. Every placed tile owns its region, so live tiles cannot overlap whatever happens here.
pub(super) struct Ring {
    /// In order of address; neighbours are joined, so that there are at most three.
    free: Vec<Region>,
    /// Where the latest tile ends.
    head: usize,
}

impl Ring {
    pub(super) fn new(memory: Region) -> Ring {
        Ring { free: vec![memory], head: 0 }
    }

    /// Room for a tile of `len` bytes right behind the latest tile, else at the beginning; `None` until enough is freed.
    pub(super) fn place(&mut self, len: usize) -> Option<Region> {
        let fits = |start: usize| self.free.iter().position(|free| free.start() == start && free.len() >= len);
        let found = fits(self.head).or_else(|| fits(0))?;
        let placed = self.free[found].split_to(len);
        if self.free[found].is_empty() {
            self.free.remove(found);
        }
        self.head = placed.end();
        Some(placed)
    }

    /// Takes back a region that [`Ring::place`] gave.
    pub(super) fn free(&mut self, region: Region) {
        let mut at = self.free.partition_point(|free| free.start() < region.start());
        self.free.insert(at, region);
        if at > 0 && self.free[at - 1].end() == self.free[at].start() {
            at -= 1;
            self.join_with_next(at);
        }
        if at + 1 < self.free.len() && self.free[at].end() == self.free[at + 1].start() {
            self.join_with_next(at);
        }
    }

    fn join_with_next(&mut self, at: usize) {
        let next = self.free.remove(at + 1);
        let joined = self.free.remove(at).join(next);
        self.free.insert(at, joined);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::disk::memory::Mapping;

    const BLOCK: usize = 4096;

    proptest! {
        /// However tiles are placed and freed in order: nothing overlaps, a tile follows the latest one or starts at the
        /// beginning, it is refused only where it does not fit, and a ring as large as the largest tile never gets stuck.
        #[test]
        fn tiles_are_placed_in_order_and_never_overlap(
            ring_blocks in 1usize..=512,
            tiles in prop::collection::vec((1usize..=512, 0usize..4), 1..200),
        ) {
            let mut memory = Mapping::map(BLOCK * 512, false).unwrap();
            let mut ring = Ring::new(memory.split_to(ring_blocks * BLOCK));
            let mut live: VecDeque<Region> = VecDeque::new();
            let mut head = 0;
            for (blocks, frees) in tiles {
                let len = blocks.min(ring_blocks) * BLOCK;
                for _ in 0..frees {
                    if let Some(region) = live.pop_front() {
                        ring.free(region);
                    }
                }
                let placed = loop {
                    if let Some(placed) = ring.place(len) {
                        break placed;
                    }
                    prop_assert!(!live.is_empty(), "an empty ring refused a tile that fits");
                    let room = |start: usize| {
                        let next = live.iter().map(Region::start).filter(|&s| s >= start).min();
                        let taken = live.iter().any(|r| r.start() <= start && start < r.end());
                        !taken && next.unwrap_or(ring_blocks * BLOCK) - start >= len
                    };
                    prop_assert!(!room(head) && !room(0), "refused although there is room");
                    ring.free(live.pop_front().unwrap());
                };
                prop_assert_eq!(placed.len(), len);
                prop_assert!(placed.start() == head || placed.start() == 0);
                for other in &live {
                    prop_assert!(placed.end() <= other.start() || other.end() <= placed.start());
                }
                head = placed.end();
                live.push_back(placed);
            }
            for region in live {
                ring.free(region);
            }
            prop_assert_eq!(ring.free.len(), 1);
            prop_assert_eq!(ring.free[0].len(), ring_blocks * BLOCK);
        }
    }
}

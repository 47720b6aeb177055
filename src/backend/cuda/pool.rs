//! Blocks of the GPU's memory that hold tiles of experts: which block holds which tile, and which gives way. Pure bookkeeping;
//! who places a tile is told which use of the block has to be out of the way before the tile's bytes may come.

use crate::stream::Forecast;

/// Blocks that stay free for tiles on their way, while others hold tiles of the same request.
const PASSING: usize = 2;

/// So many tiles are compared for one that gives way, so that its cost does not grow with the memory.
const CANDIDATES: usize = 512;

/// See the module's description.
pub struct Pool {
    blocks: Vec<Block>,
    /// Of each tile, the block that holds it.
    held: Vec<Option<usize>>,
    forecast: Forecast,
    /// Where the search for a block goes on.
    hand: usize,
}

#[derive(Clone, Default)]
struct Block {
    tile: Option<usize>,
    /// The tile will be used before the next request.
    wanted: bool,
    /// The latest use of what was here.
    used: Option<u64>,
}

/// A place for a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub block: usize,
    /// The use of the block that has to have ended.
    pub after: Option<u64>,
}

impl Pool {
    /// Blocks for tiles of which the forecast knows.
    pub fn new(blocks: usize, tiles: usize, forecast: Forecast) -> Pool {
        Pool { blocks: vec![Block::default(); blocks], held: vec![None; tiles], forecast, hand: 0 }
    }

    /// Begins with other tiles of one layer, which will be used in this order. Returns for each whether it is here, and will be
    /// until it is used.
    pub fn request(&mut self, layer: usize, tiles: &[usize]) -> Vec<bool> {
        self.forecast.request(layer, tiles.iter().copied());
        // Where there is a block for every tile, none has to pass through.
        let passing = if self.blocks.len() < self.held.len() { PASSING } else { 0 };
        let mut room = self.blocks.len().saturating_sub(passing);
        let mut stays = |tile: &usize| {
            let Some(block) = self.held[*tile] else { return false };
            let stays = room > 0;
            room -= usize::from(stays);
            self.blocks[block].wanted = stays;
            if !stays {
                self.held[*tile] = None;
                self.blocks[block].tile = None;
            }
            stays
        };
        tiles.iter().map(&mut stays).collect()
    }

    /// The block that holds a tile.
    pub fn find(&self, tile: usize) -> Option<usize> {
        self.held[tile]
    }

    /// A block for a tile of the request; `None` while all hold tiles that are wanted.
    pub fn place(&mut self, tile: usize) -> Option<Place> {
        let count = self.blocks.len();
        let (mut last, mut seen): (Option<(usize, f64)>, usize) = (None, 0);
        for step in 0..count {
            let at = (self.hand + step) % count;
            let distance = match &self.blocks[at] {
                Block { wanted: true, .. } => continue,
                Block { tile: None, .. } => f64::INFINITY,
                Block { tile: Some(tile), .. } => self.forecast.distance(*tile),
            };
            if last.is_none_or(|(_, most)| distance > most) {
                last = Some((at, distance));
            }
            seen += 1;
            if seen == CANDIDATES || distance == f64::INFINITY {
                break;
            }
        }
        let (block, _) = last?;
        self.hand = block;
        let before = &mut self.blocks[block];
        if let Some(old) = before.tile.replace(tile) {
            self.held[old] = None;
        }
        before.wanted = true;
        self.held[tile] = Some(block);
        Some(Place { block, after: before.used })
    }

    /// Takes a place back whose tile will not come: the block holds nothing.
    pub fn unplace(&mut self, tile: usize) {
        if let Some(block) = self.held[tile].take() {
            self.blocks[block].tile = None;
        }
    }

    /// Says that a use of the block has been queued, and that no other of this request follows.
    pub fn used(&mut self, block: usize, number: u64) {
        let block = &mut self.blocks[block];
        (block.wanted, block.used) = (false, Some(number));
    }

    /// Forgets the request, and that anything was ever used: nothing runs any more. Tiles stay, since those that were placed
    /// have come by now.
    pub fn cancel(&mut self) {
        self.blocks.iter_mut().for_each(|block| (block.wanted, block.used) = (false, None));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYERS: usize = 3;
    const EXPERTS: usize = 4;
    const EACH: usize = 2;

    fn pool(blocks: usize) -> Pool {
        let tiles = LAYERS * EXPERTS * EACH;
        let owners = (0..tiles).map(|tile| (tile / (EXPERTS * EACH), tile / EACH % EXPERTS));
        Pool::new(blocks, tiles, Forecast::new(owners))
    }

    proptest! {
        /// However tiles are asked for: those that are said to stay do, the first that is missing always has a place, which is
        /// no wanted tile's, and a block that was used says so.
        #[test]
        fn what_is_wanted_stays_and_what_is_missing_finds_a_place(
            blocks in 2usize..30,
            requests in prop::collection::vec((0..LAYERS, prop::collection::vec(any::<bool>(), EXPERTS), 0usize..5), 1..60),
        ) {
            let mut pool = pool(blocks);
            let mut content: Vec<Option<usize>> = vec![None; blocks];
            let mut uses: Vec<Option<u64>> = vec![None; blocks];
            let mut number = 0;
            for (layer, experts, ahead) in requests {
                let tiles: Vec<usize> = (0..EXPERTS)
                    .filter(|expert| experts[*expert])
                    .flat_map(|expert| (0..EACH).map(move |i| (layer * EXPERTS + expert) * EACH + i))
                    .collect();
                let stay = pool.request(layer, &tiles);
                let mut coming = tiles.iter().zip(&stay).filter(|(_, stays)| !**stays).map(|(tile, _)| *tile).peekable();
                for (tile, stays) in tiles.iter().zip(&stay) {
                    // Tiles come some ahead of their use, as far as there is room.
                    let mut further = ahead;
                    while let Some(next) = coming.peek().copied() {
                        let needed = next == *tile;
                        if !needed && further == 0 {
                            break;
                        }
                        further = further.saturating_sub(1);
                        let Some(place) = pool.place(next) else {
                            prop_assert!(!needed, "no place for a tile that is needed now");
                            break;
                        };
                        prop_assert_eq!(place.after, uses[place.block]);
                        content[place.block] = Some(next);
                        coming.next();
                    }
                    let block = pool.find(*tile);
                    prop_assert!(block.is_some_and(|block| content[block] == Some(*tile)), "tile {tile}, stays: {stays}");
                    number += 1;
                    uses[block.unwrap()] = Some(number);
                    pool.used(block.unwrap(), number);
                }
            }
        }
    }

    #[test]
    fn a_tile_that_does_not_come_is_not_held() {
        let mut pool = pool(4);
        pool.request(0, &[0, 1]);
        pool.place(0).unwrap();
        pool.place(1).unwrap();
        pool.unplace(0);
        pool.cancel();
        assert!(pool.find(0).is_none() && pool.find(1).is_some());
        assert_eq!(pool.request(0, &[0, 1]), [false, true]);
        assert!(pool.place(0).is_some());
    }

    #[test]
    fn with_a_block_for_each_every_tile_comes_once() {
        let mut pool = pool(LAYERS * EXPERTS * EACH);
        let layer = |layer: usize| (0..EXPERTS * EACH).map(|i| layer * EXPERTS * EACH + i).collect::<Vec<_>>();
        for round in 0..3 {
            for number in 0..LAYERS {
                let tiles = layer(number);
                let stay = pool.request(number, &tiles);
                assert!(stay.iter().all(|stays| *stays == (round > 0)), "round {round}: {stay:?}");
                for tile in tiles {
                    let block = pool.find(tile).or_else(|| pool.place(tile).map(|place| place.block));
                    pool.used(block.unwrap(), 0);
                }
            }
        }
    }
}

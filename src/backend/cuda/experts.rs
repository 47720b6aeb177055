//! Tiles of experts on their way to the GPU: asked for when a router has chosen, copied on the stream of all copies as they
//! come, from drives or from memory, into blocks that hold them for as long as they can ([`Pool`](super::pool::Pool)).
//!
//! Two events order the work, as for other tiles ([`feed`](super::feed)): what multiplies waits until a tile was copied, and
//! a copy until what it overwrites was used. A tile that is still there needs neither.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use layerstream_kernels::driver::{Event, Gpu, Stream};

use super::card::failed;
use super::feed::{Feed, LOOK};
use super::marks::{Marks, What};
use super::pool::{Place, Pool};
use super::ring::MOST;
use super::traps::{self, Trap};
use crate::error::Result;
use crate::plan::{ExpertPlan, ExpertTile, span_bytes};
use crate::program::{Program, Role};
use crate::stream::{Conveyor, ExpertTile as Lent, Experts, Forecast};

/// See the module's description.
pub struct ExpertFeed {
    pool: Pool,
    /// Address of the first block, and bytes of each.
    base: u64,
    block: usize,
    program: Arc<Program>,
    /// In the order of the plan.
    tiles: Vec<ExpertTile>,
    /// Of the copy and of the use whose numbers have this remainder. One that was recorded again since says more than it needs.
    copied: Vec<Event>,
    used: Vec<Event>,
    /// How many were queued.
    copies: u64,
    uses: u64,
    /// The tiles of the request that are still to be used; and those of them that are still to be copied.
    queue: VecDeque<usize>,
    coming: VecDeque<usize>,
    /// Tiles whose copies are queued and whose uses are not, with the numbers of the copies.
    ready: VecDeque<(usize, u64)>,
    /// Tiles in host memory whose copies may not have happened, oldest first, with their numbers.
    lent: VecDeque<(u64, Lent)>,
    /// A tile that was taken and not copied yet.
    held: Option<Lent>,
}

/// A tile on the GPU.
pub struct OnGpu {
    pub address: u64,
    block: usize,
    /// Whether it was copied for this use.
    pub was_copied: bool,
}

impl ExpertFeed {
    /// `base` is the address of `bytes` bytes for the tiles of `plan`.
    pub fn new(gpu: &Gpu, program: Arc<Program>, plan: &ExpertPlan, base: u64, bytes: usize) -> Result<ExpertFeed> {
        let owners = plan.tiles.iter().map(|tile| (tile.layer, tile.expert));
        let block = plan.device_block();
        let events = || (0..MOST).map(|_| Event::untimed(gpu).map_err(failed)).collect::<Result<Vec<_>>>();
        Ok(ExpertFeed {
            pool: Pool::new(bytes / block.max(1), plan.tiles.len(), Forecast::new(owners)),
            base,
            block,
            program,
            tiles: plan.tiles.clone(),
            copied: events()?,
            used: events()?,
            copies: 0,
            uses: 0,
            queue: VecDeque::new(),
            coming: VecDeque::new(),
            ready: VecDeque::with_capacity(MOST),
            lent: VecDeque::with_capacity(MOST),
            held: None,
        })
    }

    /// Asks for tiles of one layer, in the order in which they will be used: those that are here from here, all others from
    /// `feed`.
    pub fn request(
        &mut self,
        layer: usize,
        tiles: &[usize],
        copies: (&Stream, &mut Marks),
        feed: &mut Experts,
    ) -> Result<()> {
        assert!(self.queue.is_empty(), "a request while tiles of the one before are still to be used");
        for (&tile, stays) in tiles.iter().zip(self.pool.request(layer, tiles)) {
            match stays {
                true => feed.had(self.tiles[tile].bytes()),
                false => self.coming.push_back(tile),
            }
        }
        self.queue.extend(tiles);
        feed.request(layer, self.coming.iter().copied());
        self.copy_ahead(copies, feed)
    }

    /// The next tile of the request. What is queued on `compute` from here on waits for it. While it has to be waited for, what
    /// `others` have goes on to the GPU.
    pub fn next(
        &mut self,
        compute: &Stream,
        feed: &mut Experts,
        (others, conveyor): (&mut Feed, &mut Conveyor),
    ) -> Result<OnGpu> {
        let tile = self.queue.pop_front().expect("tiles are asked for before they are used");
        loop {
            self.copy_ahead(others.copies(), feed)?;
            if let Some(block) = self.pool.find(tile) {
                let was_copied = self.ready.front().is_some_and(|ready| ready.0 == tile);
                let number = if was_copied { self.ready.pop_front().map(|(_, number)| number) } else { None };
                if let Some(number) = number.filter(|_| !traps::set(Trap::ExpertUseBeforeCopy)) {
                    compute.wait(self.copied(number)).map_err(failed)?;
                }
                return Ok(OnGpu { address: self.address(block), block, was_copied });
            }
            match self.lent.front() {
                // Copies are short, and each one gives room to the drives.
                Some((number, _)) => self.copied(*number).synchronize().map_err(failed)?,
                None => {
                    assert!(self.held.is_none(), "a tile that is needed now always has a place");
                    let before = others.copied();
                    let nothing_more = others.go_on(conveyor)?;
                    feed.meanwhile(others.copied() - before);
                    self.held = feed.next_within(if nothing_more { Duration::MAX } else { LOOK })?;
                }
            }
        }
    }

    /// Says that what uses the tile has been queued on `compute`.
    pub fn used(&mut self, tile: &OnGpu, compute: &Stream) -> Result<()> {
        compute.record(&self.used[(self.uses % MOST as u64) as usize]).map_err(failed)?;
        self.pool.used(tile.block, self.uses);
        self.uses += 1;
        Ok(())
    }

    fn copied(&self, number: u64) -> &Event {
        &self.copied[(number % MOST as u64) as usize]
    }

    fn address(&self, block: usize) -> u64 {
        self.base + (block * self.block) as u64
    }

    /// Gives host memory back whose copies have happened, and queues copies, both as far as they go without waiting.
    fn copy_ahead(&mut self, (copies, marks): (&Stream, &mut Marks), feed: &mut Experts) -> Result<()> {
        loop {
            while let Some((number, _)) = self.lent.front() {
                if !traps::set(Trap::ExpertHostFreedEarly) && !self.copied(*number).happened().map_err(failed)? {
                    break;
                }
                self.lent.pop_front();
            }
            let Some(&tile) = self.coming.front() else { return Ok(()) };
            if self.lent.len() == MOST || self.ready.len() == MOST {
                return Ok(());
            }
            if self.held.is_none() && !traps::set(Trap::ExpertsComeLate) {
                self.held = feed.try_next()?;
            }
            let Some(lent) = self.held.take() else { return Ok(()) };
            self.check(tile, &lent)?;
            let Some(place) = self.pool.place(tile) else {
                self.held = Some(lent);
                return Ok(());
            };
            self.coming.pop_front();
            if let Err(error) = self.copy(tile, lent, place, copies, marks) {
                // Nobody knows which of its bytes will come, and the next pass would take the block for the tile.
                self.pool.unplace(tile);
                return Err(error);
            }
        }
    }

    /// Looks at what a kernel could not say is wrong: the groups of columns, where a matrix has them in any order.
    fn check(&self, tile: usize, lent: &Lent) -> Result<()> {
        let ExpertTile { layer, expert, matrix, .. } = self.tiles[tile];
        let weights = &self.program.experts[layer].experts[expert].matrices[matrix];
        let parts = weights.groups.iter().flat_map(|groups| &groups.parts).take(self.tiles[tile].factors(weights));
        let mut indexes = parts.enumerate().filter(|(_, part)| part.role == Role::GroupIndex);
        indexes.try_for_each(|(i, part)| weights.check_index(part, 0, &lent[1 + i]))
    }

    /// Queues the copies of a tile's spans, one behind the other.
    fn copy(&mut self, tile: usize, lent: Lent, place: Place, copies: &Stream, marks: &mut Marks) -> Result<()> {
        if let Some(after) = place.after.filter(|_| !traps::set(Trap::ExpertOverwriteBeforeUse)) {
            copies.wait(&self.used[(after % MOST as u64) as usize]).map_err(failed)?;
        }
        let (mut to, number) = (self.address(place.block), self.copies);
        marks.begin(copies, What::Expert { step: marks.step(), bytes: self.tiles[tile].bytes() })?;
        let mut queued = Ok(());
        for (i, span) in self.tiles[tile].spans.iter().enumerate() {
            let bytes = &lent[i];
            // SAFETY: the tile lies in page-locked memory, and is kept in `lent` until the copies have happened. Its block on the
            // GPU, which has room for all of its spans, is its own until what uses it has been queued, and whatever comes
            // there waits for that.
            queued = queued.and_then(|()| unsafe { copies.upload(to, bytes.as_ptr(), bytes.len()) });
            to += span_bytes(span.len) as u64;
        }
        queued = queued.and_then(|()| copies.record(self.copied(number)));
        self.lent.push_back((number, lent));
        self.copies += 1;
        // Without the event nobody can tell when the tile may be given back but who waits for the stream: `abandon`.
        queued.map_err(failed)?;
        self.ready.push_back((tile, number));
        marks.end(copies)
    }

    /// Ends a pass that was not completed, when nothing is queued any more on either stream: gives everything back. Tiles that
    /// came stay.
    pub fn abandon(&mut self) {
        self.lent.clear();
        self.held = None;
        self.ready.clear();
        self.queue.clear();
        self.coming.clear();
        self.pool.cancel();
    }
}

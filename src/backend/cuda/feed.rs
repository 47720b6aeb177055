//! Tiles on their way from the conveyor to the GPU: copied on a stream of their own, into a ring or to where they stay,
//! ahead of what multiplies with them, across the end of a pass into the next.
//!
//! Two events a tile order the work. `copied`: what multiplies waits for it, and the tile's place in host memory is given back
//! once it has happened. `used`: what overwrites the tile's place on the GPU waits for it. Both wait on the GPU; the thread
//! that queues work waits only when there is nothing else to do, and then for the oldest copy or for the conveyor.

use std::collections::VecDeque;
use std::time::Duration;

use layerstream_kernels::driver::{Event, Gpu, Stream};

use super::card::failed;
use super::marks::{Marks, What};
use super::ring::{MOST, Placed, Ring};
use super::traps::{self, Trap};
use crate::error::{Error, Result};
use crate::plan::{Tier, Tile};
use crate::stream::{Conveyor, Tile as Lent};

/// How long whoever waits for something else looks for another tile, or for what it waits for, before it looks for the other.
pub const LOOK: Duration = Duration::from_micros(200);

/// See the module's description.
pub struct Feed {
    /// In the order of a pass.
    tiles: Vec<Tile>,
    /// Where tiles are that stay: their address, and whether they are there.
    kept: Vec<Option<(u64, bool)>>,
    ring: Ring,
    /// Address of the ring.
    base: u64,
    copies: Stream,
    marks: Marks,
    events: Vec<Events>,
    /// Tiles in host memory whose copies may not have happened, oldest first, with their numbers.
    lent: VecDeque<(u64, Lent)>,
    /// A tile that was taken from the conveyor and not copied yet.
    held: Option<Lent>,
    /// Tiles whose copies are queued and whose uses are not.
    ready: VecDeque<Ready>,
    /// The tile of the pass that is to be copied next.
    next: usize,
    /// Copies that were queued.
    copied: u64,
}

/// Of the tile whose number has this remainder.
struct Events {
    copied: Event,
    used: Event,
}

#[derive(Clone, Copy)]
struct Ready {
    index: usize,
    number: u64,
    address: u64,
}

/// A tile on the GPU.
pub struct OnGpu {
    pub address: u64,
    /// What to report as used; `None` for a tile that stays and has been there.
    number: Option<u64>,
}

impl OnGpu {
    /// Whether it came for this use.
    pub fn was_copied(&self) -> bool {
        self.number.is_some()
    }
}

/// Why nothing more can be copied at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The conveyor has nothing.
    Disk,
    /// Too many copies are under way.
    Copies,
    /// The ring is full of tiles that have not been used; or everything is there already.
    Uses,
}

impl Feed {
    /// `base` is the address of a ring of `ring` bytes, which the places of tiles that stay follow.
    pub fn new(gpu: &Gpu, tiles: Vec<Tile>, base: u64, ring: usize, marks: Marks) -> Result<Feed> {
        let mut end = base + ring as u64;
        let mut place = |tile: &Tile| {
            let at = end;
            end += crate::plan::device_bytes(tile) as u64;
            (at, false)
        };
        let kept = tiles.iter().map(|tile| (tile.tier == Tier::Device).then(|| place(tile))).collect();
        let events =
            || Ok(Events { copied: Event::untimed(gpu).map_err(failed)?, used: Event::untimed(gpu).map_err(failed)? });
        Ok(Feed {
            tiles,
            kept,
            ring: Ring::new(ring),
            base,
            copies: Stream::new(gpu).map_err(failed)?,
            marks,
            events: (0..MOST).map(|_| events()).collect::<Result<_>>()?,
            lent: VecDeque::with_capacity(MOST),
            held: None,
            ready: VecDeque::with_capacity(MOST),
            next: 0,
            copied: 0,
        })
    }

    /// The stream of the copies, and when they ran.
    pub fn copies(&mut self) -> (&Stream, &mut Marks) {
        (&self.copies, &mut self.marks)
    }

    fn events(&self, number: u64) -> &Events {
        &self.events[(number % MOST as u64) as usize]
    }

    /// Tile `index` of the pass, which is the next one. What is queued on `compute` from here on waits for it.
    pub fn next(&mut self, index: usize, compute: &Stream, conveyor: &mut Conveyor) -> Result<OnGpu> {
        loop {
            let ahead = !traps::set(Trap::ExpertsComeLate) || self.ready.is_empty();
            let blocked = if ahead { self.copy_ahead(conveyor)? } else { Blocked::Uses };
            if let Some(&Ready { number, address, .. }) = self.ready.front().filter(|front| front.index == index) {
                self.ready.pop_front();
                if !traps::set(Trap::UseBeforeCopy) {
                    compute.wait(&self.events(number).copied).map_err(failed)?;
                }
                return Ok(OnGpu { address, number: Some(number) });
            }
            if let Some((address, true)) = self.kept[index] {
                return Ok(OnGpu { address, number: None });
            }
            self.wait(blocked, conveyor)?;
        }
    }

    /// Says that what uses the tile has been queued on `compute`.
    pub fn used(&mut self, tile: &OnGpu, compute: &Stream) -> Result<()> {
        let Some(number) = tile.number else { return Ok(()) };
        compute.record(&self.events(number).used).map_err(failed)?;
        self.ring.used(number);
        Ok(())
    }

    /// Waits for `done`, which is queued, and goes on copying meanwhile: tiles of the next pass.
    pub fn wait_for(&mut self, done: &Event, conveyor: &mut Conveyor) -> Result<()> {
        while !done.happened().map_err(failed)? {
            // What is wrong with a drive is for the next pass to say: this one has all its tiles.
            let blocked = match self.copy_ahead(conveyor) {
                Err(error @ Error::Device(_)) => return Err(error),
                Err(_) => break,
                Ok(blocked) => blocked,
            };
            match blocked {
                Blocked::Disk if self.lent.is_empty() => match conveyor.next_within(LOOK) {
                    Ok(tile) => self.held = tile,
                    Err(_) => break,
                },
                _ => match self.lent.front() {
                    Some((number, _)) => self.events(*number).copied.synchronize().map_err(failed)?,
                    None => break,
                },
            }
        }
        done.synchronize().map_err(failed)?;
        Ok(())
    }

    /// How many copies were queued so far.
    pub fn copied(&self) -> u64 {
        self.copied
    }

    /// Copies on while something else is waited for. Whether that is all there is to do before more tiles are used.
    pub fn go_on(&mut self, conveyor: &mut Conveyor) -> Result<bool> {
        let mut blocked = self.copy_ahead(conveyor)?;
        while traps::set(Trap::ExpertsComeLate) && blocked != Blocked::Uses {
            self.wait(blocked, conveyor)?;
            blocked = self.copy_ahead(conveyor)?;
        }
        Ok(blocked == Blocked::Uses && self.lent.is_empty())
    }

    /// Waits for whatever keeps the next tile back.
    fn wait(&mut self, blocked: Blocked, conveyor: &mut Conveyor) -> Result<()> {
        match self.lent.front() {
            // Copies are short, and each one gives room to the drives.
            Some((number, _)) => self.events(*number).copied.synchronize().map_err(failed)?,
            None => {
                assert_eq!(blocked, Blocked::Disk, "tiles are used in the order in which they are copied");
                self.held = Some(conveyor.next()?);
            }
        }
        Ok(())
    }

    /// Gives host memory back whose copies have happened, and queues copies, both as far as they go without waiting.
    pub fn copy_ahead(&mut self, conveyor: &mut Conveyor) -> Result<Blocked> {
        loop {
            while let Some((number, _)) = self.lent.front() {
                if !traps::set(Trap::HostFreedEarly) && !self.events(*number).copied.happened().map_err(failed)? {
                    break;
                }
                self.lent.pop_front();
            }
            let Some(index) = self.next_to_copy() else { return Ok(Blocked::Uses) };
            if self.lent.len() == MOST || self.ready.len() == MOST {
                return Ok(if self.lent.is_empty() { Blocked::Uses } else { Blocked::Copies });
            }
            if self.held.is_none() {
                self.held = conveyor.try_next()?;
            }
            if self.held.is_none() {
                return Ok(Blocked::Disk);
            }
            let size = if self.kept[index].is_some() { 0 } else { crate::plan::device_bytes(&self.tiles[index]) };
            let Some(placed) = self.ring.place(size) else { return Ok(Blocked::Uses) };
            self.copy(index, placed)?;
        }
    }

    /// The next tile of this pass or the next one that has to be copied: all but those that are there to stay.
    fn next_to_copy(&mut self) -> Option<usize> {
        for _ in 0..self.tiles.len() {
            match self.kept[self.next] {
                Some((_, true)) => self.next = (self.next + 1) % self.tiles.len(),
                _ => return Some(self.next),
            }
        }
        None
    }

    /// Queues the copy of the tile that is held.
    fn copy(&mut self, index: usize, placed: Placed) -> Result<()> {
        let Placed { number, at, after } = placed;
        let address = self.kept[index].map_or(self.base + at as u64, |(address, _)| address);
        if let Some(after) = after.filter(|_| !traps::set(Trap::OverwriteBeforeUse)) {
            self.copies.wait(&self.events(after).used).map_err(failed)?;
        }
        let tile = self.held.as_ref().expect("the caller has looked");
        assert_eq!(tile.index(), index, "the conveyor brings the tiles that are not here to stay, in their order");
        self.marks.begin(&self.copies, What::Tile { index, bytes: tile.len() as u64 })?;
        // SAFETY: the tile lies in page-locked memory, and is kept in `lent` until the copy has happened. Its place on the
        // GPU is its own until what uses it has been queued, and whatever comes there waits for that.
        unsafe { self.copies.upload(address, tile.as_ptr(), tile.len()) }.map_err(failed)?;
        self.lent.extend(self.held.take().map(|tile| (number, tile)));
        if let Some((_, there)) = &mut self.kept[index] {
            *there = true;
        }
        // Without the event nobody can tell when the tile may be given back but who waits for the stream: `abandon`.
        self.copies.record(&self.events(number).copied).map_err(failed)?;
        self.marks.end(&self.copies)?;
        self.ready.push_back(Ready { index, number, address });
        self.next = (index + 1) % self.tiles.len();
        self.copied += 1;
        Ok(())
    }

    /// Ends a pass that was not completed: waits for the copies, gives everything back, and begins at the first tile again.
    ///
    /// # Errors
    /// Those of the device; what can be given back is.
    pub fn abandon(&mut self, conveyor: &mut Conveyor) -> Result<()> {
        let waited = if traps::set(Trap::CopiesAbandoned) { Ok(()) } else { self.copies.synchronize() };
        self.lent.clear();
        // Of which no copy was queued: it may be one that is to stay here, and has to come again.
        if let Some(tile) = self.held.take() {
            tile.give_back_unused();
        }
        self.ready.clear();
        self.ring.clear();
        self.next = 0;
        // A conveyor that cannot go on says so again at the next pass.
        let _ = conveyor.rewind();
        waited.map_err(failed)
    }
}

impl Drop for Feed {
    /// Host memory is read until copies have happened.
    fn drop(&mut self) {
        if !traps::set(Trap::DropWhileCopying) {
            let _ = self.copies.synchronize();
        }
    }
}

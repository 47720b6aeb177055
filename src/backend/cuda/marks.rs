//! When things ran on the GPU, by its own clock: a pair of timed events around each, in a fixed ring that is read as the
//! events happen. Nothing is queued and nothing taken where nobody wants to know.

use std::collections::VecDeque;
use std::sync::Arc;

use layerstream_kernels::driver::{Event, Gpu, Stream};

use super::card::failed;
use crate::error::Result;
use crate::profile::Recorder;

/// Pairs of events of a lane. The host can be this many steps ahead before it waits for the oldest of them.
const PAIRS: usize = 512;

/// What happens between two events.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// The pass begins with the first of them.
    Begin,
    /// A step, by its number in the program.
    Step(u32),
    /// Its product with a tile of so many bytes, which was copied for it or had been there.
    Product { step: u32, bytes: u64, fetched: bool },
    /// The copy of a tile, by its number in the pass.
    Tile { index: usize, bytes: u64 },
    /// The copy of an expert's tile, of so many bytes, that a step needs.
    Expert { step: u32, bytes: u64 },
    /// The copies of keys and values that a step needs.
    Kv(u32),
    /// The logits come to the host, with which the pass ends.
    Logits,
}

/// The marks of one stream.
pub struct Marks {
    recorder: Recorder,
    /// An event that has happened, and when that was in the recorder's time. `None`: nobody wants to know.
    base: Option<(Arc<Event>, u64)>,
    pairs: Vec<[Event; 2]>,
    /// The pair that is used next, and what is between those before it whose times have not been read, oldest first.
    next: usize,
    pending: VecDeque<What>,
    /// What has begun and not ended.
    open: Option<What>,
}

impl Marks {
    /// For the stream of the copies and that of the steps, which has nothing queued.
    pub fn new(gpu: &Gpu, compute: &Stream, recorder: &Recorder) -> Result<[Marks; 2]> {
        let mut base = None;
        if recorder.is_on() {
            let event = Event::new(gpu).map_err(failed)?;
            compute.record(&event).map_err(failed)?;
            event.synchronize().map_err(failed)?;
            base = Some((Arc::new(event), recorder.now()));
        }
        let lane = || {
            let count = if base.is_some() { PAIRS } else { 0 };
            let pair = |_| Ok([Event::new(gpu).map_err(failed)?, Event::new(gpu).map_err(failed)?]);
            Ok(Marks {
                recorder: recorder.clone(),
                base: base.clone(),
                pairs: (0..count).map(pair).collect::<Result<_>>()?,
                next: 0,
                pending: VecDeque::with_capacity(count),
                open: None,
            })
        };
        Ok([lane()?, lane()?])
    }

    /// The step that the engine is at.
    pub fn step(&self) -> u32 {
        self.recorder.step()
    }

    /// Whether the ring is half full, so that it is time to read it.
    pub fn crowded(&self) -> bool {
        self.base.is_some() && self.pending.len() >= PAIRS / 2
    }

    /// What is queued from here on, up to [`end`](Marks::end), is this.
    pub fn begin(&mut self, stream: &Stream, what: What) -> Result<()> {
        if self.base.is_none() {
            return Ok(());
        }
        if self.pending.len() == PAIRS {
            self.pairs[self.next][1].synchronize().map_err(failed)?;
            self.read()?;
        }
        stream.record(&self.pairs[self.next][0]).map_err(failed)?;
        self.open = Some(what);
        Ok(())
    }

    /// See [`begin`](Marks::begin).
    pub fn end(&mut self, stream: &Stream) -> Result<()> {
        if let Some(what) = self.open.take() {
            stream.record(&self.pairs[self.next][1]).map_err(failed)?;
            self.next = (self.next + 1) % PAIRS;
            self.pending.push_back(what);
        }
        Ok(())
    }

    /// Tells the recorder of all that has happened. Those of the copies come before those of the steps, which are compared
    /// with them.
    pub fn read(&mut self) -> Result<()> {
        let Some((base, base_at)) = &self.base else { return Ok(()) };
        let nanoseconds = |seconds: f64| (seconds.max(0.0) * 1e9) as u64;
        while let Some(what) = self.pending.front() {
            let [start, end] = &self.pairs[(self.next + PAIRS - self.pending.len()) % PAIRS];
            if !end.happened().map_err(failed)? {
                break;
            }
            // The driver gives float32 milliseconds: exact for what is short, less so for what is long ago.
            let from = base_at + nanoseconds(start.seconds_since(base).map_err(failed)?);
            let to = from + nanoseconds(end.seconds_since(start).map_err(failed)?);
            match *what {
                What::Begin => self.recorder.begin_pass(from),
                What::Step(step) => self.recorder.computed(step, from, to, 0, false),
                What::Product { step, bytes, fetched } => self.recorder.computed(step, from, to, bytes, fetched),
                What::Tile { index, bytes } => self.recorder.tile_copied(index, from, to, bytes),
                What::Expert { step, bytes } => self.recorder.copied(step, from, to, bytes),
                What::Kv(step) => self.recorder.copied(step, from, to, 0),
                What::Logits => {
                    self.recorder.fetched_logits(from, to);
                    self.recorder.end_pass(Some(to));
                }
            }
            self.pending.pop_front();
        }
        Ok(())
    }

    /// After a pass that was given up, and when its stream has nothing queued: forgets what could not be read.
    pub fn forget(&mut self) {
        // What is wrong with the device, the next pass finds.
        let _ = self.read();
        self.pending.clear();
        self.open = None;
    }
}

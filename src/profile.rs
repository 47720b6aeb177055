//! Seeing where the time goes: one recorder, to which the conveyor tells its reads, and backends their copies and steps, each
//! with the time it took. Sums are kept for every step of the program; a timeline of single spans is kept too where one is
//! wanted, up to a fixed number of them.
//!
//! A recorder that is off does nothing and keeps nothing. Time is nanoseconds since the recorder was made; what a GPU did is
//! told in the same time, from its own events. What computes is one lane, in which each span begins after the one before it
//! has ended; the gap before a span is what it waited for: for the copy lane, as long as that was busy, and for the disk.

mod sums;
mod trace;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::plan::Plan;
use crate::program::{Program, Step};

pub use sums::{Disk, Report, Row};

use sums::Sum;

/// Spans that a timeline has room for: some 40 MiB, and more than a pass of 800 GB in tiles of 8 MiB takes.
pub const SPANS: usize = 1 << 20;

/// Reads in flight that are told apart; there are never so many.
const READS: usize = 1024;

/// Copies that are remembered for the gaps of what computes: more than may run ahead of it.
const COPIES: usize = 256;

/// A shared recorder; clones record to the same place. The default is off.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<Shared>>);

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Recorder(on)" } else { "Recorder(off)" })
    }
}

struct Shared {
    epoch: Instant,
    /// The step that the engine is at.
    step: AtomicU32,
    state: Mutex<State>,
}

/// Whose bytes a read brings: a tile's, by its number in the pass, or an expert's tile's, by its number among those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Tile(u64),
    Expert(u64),
}

/// Where a span is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// One of the reads that are in flight at the same time.
    Disk(u16),
    Copy,
    Compute,
    /// What computes waits.
    Wait(Cause),
}

/// What a gap in computing was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Disk,
    Copy,
}

#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
    bytes: u64,
    /// Index into the labels.
    step: u32,
    lane: Lane,
}

/// What a step is called.
struct Label {
    kind: &'static str,
    name: String,
    /// Of the model; none for what is before, between and after them.
    layer: Option<usize>,
}

#[derive(Default)]
struct State {
    labels: Vec<Label>,
    /// The step that uses each tile, and each tile of an expert.
    tiles: Vec<u32>,
    expert_tiles: Vec<u32>,
    /// For each label.
    sums: Vec<Sum>,
    disk: Disk,
    /// Reads in flight, by the lane they are shown in: file and offset, when they began, and whose bytes they bring.
    reads: Vec<Option<(usize, u64, u64, Whose)>>,
    in_flight: usize,
    /// When the first of those in flight began.
    disk_since: u64,
    copies: VecDeque<(u64, u64)>,
    last_copy: u64,
    /// Of the running pass: when it began, and when the last step ended.
    pass: Option<(u64, u64)>,
    passes: u64,
    /// Nanoseconds of all passes, and those of them in which nothing was to be waited for and nothing ran.
    wall: u64,
    idle: u64,
    timeline: Vec<Span>,
    room: usize,
    lost: u64,
}

impl Recorder {
    /// One that keeps sums, and with `timeline` the first [`SPANS`] spans.
    pub fn new(timeline: bool) -> Recorder {
        let room = if timeline { SPANS } else { 0 };
        let state = State {
            reads: vec![None; READS],
            copies: VecDeque::with_capacity(COPIES),
            // Pages come as they are written.
            timeline: Vec::with_capacity(room),
            room,
            ..State::default()
        };
        let shared = Shared { epoch: Instant::now(), step: AtomicU32::new(0), state: Mutex::new(state) };
        Recorder(Some(Arc::new(shared)))
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        // Numbers to look at: a thread that panicked while it held them has said so elsewhere.
        self.0.as_ref().map(|shared| shared.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Learns what steps and tiles are called.
    pub(crate) fn describe(&self, program: &Program, plan: &Plan) {
        let Some(mut state) = self.lock() else { return };
        state.labels = labels(program);
        state.sums = vec![Sum::default(); state.labels.len()];
        let step_of = |tile: &crate::plan::Tile| {
            let uses = |step: &Step| matches!(step, Step::MatMul(product) if product.matrix == tile.matrix);
            program.steps.iter().position(uses).unwrap_or(0) as u32
        };
        let mut known = (None, 0);
        state.tiles = Vec::with_capacity(plan.tiles.len());
        for tile in &plan.tiles {
            if known.0 != Some(tile.matrix) {
                known = (Some(tile.matrix), step_of(tile));
            }
            state.tiles.push(known.1);
        }
        let of_layer = |layer: usize| {
            let runs = |step: &Step| matches!(step, Step::Experts(experts) if experts.layer == layer);
            program.steps.iter().position(runs).unwrap_or(0) as u32
        };
        let layers: Vec<u32> = (0..program.experts.len()).map(of_layer).collect();
        state.expert_tiles = plan.experts.tiles.iter().map(|tile| layers[tile.layer]).collect();
    }

    /// Nanoseconds since the recorder was made; 0 if it is off.
    pub(crate) fn now(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.epoch.elapsed().as_nanos() as u64)
    }

    /// The engine is at this step of the program.
    pub(crate) fn enter(&self, step: usize) {
        if let Some(shared) = &self.0 {
            shared.step.store(step as u32, Ordering::Relaxed);
        }
    }

    /// The step that the engine is at.
    pub(crate) fn step(&self) -> u32 {
        self.0.as_ref().map_or(0, |shared| shared.step.load(Ordering::Relaxed))
    }

    /// A read is handed to a drive.
    pub(crate) fn read_started(&self, whose: Whose, file: usize, offset: u64) {
        let now = self.now();
        let Some(mut state) = self.lock() else { return };
        if state.in_flight == 0 {
            state.disk_since = now;
        }
        if let Some(free) = state.reads.iter().position(Option::is_none) {
            state.reads[free] = Some((file, offset, now, whose));
            state.in_flight += 1;
        }
    }

    /// That read has brought its bytes.
    pub(crate) fn read_landed(&self, whose: Whose, file: usize, offset: u64, bytes: u64) {
        let now = self.now();
        let Some(mut state) = self.lock() else { return };
        let is_it = |read: &Option<(usize, u64, u64, Whose)>| matches!(read, Some((f, o, _, w)) if (*f, *o, *w) == (file, offset, whose));
        let found = state.reads.iter().position(is_it);
        let Some((lane, (.., start, _))) = found.and_then(|at| Some((at, state.reads[at].take()?))) else { return };
        state.in_flight -= 1;
        if state.in_flight == 0 {
            state.disk.busy += now - state.disk_since;
        }
        state.disk.reads += 1;
        state.disk.bytes += bytes;
        state.disk.latency += now - start;
        let step = match whose {
            Whose::Tile(tile) => state.tiles.get(tile as usize),
            Whose::Expert(tile) => state.expert_tiles.get(tile as usize),
        };
        let step = step.copied().unwrap_or(0);
        state.keep(Span { start, end: now, bytes, step, lane: Lane::Disk(lane as u16) });
    }

    /// Tile `tile` was copied to the GPU meanwhile.
    pub(crate) fn tile_copied(&self, tile: usize, start: u64, end: u64, bytes: u64) {
        let Some(mut state) = self.lock() else { return };
        let step = state.tiles.get(tile).copied().unwrap_or(0);
        state.copied(step, start, end, bytes);
    }

    /// Something that step `step` needs was copied to the GPU meanwhile.
    pub(crate) fn copied(&self, step: u32, start: u64, end: u64, bytes: u64) {
        if let Some(mut state) = self.lock() {
            state.copied(step, start, end, bytes);
        }
    }

    /// A pass begins.
    pub(crate) fn begin_pass(&self, at: u64) {
        if let Some(mut state) = self.lock() {
            let at = state.pass.take().map_or(at, |(_, last)| at.max(last));
            state.pass = Some((at, at));
        }
    }

    /// Step `step` ran from `start` to `end`, with `bytes` of weights, which were fetched for it or had been there.
    pub(crate) fn computed(&self, step: u32, start: u64, end: u64, bytes: u64, fetched: bool) {
        if let Some(mut state) = self.lock() {
            state.computed(step, start, end, bytes, fetched);
        }
    }

    /// The step that the engine is at ran from `start` until now.
    pub(crate) fn ran(&self, start: u64, bytes: u64) {
        if self.is_on() {
            self.computed(self.step(), start, self.now(), bytes, bytes > 0);
        }
    }

    /// The logits came to the host meanwhile.
    pub(crate) fn fetched_logits(&self, start: u64, end: u64) {
        if let Some(mut state) = self.lock() {
            let last = state.labels.len().saturating_sub(1) as u32;
            state.computed(last, start, end, 0, false);
        }
    }

    /// The pass has ended, or, without a time, was given up after its last step.
    pub(crate) fn end_pass(&self, at: Option<u64>) {
        let Some(mut state) = self.lock() else { return };
        if let Some((begin, last)) = state.pass.take() {
            let end = at.unwrap_or(last).max(last);
            state.passes += 1;
            state.wall += end - begin;
            state.idle += end - last;
        }
    }
}

impl State {
    fn keep(&mut self, span: Span) {
        if self.timeline.len() < self.room {
            self.timeline.push(span);
        } else if self.room > 0 {
            self.lost += 1;
        }
    }

    fn copied(&mut self, step: u32, start: u64, end: u64, bytes: u64) {
        // Times of events are rounded: one copy still follows the other.
        let start = start.max(self.last_copy);
        let end = end.max(start);
        self.last_copy = end;
        if self.copies.len() == COPIES {
            self.copies.pop_front();
        }
        self.copies.push_back((start, end));
        if let Some(sum) = self.sums.get_mut(step as usize) {
            sum.copying += end - start;
            sum.copied += bytes;
        }
        self.keep(Span { start, end, bytes, step, lane: Lane::Copy });
    }

    fn computed(&mut self, step: u32, start: u64, end: u64, bytes: u64, fetched: bool) {
        let Some((begin, last)) = self.pass else { return };
        let start = start.max(last);
        let end = end.max(start);
        self.pass = Some((begin, end));
        while self.copies.front().is_some_and(|copy| copy.1 <= last) {
            self.copies.pop_front();
        }
        let gap = start - last;
        let overlap = |&(a, b): &(u64, u64)| b.min(start).saturating_sub(a.max(last));
        let copying = || self.copies.iter().map(overlap).sum::<u64>().min(gap);
        // Before a step that needs neither a drive nor a copy the gap is the host's.
        let (disk, copying) = match self.labels.get(step as usize).map_or("", |label| label.kind) {
            EMBED => (gap, 0),
            APPEND => (0, copying()),
            _ if fetched => (gap - copying(), copying()),
            _ => (0, 0),
        };
        let Some(sum) = self.sums.get_mut(step as usize) else { return };
        sum.calls += 1;
        sum.bytes += bytes;
        sum.compute += end - start;
        sum.disk_wait += disk;
        sum.copy_wait += copying;
        sum.idle += gap - disk - copying;
        if disk > 0 {
            self.keep(Span { start: last, end: last + disk, bytes: 0, step, lane: Lane::Wait(Cause::Disk) });
        }
        if copying > 0 {
            self.keep(Span { start: last + disk, end: start, bytes: 0, step, lane: Lane::Wait(Cause::Copy) });
        }
        self.keep(Span { start, end, bytes, step, lane: Lane::Compute });
    }
}

/// The engine fetches its rows.
const EMBED: &str = "embed";
/// The keys and values before it may have to come.
const APPEND: &str = "append";

/// What each step is called, in the order of the program; and last, that logits come to the host.
///
/// A step belongs to the layer whose number is in the name of its own weights, as in `model.layers.3.mlp.up_proj.weight`:
/// the first part of the name that is a number. One without weights serves the next step that has some, within the same
/// layer in every family: rotation and attention come before the output projection, an activation before the projection
/// down.
fn labels(program: &Program) -> Vec<Label> {
    let mut labels: Vec<Label> = Vec::with_capacity(program.steps.len());
    let mut layer = None;
    for step in program.steps.iter().rev() {
        let weights = weights(program, step);
        if let Some(name) = weights.or_else(|| experts(program, step)) {
            layer = layer_of(name);
        }
        let kind = kind(step);
        let name = weights.map_or_else(|| kind.to_string(), |name| format!("{kind} {name}"));
        labels.push(Label { kind, name, layer });
    }
    labels.reverse();
    labels.push(Label { kind: "logits", name: "logits".into(), layer: None });
    labels
}

/// The tensor that a step is named after, if it has weights.
fn weights<'a>(program: &'a Program, step: &Step) -> Option<&'a str> {
    let vector = |id: Option<crate::program::VectorId>| id.map(|id| program.vectors[id.0].name.as_str());
    match step {
        Step::Embed { .. } => Some(&program.embedding.tensor.name),
        Step::MatMul(product) => Some(&program.matrices[product.matrix.0].tensor.name),
        Step::Norm { norm, .. } | Step::HeadNorm { norm, .. } => vector(norm.weight),
        _ => None,
    }
}

/// Of a step with experts, a tensor of the first of them: where it belongs, not what it is called.
fn experts<'a>(program: &'a Program, step: &Step) -> Option<&'a str> {
    let Step::Experts(step) = step else { return None };
    let expert = program.experts[step.layer].experts.first()?;
    expert.matrices.first().map(|matrix| matrix.tensor.name.as_str())
}

/// The first part of a tensor's name that is a number.
fn layer_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

fn kind(step: &Step) -> &'static str {
    match step {
        Step::Embed { .. } => EMBED,
        Step::Norm { .. } => "norm",
        Step::HeadNorm { .. } => "head norm",
        Step::MatMul(_) => "multiply",
        Step::Rearrange { .. } => "rearrange",
        Step::Join { .. } => "join",
        Step::Rope { .. } => "rope",
        Step::ScaleQueries { .. } => "scale queries",
        Step::Append { .. } | Step::AppendShared { .. } => APPEND,
        Step::Attend { .. } => "attend",
        Step::Convolve(_) => "convolution",
        Step::DeltaRule(_) => "delta rule",
        Step::Route { .. } => "route",
        Step::Experts(_) => "experts",
        Step::GateRows { .. } => "gate",
        Step::Add { .. } => "add",
        Step::Glu { .. } => "gated activation",
        Step::Activate { .. } => "activation",
        Step::SoftCap { .. } => "soft cap",
        Step::Select { .. } => "select",
    }
}

#[cfg(test)]
mod tests;

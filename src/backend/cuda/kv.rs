//! Keys and values where they do not stay on the GPU: in page-locked memory, from where each layer's come along when the
//! layer needs them, into one of two places that layers take in turn, and to where what is appended goes back.

use layerstream_kernels::driver::{Event, Gpu, Stream};

use super::card::failed;
use super::marks::{Marks, What};
use super::staging::Buffer;
use super::traps::{self, Trap};
use crate::error::Result;
use crate::pass::Segment;
use crate::plan::Plan;
use crate::plan::device::{Layout, Size, kv_bytes, kv_dtype};
use crate::program::Program;

/// Nothing to do where the plan has room for all keys and values on the GPU.
pub struct KvStream {
    /// The layers' keys and values in memory; none if they stay on the GPU.
    layers: Vec<Layer>,
    memory: Option<Buffer>,
    /// By the turn of a layer: its bytes are there; nothing reads them any more.
    loaded: [Event; 2],
    free: [Event; 2],
    context: usize,
    sequences: Vec<Positions>,
}

/// Of one layer.
struct Layer {
    /// Offsets in memory, addresses on the GPU, and bytes of a position and head: of keys and of values.
    host: [usize; 2],
    gpu: [u64; 2],
    row: [usize; 2],
    heads: usize,
}

/// What a pass does to the cache of a sequence.
struct Positions {
    sequence: usize,
    start: usize,
    end: usize,
}

impl KvStream {
    pub fn new(gpu: &Gpu, program: &Program, plan: &Plan, layout: &Layout, base: u64) -> Result<KvStream> {
        let dtype = kv_dtype(program);
        let Plan { rows, logit_rows, context, sequences, .. } = *plan;
        let size = Size { rows, logit_rows, context, sequences };
        let mut end = 0;
        let mut place = |bytes: usize| {
            end += bytes;
            end - bytes
        };
        let streamed = program.kv.iter().zip(&layout.kv).filter(|_| !layout.kv_resident);
        let layers: Vec<_> = streamed
            .map(|(shape, at)| Layer {
                host: kv_bytes(*shape, size, dtype).map(&mut place),
                gpu: at.map(|at| base + at as u64),
                row: [shape.key_dim, shape.value_dim].map(|dim| dim * dtype.size()),
                heads: shape.heads,
            })
            .collect();
        let event = || Event::untimed(gpu).map_err(failed);
        Ok(KvStream {
            memory: if end > 0 { Some(Buffer::new(gpu, end)?) } else { None },
            layers,
            loaded: [event()?, event()?],
            free: [event()?, event()?],
            context,
            sequences: Vec::with_capacity(sequences),
        })
    }

    /// Begins a pass: the first layer's keys and values come.
    pub fn begin(&mut self, segments: &[Segment], copies: (&Stream, &mut Marks)) -> Result<()> {
        self.sequences.clear();
        let positions = |segment: &Segment| {
            let positions = segment.positions();
            Positions { sequence: segment.sequence, start: positions.start, end: positions.end }
        };
        self.sequences.extend(segments.iter().map(positions));
        self.load(0, copies)
    }

    /// Queues the copies of what a layer has so far.
    fn load(&mut self, layer: usize, (copies, marks): (&Stream, &mut Marks)) -> Result<()> {
        if layer >= self.layers.len() {
            return Ok(());
        }
        if !traps::set(Trap::KvOverwriteBeforeUse) {
            copies.wait(&self.free[layer % 2]).map_err(failed)?;
        }
        marks.begin(copies, What::Kv(marks.step()))?;
        self.each_run(
            layer,
            |positions| 0..positions.start,
            |memory, gpu, len| {
                // SAFETY: inside the page-locked cache, which nothing writes to before the pass has appended to this layer; and
                // inside the layer's place on the GPU, which nobody reads any more once `free` has happened.
                unsafe { copies.upload(gpu, memory, len) }.map_err(failed)
            },
        )?;
        marks.end(copies)?;
        copies.record(&self.loaded[layer % 2]).map_err(failed)?;
        Ok(())
    }

    /// Before keys and values are appended: those before them are there, and the next layer's are on their way.
    pub fn before_append(&mut self, layer: usize, compute: &Stream, copies: (&Stream, &mut Marks)) -> Result<()> {
        if layer < self.layers.len() {
            if !traps::set(Trap::KvUseBeforeCopy) {
                compute.wait(&self.loaded[layer % 2]).map_err(failed)?;
            }
            self.load(layer + 1, copies)?;
        }
        Ok(())
    }

    /// What was appended goes back to memory.
    pub fn after_append(&mut self, layer: usize, compute: &Stream) -> Result<()> {
        if layer >= self.layers.len() {
            return Ok(());
        }
        self.each_run(
            layer,
            |positions| positions.start..positions.end,
            |memory, gpu, len| {
                // SAFETY: as in `load`, the other way round; the next pass, which copies from there, begins when this one has
                // ended.
                unsafe { compute.download(memory, gpu, len) }.map_err(failed)
            },
        )
    }

    /// The layer's place is free for another's.
    pub fn after_attend(&mut self, layer: usize, compute: &Stream) -> Result<()> {
        if layer < self.layers.len() {
            compute.record(&self.free[layer % 2]).map_err(failed)?;
        }
        Ok(())
    }

    /// Calls `copy` with memory, address on the GPU and bytes of the given positions, for every sequence and head.
    fn each_run(
        &mut self,
        layer: usize,
        positions: impl Fn(&Positions) -> std::ops::Range<usize>,
        copy: impl Fn(*mut u8, u64, usize) -> Result<()>,
    ) -> Result<()> {
        let Layer { host, gpu, row, heads } = &self.layers[layer];
        let memory = self.memory.as_mut().expect("there are layers").address();
        for sequence in &self.sequences {
            let range = positions(sequence);
            for head in 0..*heads {
                let first = (sequence.sequence * heads + head) * self.context + range.start;
                for part in 0..2 {
                    let at = first * row[part];
                    // SAFETY: inside the layer's part of the cache.
                    let memory = unsafe { memory.add(host[part] + at) };
                    copy(memory, gpu[part] + at as u64, range.len() * row[part])?;
                }
            }
        }
        Ok(())
    }
}

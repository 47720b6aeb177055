//! Angles for keys that the cache holds unrotated (InternLM): cosines and sines of all positions of each sequence, which stay on
//! the GPU. A pass brings those of positions that are new; and all of a sequence's where its length has changed the frequencies.

use layerstream_kernels::driver::{Gpu, Memory, Stream};
use layerstream_kernels::params::Sequence;

use super::card::failed;
use super::notes::{angle, put};
use super::staging::Buffer;
use crate::error::Result;
use crate::pass::Segment;
use crate::plan::Plan;
use crate::plan::device::{Layout, SEQUENCE_BYTES};
use crate::program::{Program, RopeId};

/// Nothing to do for programs whose cached keys stay as they are.
pub struct Turning {
    /// As they lie on the GPU, in page-locked memory.
    angles: Option<Buffer>,
    /// Their address on the GPU.
    base: u64,
    context: usize,
    tables: Vec<Table>,
}

/// The angles of one rotation for one sequence.
struct Table {
    rope: RopeId,
    sequence: usize,
    /// Offset of the cosines; the sines come behind those of the whole context.
    at: usize,
    /// What those that are there were made with, and of how many positions they are.
    inv_freq: Vec<f32>,
    positions: usize,
}

impl Turning {
    /// Takes page-locked memory, and writes what never changes to `memory`.
    pub fn new(gpu: &Gpu, program: &Program, plan: &Plan, layout: &Layout, memory: &mut Memory) -> Result<Turning> {
        let (turned, context) = (&layout.turned, plan.context);
        let mut tables = Vec::new();
        for &(rope, first) in &turned.ropes {
            let bytes = context * program.ropes[rope.0].rotary_dim() * size_of::<f32>();
            tables.extend((0..plan.sequences).map(|sequence| Table {
                rope,
                sequence,
                at: first + sequence * bytes,
                inv_freq: Vec::new(),
                positions: 0,
            }));
        }
        let angles = if tables.is_empty() { None } else { Some(Buffer::new(gpu, turned.angles_len)?) };
        if angles.is_some() {
            let all = Sequence { cache_row: 0, capacity: context as i32, first_row: 0, rows: context as i32, start: 0 };
            let mut piece = [0; SEQUENCE_BYTES];
            put(&mut piece, 0, &[all]);
            memory.upload(turned.piece, &piece).map_err(failed)?;
            memory.upload(turned.owners, &vec![0; context * size_of::<i32>()]).map_err(failed)?;
        }
        Ok(Turning { angles, base: memory.address() + turned.angles as u64, context, tables })
    }

    /// Begins a pass: what its sequences lack is on its way.
    pub fn begin(&mut self, program: &Program, segments: &[Segment], compute: &Stream) -> Result<()> {
        let Some(angles) = &mut self.angles else { return Ok(()) };
        for segment in segments {
            for table in self.tables.iter_mut().filter(|table| table.sequence == segment.sequence) {
                let rope = &program.ropes[table.rope.0];
                let inv_freq = rope.inv_freq(segment.prompt, segment.length);
                if table.inv_freq[..] != inv_freq[..] {
                    (table.inv_freq, table.positions) = (inv_freq.into_owned(), 0);
                }
                let new = table.positions..segment.positions().end;
                if new.is_empty() {
                    continue;
                }
                let row = table.inv_freq.len() * size_of::<f32>();
                for (part, at) in [table.at, table.at + self.context * row].into_iter().enumerate() {
                    let value = |position, freq: &f32| angle(position, *freq, rope.attention_factor)[part];
                    let values =
                        new.clone().flat_map(|position| table.inv_freq.iter().map(move |f| value(position, f)));
                    let (from, values) = (at + new.start * row, values.collect::<Vec<_>>());
                    put(angles.bytes(), from, &values);
                    // SAFETY: page-locked, inside the buffer, and nobody writes there before the pass has ended, which the last
                    // event of the stream says. The plan has the same room for it on the GPU, which only this stream uses.
                    unsafe { compute.upload(self.base + from as u64, angles.address().add(from), row * new.len()) }
                        .map_err(failed)?;
                }
                table.positions = new.end;
            }
        }
        Ok(())
    }

    /// A pass was not completed: nobody knows what has come.
    pub fn forget(&mut self) {
        self.tables.iter_mut().for_each(|table| table.positions = 0);
    }
}

//! Layers that keep a state of each sequence instead of keys and values: which state a pass begins with, and which it leaves.
//!
//! There are two states of each, as on the processor ([`crate::kv::States`]): a pass reads what the last completed one left
//! and writes the other, so that a pass that is cut short leaves no trace. They stay on the GPU.

use layerstream_kernels::params::Stretch;

use super::notes::put;
use crate::pass::{Segment, with_rows};
use crate::plan::device::{Notes, STRETCH_BYTES};

const _: () = assert!(STRETCH_BYTES == size_of::<Stretch>());

/// Which of a sequence's two states is the current one. State `2 · sequence + which` of a layer is meant.
pub struct States {
    current: Vec<usize>,
    /// The sequences of the pass.
    running: Vec<usize>,
}

impl States {
    pub fn new(sequences: usize) -> States {
        States { current: vec![0; sequences], running: Vec::with_capacity(sequences) }
    }

    /// Begins a pass: writes to its notes which rows are whose, and between which states.
    pub fn begin(&mut self, notes: &Notes, segments: &[Segment], to: &mut [u8]) {
        self.running.clear();
        let stretches = with_rows(segments).map(|(segment, rows)| {
            self.running.push(segment.sequence);
            let (first, current) = (2 * segment.sequence, self.current[segment.sequence]);
            Stretch {
                first_row: rows.start as i32,
                rows: rows.len() as i32,
                from: if segment.start == 0 { -1 } else { (first + current) as i32 },
                to: (first + 1 - current) as i32,
            }
        });
        let stretches: Vec<_> = stretches.collect();
        if let Some(at) = notes.stretches {
            put(to, at, &stretches);
        }
    }

    /// The pass is complete: what it left is current.
    pub fn keep(&mut self) {
        for sequence in self.running.drain(..) {
            self.current[sequence] = 1 - self.current[sequence];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::Wanted;

    #[test]
    fn a_pass_begins_with_what_the_last_completed_one_left() {
        let mut states = States::new(3);
        let notes = Notes { stretches: Some(0), ..Notes::default() };
        let begin = |states: &mut States, parts: &[(usize, usize)]| {
            let tokens = [1, 2];
            let segment = |&(sequence, start): &(usize, usize)| Segment {
                sequence,
                start,
                tokens: &tokens,
                length: 9,
                prompt: 4,
                logits: Wanted::None,
            };
            let segments: Vec<_> = parts.iter().map(segment).collect();
            let mut to = vec![0; parts.len() * STRETCH_BYTES];
            states.begin(&notes, &segments, &mut to);
            let number = |b: &[u8]| i32::from_le_bytes(b.try_into().unwrap());
            to.chunks_exact(4).map(number).collect::<Vec<_>>()
        };
        // First row, rows, from, to: a sequence that begins has no state to begin with.
        assert_eq!(begin(&mut states, &[(2, 0), (0, 0)]), [0, 2, -1, 5, 2, 2, -1, 1]);
        states.keep();
        assert_eq!(begin(&mut states, &[(2, 2)]), [0, 2, 5, 4]);
        // Not kept, so done again.
        assert_eq!(begin(&mut states, &[(0, 2), (2, 2)]), [0, 2, 1, 0, 2, 2, 5, 4]);
        states.keep();
        assert_eq!(begin(&mut states, &[(2, 4), (0, 0)]), [0, 2, 4, 5, 2, 2, -1, 1]);
    }
}

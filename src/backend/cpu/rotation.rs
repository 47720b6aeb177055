//! The angles of a pass: cosines and sines for its tokens; and where a family keeps keys unrotated, for all positions so far.

use super::{Cpu, Heads, Rope};
use crate::pass::Segment;
use crate::program;

/// Cosines and sines for the tokens of a pass, each `[rows, pairs]`.
pub(super) struct Rotation {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    pub fn new(pairs: usize, rows: usize) -> Rotation {
        Rotation { pairs, cos: vec![0.0; pairs * rows], sin: vec![0.0; pairs * rows] }
    }

    pub fn fill(&mut self, rope: &program::Rope, segments: &[Segment]) {
        let mut rows = self.cos.chunks_exact_mut(self.pairs).zip(self.sin.chunks_exact_mut(self.pairs));
        for segment in segments {
            let inv_freq = rope.inv_freq(segment.prompt, segment.length);
            for (position, (cos, sin)) in segment.positions().zip(&mut rows) {
                angles(&inv_freq, rope.attention_factor, position, cos, sin);
            }
        }
    }

    pub fn tables(&self, rows: usize) -> (&[f32], &[f32]) {
        let len = rows * self.pairs;
        (&self.cos[..len], &self.sin[..len])
    }
}

/// The angle is a product in float32, as in the reference implementation; its functions are exact.
fn angles(inv_freq: &[f32], factor: f32, position: usize, cos: &mut [f32], sin: &mut [f32]) {
    for ((cos, sin), freq) in cos.iter_mut().zip(sin).zip(inv_freq) {
        let angle = (position as f32 * freq) as f64;
        *cos = angle.cos() as f32 * factor;
        *sin = angle.sin() as f32 * factor;
    }
}

/// A copy of one sequence's cached keys, turned for the length that the sequence has now.
pub(super) struct TurnedKeys {
    /// Keys, then cosines, then sines.
    memory: Vec<f32>,
    /// The sequence that cosines and sines are of.
    angles_of: Option<usize>,
}

impl TurnedKeys {
    /// With room for `values`, as the program counts them.
    pub fn new(values: usize) -> TurnedKeys {
        TurnedKeys { memory: vec![0.0; values], angles_of: None }
    }

    /// Sequences have grown.
    pub fn forget_angles(&mut self) {
        self.angles_of = None;
    }

    /// The keys of a segment's sequence, `[heads, capacity, dim]` as in `cache`, up to the segment's end.
    pub fn turn(
        &mut self,
        cpu: &mut Cpu,
        rope: &program::Rope,
        segment: &Segment,
        heads: Heads,
        cache: &[f32],
    ) -> &[f32] {
        let capacity = cache.len() / heads.width();
        let (pairs, end) = (rope.rotary_dim() / 2, segment.positions().end);
        let (keys, angles_of_all) = self.memory.split_at_mut(cache.len());
        let (cos, sin) = angles_of_all.split_at_mut(capacity * pairs);
        if self.angles_of.replace(segment.sequence) != Some(segment.sequence) {
            let inv_freq = rope.inv_freq(segment.prompt, segment.length);
            let rows = cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs)).take(end);
            for (position, (cos, sin)) in rows.enumerate() {
                angles(&inv_freq, rope.attention_factor, position, cos, sin);
            }
        }
        let (cos, sin) = (&cos[..end * pairs], &sin[..end * pairs]);
        let one = Heads { count: 1, ..heads };
        let rows = capacity * heads.dim;
        for (keys, cache) in keys.chunks_exact_mut(rows).zip(cache.chunks_exact(rows)) {
            let seen = end * heads.dim;
            keys[..seen].copy_from_slice(&cache[..seen]);
            let rope = Rope { cos, sin, start: 0, rotary_dim: 2 * pairs, style: rope.style };
            cpu.rope(&mut keys[..seen], one, rope);
        }
        keys
    }
}

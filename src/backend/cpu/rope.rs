//! Rotary position embedding: pairs of elements of a head turned by an angle that depends on the position. Products are
//! rounded before they are added, as in Hugging Face's float32.

use super::Heads;
use super::workers::Workers;
use crate::program::RopeStyle;

/// The angles of a call.
#[derive(Clone, Copy)]
pub struct Rope<'a> {
    /// `[tokens, rotary_dim/2]`
    pub cos: &'a [f32],
    /// `[tokens, rotary_dim/2]`
    pub sin: &'a [f32],
    /// The first element of a head that turns.
    pub start: usize,
    /// How many turn; even. The others stay.
    pub rotary_dim: usize,
    pub style: RopeStyle,
}

pub(super) fn rotate(workers: &mut Workers, x: &mut [f32], heads: Heads, rope: Rope<'_>) {
    let pairs = rope.rotary_dim / 2;
    assert!(rope.rotary_dim.is_multiple_of(2), "rotary_dim {}", rope.rotary_dim);
    workers.rows(x, heads.stride, |t, row| {
        let cos = &rope.cos[t * pairs..(t + 1) * pairs];
        let sin = &rope.sin[t * pairs..(t + 1) * pairs];
        for head in row[..heads.width()].chunks_exact_mut(heads.dim) {
            let turning = &mut head[rope.start..rope.start + rope.rotary_dim];
            match rope.style {
                RopeStyle::Half => {
                    let (a, b) = turning.split_at_mut(pairs);
                    for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        (*a, *b) = turn(*a, *b, *c, *s);
                    }
                }
                RopeStyle::Interleaved => {
                    let (both, _) = turning.as_chunks_mut::<2>();
                    for (([a, b], c), s) in both.iter_mut().zip(cos).zip(sin) {
                        (*a, *b) = turn(*a, *b, *c, *s);
                    }
                }
            }
        }
    });
}

#[inline(always)]
fn turn(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (a * cos - b * sin, b * cos + a * sin)
}

//! The product for many tokens: the sums of `dots`, in the same order, arranged so that each number that is loaded is
//! used several times.
//!
//! The weights of a stretch of k are widened once into a panel that stays in the second-level cache; a few tokens'
//! activations for the same stretch stay in the first; `R × T` vectors of sums stay in registers while the stretch
//! lasts, and in memory between stretches. (The shape is that of Goto and van de Geijn 2008, "Anatomy of
//! high-performance matrix multiplication", except that sums are vectors along k.) Missing rows of the last group, and
//! what k lacks to a multiple of sixteen, are zeros.

use std::ops::Range;

use super::isa::{F32x16, LANES, Lanes};
use super::weights::{Element, Tile};

/// Most rows of a panel.
pub(super) const ROWS: usize = 64;
/// Most tokens of a call.
pub(super) const TOKENS: usize = 120;
/// Vectors along k in a stretch.
const STRETCH: usize = 64;
/// Most tokens in registers at once.
const GROUP: usize = 6;

pub(super) struct Scratch {
    /// Widened weights, `[row group][stretch][row of the group]`.
    rows: Vec<Lanes>,
    /// Activations, `[stretch][token of the group]`.
    tokens: Vec<Lanes>,
    /// Sums, `[token group][row group][row of the group][token of the group]`.
    sums: Vec<Lanes>,
}

impl Scratch {
    pub const BYTES: usize = (ROWS * STRETCH + GROUP * STRETCH + ROWS * TOKENS) * size_of::<Lanes>();

    pub fn new() -> Scratch {
        let zeros = |n| vec![Lanes([0.0; LANES]); n];
        Scratch { rows: zeros(ROWS * STRETCH), tokens: zeros(GROUP * STRETCH), sums: zeros(ROWS * TOKENS) }
    }
}

/// `out[t, r] = Σₖ w[r, k] · x[t, k]`, with `out` as `[tokens, rows]`; at most [`ROWS`] rows and [`TOKENS`] tokens.
#[inline(always)]
pub(super) fn multiply<V: F32x16, E: Element>(w: Tile<'_>, x: &[f32], out: &mut [f32], scratch: &mut Scratch) {
    if V::WIDE {
        by_groups::<V, E, 4>(w, x, out, scratch, GROUP);
    } else {
        by_groups::<V, E, 2>(w, x, out, scratch, GROUP / 2);
    }
}

#[inline(always)]
fn by_groups<V: F32x16, E: Element, const R: usize>(
    w: Tile<'_>,
    x: &[f32],
    out: &mut [f32],
    scratch: &mut Scratch,
    group: usize,
) {
    let rows = w.rows();
    let padded_rows = rows.next_multiple_of(R);
    let element = w.float.size();
    for start in (0..w.k).step_by(STRETCH * LANES) {
        let end = w.k.min(start + STRETCH * LANES);
        let steps = (end - start).div_ceil(LANES);
        let panel = &mut scratch.rows[..padded_rows * steps];
        for (g, panel) in panel.chunks_exact_mut(R * steps).enumerate() {
            for r in 0..R {
                let row = w.bytes.chunks_exact(w.row_bytes()).nth(g * R + r);
                let part = row.map_or(&[][..], |row| &row[start * element..end * element]);
                widen_row::<V, E, R>(part, &mut panel[r..]);
            }
        }
        let stretch = Stretch { panel, steps, k: start..end, row_len: w.k, rows };
        let mut next = x.chunks(group * w.k).skip(1);
        let groups = x.chunks(group * w.k).zip(out.chunks_mut(group * rows));
        for ((x, out), sums) in groups.zip(scratch.sums.chunks_mut(group * padded_rows)) {
            let tokens = &mut scratch.tokens;
            let next = next.next().unwrap_or(&[]);
            match x.len() / w.k {
                1 => stretch.multiply::<V, R, 1>(x, next, tokens, sums, out),
                2 => stretch.multiply::<V, R, 2>(x, next, tokens, sums, out),
                3 => stretch.multiply::<V, R, 3>(x, next, tokens, sums, out),
                4 if V::WIDE => stretch.multiply::<V, R, 4>(x, next, tokens, sums, out),
                5 if V::WIDE => stretch.multiply::<V, R, 5>(x, next, tokens, sums, out),
                GROUP if V::WIDE => stretch.multiply::<V, R, GROUP>(x, next, tokens, sums, out),
                tokens => unreachable!("{tokens} tokens in a group of {group}"),
            }
        }
    }
}

/// Widens one row's part of a stretch into every `R`-th place of its group's panel, from the first on.
#[inline(always)]
fn widen_row<V: F32x16, E: Element, const R: usize>(bytes: &[u8], places: &mut [Lanes]) {
    let (chunks, rest) = E::chunks(bytes);
    let mut places = places.iter_mut().step_by(R);
    for (chunk, place) in chunks.iter().zip(&mut places) {
        E::widen::<V>(chunk).store(&mut place.0);
    }
    for place in places {
        E::widen_part::<V>(rest).store(&mut place.0);
    }
}

/// One stretch of k, widened.
struct Stretch<'a> {
    panel: &'a [Lanes],
    /// Vectors in the stretch.
    steps: usize,
    k: Range<usize>,
    row_len: usize,
    /// Rows, without those that fill up the last group.
    rows: usize,
}

impl Stretch<'_> {
    /// Adds this stretch's products for `T` tokens, `x`, to the sums; after the last stretch writes `out`.
    #[inline(always)]
    fn multiply<V: F32x16, const R: usize, const T: usize>(
        &self,
        x: &[f32],
        next: &[f32],
        tokens: &mut [Lanes],
        sums: &mut [Lanes],
        out: &mut [f32],
    ) {
        let (tokens, _) = tokens.as_chunks_mut::<T>();
        let tokens = &mut tokens[..self.steps];
        for (t, x) in x.chunks_exact(self.row_len).enumerate() {
            for (step, part) in tokens.iter_mut().zip(x[self.k.clone()].chunks(LANES)) {
                V::load_part(part).store(&mut step[t].0);
            }
        }
        let share = self.steps.div_ceil(self.panel.len() / (R * self.steps));
        let groups = self.panel.chunks_exact(R * self.steps).zip(sums.chunks_exact_mut(R * T));
        for (g, (panel, sums)) in groups.enumerate() {
            // Activations come from far away if there are many; the next ones can come while these are used.
            for next in next.chunks_exact(self.row_len) {
                for part in next[self.k.clone()].chunks(LANES).skip(g * share).take(share) {
                    V::prefetch(part.as_ptr());
                }
            }
            let (sums, _) = sums.as_chunks_mut::<T>();
            let mut lanes = [[V::zero(); T]; R];
            if self.k.start > 0 {
                for r in 0..R {
                    for t in 0..T {
                        lanes[r][t] = V::load(&sums[r][t].0);
                    }
                }
            }
            let (panel, _) = panel.as_chunks::<R>();
            for (rows, tokens) in panel.iter().zip(&*tokens) {
                let mut w = [V::zero(); R];
                for r in 0..R {
                    w[r] = V::load(&rows[r].0);
                }
                for t in 0..T {
                    let x = V::load(&tokens[t].0);
                    for r in 0..R {
                        lanes[r][t] = w[r].mul_add(x, lanes[r][t]);
                    }
                }
            }
            for r in 0..R {
                for t in 0..T {
                    lanes[r][t].store(&mut sums[r][t].0);
                }
            }
            if self.k.end == self.row_len {
                for (r, sums) in sums.iter().enumerate().take(self.rows - g * R) {
                    for (t, sum) in sums.iter().enumerate() {
                        out[t * self.rows + g * R + r] = V::load(&sum.0).sum();
                    }
                }
            }
        }
    }
}

//! The product for many tokens: the sums of `dots`, in the same order, arranged so that each number that is loaded is
//! used several times.
//!
//! The weights of a stretch of k are decoded once into a panel that stays in the second-level cache; a few tokens'
//! activations for the same stretch stay in the first; `R × T` vectors of sums stay in registers while the stretch
//! lasts, and in memory between stretches. (The shape is that of Goto and van de Geijn 2008, "Anatomy of
//! high-performance matrix multiplication", except that sums are vectors along k.) Missing rows of the last group, and
//! what k lacks to a multiple of sixteen, are zeros.

use std::ops::Range;

use super::isa::{F32x16, Isa, Kernel, LANES, Lanes};
use super::weights::{Element, Row, Tile, with_element};

/// Most rows of a panel.
pub(super) const ROWS: usize = 64;
/// Most tokens of a call.
pub(super) const TOKENS: usize = 120;
/// Vectors along k in a stretch.
const STRETCH: usize = 64;
/// Most tokens in registers at once.
const GROUP: usize = 6;

pub(super) struct Scratch {
    /// Decoded weights, `[row group][stretch][row of the group]`.
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
pub(super) fn multiply(isa: Isa, w: Tile<'_>, x: &[f32], out: &mut [f32], scratch: &mut Scratch) {
    let Scratch { rows: panel, tokens, sums } = scratch;
    for start in (0..w.k).step_by(STRETCH * LANES) {
        let k = start..w.k.min(start + STRETCH * LANES);
        isa.run(Decode { w, k: k.clone(), panel });
        isa.run(Multiply { panel, rows: w.rows(), k, row_len: w.k, x, out, tokens, sums });
    }
}

/// Rows in registers at once.
const fn group_rows<V: F32x16>() -> usize {
    if V::WIDE { 4 } else { 2 }
}

/// Decodes a stretch of all rows into the panel. (A kernel of its own, so that the product exists once for all encodings.)
struct Decode<'a> {
    w: Tile<'a>,
    k: Range<usize>,
    panel: &'a mut [Lanes],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        with_element!(self.w.encoding, E => self.elements::<V, E>())
    }
}

impl Decode<'_> {
    #[inline(always)]
    fn elements<V: F32x16, E: Element>(self) {
        let Decode { w, k, panel } = self;
        let (rows, group) = (w.rows(), group_rows::<V>());
        let steps = k.len().div_ceil(LANES);
        for r in 0..rows.next_multiple_of(group) {
            let places = &mut panel[r / group * group * steps..][..group * steps];
            let places = places[r % group..].iter_mut().step_by(group);
            match r < rows {
                true => decode_row::<V, E>(w.row(r), k.clone(), places),
                false => places.for_each(|place| place.0 = [0.0; LANES]),
            }
        }
    }
}

/// Decodes a row's numbers `k`, the first of which begins a chunk, into their places.
#[inline(always)]
fn decode_row<'p, V: F32x16, E: Element>(
    row: Row<'_, E>,
    k: Range<usize>,
    mut places: impl Iterator<Item = &'p mut Lanes>,
) {
    const { assert!((STRETCH).is_multiple_of(E::STEPS)) };
    let chunk_numbers = E::STEPS * LANES;
    let first = k.start / chunk_numbers;
    let whole = row.chunks.len().min(k.end / chunk_numbers);
    for (i, chunk) in row.chunks[..whole].iter().enumerate().skip(first) {
        let mut common = E::common::<V>(&row.beside, chunk, i);
        for (step, place) in (0..E::STEPS).zip(&mut places) {
            E::lanes::<V>(&row.beside, chunk, &mut common, i, step).store(&mut place.0);
        }
    }
    let done = whole.max(first) * chunk_numbers;
    if done < k.end {
        let mut rest = row.rest::<V>();
        for (first, place) in (done..k.end).step_by(LANES).zip(places) {
            rest.next::<V>(k.end - first).store(&mut place.0);
        }
    }
}

/// Multiplies the panel of a stretch with all tokens.
struct Multiply<'a> {
    panel: &'a [Lanes],
    rows: usize,
    k: Range<usize>,
    row_len: usize,
    x: &'a [f32],
    out: &'a mut [f32],
    tokens: &'a mut [Lanes],
    sums: &'a mut [Lanes],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        if V::WIDE { self.by_groups::<V, 4>(GROUP) } else { self.by_groups::<V, 2>(GROUP / 2) }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn by_groups<V: F32x16, const R: usize>(self, group: usize) {
        let Multiply { panel, rows, k, row_len, x, out, tokens, sums } = self;
        let steps = k.len().div_ceil(LANES);
        let padded_rows = rows.next_multiple_of(R);
        let stretch = Stretch { panel: &panel[..padded_rows * steps], steps, k, row_len, rows };
        let mut next = x.chunks(group * row_len).skip(1);
        let groups = x.chunks(group * row_len).zip(out.chunks_mut(group * rows));
        for ((x, out), sums) in groups.zip(sums.chunks_mut(group * padded_rows)) {
            let next = next.next().unwrap_or(&[]);
            match x.len() / row_len {
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

/// One stretch of k, decoded.
struct Stretch<'a> {
    /// `[row group][step][row of the group]`
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

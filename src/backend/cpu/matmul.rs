//! Activations times the transpose of a tile of weights.

use std::sync::{Mutex, PoisonError};

use super::dots::dots;
use super::isa::{F32x16, Isa, Kernel, LANES};
use super::panel;
use super::weights::{Element, Tile, with_element};
use super::workers::Workers;
use crate::encoding::Encoding;

/// Multiplications and additions that make a task worth handing out.
const WORTHWHILE: usize = 1 << 16;
/// Numbers that a thread computes before it copies them to where they belong.
pub(super) const BLOCK: usize = panel::ROWS * panel::TOKENS;
/// Up to so many tokens, weights are used straight from where they lie, at most so many rows at a time: enough streams
/// from memory and independent sums.
const FEW: usize = 4;

/// [`FEW`], or one for encodings that take more to decode than to multiply with: a panel decodes them once for all tokens.
fn few_tokens(encoding: Encoding) -> usize {
    if encoding.by_blocks() { 1 } else { FEW }
}

/// The columns of the result that belong to the rows of a tile.
pub struct Columns<'a> {
    /// `[tokens, stride]`
    pub data: &'a mut [f32],
    /// From one token to the next, in elements.
    pub stride: usize,
    /// The column of the tile's first row.
    pub first: usize,
}

/// What becomes of the numbers that were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Store,
    Add,
}

/// What becomes of the dot products: `out (+)= scale × (product + bias)`.
#[derive(Clone, Copy)]
pub struct Finish<'a> {
    /// One number for every row of the tile.
    pub bias: Option<&'a [f32]>,
    pub scale: f32,
    /// Divides each row of the weights by its Euclidean length, or by 1e-12 if that is more.
    pub normalise_rows: bool,
    pub mode: Mode,
}

impl Default for Finish<'_> {
    fn default() -> Self {
        Finish { bias: None, scale: 1.0, normalise_rows: false, mode: Mode::Store }
    }
}

pub(super) struct Scratch {
    /// `[tokens, rows]` of the block being computed.
    pub(super) block: Vec<f32>,
    panel: panel::Scratch,
}

impl Scratch {
    pub const BYTES: usize = BLOCK * size_of::<f32>() + panel::Scratch::BYTES;

    pub fn new() -> Scratch {
        Scratch { block: vec![0.0; BLOCK], panel: panel::Scratch::new() }
    }
}

pub(super) fn matmul(isa: Isa, workers: &mut Workers, w: Tile<'_>, x: &[f32], out: Columns<'_>, finish: Finish<'_>) {
    let (rows, tokens) = (w.rows(), x.len() / w.k);
    assert_eq!(w.bytes.len(), rows * w.row_bytes(), "whole rows of {} {}", w.k, w.encoding);
    assert!(w.scales.is_some() || w.encoding.is_complete(), "{} needs factors", w.encoding);
    assert_eq!(x.len(), tokens * w.k, "whole rows of {} activations", w.k);
    assert!(finish.bias.is_none_or(|bias| bias.len() == rows), "a bias for every one of {rows} rows");

    // A few tasks for every thread; no smaller than that, since rows of a task share the activations' way to the core.
    let tokens_at_once = tokens.clamp(1, panel::TOKENS);
    let token_blocks = tokens.div_ceil(tokens_at_once);
    let few = few_tokens(w.encoding);
    let most_rows = if tokens > few { panel::ROWS } else { BLOCK / tokens_at_once };
    let wanted = (4 * workers.len()).div_ceil(token_blocks.max(1));
    let rows_at_once = rows.div_ceil(wanted).max(WORTHWHILE / (w.k * tokens_at_once));
    let rows_at_once = rows_at_once.next_multiple_of(FEW).clamp(1, most_rows);
    let row_blocks = rows.div_ceil(rows_at_once);
    let (stride, first) = (out.stride, out.first);
    let out = Mutex::new(out.data);
    workers.run(row_blocks * token_blocks, |scratch, task| {
        let row = task / token_blocks * rows_at_once;
        let token = task % token_blocks * tokens_at_once;
        let rows = rows_at_once.min(rows - row);
        let tokens = tokens_at_once.min(tokens - token);
        let Scratch { block, panel } = &mut scratch.matmul;
        let block = &mut block[..rows * tokens];
        let w = w.part(row, rows);
        let x = &x[token * w.k..(token + tokens) * w.k];
        match tokens <= few {
            true => isa.run(Few { w, x, out: block }),
            // No block of more rows than a panel has comes here.
            false => panel::multiply(isa, w, x, block, panel),
        }
        if finish.normalise_rows {
            for r in 0..rows {
                let length = isa.run(Length(w.part(r, 1)));
                block.iter_mut().skip(r).step_by(rows).for_each(|sum| *sum /= length);
            }
        }
        if let Some(bias) = finish.bias {
            for sums in block.chunks_exact_mut(rows) {
                sums.iter_mut().zip(&bias[row..]).for_each(|(sum, b)| *sum += b);
            }
        }
        if finish.scale != 1.0 {
            block.iter_mut().for_each(|sum| *sum *= finish.scale);
        }
        // A block takes hundreds of times longer to compute than to copy, so nobody waits here for long.
        let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
        for (t, sums) in block.chunks_exact(rows).enumerate() {
            let at = (token + t) * stride + first + row;
            let out = &mut out[at..at + rows];
            match finish.mode {
                Mode::Store => out.copy_from_slice(sums),
                Mode::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
            }
        }
    });
}

/// The Euclidean length of the one row of a tile.
struct Length<'a>(Tile<'a>);

impl Kernel for Length<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: F32x16>(self) -> f32 {
        let squares = with_element!(self.0.encoding, E => sum_of_squares::<V, E>(self.0));
        squares.sqrt().max(1e-12)
    }
}

/// In the order of `dots`.
#[inline(always)]
fn sum_of_squares<V: F32x16, E: Element>(row: Tile<'_>) -> f32 {
    let (k, row) = (row.k, row.row::<E>(0));
    let mut sums = V::zero();
    for (i, chunk) in row.chunks.iter().enumerate() {
        let mut common = E::common::<V>(&row.beside, chunk, i);
        for step in 0..E::STEPS {
            let w: V = E::lanes(&row.beside, chunk, &mut common, i, step);
            sums = w.mul_add(w, sums);
        }
    }
    let done = row.chunks.len() * E::STEPS * LANES;
    if done < k {
        let mut rest = row.rest::<V>();
        for first in (done..k).step_by(LANES) {
            let w: V = rest.next(k - first);
            sums = w.mul_add(w, sums);
        }
    }
    sums.sum()
}

/// The product with at most [`FEW`] tokens.
struct Few<'a> {
    w: Tile<'a>,
    x: &'a [f32],
    /// `[tokens, rows]`
    out: &'a mut [f32],
}

impl Kernel for Few<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        with_element!(self.w.encoding, E => self.elements::<V, E>())
    }
}

impl Few<'_> {
    #[inline(always)]
    fn elements<V: F32x16, E: Element>(self) {
        let Few { w, x, out } = self;
        match x.len() / w.k {
            1 => few::<V, E, 4, 1>(w, [x], out),
            2 if E::STEPS == 1 && V::WIDE => few::<V, E, 4, 2>(w, tokens(x, w.k), out),
            2 if E::STEPS == 1 => few::<V, E, 2, 2>(w, tokens(x, w.k), out),
            3 if E::STEPS == 1 && V::WIDE => few::<V, E, 4, 3>(w, tokens(x, w.k), out),
            3 if E::STEPS == 1 => few::<V, E, 2, 3>(w, tokens(x, w.k), out),
            FEW if E::STEPS == 1 && V::WIDE => few::<V, E, 4, FEW>(w, tokens(x, w.k), out),
            FEW if E::STEPS == 1 => few::<V, E, 1, FEW>(w, tokens(x, w.k), out),
            tokens => unreachable!("{tokens} tokens are not few"),
        }
    }
}

fn tokens<const T: usize>(x: &[f32], k: usize) -> [&[f32]; T] {
    std::array::from_fn(|t| &x[t * k..(t + 1) * k])
}

/// All rows, `R` at a time, with `T` tokens; `out` is `[T, rows]`.
#[inline(always)]
fn few<V: F32x16, E: Element, const R: usize, const T: usize>(w: Tile<'_>, tokens: [&[f32]; T], out: &mut [f32]) {
    let rows = w.rows();
    let whole = rows - rows % R;
    for r in (0..whole).step_by(R) {
        scatter(dots::<V, E, R, T>(w.some_rows(r), tokens), &mut out[r..], rows);
    }
    for r in whole..rows {
        scatter(dots::<V, E, 1, T>(w.some_rows(r), tokens), &mut out[r..], rows);
    }
}

/// `out[t × stride + r] = sums[r][t]`
#[inline(always)]
fn scatter<const R: usize, const T: usize>(sums: [[f32; T]; R], out: &mut [f32], stride: usize) {
    for (r, sums) in sums.iter().enumerate() {
        for (t, sum) in sums.iter().enumerate() {
            out[t * stride + r] = *sum;
        }
    }
}

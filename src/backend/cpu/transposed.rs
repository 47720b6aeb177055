//! The product with a matrix that is stored as its transpose: each stored row holds the weights of one input for all
//! outputs (or of a few inputs: `grouped`). So a tile adds to every output. An output's sum takes the inputs in order, one
//! fused multiply-add after another, beginning with the bias or with what is there; where the matrix was cut into tiles does
//! not show.

use std::sync::{Mutex, PoisonError};

use super::isa::{F32x16, Isa, Kernel, LANES};
use super::matmul::{BLOCK, Columns, Finish, Mode};
use super::panel;
use super::weights::{Bf16, Element, F16, F32, Tile};
use super::workers::Workers;
use crate::encoding::Encoding;

/// Multiplications and additions that make a task worth handing out.
const WORTHWHILE: usize = 1 << 16;
/// Stored rows that are added to the sums at once.
pub(super) const DEPTH: usize = 4;

/// The activations that belong to the stored rows of a tile.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[tokens, stride]`
    pub data: &'a [f32],
    /// From one token to the next, in elements.
    pub stride: usize,
    /// The column that belongs to the tile's first stored row.
    pub first: usize,
}

/// A run of whole stored rows.
pub(super) trait Stored: Copy + Sync {
    fn outputs(self) -> usize;
    /// How many inputs these rows have the weights of.
    fn inputs(self) -> usize;
    /// Adds what they contribute to some sums.
    fn add(self, isa: Isa, block: Block<'_>);
}

impl Stored for Tile<'_> {
    fn outputs(self) -> usize {
        // Along a stored row lie outputs.
        self.k
    }

    fn inputs(self) -> usize {
        assert_eq!(
            self.bytes.len(),
            self.rows() * self.row_bytes(),
            "whole stored rows of {} {}",
            self.k,
            self.encoding
        );
        self.rows()
    }

    fn add(self, isa: Isa, block: Block<'_>) {
        isa.run(Plain { w: self, block });
    }
}

pub(super) fn matmul(
    isa: Isa,
    workers: &mut Workers,
    w: impl Stored,
    x: Inputs<'_>,
    out: Columns<'_>,
    finish: Finish<'_>,
) {
    let (outputs, inputs) = (w.outputs(), w.inputs());
    let tokens = x.data.len() / x.stride;
    assert!(
        out.first + outputs <= out.stride && out.data.len() >= tokens * out.stride,
        "{outputs} sums for {tokens} tokens"
    );
    assert!(x.first + inputs <= x.stride, "activations for every stored row");
    assert!(finish.bias.is_none_or(|bias| bias.len() == outputs), "a bias for every one of {outputs} outputs");
    assert!(!finish.normalise_rows, "rows lie scattered here");

    let tokens_at_once = tokens.clamp(1, panel::TOKENS);
    let token_blocks = tokens.div_ceil(tokens_at_once);
    let wanted = (4 * workers.len()).div_ceil(token_blocks.max(1));
    let at_once = outputs.div_ceil(wanted).max(WORTHWHILE / (inputs.max(1) * tokens_at_once));
    let at_once = at_once.clamp(1, BLOCK / tokens_at_once / LANES * LANES).next_multiple_of(LANES);
    let column_blocks = outputs.div_ceil(at_once);
    let (stride, column) = (out.stride, out.first);
    let out = Mutex::new(out.data);
    workers.run(column_blocks * token_blocks, |scratch, task| {
        let first = task / token_blocks * at_once;
        let token = task % token_blocks * tokens_at_once;
        let (width, tokens) = (at_once.min(outputs - first), tokens_at_once.min(tokens - token));
        let sums = &mut scratch.matmul.block[..width * tokens];
        let start = |t: usize| (token + t) * stride + column + first;
        match finish.mode {
            Mode::Store => sums.fill(0.0),
            Mode::Add => {
                let out = out.lock().unwrap_or_else(PoisonError::into_inner);
                sums.chunks_exact_mut(width)
                    .enumerate()
                    .for_each(|(t, s)| s.copy_from_slice(&out[start(t)..][..width]));
            }
        }
        if let Some(bias) = finish.bias {
            for sums in sums.chunks_exact_mut(width) {
                sums.iter_mut().zip(&bias[first..]).for_each(|(sum, b)| *sum += finish.scale * b);
            }
        }
        let x = Inputs { data: &x.data[token * x.stride..(token + tokens) * x.stride], ..x };
        w.add(isa, Block { x, scale: finish.scale, first, width, sums });
        let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
        sums.chunks_exact(width).enumerate().for_each(|(t, s)| out[start(t)..][..width].copy_from_slice(s));
    });
}

/// Some outputs of some tokens.
pub(super) struct Block<'a> {
    x: Inputs<'a>,
    scale: f32,
    /// The first output, a multiple of sixteen.
    pub(super) first: usize,
    /// Outputs.
    pub(super) width: usize,
    /// `[tokens, width]`
    sums: &'a mut [f32],
}

impl Block<'_> {
    /// Adds the products with `w`, the weights of inputs from number `input` of the tile on, for the outputs from the block's
    /// `at` on; sixteen of them, or what is left.
    #[inline(always)]
    pub(super) fn accumulate<V: F32x16, const D: usize>(&mut self, w: [V; D], input: usize, at: usize) {
        let (end, input) = (self.width.min(at + LANES), self.x.first + input);
        for (x, sums) in self.x.data.chunks_exact(self.x.stride).zip(self.sums.chunks_exact_mut(self.width)) {
            let x: [f32; D] = std::array::from_fn(|d| self.scale * x[input + d]);
            match sums[at..end].as_chunks_mut::<LANES>() {
                ([sums], _) => accumulate(w, x, V::load(sums)).store(sums),
                (_, sums) => accumulate(w, x, V::load_part(sums)).store_part(sums),
            }
        }
    }
}

/// A block's part of weights that stand for themselves.
struct Plain<'a> {
    w: Tile<'a>,
    block: Block<'a>,
}

impl Kernel for Plain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(mut self) {
        match self.w.encoding {
            Encoding::Bf16 => self.elements::<V, Bf16>(),
            Encoding::F16 => self.elements::<V, F16>(),
            Encoding::F32 => self.elements::<V, F32>(),
            other => unreachable!("{other} is never stored as a transpose"),
        }
    }
}

impl Plain<'_> {
    #[inline(always)]
    fn elements<V: F32x16, E: Element>(&mut self) {
        let rows = self.w.rows();
        let whole = rows - rows % DEPTH;
        for row in (0..whole).step_by(DEPTH) {
            self.add::<V, E, DEPTH>(row);
        }
        for row in whole..rows {
            self.add::<V, E, 1>(row);
        }
    }

    /// Adds the products of `D` stored rows, from `row` on.
    #[inline(always)]
    fn add<V: F32x16, E: Element, const D: usize>(&mut self, row: usize) {
        let (element, first, width) = (self.w.encoding.bytes(1), self.block.first, self.block.width);
        let mut parts: [&[u8]; D] = [&[]; D];
        for (d, part) in parts.iter_mut().enumerate() {
            let start = (row + d) * self.w.row_bytes() + first * element;
            *part = &self.w.bytes[start..start + width * element];
        }
        for at in (0..width).step_by(LANES) {
            let end = width.min(at + LANES);
            let mut w = [V::zero(); D];
            for d in 0..D {
                let bytes = &parts[d][at * element..end * element];
                let row = Tile { bytes, k: end - at, ..self.w }.row::<E>(0);
                w[d] = match row.chunks {
                    [chunk] => E::lanes(&row.beside, chunk, &mut E::common::<V>(&row.beside, chunk, 0), 0, 0),
                    _ => row.rest::<V>().next(end - at),
                };
            }
            self.block.accumulate(w, row, at);
        }
    }
}

/// `sums + w[0]·x[0] + w[1]·x[1] …`, from left to right.
#[inline(always)]
fn accumulate<V: F32x16, const D: usize>(w: [V; D], x: [f32; D], mut sums: V) -> V {
    for d in 0..D {
        sums = w[d].mul_add(V::splat(x[d]), sums);
    }
    sums
}

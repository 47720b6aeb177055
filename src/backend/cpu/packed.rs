//! Packed rows (see [`Packed`]): codes, and behind them in the same row the scales.

use super::isa::{F32x16, LANES};
use super::weights::{Element, Factors, Tile};
use crate::checkpoint::{BLOCK, NESTED};
use crate::encoding::{Encoding, NF4, Packed, scale_map};

/// Vectors of sixteen in the 64 numbers that are decoded together, which never have more than one scale.
const STEPS: usize = BLOCK / LANES;

/// A packed row: its codes, and what is behind them.
#[inline(always)]
fn split<'a>(tile: &Tile<'a>, row: &'a [u8]) -> (&'a [u8], &'a [u8], Packed) {
    let Encoding::Packed(packed) = tile.encoding else { unreachable!("{} is not packed", tile.encoding) };
    let (codes, behind) = row.split_at(packed.code_bytes(tile.k));
    (codes, behind, packed)
}

/// The float32 scales that are first behind a row's codes.
#[inline(always)]
fn scales<'a>(tile: &Tile<'a>, row: &'a [u8]) -> (&'a [u8], Factors<'a>) {
    let (codes, behind, packed) = split(tile, row);
    let (values, _) = behind.as_chunks::<4>();
    (codes, Factors { values: &values[..packed.scales(tile.k)], zeros: &[], shift: (packed.block() / BLOCK).ilog2() })
}

/// Signed bytes.
pub(super) struct Int8;

impl Element for Int8 {
    type Chunk = [[u8; LANES]; STEPS];
    const STEPS: usize = STEPS;
    type Beside<'a> = Factors<'a>;
    type Common = f32;

    #[inline(always)]
    fn open<'a>(tile: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], Factors<'a>) {
        scales(tile, row)
    }

    #[inline(always)]
    fn common<V: F32x16>(scales: &Factors<'_>, _: &Self::Chunk, i: usize) -> f32 {
        scales.at(i)
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &Factors<'_>, chunk: &Self::Chunk, scale: &f32, _: usize, step: usize) -> V {
        V::load_i8(&chunk[step]).mul(V::splat(*scale))
    }
}

/// NormalFloat of 4 bits.
pub(super) struct Nf4;

impl Element for Nf4 {
    type Chunk = [[u8; LANES / 2]; STEPS];
    const STEPS: usize = STEPS;
    type Beside<'a> = Factors<'a>;
    type Common = f32;

    #[inline(always)]
    fn open<'a>(tile: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], Factors<'a>) {
        scales(tile, row)
    }

    #[inline(always)]
    fn common<V: F32x16>(scales: &Factors<'_>, _: &Self::Chunk, i: usize) -> f32 {
        scales.at(i)
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &Factors<'_>, chunk: &Self::Chunk, scale: &f32, _: usize, step: usize) -> V {
        V::table4::<true>(&chunk[step], &NF4).mul(V::splat(*scale))
    }
}

/// The same, with scales of one byte.
pub(super) struct Nf4Double;

/// The scales of a row, quantised themselves.
#[derive(Clone, Copy)]
pub(super) struct Doubled<'a> {
    codes: &'a [u8],
    scales: &'a [[u8; 4]],
    offset: f32,
}

/// What the codes of scales stand for.
static SCALE_MAP: [f32; 256] = scale_map();

impl Element for Nf4Double {
    type Chunk = [[u8; LANES / 2]; STEPS];
    const STEPS: usize = STEPS;
    type Beside<'a> = Doubled<'a>;
    type Common = f32;

    #[inline(always)]
    fn open<'a>(tile: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], Doubled<'a>) {
        let (codes, behind, packed) = split(tile, row);
        let count = packed.scales(tile.k);
        let (scale_codes, behind) = behind.split_at(count.next_multiple_of(4));
        let (scales, behind) = behind.split_at(4 * count.div_ceil(NESTED));
        let offset = f32::from_le_bytes([behind[0], behind[1], behind[2], behind[3]]);
        (codes, Doubled { codes: &scale_codes[..count], scales: scales.as_chunks().0, offset })
    }

    #[inline(always)]
    fn common<V: F32x16>(beside: &Doubled<'_>, _: &Self::Chunk, i: usize) -> f32 {
        let scale = f32::from_le_bytes(beside.scales[i / NESTED]);
        SCALE_MAP[usize::from(beside.codes[i])] * scale + beside.offset
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &Doubled<'_>, chunk: &Self::Chunk, scale: &f32, _: usize, step: usize) -> V {
        V::table4::<true>(&chunk[step], &NF4).mul(V::splat(*scale))
    }
}

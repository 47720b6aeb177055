//! Packed rows (see [`Packed`]): codes, and in the same row what their numbers need.

use super::isa::{F32x16, LANES};
use super::weights::{Element, Factors, Tile};
use crate::checkpoint::{BLOCK, BLOCK_BYTES, BLOCK_CODES, NESTED, RUN};
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
    (
        codes,
        Factors {
            values: &values[..packed.scales(tile.k)],
            zeros: &[],
            shift: (packed.block() / BLOCK).ilog2(),
            index: &[],
        },
    )
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
    fn lanes<V: F32x16>(_: &Factors<'_>, chunk: &Self::Chunk, scale: &mut f32, _: usize, step: usize) -> V {
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
    fn lanes<V: F32x16>(_: &Factors<'_>, chunk: &Self::Chunk, scale: &mut f32, _: usize, step: usize) -> V {
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
    fn lanes<V: F32x16>(_: &Doubled<'_>, chunk: &Self::Chunk, scale: &mut f32, _: usize, step: usize) -> V {
        V::table4::<true>(&chunk[step], &NF4).mul(V::splat(*scale))
    }
}

/// Bfloat16 with coded exponents.
pub(super) struct Lossless;

/// What a lossless row has before its blocks.
#[derive(Clone, Copy)]
pub(super) struct Exponents<'a> {
    /// Of each code; that of escapes is 0.
    of_code: [u8; 8],
    /// Escapes before each run.
    before: &'a [[u8; 2]],
    /// Those of the row, and what follows them in it: more than sixteen bytes.
    escapes: &'a [u8],
}

/// Vectors of a block.
const IN_BLOCK: usize = BLOCK / LANES;

impl Element for Lossless {
    /// The blocks of [`RUN`] numbers.
    type Chunk = [[u8; BLOCK_BYTES / IN_BLOCK]; RUN / LANES];
    const STEPS: usize = RUN / LANES;
    type Beside<'a> = Exponents<'a>;
    /// How many of the row's escapes were used.
    type Common = usize;

    #[inline(always)]
    fn open<'a>(tile: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], Exponents<'a>) {
        let Encoding::Packed(packed) = tile.encoding else { unreachable!("{} is not packed", tile.encoding) };
        let (exponents, behind) = row.split_at(2);
        let (before, escapes) = behind.split_at(2 * tile.k.div_ceil(RUN));
        let (alone, first) = (exponents[0], exponents[1]);
        let after = |n| first.wrapping_add(n);
        let of_code = [0, alone, first, after(1), after(2), after(3), after(4), after(5)];
        let blocks = &row[row.len() - packed.code_bytes(tile.k)..];
        (blocks, Exponents { of_code, before: before.as_chunks().0, escapes })
    }

    #[inline(always)]
    fn common<V: F32x16>(row: &Exponents<'_>, _: &Self::Chunk, i: usize) -> usize {
        usize::from(u16::from_le_bytes(row.before[i]))
    }

    #[inline(always)]
    fn lanes<V: F32x16>(row: &Exponents<'_>, run: &Self::Chunk, used: &mut usize, _: usize, step: usize) -> V {
        let (block, _) = run.as_flattened()[step / IN_BLOCK * BLOCK_BYTES..].split_at(BLOCK_BYTES);
        // Six bytes of codes, and two that do not matter: behind the last codes there are numbers.
        let codes = block[step % IN_BLOCK * (BLOCK_CODES / IN_BLOCK)..].first_chunk();
        let numbers = block[BLOCK_CODES + step % IN_BLOCK * LANES..].first_chunk();
        // In a damaged row, there may have been any number of escapes.
        let escapes = row.escapes[(*used).min(row.escapes.len() - LANES)..].first_chunk();
        let parts = (numbers.expect("16 bytes"), codes.expect("8 bytes"), escapes.expect("16 bytes"));
        let (numbers, more) = V::load_coded(parts.0, parts.1, &row.of_code, parts.2);
        *used += more;
        numbers
    }
}

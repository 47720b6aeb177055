//! Weights as they lie in the checkpoint: little-endian bytes at any address, decoded to float32 sixteen at a time, with
//! the bits that decoding the whole matrix beforehand would give.

use super::isa::{F32x16, Isa, Kernel, LANES};
use crate::encoding::{Encoding, FP4, NF4};

/// A run of whole rows of a `[rows, k]` matrix.
#[derive(Clone, Copy)]
pub struct Tile<'a> {
    /// The rows, one after another without padding, at any address.
    pub bytes: &'a [u8],
    pub encoding: Encoding,
    /// Numbers in a row.
    pub k: usize,
    /// For an encoding that is not complete.
    pub scales: Option<Scales<'a>>,
}

/// The factors that a matrix is multiplied by, one for each block of `row_block` × `col_block` numbers.
#[derive(Clone, Copy)]
pub struct Scales<'a> {
    /// `[blocks of rows, blocks of columns]`, row-major, of the whole matrix.
    pub values: &'a [f32],
    /// As many numbers that are subtracted first, or none.
    pub zeros: &'a [f32],
    pub row_block: usize,
    /// A power of two, at least 16; or at least as many as the matrix has columns.
    pub col_block: usize,
    /// The row of the matrix that is the tile's first.
    pub first_row: usize,
}

impl<'a> Tile<'a> {
    /// Rows in `bytes`.
    pub fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.encoding.bytes(self.k)
    }

    /// Some of the rows.
    pub(super) fn part(self, first: usize, rows: usize) -> Tile<'a> {
        let bytes = &self.bytes[first * self.row_bytes()..(first + rows) * self.row_bytes()];
        let scales = self.scales.map(|scales| Scales { first_row: scales.first_row + first, ..scales });
        Tile { bytes, scales, ..self }
    }

    /// The factors of `R` rows, from `first` on.
    #[inline(always)]
    pub(super) fn factors<const R: usize>(&self, first: usize) -> Factors<'a, R> {
        let Some(scales) = self.scales else { return Factors::NONE };
        let per_row = self.k.div_ceil(scales.col_block);
        let (mut rows, mut zeros): ([&[f32]; R], [&[f32]; R]) = ([&[]; R], [&[]; R]);
        for r in 0..R {
            let block = (scales.first_row + first + r) / scales.row_block;
            rows[r] = &scales.values[block * per_row..(block + 1) * per_row];
            if !scales.zeros.is_empty() {
                zeros[r] = &scales.zeros[block * per_row..(block + 1) * per_row];
            }
        }
        let shift = if per_row == 1 { usize::BITS - 1 } else { (scales.col_block / LANES).ilog2() };
        Factors { rows, zeros, shift }
    }
}

/// The factors of `R` rows: that of the sixteen numbers from 16·i on is at `i >> shift`.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a, const R: usize> {
    rows: [&'a [f32]; R],
    /// None, or one for each factor.
    zeros: [&'a [f32]; R],
    shift: u32,
}

impl<const R: usize> Factors<'_, R> {
    pub const NONE: Self = Factors { rows: [&[]; R], zeros: [&[]; R], shift: 0 };

    /// `lanes`, which are sixteen numbers of row `r` from 16·`step` on, less their zero, times their factor.
    #[inline(always)]
    pub fn apply<V: F32x16, E: Element>(&self, lanes: V, r: usize, step: usize) -> V {
        if !E::SCALED {
            return lanes;
        }
        let (block, mut lanes) = (step >> self.shift, lanes);
        if E::ZEROS && !self.zeros[r].is_empty() {
            lanes = lanes.sub(V::splat(self.zeros[r][block]));
        }
        lanes.mul(V::splat(self.rows[r][block]))
    }
}

/// An encoding at compile time; [`Encoding`] is the same at run time, and [`with_element`] joins them.
pub(super) trait Element {
    /// The bytes of a block: of sixteen numbers, or of a multiple of sixteen.
    type Chunk: bytemuck::Pod;
    /// Vectors of sixteen in a block. A row may end within a block of one only.
    const STEPS: usize = 1;
    /// Whether numbers are multiplied by a factor that lies elsewhere.
    const SCALED: bool = false;
    /// Whether a zero may be subtracted before.
    const ZEROS: bool = false;
    /// What the vectors of a block have in common.
    type Common: Copy + Default;

    fn common<V: F32x16>(chunk: &Self::Chunk) -> Self::Common;

    /// The numbers of a block from 16·`step` on.
    fn lanes<V: F32x16>(chunk: &Self::Chunk, common: &Self::Common, step: usize) -> V;

    /// The whole chunks of some numbers, and the bytes after them.
    #[inline(always)]
    fn chunks(bytes: &[u8]) -> (&[Self::Chunk], &[u8]) {
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % size_of::<Self::Chunk>());
        (bytemuck::cast_slice(whole), rest)
    }

    /// Fewer than sixteen numbers, the missing ones as zero.
    #[inline(always)]
    fn lanes_part<V: F32x16>(bytes: &[u8]) -> V {
        let mut chunk: Self::Chunk = bytemuck::Zeroable::zeroed();
        bytemuck::bytes_of_mut(&mut chunk)[..bytes.len()].copy_from_slice(bytes);
        Self::lanes(&chunk, &Self::common::<V>(&chunk), 0)
    }
}

/// Encodings whose numbers stand for themselves, each in as many bytes.
macro_rules! plain {
    ($($element:ident: $bytes:literal, $load:ident, $scaled:literal;)*) => {$(
        pub(super) struct $element;

        impl Element for $element {
            type Chunk = [u8; $bytes * LANES];
            type Common = ();
            const SCALED: bool = $scaled;

            #[inline(always)]
            fn common<V: F32x16>(_: &Self::Chunk) {}

            #[inline(always)]
            fn lanes<V: F32x16>(chunk: &Self::Chunk, _: &(), _: usize) -> V {
                V::$load(chunk)
            }
        }
    )*};
}

plain! {
    F32: 4, load_f32, false;
    F16: 2, load_f16, false;
    Bf16: 2, load_bf16, false;
    F8E4M3: 1, load_e4m3, true;
}

/// Numbers with factors that lie elsewhere, sixteen in so many bytes, perhaps with zeros.
macro_rules! scaled {
    ($($element:ident: $bytes:expr, $zeros:literal, |$chunk:ident| $numbers:expr;)*) => {$(
        pub(super) struct $element;

        impl Element for $element {
            type Chunk = [u8; $bytes];
            type Common = ();
            const SCALED: bool = true;
            const ZEROS: bool = $zeros;

            #[inline(always)]
            fn common<V: F32x16>(_: &Self::Chunk) {}

            #[inline(always)]
            fn lanes<V: F32x16>($chunk: &Self::Chunk, _: &(), _: usize) -> V {
                $numbers
            }
        }
    )*};
}

scaled! {
    Int8: LANES, true, |chunk| V::load_i8(chunk);
    Offset8: LANES, true, |chunk| V::from_bytes(V::bytes(chunk)).sub(V::splat(128.0));
    Offset4: LANES / 2, true, |chunk| V::table4::<false>(chunk, &OFFSET4);
    Nf4: LANES / 2, false, |chunk| V::table4::<true>(chunk, &NF4);
    Fp4: LANES / 2, false, |chunk| V::table4::<true>(chunk, &FP4);
}

/// What four bits stand for, less 8.
const OFFSET4: [f32; 16] = [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

/// Evaluates an expression with `E` as the [`Element`] of an encoding.
macro_rules! with_element {
    ($encoding:expr, $e:ident => $body:expr) => {{
        use crate::backend::cpu::{blocks, weights as elements};
        use crate::encoding::Encoding;
        match $encoding {
            Encoding::F32 => {
                type $e = elements::F32;
                $body
            }
            Encoding::F16 => {
                type $e = elements::F16;
                $body
            }
            Encoding::Bf16 => {
                type $e = elements::Bf16;
                $body
            }
            Encoding::F8E4M3 => {
                type $e = elements::F8E4M3;
                $body
            }
            Encoding::Q8_0 => {
                type $e = blocks::Q8_0;
                $body
            }
            Encoding::Q4_0 => {
                type $e = blocks::Q4_0;
                $body
            }
            Encoding::Q4K => {
                type $e = blocks::Q4K;
                $body
            }
            Encoding::Q5K => {
                type $e = blocks::Q5K;
                $body
            }
            Encoding::Q6K => {
                type $e = blocks::Q6K;
                $body
            }
            Encoding::Mxfp4 => {
                type $e = crate::backend::cpu::mxfp4::Mxfp4;
                $body
            }
            Encoding::Int8 => {
                type $e = elements::Int8;
                $body
            }
            Encoding::Offset8 => {
                type $e = elements::Offset8;
                $body
            }
            Encoding::Offset4 => {
                type $e = elements::Offset4;
                $body
            }
            Encoding::Nf4 => {
                type $e = elements::Nf4;
                $body
            }
            Encoding::Fp4 => {
                type $e = elements::Fp4;
                $body
            }
            other @ (Encoding::Gptq4 | Encoding::Gptq8 | Encoding::Awq4) => {
                unreachable!("{other} is only stored as a transpose")
            }
        }
    }};
}
pub(super) use with_element;

/// Decodes whole rows, of an encoding that is complete: rows of the embedding, a norm's weight, a bias.
///
/// # Panics
/// If `bytes` does not hold exactly `out.len()` numbers.
pub(super) fn widen(isa: Isa, bytes: &[u8], encoding: Encoding, out: &mut [f32]) {
    assert!(encoding.is_complete(), "{encoding} needs factors");
    assert_eq!(bytes.len(), encoding.bytes(out.len()), "bytes of {} numbers", out.len());
    isa.run(Widen { bytes, encoding, out });
}

struct Widen<'a> {
    bytes: &'a [u8],
    encoding: Encoding,
    out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: F32x16>(self) {
        with_element!(self.encoding, E => widen_elements::<V, E>(self.bytes, self.out))
    }
}

#[inline(always)]
fn widen_elements<V: F32x16, E: Element>(bytes: &[u8], out: &mut [f32]) {
    let (chunks, rest) = E::chunks(bytes);
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    for (chunk, out) in chunks.iter().zip(out.chunks_exact_mut(E::STEPS)) {
        let common = E::common::<V>(chunk);
        for (step, out) in out.iter_mut().enumerate() {
            E::lanes::<V>(chunk, &common, step).store(out);
        }
    }
    E::lanes_part::<V>(rest).store_part(out_rest);
}

//! Weights as they lie in the checkpoint: little-endian bytes at any address, decoded to float32 sixteen at a time, with
//! the bits that decoding the whole matrix beforehand would give.

use super::isa::{F32x16, Isa, Kernel, LANES};
use super::mxfp4;
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
    /// Of every column the number of its block, where these are no runs of columns; or none.
    pub index: &'a [u32],
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

    /// One of the rows, ready to be decoded.
    #[inline(always)]
    pub(super) fn row<E: Element>(&self, r: usize) -> Row<'a, E> {
        let row_bytes = self.row_bytes();
        let (codes, beside) = E::open(self, r, &self.bytes[r * row_bytes..(r + 1) * row_bytes]);
        let (whole, rest) = codes.split_at(self.k / (E::STEPS * LANES) * size_of::<E::Chunk>());
        Row { chunks: bytemuck::cast_slice(whole), rest, beside }
    }

    /// `R` of the rows, from `first` on.
    #[inline(always)]
    pub(super) fn some_rows<E: Element, const R: usize>(&self, first: usize) -> [Row<'a, E>; R] {
        std::array::from_fn(|r| self.row(first + r))
    }
}

/// A row: its chunks, and what they need to be decoded.
pub(super) struct Row<'a, E: Element> {
    /// Those of which all numbers belong to the row.
    pub chunks: &'a [E::Chunk],
    /// The bytes of one more, of which some do.
    rest: &'a [u8],
    pub beside: E::Beside<'a>,
}

impl<E: Element> Clone for Row<'_, E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Element> Copy for Row<'_, E> {}

impl<'a, E: Element> Row<'a, E> {
    /// The numbers of the incomplete chunk, if the row has one.
    #[inline(always)]
    pub fn rest<V: F32x16>(&self) -> Rest<'a, E> {
        let mut chunk: E::Chunk = bytemuck::Zeroable::zeroed();
        let there = self.rest.len().min(size_of::<E::Chunk>());
        bytemuck::bytes_of_mut(&mut chunk)[..there].copy_from_slice(&self.rest[..there]);
        let i = self.chunks.len();
        Rest { common: E::common::<V>(&self.beside, &chunk, i), chunk, i, step: 0, beside: self.beside }
    }
}

/// An incomplete chunk, of which some numbers belong to the row.
pub(super) struct Rest<'a, E: Element> {
    chunk: E::Chunk,
    common: E::Common,
    i: usize,
    step: usize,
    beside: E::Beside<'a>,
}

impl<E: Element> Rest<'_, E> {
    /// Its next sixteen numbers. Those from `numbers` on are not the row's, and zero.
    #[inline(always)]
    pub fn next<V: F32x16>(&mut self, numbers: usize) -> V {
        let mut lanes = [0.0; LANES];
        E::lanes::<V>(&self.beside, &self.chunk, &mut self.common, self.i, self.step).store(&mut lanes);
        self.step += 1;
        lanes[numbers.min(LANES)..].fill(0.0);
        V::load(&lanes)
    }
}

/// Factors that numbers are multiplied by: that of the numbers from 16·i on is at `i >> shift`.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    /// Little-endian float32, at any address.
    pub values: &'a [[u8; 4]],
    /// None, or as many numbers that are subtracted first.
    pub zeros: &'a [[u8; 4]],
    pub shift: u32,
    /// None, or of every number the place of its factor.
    pub index: &'a [u32],
}

impl<'a> Factors<'a> {
    /// Those of a tile's row that lie elsewhere.
    #[inline(always)]
    fn of_row(tile: &Tile<'a>, r: usize) -> Factors<'a> {
        let scales = tile.scales.expect("an encoding that is not complete comes with factors");
        let per_row = tile.k.div_ceil(scales.col_block);
        let block = (scales.first_row + r) / scales.row_block;
        let values = bytemuck::cast_slice(&scales.values[block * per_row..(block + 1) * per_row]);
        let zeros = match scales.zeros {
            [] => &[],
            zeros => bytemuck::cast_slice(&zeros[block * per_row..(block + 1) * per_row]),
        };
        let shift = if per_row == 1 { usize::BITS - 1 } else { (scales.col_block / LANES).ilog2() };
        Factors { values, zeros, shift, index: scales.index }
    }

    /// The factor of the sixteen numbers with this place.
    #[inline(always)]
    pub fn at(&self, step: usize) -> f32 {
        f32::from_le_bytes(self.values[step >> self.shift])
    }

    /// What is subtracted from these before.
    #[inline(always)]
    fn zero_at(&self, step: usize) -> f32 {
        f32::from_le_bytes(self.zeros[step >> self.shift])
    }

    /// The sixteen codes with this place, less their zeros and times their factors, which lie in any order.
    #[inline(always)]
    fn apply_in_any_order<V: F32x16>(&self, codes: V, step: usize) -> V {
        let places = &self.index[step * LANES..];
        let gather = |values: &[[u8; 4]]| {
            let mut lanes = [0.0; LANES];
            for (lane, place) in lanes.iter_mut().zip(places) {
                *lane = f32::from_le_bytes(values[*place as usize]);
            }
            V::load(&lanes)
        };
        let codes = if self.zeros.is_empty() { codes } else { codes.sub(gather(self.zeros)) };
        codes.mul(gather(self.values))
    }
}

/// An encoding at compile time; [`Encoding`] is the same at run time, and [`with_element`] joins them.
pub(super) trait Element {
    /// Bytes that sixteen numbers are made of, or a multiple of sixteen.
    type Chunk: bytemuck::Pod;
    /// Vectors of sixteen in a chunk. A row may end within one, if the chunk's bytes are there or numbers have as many
    /// bytes each.
    const STEPS: usize = 1;
    /// What belongs to a row beside its chunks: factors, wherever they lie.
    type Beside<'a>: Copy;
    /// What the vectors of a chunk have in common, or one leaves to the next.
    type Common: Copy + Default;

    /// The chunks of a tile's row `r`, which these bytes are, and what is beside them.
    fn open<'a>(tile: &Tile<'a>, r: usize, row: &'a [u8]) -> (&'a [u8], Self::Beside<'a>);

    /// Of chunk `i` of a row.
    fn common<V: F32x16>(beside: &Self::Beside<'_>, chunk: &Self::Chunk, i: usize) -> Self::Common;

    /// The numbers of chunk `i` from 16·`step` on, for one `step` after the other.
    fn lanes<V: F32x16>(
        beside: &Self::Beside<'_>,
        chunk: &Self::Chunk,
        common: &mut Self::Common,
        i: usize,
        step: usize,
    ) -> V;
}

/// Encodings whose numbers stand for themselves, each in as many bytes.
macro_rules! plain {
    ($($element:ident: $bytes:literal, $load:ident;)*) => {$(
        pub(super) struct $element;

        impl Element for $element {
            type Chunk = [u8; $bytes * LANES];
            type Beside<'a> = ();
            type Common = ();

            #[inline(always)]
            fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
                (row, ())
            }

            #[inline(always)]
            fn common<V: F32x16>(_: &(), _: &Self::Chunk, _: usize) {}

            #[inline(always)]
            fn lanes<V: F32x16>(_: &(), chunk: &Self::Chunk, _: &mut (), _: usize, _: usize) -> V {
                V::$load(chunk)
            }
        }
    )*};
}

plain! {
    F32: 4, load_f32;
    F16: 2, load_f16;
    Bf16: 2, load_bf16;
}

/// Numbers with factors that lie elsewhere, sixteen in so many bytes, perhaps with zeros and in any order.
macro_rules! scaled {
    ($($element:ident: $bytes:expr, $zeros:literal, |$chunk:ident| $numbers:expr;)*) => {$(
        pub(super) struct $element;

        impl Element for $element {
            type Chunk = [u8; $bytes];
            type Beside<'a> = Factors<'a>;
            type Common = ();

            #[inline(always)]
            fn open<'a>(tile: &Tile<'a>, r: usize, row: &'a [u8]) -> (&'a [u8], Factors<'a>) {
                (row, Factors::of_row(tile, r))
            }

            #[inline(always)]
            fn common<V: F32x16>(_: &Factors<'_>, _: &Self::Chunk, _: usize) {}

            #[inline(always)]
            fn lanes<V: F32x16>(factors: &Factors<'_>, $chunk: &Self::Chunk, _: &mut (), i: usize, _: usize) -> V {
                let mut numbers: V = $numbers;
                if $zeros && !factors.index.is_empty() {
                    return factors.apply_in_any_order(numbers, i);
                }
                if $zeros && !factors.zeros.is_empty() {
                    numbers = numbers.sub(V::splat(factors.zero_at(i)));
                }
                numbers.mul(V::splat(factors.at(i)))
            }
        }
    )*};
}

scaled! {
    F8E4M3: LANES, false, |chunk| V::load_e4m3(chunk);
    Mxfp4: LANES / 2, false, |chunk| V::table4::<false>(chunk, &mxfp4::NUMBERS);
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
        use crate::backend::cpu::{blocks, packed, weights as elements};
        use crate::encoding::{Encoding, Packed};
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
            Encoding::Q4_1 => {
                type $e = blocks::Q4_1;
                $body
            }
            Encoding::Q5_0 => {
                type $e = blocks::Q5_0;
                $body
            }
            Encoding::Q5_1 => {
                type $e = blocks::Q5_1;
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
                type $e = elements::Mxfp4;
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
            Encoding::Packed(Packed::Int8 { .. }) => {
                type $e = packed::Int8;
                $body
            }
            Encoding::Packed(Packed::Nf4 { double: false }) => {
                type $e = packed::Nf4;
                $body
            }
            Encoding::Packed(Packed::Nf4 { double: true }) => {
                type $e = packed::Nf4Double;
                $body
            }
            Encoding::Packed(Packed::Lossless { .. }) => {
                type $e = packed::Lossless;
                $body
            }
        }
    }};
}
pub(super) use with_element;

/// Decodes rows, of an encoding that is complete: of the embedding, of a norm's weight or a bias; of a packed encoding,
/// one row.
///
/// # Panics
/// If `bytes` does not hold exactly `out.len()` numbers.
pub(super) fn widen(isa: Isa, bytes: &[u8], encoding: Encoding, out: &mut [f32]) {
    assert!(encoding.is_complete(), "{encoding} needs factors");
    assert_eq!(bytes.len(), encoding.bytes(out.len()), "bytes of {} numbers", out.len());
    if !out.is_empty() {
        isa.run(Widen { numbers: Tile { bytes, encoding, k: out.len(), scales: None }, out });
    }
}

struct Widen<'a> {
    /// All in one row.
    numbers: Tile<'a>,
    out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: F32x16>(self) {
        with_element!(self.numbers.encoding, E => widen_elements::<V, E>(self.numbers, self.out))
    }
}

#[inline(always)]
fn widen_elements<V: F32x16, E: Element>(numbers: Tile<'_>, out: &mut [f32]) {
    let row = numbers.row::<E>(0);
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    for (i, (chunk, out)) in row.chunks.iter().zip(out.chunks_exact_mut(E::STEPS)).enumerate() {
        let mut common = E::common::<V>(&row.beside, chunk, i);
        for (step, out) in out.iter_mut().enumerate() {
            E::lanes::<V>(&row.beside, chunk, &mut common, i, step).store(out);
        }
    }
    let done = row.chunks.len() * E::STEPS;
    if done * LANES < numbers.k {
        let mut rest = row.rest::<V>();
        for out in &mut out[done..] {
            rest.next::<V>(LANES).store(out);
        }
        rest.next::<V>(out_rest.len()).store_part(out_rest);
    }
}

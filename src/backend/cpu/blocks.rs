//! The blocks of GGUF: 32 or 256 numbers of a few bits with scales among them, as llama.cpp defines them (`block_q8_0` and
//! its neighbours in `ggml-common.h`). A number is decoded with the roundings of that definition: scale times minimum and
//! scale times number are exact in float32, so one rounding is left, of the difference.

use super::isa::{F32x16, LANES};
use super::weights::{Element, Tile};

/// Structures of bytes alone, which may be read from anywhere.
macro_rules! of_bytes {
    ($($name:ident),*) => {$(
        // SAFETY: `repr(C)`, and every field is an array of bytes: no padding, and every pattern is valid.
        unsafe impl bytemuck::Zeroable for $name {}
        // SAFETY: as above.
        unsafe impl bytemuck::Pod for $name {}
    )*};
}
of_bytes!(Q8Block, Q4Block, Q4_1Block, Q5_0Block, Q5_1Block, Q4KBlock, Q5KBlock, Q6KBlock);

/// 32 signed bytes and a scale.
pub(super) struct Q8_0;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Q8Block {
    scale: [u8; 2],
    numbers: [[u8; LANES]; 2],
}

impl Element for Q8_0 {
    type Chunk = Q8Block;
    type Common = f32;
    const STEPS: usize = 2;
    type Beside<'a> = ();

    #[inline(always)]
    fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
        (row, ())
    }

    #[inline(always)]
    fn common<V: F32x16>(_: &(), block: &Q8Block, _: usize) -> f32 {
        V::half(block.scale)
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &(), block: &Q8Block, scale: &mut f32, _: usize, step: usize) -> V {
        V::load_i8(&block.numbers[step]).mul(V::splat(*scale))
    }
}

/// 32 numbers of four bits, less eight, and a scale: the first sixteen in the lower halves of the bytes.
pub(super) struct Q4_0;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Q4Block {
    scale: [u8; 2],
    numbers: [u8; LANES],
}

impl Element for Q4_0 {
    type Chunk = Q4Block;
    type Common = f32;
    const STEPS: usize = 2;
    type Beside<'a> = ();

    #[inline(always)]
    fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
        (row, ())
    }

    #[inline(always)]
    fn common<V: F32x16>(_: &(), block: &Q4Block, _: usize) -> f32 {
        V::half(block.scale)
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &(), block: &Q4Block, scale: &mut f32, _: usize, step: usize) -> V {
        let numbers = V::field(V::bytes(&block.numbers), 4 * step as u32, 15);
        V::from_bytes(numbers).sub(V::splat(8.0)).mul(V::splat(*scale))
    }
}

/// As [`Q4_0`], but with a number that is added in place of the eight that are taken away.
pub(super) struct Q4_1;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Q4_1Block {
    scale: [u8; 2],
    added: [u8; 2],
    numbers: [u8; LANES],
}

impl Element for Q4_1 {
    type Chunk = Q4_1Block;
    type Common = [f32; 2];
    const STEPS: usize = 2;
    type Beside<'a> = ();

    #[inline(always)]
    fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
        (row, ())
    }

    #[inline(always)]
    fn common<V: F32x16>(_: &(), block: &Q4_1Block, _: usize) -> [f32; 2] {
        [V::half(block.scale), V::half(block.added)]
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &(), block: &Q4_1Block, [scale, added]: &mut [f32; 2], _: usize, step: usize) -> V {
        let numbers = V::field(V::bytes(&block.numbers), 4 * step as u32, 15);
        V::from_bytes(numbers).mul_add(V::splat(*scale), V::splat(*added))
    }
}

/// 32 numbers of five bits, less sixteen, and a scale: the fifth bits in a word of their own, the others as in [`Q4_0`].
pub(super) struct Q5_0;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Q5_0Block {
    scale: [u8; 2],
    numbers: Five,
}

impl Element for Q5_0 {
    type Chunk = Q5_0Block;
    type Common = f32;
    const STEPS: usize = 2;
    type Beside<'a> = ();

    #[inline(always)]
    fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
        (row, ())
    }

    #[inline(always)]
    fn common<V: F32x16>(_: &(), block: &Q5_0Block, _: usize) -> f32 {
        V::half(block.scale)
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &(), block: &Q5_0Block, scale: &mut f32, _: usize, step: usize) -> V {
        block.numbers.half::<V>(step).sub(V::splat(16.0)).mul(V::splat(*scale))
    }
}

/// As [`Q5_0`], but with a number that is added in place of the sixteen that are taken away.
pub(super) struct Q5_1;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Q5_1Block {
    scale: [u8; 2],
    added: [u8; 2],
    numbers: Five,
}

impl Element for Q5_1 {
    type Chunk = Q5_1Block;
    type Common = [f32; 2];
    const STEPS: usize = 2;
    type Beside<'a> = ();

    #[inline(always)]
    fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
        (row, ())
    }

    #[inline(always)]
    fn common<V: F32x16>(_: &(), block: &Q5_1Block, _: usize) -> [f32; 2] {
        [V::half(block.scale), V::half(block.added)]
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &(), block: &Q5_1Block, [scale, added]: &mut [f32; 2], _: usize, step: usize) -> V {
        block.numbers.half::<V>(step).mul_add(V::splat(*scale), V::splat(*added))
    }
}

/// 32 numbers of five bits.
#[derive(Clone, Copy)]
#[repr(C)]
struct Five {
    /// Bit i belongs to number i.
    high: [[u8; 2]; 2],
    low: [u8; LANES],
}

impl Five {
    /// Those of the first or the second half.
    #[inline(always)]
    fn half<V: F32x16>(&self, half: usize) -> V {
        let mut high = [0; LANES];
        for (eight, bits) in high.as_chunks_mut::<8>().0.iter_mut().zip(self.high[half]) {
            *eight = spread(bits);
        }
        let low = V::field(V::bytes(&self.low), 4 * half as u32, 15);
        V::from_bytes(V::join(low, V::bytes(&high)))
    }
}

/// A byte for each bit.
#[inline(always)]
fn spread(bits: u8) -> [u8; 8] {
    // Bit i stays in byte i alone; what is not zero carries into the byte's uppermost bit.
    let apart = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    ((apart + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101).to_le_bytes()
}

/// 256 numbers of four bits in eight runs of 32, each run with a scale and a minimum of six bits, which a scale each for the
/// block belongs to.
pub(super) struct Q4K;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Q4KBlock {
    scales: Scales6,
    /// Runs two by two: one in the lower, one in the upper halves of 32 bytes.
    numbers: [[u8; LANES]; 8],
}

impl Element for Q4K {
    type Chunk = Q4KBlock;
    type Common = [f32; LANES];
    const STEPS: usize = 16;
    type Beside<'a> = ();

    #[inline(always)]
    fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
        (row, ())
    }

    #[inline(always)]
    fn common<V: F32x16>(_: &(), block: &Q4KBlock, _: usize) -> [f32; LANES] {
        block.scales.decode::<V>()
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &(), block: &Q4KBlock, scales: &mut [f32; LANES], _: usize, step: usize) -> V {
        let numbers = V::field(V::bytes(&block.numbers[step / 4 * 2 + step % 2]), 4 * (step as u32 / 2 % 2), 15);
        Scales6::apply(scales, V::from_bytes(numbers), step / 2)
    }
}

/// As [`Q4K`], with a fifth bit for each number.
pub(super) struct Q5K;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Q5KBlock {
    scales: Scales6,
    /// Bit i of a byte belongs to run i.
    high: [[u8; LANES]; 2],
    /// As in [`Q4KBlock`].
    low: [[u8; LANES]; 8],
}

impl Element for Q5K {
    type Chunk = Q5KBlock;
    type Common = [f32; LANES];
    const STEPS: usize = 16;
    type Beside<'a> = ();

    #[inline(always)]
    fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
        (row, ())
    }

    #[inline(always)]
    fn common<V: F32x16>(_: &(), block: &Q5KBlock, _: usize) -> [f32; LANES] {
        block.scales.decode::<V>()
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &(), block: &Q5KBlock, scales: &mut [f32; LANES], _: usize, step: usize) -> V {
        let low = V::field(V::bytes(&block.low[step / 4 * 2 + step % 2]), 4 * (step as u32 / 2 % 2), 15);
        let high = V::field(V::bytes(&block.high[step % 2]), step as u32 / 2, 1);
        Scales6::apply(scales, V::from_bytes(V::join(low, high)), step / 2)
    }
}

/// 256 numbers of six bits, less 32, in sixteen runs of 16, each with a scale of eight bits, which a scale for the block
/// belongs to.
pub(super) struct Q6K;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Q6KBlock {
    /// The lower four bits; of each 128 numbers, 64 in the lower halves of 64 bytes, then 64 in the upper.
    low: [[u8; LANES]; 8],
    /// The upper two bits; of each 128 numbers, four times 32, from the lowest bits of 32 bytes up.
    high: [[u8; LANES]; 4],
    scales: [u8; LANES],
    scale: [u8; 2],
}

impl Element for Q6K {
    type Chunk = Q6KBlock;
    type Common = [f32; LANES];
    const STEPS: usize = 16;
    type Beside<'a> = ();

    #[inline(always)]
    fn open<'a>(_: &Tile<'a>, _: usize, row: &'a [u8]) -> (&'a [u8], ()) {
        (row, ())
    }

    #[inline(always)]
    fn common<V: F32x16>(_: &(), block: &Q6KBlock, _: usize) -> [f32; LANES] {
        let mut scales = [0.0; LANES];
        V::load_i8(&block.scales).mul(V::splat(V::half(block.scale))).store(&mut scales);
        scales
    }

    #[inline(always)]
    fn lanes<V: F32x16>(_: &(), block: &Q6KBlock, scales: &mut [f32; LANES], _: usize, step: usize) -> V {
        let (half, quarter, part) = (step / 8, step / 2 % 4, step % 2);
        let low = V::bytes(&block.low[half * 4 + quarter % 2 * 2 + part]);
        let low = V::field(low, 4 * (quarter as u32 / 2), 15);
        let high = V::field(V::bytes(&block.high[half * 2 + part]), 2 * quarter as u32, 3);
        V::from_bytes(V::join(low, high)).sub(V::splat(32.0)).mul(V::splat(scales[step]))
    }
}

/// The scales and minima of eight runs, six bits each, and the scale of each kind.
#[derive(Clone, Copy)]
#[repr(C)]
struct Scales6 {
    scale: [u8; 2],
    minimum: [u8; 2],
    packed: [u8; 12],
}

impl Scales6 {
    /// Eight scales, then eight minima, negated.
    #[inline(always)]
    fn decode<V: F32x16>(&self) -> [f32; LANES] {
        // Scales 0–3 and minima 0–3 are the lower six bits of bytes 0–3 and 4–7; the upper two bits of these go on top of
        // four bits each of bytes 8–11: the lower for scales 4–7, the upper for minima 4–7.
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| self.packed[at + i]));
        let (a, b, c) = (word(0), word(4), word(8));
        let top = |word: u32| word >> 6 & 0x0303_0303;
        let words =
            [a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | top(a) << 4, b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | top(b) << 4];
        let mut bytes = [0; LANES];
        for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        let (scale, minimum) = (V::half(self.scale), -V::half(self.minimum));
        let mut factors = [scale; LANES];
        factors[LANES / 2..].fill(minimum);
        let mut scales = [0.0; LANES];
        V::from_bytes(V::bytes(&bytes)).mul(V::load(&factors)).store(&mut scales);
        scales
    }

    /// Numbers of one run, scaled and less its minimum.
    #[inline(always)]
    fn apply<V: F32x16>(scales: &[f32; LANES], numbers: V, run: usize) -> V {
        numbers.mul_add(V::splat(scales[run]), V::splat(scales[LANES / 2 + run]))
    }
}

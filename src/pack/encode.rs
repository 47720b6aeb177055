//! From a source's rows to packed ones. Plain loops over arrays of fixed length, which the compiler turns into vectors, once
//! for each instruction set. What the numbers are is said in docs/packing.md; [`Packed`] says where in a row they are.

use super::lossless;
use crate::backend::cpu::{F32x16, Isa, Kernel, LANES};
use crate::checkpoint::{BLOCK, NESTED};
use crate::encoding::{NF4, Packed, scale_map};

/// How the numbers of a source are stored.
#[derive(Clone, Copy)]
pub enum Numbers {
    F32,
    F16,
    Bf16,
}

impl Numbers {
    /// By the name of the type in a header.
    pub fn of(dtype: &str) -> Option<Numbers> {
        Some(match dtype {
            "F32" => Numbers::F32,
            "F16" => Numbers::F16,
            "BF16" => Numbers::Bf16,
            _ => return None,
        })
    }

    /// Of one number.
    pub fn bytes(self) -> usize {
        if matches!(self, Numbers::F32) { 4 } else { 2 }
    }

    /// A row as float32.
    #[inline(always)]
    fn widen<V: F32x16>(self, from: &[u8], to: &mut [f32]) {
        match self {
            Numbers::F32 => widen::<V, { 4 * LANES }>(V::load_f32, from, to),
            Numbers::F16 => widen::<V, { 2 * LANES }>(V::load_f16, from, to),
            Numbers::Bf16 => widen::<V, { 2 * LANES }>(V::load_bf16, from, to),
        }
    }
}

#[inline(always)]
fn widen<V: F32x16, const BYTES: usize>(load: impl Fn(&[u8; BYTES]) -> V, from: &[u8], to: &mut [f32]) {
    let (whole, rest) = from.as_chunks::<BYTES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (from, to) in whole.iter().zip(to) {
        load(from).store(to);
    }
    let mut last = [0; BYTES];
    last[..rest.len()].copy_from_slice(rest);
    load(&last).store_part(to_rest);
}

/// Packs rows of `columns` numbers, one after another in `from`, into `to`.
///
/// # Errors
/// The first row with a number that the encoding cannot hold: then `to` is nothing.
pub fn encode_rows(packed: Packed, kind: Numbers, columns: usize, from: &[u8], to: &mut [u8]) -> Result<(), usize> {
    if matches!(packed, Packed::Lossless { .. }) {
        return lossless::encode_rows(packed, columns, from, to);
    }
    Isa::best().run(Rows { packed, kind, columns, from, to })
}

struct Rows<'a> {
    packed: Packed,
    kind: Numbers,
    columns: usize,
    from: &'a [u8],
    to: &'a mut [u8],
}

impl Kernel for Rows<'_> {
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run<V: F32x16>(self) -> Result<(), usize> {
        let mut numbers = vec![0.0; self.columns];
        let mut scales = vec![0.0; self.packed.scales(self.columns)];
        let from = self.from.chunks_exact(self.columns * self.kind.bytes());
        let to = self.to.chunks_exact_mut(self.packed.row_bytes(self.columns));
        for (r, (from, to)) in from.zip(to).enumerate() {
            self.kind.widen::<V>(from, &mut numbers);
            encode_row(self.packed, &numbers, &mut scales, to);
            // Scales are the largest magnitudes, so they say it of all.
            if !scales.iter().all(|scale| scale.is_finite()) {
                return Err(r);
            }
        }
        Ok(())
    }
}

/// Packs a row of numbers into `to`, which has the bytes of one. A scale that is not finite comes of a number that is not.
#[inline(always)]
fn encode_row(packed: Packed, numbers: &[f32], scales: &mut [f32], to: &mut [u8]) {
    let (codes, behind) = to.split_at_mut(packed.code_bytes(numbers.len()));
    behind.fill(0);
    match packed {
        Packed::Int8 { block } => int8(numbers, usize::from(block), codes, scales),
        Packed::Nf4 { .. } => nf4(numbers, codes, scales),
        Packed::Lossless { .. } => unreachable!("its rows are packed as they are"),
    }
    match packed {
        Packed::Nf4 { double: true } => nest(scales, behind),
        _ => {
            for (bytes, scale) in behind.as_chunks_mut::<4>().0.iter_mut().zip(scales) {
                *bytes = scale.to_le_bytes();
            }
        }
    }
}

/// `code = round(w / scale)`, to the nearest, halves to even, with `scale = absmax / 127`.
#[inline(always)]
fn int8(numbers: &[f32], block: usize, codes: &mut [u8], scales: &mut [f32]) {
    for ((numbers, codes), scale) in numbers.chunks(block).zip(codes.chunks_mut(block)).zip(scales) {
        let by = absmax(numbers) / 127.0;
        *scale = by;
        codes.fill(0);
        if by > 0.0 {
            for (code, w) in codes.iter_mut().zip(numbers) {
                // Adding 1.5 · 2²³ rounds to a whole number, as additions round, and leaves it in the lowest bits.
                *code = ((w / by).clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as u8;
            }
        }
    }
}

/// Halfway between the numbers of NF4: what is above one of them belongs to the next number.
const HALFWAY: [f32; 15] = {
    let mut halfway = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        halfway[i] = (NF4[i] + NF4[i + 1]) / 2.0;
        i += 1;
    }
    halfway
};

/// The number of NF4 nearest to `w / absmax`, computed as bitsandbytes does: times the reciprocal, ties downwards.
#[inline(always)]
fn nf4(numbers: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    for ((numbers, codes), scale) in numbers.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2)).zip(scales) {
        *scale = absmax(numbers);
        let by = 1.0 / scale.max(1e-38);
        let mut block = [0.0; BLOCK];
        block[..numbers.len()].copy_from_slice(numbers);
        let block = block.map(|w| w * by);
        let mut nearest = [0u32; BLOCK];
        for halfway in HALFWAY {
            for (code, x) in nearest.iter_mut().zip(block) {
                *code += u32::from(x > halfway);
            }
        }
        for (code, [upper, lower]) in codes.iter_mut().zip(nearest.as_chunks::<2>().0) {
            *code = (upper << 4 | lower) as u8;
        }
    }
}

/// Scales as codes of the scale map: less their mean, over the largest of each [`NESTED`].
fn nest(scales: &[f32], behind: &mut [u8]) {
    static MAP: [f32; 256] = scale_map();
    let offset = (scales.iter().map(|scale| f64::from(*scale)).sum::<f64>() / scales.len().max(1) as f64) as f32;
    let (codes, behind) = behind.split_at_mut(scales.len().next_multiple_of(4));
    let (outer, _) = behind.as_chunks_mut::<4>();
    for ((scales, codes), outer) in scales.chunks(NESTED).zip(codes.chunks_mut(NESTED)).zip(&mut *outer) {
        let largest = scales.iter().fold(0.0, |most: f32, scale| most.max((scale - offset).abs()));
        *outer = largest.to_le_bytes();
        for (code, scale) in codes.iter_mut().zip(scales) {
            let x = if largest > 0.0 { (scale - offset) / largest } else { 0.0 };
            let above = MAP.partition_point(|entry| *entry < x).clamp(1, 255);
            *code = if x - MAP[above - 1] <= MAP[above] - x { above - 1 } else { above } as u8;
        }
    }
    outer[scales.len().div_ceil(NESTED)] = offset.to_le_bytes();
}

/// The largest magnitude; not finite if any number is not.
#[inline(always)]
fn absmax(numbers: &[f32]) -> f32 {
    // Magnitudes are in the order of their bits, and those of infinities and NaN are above all others.
    let magnitude = |w: &f32| w.to_bits() & 0x7fff_ffff;
    f32::from_bits(numbers.iter().map(magnitude).fold(0, |most, bits| if bits > most { bits } else { most }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDED: [Packed; 3] =
        [Packed::Int8 { block: 64 }, Packed::Nf4 { double: false }, Packed::Nf4 { double: true }];

    /// One row, packed with every instruction set there is, alike.
    fn encode(packed: Packed, numbers: &[f32]) -> Option<Vec<u8>> {
        let from: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut rows = Isa::available().map(|isa| {
            let mut to = vec![0xee; packed.row_bytes(numbers.len())];
            let rows = Rows { packed, kind: Numbers::F32, columns: numbers.len(), from: &from, to: &mut to };
            isa.run(rows).ok().map(|()| to)
        });
        let first = rows.next().expect("there is the portable one");
        assert!(rows.all(|other| other == first), "instruction sets differ for {packed:?}");
        first
    }

    #[test]
    fn eight_bits_round_to_the_nearest_and_halves_to_even() {
        let packed = Packed::Int8 { block: 64 };
        let row = encode(packed, &[127.0, 0.5, 1.5, -0.5, -1.5, 2.5, -126.6, 3.49]).unwrap();
        let codes: Vec<i8> = row[..8].iter().map(|code| *code as i8).collect();
        assert_eq!(codes, [127, 0, 2, 0, -2, 2, -127, 3]);
        assert_eq!((&row[8..64], &row[64..68]), (&[0; 56][..], &1f32.to_le_bytes()[..]));
    }

    #[test]
    fn numbers_of_any_size_are_packed_alike_by_all_instruction_sets() {
        let mut state = 1u32;
        let numbers = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(state & 0xbfff_ffff)
        });
        let numbers: Vec<f32> = numbers.take(1000).collect();
        for packed in ROUNDED {
            assert!(encode(packed, &numbers).is_some(), "{packed:?}");
        }
    }

    #[test]
    fn zeros_and_what_is_not_finite() {
        for packed in ROUNDED {
            assert!(encode(packed, &[0.0; 70]).is_some());
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut numbers = [1.0; 70];
                numbers[66] = bad;
                assert_eq!(encode(packed, &numbers), None, "{bad} as {packed:?}");
            }
        }
    }
}

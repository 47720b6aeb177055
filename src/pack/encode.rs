//! From float32 to packed rows. Plain loops over arrays of fixed length, which the compiler turns into vectors. What the
//! numbers are is said in docs/packing.md; [`Packed`] says where in a row they are.

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
    pub fn widen(self, from: &[u8], to: &mut Vec<f32>) {
        to.clear();
        match self {
            Numbers::F32 => to.extend(from.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Numbers::F16 => to.extend(from.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32())),
            Numbers::Bf16 => {
                to.extend(from.as_chunks().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)))
            }
        }
    }
}

/// Packs a row of numbers into `to`, which has the bytes of one. False if a number is not finite: then `to` is nothing.
pub(crate) fn encode_row(packed: Packed, numbers: &[f32], to: &mut [u8]) -> bool {
    let (codes, behind) = to.split_at_mut(packed.code_bytes(numbers.len()));
    behind.fill(0);
    match packed {
        Packed::Int8 { block } => int8(numbers, usize::from(block), codes, behind),
        Packed::Nf4 { double: false } => nf4(numbers, codes, |i, scale| {
            behind[4 * i..4 * i + 4].copy_from_slice(&scale.to_le_bytes());
        }),
        Packed::Nf4 { double: true } => {
            let mut scales = Vec::with_capacity(packed.scales(numbers.len()));
            let finite = nf4(numbers, codes, |_, scale| scales.push(scale));
            nest(&scales, behind);
            finite
        }
        Packed::Lossless { .. } => unreachable!("`lossless::encode_row` does this"),
    }
}

/// `code = round(w / scale)`, to the nearest, halves to even, with `scale = absmax / 127`.
fn int8(numbers: &[f32], block: usize, codes: &mut [u8], scales: &mut [u8]) -> bool {
    let mut finite = true;
    let (scales, _) = scales.as_chunks_mut::<4>();
    for ((numbers, codes), scale) in numbers.chunks(block).zip(codes.chunks_mut(block)).zip(scales) {
        let absmax = absmax(numbers);
        finite &= absmax.is_finite();
        let by = absmax / 127.0;
        *scale = by.to_le_bytes();
        codes.fill(0);
        if by > 0.0 {
            for (code, w) in codes.iter_mut().zip(numbers) {
                // Adding 1.5 · 2²³ rounds to a whole number, as additions round, and leaves it in the lowest bits.
                *code = ((w / by).clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as u8;
            }
        }
    }
    finite
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
fn nf4(numbers: &[f32], codes: &mut [u8], mut scale: impl FnMut(usize, f32)) -> bool {
    let mut finite = true;
    for (i, (numbers, codes)) in numbers.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2)).enumerate() {
        let absmax = absmax(numbers);
        finite &= absmax.is_finite();
        scale(i, absmax);
        let by = 1.0 / absmax.max(1e-38);
        let mut block = [0.0; BLOCK];
        block[..numbers.len()].copy_from_slice(numbers);
        let mut nearest = [0u8; BLOCK];
        for (code, w) in nearest.iter_mut().zip(block) {
            let x = w * by;
            *code = HALFWAY.iter().map(|halfway| u8::from(x > *halfway)).sum();
        }
        for (code, [upper, lower]) in codes.iter_mut().zip(nearest.as_chunks::<2>().0) {
            *code = upper << 4 | lower;
        }
    }
    finite
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
fn absmax(numbers: &[f32]) -> f32 {
    // Magnitudes are in the order of their bits, and those of infinities and NaN are above all others.
    let magnitude = |w: &f32| w.to_bits() & 0x7fff_ffff;
    f32::from_bits(numbers.iter().map(magnitude).fold(0, |most, bits| if bits > most { bits } else { most }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_round_to_the_nearest_and_halves_to_even() {
        let packed = Packed::Int8 { block: 64 };
        let numbers = [127.0, 0.5, 1.5, -0.5, -1.5, 2.5, -126.6, 3.49];
        let mut row = vec![0xee; packed.row_bytes(8)];
        assert!(encode_row(packed, &numbers, &mut row));
        let codes: Vec<i8> = row[..8].iter().map(|code| *code as i8).collect();
        assert_eq!(codes, [127, 0, 2, 0, -2, 2, -127, 3]);
        assert_eq!((&row[8..64], &row[64..68]), (&[0; 56][..], &1f32.to_le_bytes()[..]));
    }

    #[test]
    fn zeros_and_what_is_not_finite() {
        for packed in [Packed::Int8 { block: 64 }, Packed::Nf4 { double: false }, Packed::Nf4 { double: true }] {
            let mut row = vec![0xee; packed.row_bytes(70)];
            assert!(encode_row(packed, &[0.0; 70], &mut row));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut numbers = [1.0; 70];
                numbers[66] = bad;
                assert!(!encode_row(packed, &numbers, &mut row), "{bad} as {packed:?}");
            }
        }
    }
}

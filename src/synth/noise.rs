//! Random weights by counter: the value of element `i` of a tensor is a function of seed, name and `i` alone, so any
//! piece of a checkpoint can be made on its own, in any order, on any thread.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::checkpoint::Dtype;

/// Distinct values of a weight: 64 radii × 64 angles.
const LEVELS: usize = 4096;
/// Elements made from one 64-bit hash, 16 bits each.
const LANES: usize = 4;
/// Bytes that one thread makes at a time.
const PIECE: usize = 256 << 10;
/// Standard deviation of the weights: the `initializer_range` of nearly every published configuration.
const WEIGHT_DEVIATION: f64 = 0.02;
/// Norms are spread around one.
const NORM_DEVIATION: f64 = 0.05;

/// Where the elements of one tensor lie in a run of bytes, and what they are drawn from.
#[derive(Clone, Debug)]
pub(super) struct Region {
    /// Bytes from the start of the run.
    pub start: u64,
    pub end: u64,
    key: u64,
    norm: bool,
}

impl Region {
    pub(super) fn new(seed: u64, name: &str, start: u64, end: u64) -> Region {
        // FNV-1a of the name, then mixed with the seed.
        let name_hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        Region { start, end, key: hash(mix(seed), name_hash), norm: name.ends_with("norm.weight") }
    }
}

/// Values to draw from, encoded in the type that is written.
pub(super) enum Noise {
    Two { weights: Vec<[u8; 2]>, norms: Vec<[u8; 2]> },
    Four { weights: Vec<[u8; 4]>, norms: Vec<[u8; 4]> },
}

impl Noise {
    /// `None` for a type that weights are not written in.
    pub(super) fn new(dtype: Dtype) -> Option<Noise> {
        fn two(encode: fn(f64) -> [u8; 2]) -> Noise {
            Noise::Two { weights: table(0.0, WEIGHT_DEVIATION, encode), norms: table(1.0, NORM_DEVIATION, encode) }
        }
        let single = |x: f64| (x as f32).to_le_bytes();
        match dtype {
            Dtype::Bf16 => Some(two(|x| bf16::from_f64(x).to_le_bytes())),
            Dtype::F16 => Some(two(|x| f16::from_f64(x).to_le_bytes())),
            Dtype::F32 => Some(Noise::Four {
                weights: table(0.0, WEIGHT_DEVIATION, single),
                norms: table(1.0, NORM_DEVIATION, single),
            }),
            _ => None,
        }
    }

    /// Fills `out` with the bytes from `start` on of the run that `regions` cover without a gap, in order.
    /// `start` and the regions are multiples of the size of an element.
    pub(super) fn fill(&self, regions: &[Region], start: u64, out: &mut [u8]) {
        out.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
            self.fill_piece(regions, start + (i * PIECE) as u64, piece);
        });
    }

    fn fill_piece(&self, regions: &[Region], mut at: u64, mut out: &mut [u8]) {
        let first = regions.partition_point(|region| region.end <= at);
        for region in &regions[first..] {
            let len = ((region.end - at) as usize).min(out.len());
            let (piece, rest) = out.split_at_mut(len);
            match self {
                Noise::Two { weights, norms } => draw(if region.norm { norms } else { weights }, region, at, piece),
                Noise::Four { weights, norms } => draw(if region.norm { norms } else { weights }, region, at, piece),
            }
            (at, out) = (at + len as u64, rest);
            if out.is_empty() {
                break;
            }
        }
    }
}

/// Draws the elements of one tensor from byte `at` of the run on.
fn draw<const SIZE: usize>(table: &[[u8; SIZE]], region: &Region, at: u64, out: &mut [u8]) {
    let table: &[[u8; SIZE]; LEVELS] = table.try_into().expect("a table has LEVELS values");
    let pick = |bits: u64, lane: usize| table[(bits >> (16 * lane)) as usize % LEVELS];
    let (elements, _) = out.as_chunks_mut::<SIZE>();
    let first = (at - region.start) / SIZE as u64;
    let one = |index: u64, element: &mut [u8; SIZE]| {
        *element = pick(hash(region.key, index / LANES as u64), index as usize % LANES);
    };
    let lead = (first.next_multiple_of(LANES as u64) - first) as usize;
    let (lead, rest) = elements.split_at_mut(lead.min(elements.len()));
    let (groups, tail) = rest.as_chunks_mut::<LANES>();
    let group = (first + lead.len() as u64) / LANES as u64;
    let tail_first = (group + groups.len() as u64) * LANES as u64;
    lead.iter_mut().zip(first..).for_each(|(element, index)| one(index, element));
    for (elements, index) in groups.iter_mut().zip(group..) {
        let bits = hash(region.key, index);
        *elements = std::array::from_fn(|lane| pick(bits, lane));
    }
    tail.iter_mut().zip(tail_first..).for_each(|(element, index)| one(index, element));
}

/// The `index`-th output of a SplitMix64 generator (Steele, Lea, Flood 2014) started at `key`.
fn hash(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A normal distribution by the Box-Muller transform of an even grid; its tails end at 3.1 deviations.
fn table<const SIZE: usize>(mean: f64, deviation: f64, encode: impl Fn(f64) -> [u8; SIZE]) -> Vec<[u8; SIZE]> {
    let even = |i: usize| (i as f64 + 0.5) / 64.0;
    let value = |i: usize| (-2.0 * even(i / 64).ln()).sqrt() * (std::f64::consts::PI * even(i % 64)).cos();
    (0..LEVELS).map(|i| encode(mean + deviation * value(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions() -> Vec<Region> {
        let ends =
            [("a.weight", 0, 4_000_006), ("b.bias", 4_000_006, 4_000_012), ("c_norm.weight", 4_000_012, 4_400_012)];
        ends.map(|(name, start, end)| Region::new(7, name, start, end)).to_vec()
    }

    fn filled(start: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0xff; len];
        Noise::new(Dtype::Bf16).unwrap().fill(&regions(), start, &mut out);
        out
    }

    fn mean_and_deviation(bytes: &[u8]) -> (f64, f64) {
        let values: Vec<f64> = bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f64()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn any_piece_is_what_it_is_in_the_whole() {
        let whole = filled(0, 4_400_012);
        for start in [0, 2, 4, 6, 8, 1_000_002, 3_999_998, 4_000_006, 4_000_010, 4_399_990] {
            for len in [2, 6, 8, 22, 300_002] {
                let end = (start + len).min(whole.len());
                assert!(filled(start as u64, end - start) == whole[start..end], "{len} bytes at {start}");
            }
        }
    }

    #[test]
    fn weights_are_small_and_norms_near_one() {
        let whole = filled(0, 4_400_012);
        let (mean, deviation) = mean_and_deviation(&whole[..4_000_006]);
        assert!(mean.abs() < 1e-4 && (deviation - 0.02).abs() < 3e-4, "{mean} {deviation}");
        let (mean, deviation) = mean_and_deviation(&whole[4_000_012..]);
        assert!((mean - 1.0).abs() < 1e-3 && (deviation - 0.05).abs() < 1e-3, "{mean} {deviation}");
    }

    #[test]
    fn seeds_and_names_make_a_difference() {
        let first = |seed, name| {
            let mut out = [0; 64];
            Noise::new(Dtype::F32).unwrap().fill(&[Region::new(seed, name, 0, 64)], 0, &mut out);
            out
        };
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
        assert!(Noise::new(Dtype::I8).is_none());
    }
}

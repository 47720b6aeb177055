//! Bfloat16 without loss: which seven exponents of a row get codes, how many numbers are then left without, and the rows
//! themselves (docs/packing.md).

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Options;
use super::manifest::Entry;
use super::reading::Reading;
use super::shard::{in_parallel, most_at_once, run_of, runs, source_at};
use crate::checkpoint::{BLOCK, BLOCK_BYTES, BLOCK_CODES, RUN};
use crate::disk::memory::Region;
use crate::encoding::Packed;
use crate::error;

/// Exponents that have codes one after the other; one more has a code of its own.
const IN_A_ROW: usize = 6;

/// The exponents of a row that have codes: those that most of its numbers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Coded {
    /// That of code 1: any, such as 0, for rows with many zeros.
    alone: u8,
    /// That of code 2; those of 3 to 7 follow it.
    first: u8,
    /// Numbers of the row with other exponents.
    escapes: usize,
}

impl Coded {
    fn of(row: &[[u8; 2]]) -> Coded {
        let mut counts = [0usize; 256];
        row.iter().for_each(|number| counts[usize::from(exponent(*number))] += 1);
        // The most frequent exponent below each one, and from each one on.
        let more_of = |a: usize, b: usize| if counts[b] > counts[a] { b } else { a };
        let (mut below, mut above) = ([0; 257], [255; 257]);
        for e in 0..256 {
            below[e + 1] = more_of(below[e], e);
            above[255 - e] = more_of(above[256 - e], 255 - e);
        }
        let choices = (0..=256 - IN_A_ROW).map(|first| {
            let end = first + IN_A_ROW;
            // At either end there is nothing on one side; what the other has is right for both.
            let alone = match first {
                0 => above[end],
                _ if end == 256 => below[first],
                _ => more_of(below[first], above[end]),
            };
            let covered = counts[alone] + counts[first..end].iter().sum::<usize>();
            Coded { alone: alone as u8, first: first as u8, escapes: row.len() - covered }
        });
        choices.min_by_key(|coded| coded.escapes).expect("there are 251 choices")
    }

    /// The code of each exponent; 0 if it has none.
    fn codes(self) -> [u8; 256] {
        let mut codes = [0; 256];
        codes[usize::from(self.alone)] = 1;
        for (exponent, code) in (usize::from(self.first)..).zip(2..2 + IN_A_ROW as u8) {
            codes[exponent] = code;
        }
        codes
    }
}

fn exponent(number: [u8; 2]) -> u8 {
    (u16::from_le_bytes(number) >> 7) as u8
}

/// Packs a row of bfloat16 into `to`, which has the bytes of one. False if it needs more escapes than there is room for.
fn encode_row(from: &[u8], to: &mut [u8]) -> bool {
    let (row, _) = from.as_chunks::<2>();
    let coded = Coded::of(row);
    let codes = coded.codes();
    let blocks = row.len().div_ceil(BLOCK) * BLOCK_BYTES;
    let (beside, blocks) = to.split_at_mut(to.len() - blocks);
    beside.fill(0);
    blocks.fill(0);
    beside[..2].copy_from_slice(&[coded.alone, coded.first]);
    let (before, escapes) = beside[2..].split_at_mut(2 * row.len().div_ceil(RUN));
    if coded.escapes > escapes.len() {
        return false;
    }
    let mut used = 0;
    let in_runs = row.chunks(RUN).zip(blocks.chunks_mut(RUN / BLOCK * BLOCK_BYTES));
    for ((row, blocks), before) in in_runs.zip(before.as_chunks_mut::<2>().0) {
        *before = (used as u16).to_le_bytes();
        for (row, block) in row.chunks(BLOCK).zip(blocks.chunks_exact_mut(BLOCK_BYTES)) {
            let (of_block, numbers) = block.split_at_mut(BLOCK_CODES);
            // Eight codes are three bytes.
            let eights = row.chunks(8).zip(of_block.as_chunks_mut::<3>().0).zip(numbers.as_chunks_mut::<8>().0);
            for ((row, of_eight), numbers) in eights {
                let mut word = 0u32;
                for (i, (number, byte)) in row.iter().zip(numbers).enumerate() {
                    let exponent = exponent(*number);
                    let code = codes[usize::from(exponent)];
                    word |= u32::from(code) << (3 * i);
                    *byte = number[1] & 0x80 | number[0] & 0x7f;
                    if code == 0 {
                        escapes[used] = exponent;
                        used += 1;
                    }
                }
                of_eight.copy_from_slice(&word.to_le_bytes()[..3]);
            }
        }
    }
    true
}

/// Packs rows of `columns` numbers, one after another.
///
/// # Errors
/// The first row that needs more escapes than its tensor had when it was measured.
pub fn encode_rows(packed: Packed, columns: usize, from: &[u8], to: &mut [u8]) -> Result<(), usize> {
    let mut rows = from.chunks_exact(2 * columns).zip(to.chunks_exact_mut(packed.row_bytes(columns)));
    rows.position(|(from, to)| !encode_row(from, to)).map_or(Ok(()), Err)
}

/// A file of a source that is read to find how its tensors are packed, by several threads.
pub struct Measuring<'a> {
    reading: Reading,
    regions: Vec<Region>,
    options: &'a Options,
}

impl Measuring<'_> {
    pub fn new<'a>(path: &Path, options: &'a Options) -> error::Result<Measuring<'a>> {
        let reading = Reading::open(path)?;
        let regions = reading.regions(options.threads, most_at_once(options))?;
        Ok(Measuring { reading, regions, options })
    }

    /// How a tensor of bfloat16 is packed: every row has room for the escapes of the one that needs most. `None` if that
    /// would not save a tenth of its bytes.
    ///
    /// # Errors
    /// Rows longer than memory allows, and what the operating system refuses.
    pub fn measure(&mut self, tensor: &Entry) -> error::Result<Option<Packed>> {
        let columns = *tensor.shape.last().expect("a matrix has columns");
        // It is read in the runs of a tensor without escapes.
        let mut trial = tensor.clone();
        trial.pack(Packed::Lossless { escapes: 0 });
        trial.run = run_of(&trial, self.options)?;
        let most = AtomicUsize::new(0);
        let jobs = runs(std::slice::from_ref(&trial));
        in_parallel(jobs, self.regions.iter_mut().collect(), |region, (_, run)| {
            let (offset, len) = source_at(&trial, run);
            let rows = self.reading.read(offset, len, region)?.chunks_exact(2 * columns);
            let escapes = rows.map(|row| Coded::of(row.as_chunks().0).escapes).max();
            most.fetch_max(escapes.unwrap_or(0), Ordering::Relaxed);
            Ok(())
        })?;
        let packed = u16::try_from(most.into_inner()).ok().map(|escapes| Packed::Lossless { escapes });
        Ok(packed.filter(|packed| 10 * packed.row_bytes(columns) <= 9 * 2 * columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(exponents: &[u8]) -> Vec<[u8; 2]> {
        exponents.iter().map(|exponent| (u16::from(*exponent) << 7 | 0x8055).to_le_bytes()).collect()
    }

    /// The fewest numbers without a code, by trying all choices.
    fn fewest(exponents: &[u8]) -> usize {
        let left = |alone: u8, first: usize| {
            exponents.iter().filter(|e| **e != alone && !(first..first + IN_A_ROW).contains(&usize::from(**e))).count()
        };
        (0..=255).flat_map(|alone| (0..=250).map(move |first| left(alone, first))).min().unwrap()
    }

    #[test]
    fn the_fewest_numbers_are_left_without_a_code() {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for around in [0, 3, 117, 250] {
            for spread in [1, 4, 10, 255] {
                let mut exponents: Vec<u8> = (0..60).map(|_| around + (next() % spread).min(255 - around)).collect();
                exponents.extend([0; 9]);
                let coded = Coded::of(&row(&exponents));
                assert_eq!(coded.escapes, fewest(&exponents), "{exponents:?}");
                let codes = coded.codes();
                let without = exponents.iter().filter(|e| codes[usize::from(**e)] == 0).count();
                assert_eq!(coded.escapes, without, "{coded:?} of {exponents:?}");
            }
        }
    }

    /// Normally distributed numbers, by Box and Muller.
    fn normal(state: &mut u64, deviation: f64) -> [u8; 2] {
        let mut uniform = || {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            ((*state >> 11) as f64 + 1.0) / (1u64 << 53) as f64
        };
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        half::bf16::from_f64(deviation * radius * angle.cos()).to_le_bytes()
    }

    #[test]
    fn normal_weights_take_no_more_than_72_hundredths() {
        let (mut state, mut row) = (0x9e37_79b9_7f4a_7c15, Vec::new());
        for columns in [1024, 4096] {
            for eighth in 0..8 {
                let deviation = 0.015_625 * (1.0 + f64::from(eighth) / 8.0);
                let escapes = (0..(4 << 20) / columns).map(|_| {
                    row.clear();
                    row.extend((0..columns).map(|_| normal(&mut state, deviation)));
                    Coded::of(&row).escapes
                });
                let packed = Packed::Lossless { escapes: escapes.max().unwrap() as u16 };
                let share = packed.row_bytes(columns) as f64 / (2 * columns) as f64;
                println!("{columns} columns, deviation {deviation:.4}: {share:.4}");
                assert!(share <= 0.72, "{columns} columns, deviation {deviation}: {share}");
            }
        }
    }

    #[test]
    fn what_is_packed_comes_back() {
        use crate::backend::cpu::Cpu;
        use crate::encoding::Encoding;

        let cpu = Cpu::new(Some(1)).unwrap();
        let comes_back = |numbers: &[u16], what: &str| {
            let row: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            let escapes = Coded::of(row.as_chunks().0).escapes as u16;
            let packed = Packed::Lossless { escapes };
            let mut to = vec![0xee; packed.row_bytes(numbers.len())];
            assert_eq!(encode_rows(packed, numbers.len(), &row, &mut to), Ok(()), "{what}");
            let mut out = vec![0.0f32; numbers.len()];
            cpu.widen(&to, Encoding::Packed(packed), &mut out);
            let same = out.iter().zip(numbers).all(|(out, number)| out.to_bits() == u32::from(*number) << 16);
            assert!(same, "{what}, {} numbers", numbers.len());
        };
        // Every pattern, with few escapes in a row and with many.
        let all: Vec<u16> = (0..=u16::MAX).collect();
        all.chunks(1024).for_each(|numbers| comes_back(numbers, "numbers side by side"));
        (0..64).for_each(|i| comes_back(&all[i..].iter().copied().step_by(64).collect::<Vec<_>>(), "all exponents"));
        for seed in 0..200u32 {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 8
            };
            let (columns, spread, zeros) = (1 + next() % 1500, 1 + next() % 30, next() % 8);
            let number = |_| match next() % 8 < zeros {
                true => 0,
                false => (next() as u16 & 0x807f) | ((100 + next() % spread) as u16) << 7,
            };
            comes_back(&(0..columns).map(number).collect::<Vec<_>>(), &format!("seed {seed}"));
        }
    }

    #[test]
    fn a_row_is_what_the_format_says() {
        // An infinity, a zero, and two numbers with exponents that are side by side.
        let numbers = [0x7f80u16, 0x0000, 0xbf81, 0x3f0f, 0x3f0f, 0x3f0f];
        let row: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let packed = Packed::Lossless { escapes: 1 };
        let mut to = vec![0xee; packed.row_bytes(6)];
        assert_eq!(encode_rows(packed, 6, &row, &mut to), Ok(()));
        // 0, and 122 to 127; no escapes before the only run; the infinity's exponent; and bytes to make it a multiple of 16.
        assert_eq!(to[..8], [0, 122, 0, 0, 255, 0, 0, 0]);
        let codes = [0, 1, 7, 6, 6, 6].iter().rev().fold(0u32, |word, code| word << 3 | code);
        assert_eq!((&to[8..11], &to[11..32]), (&codes.to_le_bytes()[..3], &[0; 21][..]));
        assert_eq!((&to[32..38], &to[38..96]), (&[0, 0, 0x81, 0x0f, 0x0f, 0x0f][..], &[0; 58][..]));
        assert_eq!(to.len(), 96);
        // Ten exponents without codes do not fit, and that is said.
        let row: Vec<u8> = (0..12).flat_map(|i: u16| ((i * 20) << 7).to_le_bytes()).collect();
        assert_eq!(encode_rows(packed, 12, &row, &mut to), Err(0));
    }
}

//! Bfloat16 without loss: which seven exponents of a row get codes, how many numbers are then left without, and the rows
//! themselves (docs/packing.md).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;

use super::Options;
use crate::checkpoint::{BLOCK, BLOCK_BYTES, BLOCK_CODES, RUN, Tensor};
use crate::encoding::Packed;
use crate::error::{Error, Result};

/// Exponents that have codes one after the other; one more has a code of its own.
const IN_A_ROW: usize = 6;
/// Bytes that are read at once, unless memory is scarcer.
const READ: u64 = 4 << 20;

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

/// Packs a row of bfloat16 into `to`, which has the bytes of one.
///
/// # Panics
/// If the row needs more escapes than [`escapes`] found in its tensor.
pub fn encode_row(from: &[u8], to: &mut [u8]) {
    let (row, _) = from.as_chunks::<2>();
    let coded = Coded::of(row);
    let codes = coded.codes();
    let blocks = row.len().div_ceil(BLOCK) * BLOCK_BYTES;
    let (beside, blocks) = to.split_at_mut(to.len() - blocks);
    beside.fill(0);
    blocks.fill(0);
    beside[..2].copy_from_slice(&[coded.alone, coded.first]);
    let (before, escapes) = beside[2..].split_at_mut(2 * row.len().div_ceil(RUN));
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
}

/// How a tensor of bfloat16 is packed, for which it is read once: every row has room for the escapes of the one that needs
/// most. `None` if that would not save a tenth of its bytes.
///
/// # Errors
/// What the operating system refuses.
pub fn measure(file: &File, path: &Path, tensor: &Tensor, options: &Options) -> Result<Option<Packed>> {
    let columns = *tensor.shape.last().expect("a matrix has columns");
    let row = 2 * columns as u64;
    let most = (options.ram / (2 * options.threads as u64)).min(READ);
    let run = (most / row.max(1)).max(1) * row;
    let runs = tensor.span.len.div_ceil(run.max(1)) as usize;
    let escapes = (0..runs).into_par_iter().map_init(Vec::new, |bytes: &mut Vec<u8>, i| {
        let start = i as u64 * run;
        bytes.resize(run.min(tensor.span.len - start) as usize, 0);
        let (offset, len) = (tensor.span.offset + start, bytes.len() as u64);
        let failed = |source| Error::Read { path: path.into(), offset, len, source };
        file.read_exact_at(bytes, offset).map_err(failed)?;
        let rows = bytes.chunks_exact(row as usize);
        Ok(rows.map(|row| Coded::of(row.as_chunks().0).escapes).max().unwrap_or(0))
    });
    let escapes = escapes.try_reduce(|| 0, |a, b| Ok(a.max(b)))?;
    let packed = u16::try_from(escapes).ok().map(|escapes| Packed::Lossless { escapes });
    Ok(packed.filter(|packed| 10 * packed.row_bytes(columns) as u64 <= 9 * row))
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

    #[test]
    fn a_row_is_what_the_format_says() {
        // An infinity, a zero, and two numbers with exponents that are side by side.
        let numbers = [0x7f80u16, 0x0000, 0xbf81, 0x3f0f, 0x3f0f, 0x3f0f];
        let row: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let packed = Packed::Lossless { escapes: 1 };
        let mut to = vec![0xee; packed.row_bytes(6)];
        encode_row(&row, &mut to);
        // 0, and 122 to 127; no escapes before the only run; the infinity's exponent; and bytes to make it a multiple of 16.
        assert_eq!(to[..8], [0, 122, 0, 0, 255, 0, 0, 0]);
        let codes = [0, 1, 7, 6, 6, 6].iter().rev().fold(0u32, |word, code| word << 3 | code);
        assert_eq!((&to[8..11], &to[11..32]), (&codes.to_le_bytes()[..3], &[0; 21][..]));
        assert_eq!((&to[32..38], &to[38..96]), (&[0, 0, 0x81, 0x0f, 0x0f, 0x0f][..], &[0; 58][..]));
        assert_eq!(to.len(), 96);
    }
}

//! The factors of one matrix at a time: they arrive as tiles before those of the matrix, become float32 here, and serve its
//! products until those of the next matrix come.

use std::ops::Range;

use super::Cpu;
use crate::error::Result;
use crate::program::{FactorRoom, Groups, Matrix, Program, Role};

/// As much memory as the largest matrix needs.
pub(super) struct FactorTables {
    pub scales: Vec<f32>,
    /// As many, or none.
    pub zeros: Vec<f32>,
    /// The group of every column, where a matrix is stored as its transpose or they are in any order.
    pub index: Vec<u32>,
    codebook: Vec<f32>,
    block_scales: Vec<f32>,
}

impl FactorTables {
    pub fn new(program: &Program) -> FactorTables {
        let FactorRoom { scales, zeros, index, codebook, block_scales } = FactorRoom::of(program);
        FactorTables {
            scales: vec![0.0; scales],
            zeros: vec![0.0; zeros],
            index: vec![0; index],
            codebook: vec![0.0; codebook],
            block_scales: vec![0.0; block_scales],
        }
    }

    /// Takes in some elements of one part of a matrix's factors.
    ///
    /// # Errors
    /// A column that is in no group.
    pub fn take(
        &mut self,
        cpu: &Cpu,
        matrix: &Matrix,
        part: usize,
        elements: &Range<usize>,
        bytes: &[u8],
    ) -> Result<()> {
        let groups = matrix.groups.as_ref().expect("a matrix with factors");
        if part == 0 && elements.start == 0 && matrix.tensor.transposed {
            (0..).zip(&mut self.index).for_each(|(c, group)| *group = c / groups.cols as u32);
        }
        let count = groups.count;
        match groups.parts[part].role {
            Role::Scales { encoding, repeat: 1, divisor: 1.0 } => {
                cpu.widen(bytes, encoding, &mut self.scales[elements.clone()])
            }
            Role::Scales { encoding, repeat, divisor } => {
                for (e, bytes) in elements.clone().zip(bytes.chunks_exact(encoding.bytes(1))) {
                    let mut scale = [0.0];
                    cpu.widen(bytes, encoding, &mut scale);
                    self.scales[run(e, repeat, count)].fill(scale[0] / divisor);
                }
            }
            Role::Codebook => floats(bytes, &mut self.codebook[elements.clone()]),
            Role::BlockScales => floats(bytes, &mut self.block_scales[elements.clone()]),
            Role::CodedScales { repeat, block, offset } => {
                for (e, byte) in elements.clone().zip(bytes) {
                    let scale = self.codebook[usize::from(*byte)] * self.block_scales[e / block] + offset;
                    self.scales[run(e, repeat, count)].fill(scale);
                }
            }
            Role::GptqZeros { bits, less_one } => {
                let mask = (1 << bits) - 1;
                let fields =
                    words(bytes).flat_map(|word| (0..32).step_by(bits as usize).map(move |shift| word >> shift));
                let first = elements.start * (32 / bits as usize);
                let zero = |field: u32| (field.wrapping_add(u32::from(less_one)) & mask) as f32;
                self.zeros[first..].iter_mut().zip(fields).for_each(|(to, field)| *to = zero(field));
            }
            Role::AwqZeros => {
                let fields = words(bytes).flat_map(|word| AWQ_SHIFTS.map(|shift| word >> shift & 15));
                self.zeros[elements.start * 8..].iter_mut().zip(fields).for_each(|(to, field)| *to = field as f32);
            }
            Role::RowZeros { bits, rows, repeat } => self.row_zeros(groups, bits, rows, repeat, elements, bytes),
            Role::ByteZeros { repeat } => {
                for (e, byte) in elements.clone().zip(bytes) {
                    self.zeros[run(e, repeat, count)].fill(f32::from(*byte as i8));
                }
            }
            Role::GroupIndex => {
                matrix.check_index(&groups.parts[part], elements.start, bytes)?;
                words(bytes).zip(&mut self.index[elements.clone()]).for_each(|(group, to)| *to = group);
            }
        }
        Ok(())
    }

    /// Zeros of consecutive rows in words, as codes less half of what they can be.
    fn row_zeros(
        &mut self,
        groups: &Groups,
        bits: u32,
        rows: usize,
        repeat: usize,
        elements: &Range<usize>,
        bytes: &[u8],
    ) {
        let (per_word, middle) = (32 / bits as usize, 1 << (bits - 1));
        let across = groups.count / repeat / rows;
        for (e, word) in elements.clone().zip(words(bytes)) {
            let first = e / across * per_word;
            for row in first..rows.min(first + per_word) {
                let field = word >> (bits * (row - first) as u32) & ((1 << bits) - 1);
                let zero = (field as i32 - middle) as f32;
                self.zeros[run(row * across + e % across, repeat, groups.count)].fill(zero);
            }
        }
    }
}

/// Where AWQ has the numbers of eight outputs in a word.
const AWQ_SHIFTS: [u32; 8] = [0, 16, 4, 20, 8, 24, 12, 28];

/// The groups that an element is for.
fn run(element: usize, repeat: usize, count: usize) -> Range<usize> {
    element * repeat..count.min((element + 1) * repeat)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

fn floats(bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(words(bytes)).for_each(|(out, word)| *out = f32::from_bits(word));
}

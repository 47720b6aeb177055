//! Factors of which a matrix has too many for them to stay in memory: one for each few dozen of its numbers. They are
//! streamed just before the matrix, as tiles of their own, or of experts' with the matrix's first tile; become float32, and
//! stay until the matrix was multiplied.
//!
//! What they become are a scale for every group of numbers, and where the encoding has them, a zero: the number at (r, c)
//! is `(code − zero) · scale` of its group.

use std::ops::Range;

use super::{Matrix, Program, Step};
use crate::checkpoint::{Span, Tensor};
use crate::encoding::Encoding;
use crate::error::{Error, Result};

/// The groups of a matrix, and what is streamed of them.
#[derive(Clone, Debug)]
pub struct Groups {
    /// In this order.
    pub parts: Vec<Part>,
    /// How many there are.
    pub count: usize,
    /// Rows and columns of a group. Groups follow each other row by row; or, of a matrix that is stored as its transpose,
    /// for all rows (of which a group has one) the first columns, then the next.
    pub rows: usize,
    /// A power of two of at least 16, or at least the number of columns; any number where the matrix is transposed. With a
    /// [`Role::GroupIndex`], there is a group for so many columns, whichever they are.
    pub cols: usize,
}

/// A tensor of factors.
#[derive(Clone, Debug)]
pub struct Part {
    pub role: Role,
    pub tensor: Tensor,
}

/// What the elements of a tensor of factors are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Scales, each for so many groups one after the other, that are divided by a number.
    Scales { encoding: Encoding, repeat: usize, divisor: f32 },
    /// The float32 numbers that bytes stand for, by the next role but one.
    Codebook,
    /// Float32 factors of blocks of such bytes.
    BlockScales,
    /// Scales in bytes: `codebook[byte] · block scale + offset`, with so many bytes in a block.
    CodedScales { repeat: usize, block: usize, offset: f32 },
    /// Zeros in words of 32 bits, lowest bits first, for all rows of the first group, then of the next.
    GptqZeros { bits: u32, less_one: bool },
    /// As these, of four bits, in the order of AWQ.
    AwqZeros,
    /// Zeros in words of 32 bits, lowest bits first, of consecutive rows: all groups of the first rows, then of the next. Each
    /// is for so many groups one after the other.
    RowZeros { bits: u32, rows: usize, repeat: usize },
    /// Zeros in signed bytes, each for so many groups one after the other.
    ByteZeros { repeat: usize },
    /// Of every column the number of its group, in 32 bits.
    GroupIndex,
}

impl Role {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Role::Scales { encoding, .. } => encoding.bytes(1),
            Role::CodedScales { .. } | Role::ByteZeros { .. } => 1,
            _ => 4,
        }
    }

    fn is_zeros(self) -> bool {
        matches!(self, Role::GptqZeros { .. } | Role::AwqZeros | Role::RowZeros { .. } | Role::ByteZeros { .. })
    }
}

impl Part {
    /// How many elements there are.
    pub fn elements(&self) -> usize {
        self.tensor.span.len as usize / self.role.bytes()
    }

    /// Where some of them lie.
    pub fn span(&self, elements: Range<usize>) -> Span {
        let bytes = self.role.bytes() as u64;
        let Span { file, offset, .. } = self.tensor.span;
        Span { file, offset: offset + elements.start as u64 * bytes, len: elements.len() as u64 * bytes }
    }
}

impl Groups {
    /// Whether a part says of every column which group it is in.
    pub fn in_any_order(&self) -> bool {
        self.parts.iter().any(|part| part.role == Role::GroupIndex)
    }

    pub fn have_zeros(&self) -> bool {
        self.parts.iter().any(|part| part.role.is_zeros())
    }

    /// Elements of the part with this role, if there is one.
    fn elements(&self, role: Role) -> usize {
        self.parts.iter().find(|part| part.role == role).map_or(0, Part::elements)
    }
}

impl Matrix {
    /// Looks at some elements of a part of its factors that is a [`Role::GroupIndex`], from number `first` on.
    ///
    /// # Errors
    /// A column that is in no group.
    pub fn check_index(&self, part: &Part, first: usize, bytes: &[u8]) -> Result<()> {
        let groups = self.groups.as_ref().map_or(0, |groups| self.cols.div_ceil(groups.cols));
        let found = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        match (first..).zip(found).find(|(_, group)| *group as usize >= groups) {
            None => Ok(()),
            Some((column, group)) => {
                let problem = format!("puts column {column} into group {group} of {groups}; download it again");
                Err(Error::Request(format!("tensor `{}` {problem}", part.tensor.name)))
            }
        }
    }
}

/// Room for the factors of one matrix at a time: how many numbers of four bytes of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FactorRoom {
    pub scales: usize,
    pub zeros: usize,
    /// Groups of columns, where a matrix is stored as its transpose or they are in any order.
    pub index: usize,
    pub codebook: usize,
    pub block_scales: usize,
}

impl FactorRoom {
    /// What every matrix of the program finds room in.
    pub fn of(program: &Program) -> FactorRoom {
        let mut room = FactorRoom::default();
        let products = program.steps.iter().filter_map(|step| match step {
            Step::MatMul(product) => Some(&program.matrices[product.matrix.0]),
            _ => None,
        });
        let experts = program.experts.iter().flat_map(|layer| &layer.experts).flat_map(|expert| &expert.matrices);
        for matrix in products.chain(experts) {
            let Some(groups) = &matrix.groups else { continue };
            room.scales = room.scales.max(groups.count);
            room.zeros = room.zeros.max(if groups.have_zeros() { groups.count } else { 0 });
            let indexed = matrix.tensor.transposed || groups.in_any_order();
            room.index = room.index.max(if indexed { matrix.cols } else { 0 });
            room.codebook = room.codebook.max(groups.elements(Role::Codebook));
            room.block_scales = room.block_scales.max(groups.elements(Role::BlockScales));
        }
        room
    }

    pub fn bytes(&self) -> usize {
        (self.scales + self.zeros + self.index + self.codebook + self.block_scales) * size_of::<f32>()
    }
}

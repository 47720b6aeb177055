//! What kernels are told of a matrix whose rows are stored: its encoding, how rows follow each other, and where their factors
//! are: behind their codes, among the small weights, or where those that are streamed have been put (`factors`).

use layerstream_kernels::launch::gemm;
use layerstream_kernels::params::Weights;

use super::products::TileProduct;
use super::steps::Steps;
use crate::encoding::{Encoding, Packed};
use crate::program::{Groups, Matrix};

/// Numbers of a row that share an exponent.
const MXFP4_BLOCK: usize = 32;

/// How kernels call the encoding of a matrix, and what they have to know of its rows and blocks; `None` where no kernel reads
/// it. A new encoding gets its line here.
pub fn form(matrix: &Matrix) -> Option<(gemm::Encoding, Weights)> {
    if let Encoding::Packed(packed) = matrix.encoding {
        return alone(packed, matrix.row_bytes());
    }
    let (row_block, col_block) = match (matrix.scales, &matrix.groups) {
        (Some(scales), _) => (scales.row_block, scales.col_block),
        (None, Some(groups)) => (groups.rows, groups.cols),
        (None, None) if matrix.encoding == Encoding::Mxfp4 => (1, MXFP4_BLOCK),
        (None, None) => return Some((complete(matrix.encoding)?, Weights::default())),
    };
    let less_zeros = matrix.groups.as_ref().is_some_and(|groups| groups.have_zeros() || groups.in_any_order());
    let encoding = with_factors(matrix.encoding, less_zeros)?;
    let blocks = Weights {
        row_bytes: matrix.row_bytes() as i32,
        scale_stride: matrix.cols.div_ceil(col_block) as i32,
        row_shift: shift(row_block, matrix.first_row + matrix.rows)?,
        column_shift: shift(col_block, matrix.cols)?,
        ..Weights::default()
    };
    matrix.cols.is_multiple_of(matrix.encoding.multiple()).then_some((encoding, blocks))
}

/// Numbers that need no factors, and blocks that bring theirs along.
fn complete(encoding: Encoding) -> Option<gemm::Encoding> {
    match encoding {
        Encoding::F32 => Some(gemm::Encoding::F32),
        Encoding::F16 => Some(gemm::Encoding::F16),
        Encoding::Bf16 => Some(gemm::Encoding::Bf16),
        other => blocks(other),
    }
}

/// How kernels call an encoding that the rows of an embedding may have, other than plain numbers.
pub fn of_rows(encoding: Encoding) -> Option<gemm::Encoding> {
    match encoding {
        Encoding::Packed(Packed::Lossless { .. }) => Some(gemm::Encoding::Lossless),
        other => blocks(other),
    }
}

/// How kernels call an encoding of GGUF's, whose blocks bring their scales along.
fn blocks(encoding: Encoding) -> Option<gemm::Encoding> {
    match encoding {
        Encoding::Q8_0 => Some(gemm::Encoding::Q8_0),
        Encoding::Q4_0 => Some(gemm::Encoding::Q4_0),
        Encoding::Q4_1 => Some(gemm::Encoding::Q4_1),
        Encoding::Q5_0 => Some(gemm::Encoding::Q5_0),
        Encoding::Q5_1 => Some(gemm::Encoding::Q5_1),
        Encoding::Q4K => Some(gemm::Encoding::Q4K),
        Encoding::Q5K => Some(gemm::Encoding::Q5K),
        Encoding::Q6K => Some(gemm::Encoding::Q6K),
        _ => None,
    }
}

fn with_factors(encoding: Encoding, zeros: bool) -> Option<gemm::Encoding> {
    match (encoding, zeros) {
        (Encoding::Int8, true) => Some(gemm::Encoding::Int8Zero),
        (Encoding::Offset8, _) => Some(gemm::Encoding::Offset8),
        (Encoding::Offset4, _) => Some(gemm::Encoding::Offset4),
        (Encoding::Int8, false) => Some(gemm::Encoding::Int8),
        (Encoding::F8E4M3, false) => Some(gemm::Encoding::Fp8),
        (Encoding::Nf4, false) => Some(gemm::Encoding::Nf4),
        (Encoding::Fp4, false) => Some(gemm::Encoding::Fp4),
        (Encoding::Mxfp4, false) => Some(gemm::Encoding::Mxfp4),
        _ => None,
    }
}

/// Rows with all that their numbers need.
fn alone(packed: Packed, row_bytes: usize) -> Option<(gemm::Encoding, Weights)> {
    let (encoding, scale_bytes) = match packed {
        Packed::Int8 { .. } => (gemm::Encoding::Int8, 4),
        Packed::Nf4 { double: false } => (gemm::Encoding::Nf4, 4),
        Packed::Nf4 { double: true } => (gemm::Encoding::Nf4d, 1),
        Packed::Lossless { .. } => {
            return Some((gemm::Encoding::Lossless, Weights { row_bytes: row_bytes as i32, ..Weights::default() }));
        }
    };
    let rows = Weights {
        row_bytes: row_bytes as i32,
        scale_stride: (row_bytes / scale_bytes) as i32,
        column_shift: packed.block().trailing_zeros() as i32,
        ..Weights::default()
    };
    Some((encoding, rows))
}

/// log2 of the length of blocks, of which `len` numbers may be one.
fn shift(block: usize, len: usize) -> Option<i32> {
    if block >= len { Some(31) } else { block.is_power_of_two().then(|| block.trailing_zeros() as i32) }
}

impl Steps {
    /// The same with the addresses of a tile. Kernels count rows as the tensor does, whose factors are those of all its rows.
    pub(super) fn weights(&self, what: &TileProduct) -> (gemm::Encoding, Weights) {
        let (matrix, address) = (what.matrix, what.address);
        let (encoding, blocks) = form(matrix).expect("programs are checked before they run");
        let first_row = matrix.first_row + what.stored.start;
        let behind = |at: u64, stride: usize| at.wrapping_sub((first_row * stride) as u64);
        let scale = match (matrix.encoding, matrix.scales, &matrix.groups) {
            (Encoding::Packed(Packed::Lossless { .. }), ..) => 0,
            (Encoding::Packed(packed), ..) => {
                behind(address + packed.code_bytes(matrix.cols) as u64, matrix.row_bytes())
            }
            (_, Some(scales), _) => self.at(self.layout.vectors[scales.vector.0]),
            (_, None, Some(_)) => self.at(self.layout.factors.scales),
            (..) => what.exponents.map_or(0, |exponents| behind(exponents, matrix.cols / MXFP4_BLOCK)),
        };
        let zeros = matrix.groups.as_ref().is_some_and(Groups::have_zeros);
        let zero = if zeros { self.at(self.layout.factors.zeros) } else { 0 };
        let in_any_order = matrix.groups.as_ref().is_some_and(Groups::in_any_order);
        let index = if in_any_order { self.at(self.layout.factors.index) } else { 0 };
        let (data, scale, zero, index) =
            (address as *const _, scale as *const _, zero as *const f32, index as *const i32);
        (encoding, Weights { data, scale, zero, index, first_row: first_row as i32, ..blocks })
    }
}

//! The packed types: matrices in fewer bytes, as `layerstream pack` writes them (docs/packing.md has the formats). Every
//! row stands alone, with all that its numbers need, and all rows of a matrix have as many bytes; so a run of rows is one
//! run of bytes, as in any other type.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::words::tensor_error;
use super::{Dtype, Tensor};
use crate::error::Result;

/// The key of a file's metadata that says which of its tensors are packed: a JSON object, from the name of the tensor to
/// what it is ([`Stored`]).
pub(crate) const METADATA: &str = "layerstream.packed";

/// Rows, and the parts of a row, are padded to a multiple of this.
const ALIGN: usize = 16;
/// The fewest numbers of a block, and those that are decoded together.
pub const BLOCK: usize = 64;
/// Scales that share one in NF4 with double quantisation.
pub const NESTED: usize = 256;
/// Of a lossless block: bytes of its codes, and in all.
pub const BLOCK_CODES: usize = BLOCK * 3 / 8;
pub const BLOCK_BYTES: usize = BLOCK_CODES + BLOCK;
/// Numbers before which a lossless row says how many escapes there were.
pub const RUN: usize = 256;

/// How the numbers of a packed row are stored: as codes, for whole blocks of [`BLOCK`] numbers, with what belongs to them
/// behind or, if lossless, before them. All numbers are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packed {
    /// Signed bytes; number = code × scale. One float32 scale for each `block` numbers, a power of two from 64 to 2048.
    Int8 { block: u16 },
    /// NormalFloat of 4 bits (Dettmers et al., 2023, arXiv:2305.14314), two in a byte, the first in the upper half; a scale
    /// for each 64 numbers: a float32, or with `double` a byte. Such a byte stands for an entry of the map of
    /// [`crate::encoding::scale_map`], times a float32 for each 256 of them, plus a float32 for the row.
    Nf4 { double: bool },
    /// Bfloat16 with exponents in three bits, every bit of it. A block is 64 codes, from the lowest bits up, and then as many
    /// bytes, each a sign over a mantissa. Codes 1 to 7 stand for exponents; which, the row says in two bytes: that of code
    /// 1, and that of code 2, which the other five follow. Code 0 is an escape: its exponent is the next of the row's
    /// `escapes`. The blocks are last in the row; before them are those two bytes, for each [`RUN`] numbers the escapes that
    /// come before it, in two bytes, and the escapes, in a byte each, with room for so many.
    Lossless { escapes: u16 },
}

impl Packed {
    /// One of each kind.
    pub const KINDS: [Packed; 4] = [
        Packed::Int8 { block: 128 },
        Packed::Nf4 { double: false },
        Packed::Nf4 { double: true },
        Packed::Lossless { escapes: 150 },
    ];

    /// Numbers that share a scale; of a lossless row, those that lie together.
    pub const fn block(self) -> usize {
        match self {
            Packed::Int8 { block } => block as usize,
            Packed::Nf4 { .. } | Packed::Lossless { .. } => BLOCK,
        }
    }

    /// Bytes of the codes of a row of so many numbers.
    pub const fn code_bytes(self, numbers: usize) -> usize {
        let blocks = numbers.div_ceil(BLOCK);
        match self {
            Packed::Int8 { .. } => blocks * BLOCK,
            Packed::Nf4 { .. } => blocks * (BLOCK / 2),
            Packed::Lossless { .. } => blocks * BLOCK_BYTES,
        }
    }

    /// Scales of a row of so many numbers.
    pub const fn scales(self, numbers: usize) -> usize {
        numbers.div_ceil(self.block())
    }

    /// Bytes of a row of so many numbers.
    pub const fn row_bytes(self, numbers: usize) -> usize {
        let scales = self.scales(numbers);
        let beside = match self {
            Packed::Nf4 { double: true } => scales.next_multiple_of(4) + (scales.div_ceil(NESTED) + 1) * 4,
            Packed::Lossless { escapes } => 2 + 2 * numbers.div_ceil(RUN) + escapes as usize,
            _ => scales * 4,
        };
        (self.code_bytes(numbers) + beside).next_multiple_of(ALIGN)
    }

    /// How it is called, which is also how names of packed tensors end.
    pub const fn name(self) -> &'static str {
        match self {
            Packed::Int8 { .. } => "int8",
            Packed::Nf4 { double: false } => "nf4",
            Packed::Nf4 { double: true } => "nf4d",
            Packed::Lossless { .. } => "lossless",
        }
    }
}

/// What the metadata says of a packed tensor, which lies in the file as bytes, `[…, rows, bytes of a row]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// [`Packed::name`].
    pub encoding: String,
    /// [`Packed::block`].
    pub block: usize,
    /// Numbers in a row.
    pub columns: usize,
    /// Of lossless rows: how many escapes each has room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escapes: Option<u16>,
}

impl Stored {
    pub fn new(packed: Packed, columns: usize) -> Stored {
        let escapes = match packed {
            Packed::Lossless { escapes } => Some(escapes),
            _ => None,
        };
        Stored { encoding: packed.name().into(), block: packed.block(), columns, escapes }
    }

    /// What this names; `None` if it is not known.
    pub fn packed(&self) -> Option<Packed> {
        let sizes = self.block.is_power_of_two() && (BLOCK..=2048).contains(&self.block);
        let found = match self.encoding.as_str() {
            "int8" if sizes => Packed::Int8 { block: self.block as u16 },
            "nf4" => Packed::Nf4 { double: false },
            "nf4d" => Packed::Nf4 { double: true },
            "lossless" => Packed::Lossless { escapes: self.escapes? },
            _ => return None,
        };
        (found.block() == self.block).then_some(found)
    }

    /// Gives a tensor of bytes the name, the type and the shape of the matrix that it is.
    pub fn apply(&self, path: &Path, tensor: &mut Tensor) -> Result<()> {
        let refuse = |problem: String| Err(tensor_error(path, &tensor.name, problem));
        let Some(packed) = self.packed() else {
            let Stored { encoding, block, .. } = self;
            return refuse(format!(
                "is packed as `{encoding}` with blocks of {block}, which this version does not know"
            ));
        };
        let Some(name) = plain_name(&tensor.name, packed) else {
            return refuse(format!("is packed as {}, but its name does not end so", packed.name()));
        };
        let [.., rows, row_bytes] = tensor.shape[..] else {
            return refuse(format!("is packed, but its shape is {:?}, not that of rows", tensor.shape));
        };
        // No row of a model is as long; what is shorter cannot overflow.
        if tensor.dtype != Dtype::U8 || self.columns > 1 << 31 || packed.row_bytes(self.columns) != row_bytes {
            let (found, columns) = (tensor.dtype, self.columns);
            return refuse(format!(
                "{columns} numbers as {} do not make {rows} rows of {row_bytes} {found}",
                packed.name()
            ));
        }
        tensor.name = name.into();
        tensor.dtype = Dtype::Packed(packed);
        *tensor.shape.last_mut().expect("two dimensions at least") = self.columns;
        Ok(())
    }
}

/// The name of a tensor before it was packed.
pub(crate) fn plain_name(name: &str, packed: Packed) -> Option<&str> {
    name.strip_suffix(packed.name())?.strip_suffix('.')
}

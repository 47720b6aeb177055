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

/// How the numbers of a packed row are stored. A row is codes, for whole blocks of [`BLOCK`] numbers, and behind them what
/// they are multiplied by. All numbers are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packed {
    /// Signed bytes; number = code × scale. One float32 scale for each `block` numbers, a power of two from 64 to 2048.
    Int8 { block: u16 },
    /// NormalFloat of 4 bits (Dettmers et al., 2023, arXiv:2305.14314), two in a byte, the first in the upper half; a scale
    /// for each 64 numbers: a float32, or with `double` a byte. Such a byte stands for an entry of the map of
    /// [`crate::encoding::scale_map`], times a float32 for each 256 of them, plus a float32 for the row.
    Nf4 { double: bool },
}

impl Packed {
    /// One of each kind.
    pub const KINDS: [Packed; 3] =
        [Packed::Int8 { block: 128 }, Packed::Nf4 { double: false }, Packed::Nf4 { double: true }];

    /// Numbers that share a scale.
    pub const fn block(self) -> usize {
        match self {
            Packed::Int8 { block } => block as usize,
            Packed::Nf4 { .. } => BLOCK,
        }
    }

    /// Bytes of the codes of a row of so many numbers.
    pub const fn code_bytes(self, numbers: usize) -> usize {
        let blocks = numbers.div_ceil(BLOCK);
        match self {
            Packed::Int8 { .. } => blocks * BLOCK,
            Packed::Nf4 { .. } => blocks * (BLOCK / 2),
        }
    }

    /// Scales of a row of so many numbers.
    pub const fn scales(self, numbers: usize) -> usize {
        numbers.div_ceil(self.block())
    }

    /// Bytes of a row of so many numbers.
    pub const fn row_bytes(self, numbers: usize) -> usize {
        let scales = self.scales(numbers);
        let scale_bytes = match self {
            Packed::Nf4 { double: true } => scales.next_multiple_of(4) + (scales.div_ceil(NESTED) + 1) * 4,
            _ => scales * 4,
        };
        (self.code_bytes(numbers) + scale_bytes).next_multiple_of(ALIGN)
    }

    /// How it is called, which is also how names of packed tensors end.
    pub const fn name(self) -> &'static str {
        match self {
            Packed::Int8 { .. } => "int8",
            Packed::Nf4 { double: false } => "nf4",
            Packed::Nf4 { double: true } => "nf4d",
        }
    }
}

/// What the metadata says of a packed tensor, which lies in the file as bytes, `[…, rows, bytes of a row]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// [`Packed::name`].
    pub encoding: String,
    /// Numbers that share a scale.
    pub block: usize,
    /// Numbers in a row.
    pub columns: usize,
}

impl Stored {
    pub fn new(packed: Packed, columns: usize) -> Stored {
        Stored { encoding: packed.name().into(), block: packed.block(), columns }
    }

    fn packed(&self) -> Option<Packed> {
        let sizes = self.block.is_power_of_two() && (BLOCK..=2048).contains(&self.block);
        let found = match self.encoding.as_str() {
            "int8" if sizes => Packed::Int8 { block: self.block as u16 },
            "nf4" => Packed::Nf4 { double: false },
            "nf4d" => Packed::Nf4 { double: true },
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

//! The element types of tensors: those of the safetensors format, by the names that its headers use, and GGUF's blocks.

use std::fmt;

use super::Packed;

/// How the numbers of a tensor are stored. The names are those of the safetensors format (0.8), less its types of
/// under a byte (`F4`, `F6_E2M3`, `F6_E3M2`), which no model supported here is stored in: they are refused by name. The
/// last five are found in GGUF files only: blocks of numbers with scales among them (see [`crate::encoding::Encoding`]).
/// That a type is listed says that a file holding it opens, not that weights of it can be computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F8E8M0,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
    C64,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
    /// Found in what `layerstream pack` wrote: [`crate::checkpoint::Tensor`] has the shape of the numbers.
    Packed(Packed),
}

impl Dtype {
    /// The types of safetensors.
    pub(crate) const ALL: [Dtype; 19] = [
        Dtype::Bool,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8E4M3,
        Dtype::F8E5M2,
        Dtype::F8E4M3Fnuz,
        Dtype::F8E5M2Fnuz,
        Dtype::F8E8M0,
        Dtype::I16,
        Dtype::U16,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::I32,
        Dtype::U32,
        Dtype::F32,
        Dtype::I64,
        Dtype::U64,
        Dtype::F64,
        Dtype::C64,
    ];

    /// Elements that are stored together, and their bytes: one, except in GGUF's blocks. Of packed types, of which rows
    /// alone have a length, the unit of that: a byte.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => (1, 1),
            Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::F8E4M3Fnuz | Dtype::F8E5M2Fnuz | Dtype::F8E8M0 => (1, 1),
            Dtype::I16 | Dtype::U16 | Dtype::F16 | Dtype::Bf16 => (1, 2),
            Dtype::I32 | Dtype::U32 | Dtype::F32 => (1, 4),
            Dtype::I64 | Dtype::U64 | Dtype::F64 | Dtype::C64 => (1, 8),
            Dtype::Q8_0 => (32, 34),
            Dtype::Q4_0 => (32, 18),
            Dtype::Q4_1 => (32, 20),
            Dtype::Q5_0 => (32, 22),
            Dtype::Q5_1 => (32, 24),
            Dtype::Q4K => (256, 144),
            Dtype::Q5K => (256, 176),
            Dtype::Q6K => (256, 210),
            Dtype::Packed(_) => (1, 1),
        }
    }

    /// Bytes per element, or of a block of them.
    pub const fn size(self) -> usize {
        self.block().1
    }

    /// The name in a header.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "BOOL",
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::F8E4M3 => "F8_E4M3",
            Dtype::F8E5M2 => "F8_E5M2",
            Dtype::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Dtype::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Dtype::F8E8M0 => "F8_E8M0",
            Dtype::I16 => "I16",
            Dtype::U16 => "U16",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::I32 => "I32",
            Dtype::U32 => "U32",
            Dtype::F32 => "F32",
            Dtype::I64 => "I64",
            Dtype::U64 => "U64",
            Dtype::F64 => "F64",
            Dtype::C64 => "C64",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
            Dtype::Q5_0 => "Q5_0",
            Dtype::Q5_1 => "Q5_1",
            Dtype::Q4K => "Q4_K",
            Dtype::Q5K => "Q5_K",
            Dtype::Q6K => "Q6_K",
            Dtype::Packed(packed) => packed.name(),
        }
    }

    /// The type of that name in a safetensors header.
    pub(crate) fn from_name(name: &str) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

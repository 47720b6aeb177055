//! The table of encodings: how the numbers of a matrix are stored, as far as plans and backends need to know. Each backend
//! has a decoder for every row of it, inside its multiply: no matrix is ever expanded in memory. A new encoding begins here.

use std::fmt;

use crate::checkpoint::Dtype;

/// How the numbers of one stored row follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Sign, 4 bits of exponent, 3 of mantissa; no infinities (Micikevicius et al., 2022, arXiv:2209.05433). Weights come
    /// with factors for blocks of them, see [`crate::program::Scales`].
    F8E4M3,
}

impl Encoding {
    pub const ALL: [Encoding; 4] = [Encoding::F32, Encoding::F16, Encoding::Bf16, Encoding::F8E4M3];

    /// What tensors of this type are made of; `None` for those that no matrix can be.
    pub fn of(dtype: Dtype) -> Option<Encoding> {
        Some(match dtype {
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::Bf16 => Encoding::Bf16,
            Dtype::F8E4M3 => Encoding::F8E4M3,
            _ => return None,
        })
    }

    /// Numbers in a block, and its bytes. A row is made of whole blocks.
    const fn block(self) -> (usize, usize) {
        match self {
            Encoding::F32 => (1, 4),
            Encoding::F16 | Encoding::Bf16 => (1, 2),
            Encoding::F8E4M3 => (1, 1),
        }
    }

    /// The number that a row's length must be a multiple of.
    pub const fn multiple(self) -> usize {
        self.block().0
    }

    /// Bytes of so many numbers, which are whole blocks.
    pub const fn bytes(self, numbers: usize) -> usize {
        let (block, bytes) = self.block();
        numbers / block * bytes
    }

    /// Whether every number stands for itself, without a factor that is stored elsewhere.
    pub fn is_complete(self) -> bool {
        self != Encoding::F8E4M3
    }

    pub fn name(self) -> &'static str {
        match self {
            Encoding::F32 => "f32",
            Encoding::F16 => "f16",
            Encoding::Bf16 => "bf16",
            Encoding::F8E4M3 => "fp8_e4m3",
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

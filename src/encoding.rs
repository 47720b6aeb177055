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
    /// GGUF: blocks of 32 signed bytes with a float16 scale. All five block encodings are defined in llama.cpp's
    /// `ggml-common.h`, and decoded as there.
    Q8_0,
    /// GGUF: blocks of 32 numbers of 4 bits, less 8, with a float16 scale.
    Q4_0,
    /// GGUF: blocks of 256 numbers of 4 bits, in runs of 32 with a scale and a minimum of 6 bits each.
    Q4K,
    /// GGUF: as `Q4K`, of 5 bits.
    Q5K,
    /// GGUF: blocks of 256 numbers of 6 bits, less 32, in runs of 16 with a scale of 8 bits each.
    Q6K,
    /// E2M1, two in a byte, with an exponent for each 32 (MXFP4); only experts are stored like this, see
    /// [`crate::program::Expert`].
    Mxfp4,
    /// GPTQ: of a matrix that is stored as its transpose, words of 32 bits with the weights of one output for eight inputs,
    /// lowest bits first. Factors and zeros are elsewhere, as for the next two: see [`crate::program::Groups`].
    Gptq4,
    /// As `Gptq4`, bytes of four inputs.
    Gptq8,
    /// AWQ: of a matrix that is stored as its transpose, words of 32 bits with the weights of one input for eight outputs: from
    /// the lowest bits up those of output 0, 2, 4, 6, 1, 3, 5, 7.
    Awq4,
}

impl Encoding {
    /// Those that rows of outputs can be stored in.
    pub const ALL: [Encoding; 10] = [
        Encoding::F32,
        Encoding::F16,
        Encoding::Bf16,
        Encoding::F8E4M3,
        Encoding::Q8_0,
        Encoding::Q4_0,
        Encoding::Q4K,
        Encoding::Q5K,
        Encoding::Q6K,
        Encoding::Mxfp4,
    ];

    /// What tensors of this type are made of; `None` for those that no matrix can be.
    pub fn of(dtype: Dtype) -> Option<Encoding> {
        Some(match dtype {
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::Bf16 => Encoding::Bf16,
            Dtype::F8E4M3 => Encoding::F8E4M3,
            Dtype::Q8_0 => Encoding::Q8_0,
            Dtype::Q4_0 => Encoding::Q4_0,
            Dtype::Q4K => Encoding::Q4K,
            Dtype::Q5K => Encoding::Q5K,
            Dtype::Q6K => Encoding::Q6K,
            _ => return None,
        })
    }

    /// Numbers in a block, and its bytes. A row is made of whole blocks.
    const fn block(self) -> (usize, usize) {
        match self {
            Encoding::F32 => Dtype::F32,
            Encoding::F16 => Dtype::F16,
            Encoding::Bf16 => Dtype::Bf16,
            Encoding::F8E4M3 => Dtype::F8E4M3,
            Encoding::Q8_0 => Dtype::Q8_0,
            Encoding::Q4_0 => Dtype::Q4_0,
            Encoding::Q4K => Dtype::Q4K,
            Encoding::Q5K => Dtype::Q5K,
            Encoding::Q6K => Dtype::Q6K,
            // No tensor says that it is made of these.
            Encoding::Mxfp4 => return (32, 16),
            Encoding::Gptq4 | Encoding::Gptq8 => return (1, 4),
            Encoding::Awq4 => return (8, 4),
        }
        .block()
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
        !matches!(self, Encoding::F8E4M3 | Encoding::Mxfp4 | Encoding::Gptq4 | Encoding::Gptq8 | Encoding::Awq4)
    }

    /// Of a matrix that is stored as its transpose: how many inputs a stored row has the weights of.
    pub const fn inputs(self) -> usize {
        match self {
            Encoding::Gptq4 => 8,
            Encoding::Gptq8 => 4,
            _ => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Encoding::F32 => "f32",
            Encoding::F16 => "f16",
            Encoding::Bf16 => "bf16",
            Encoding::F8E4M3 => "fp8_e4m3",
            Encoding::Q8_0 => "q8_0",
            Encoding::Q4_0 => "q4_0",
            Encoding::Q4K => "q4_k",
            Encoding::Q5K => "q5_k",
            Encoding::Q6K => "q6_k",
            Encoding::Mxfp4 => "mxfp4",
            Encoding::Gptq4 => "gptq_int4",
            Encoding::Gptq8 => "gptq_int8",
            Encoding::Awq4 => "awq_int4",
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

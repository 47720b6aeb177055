//! The table of encodings: how the numbers of a matrix are stored, as far as plans and backends need to know. Each backend
//! has a decoder for every row of it, inside its multiply: no matrix is ever expanded in memory. A new encoding begins here.

use std::fmt;

use crate::checkpoint::Dtype;
pub use crate::checkpoint::Packed;

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
    /// GGUF: blocks of 32 signed bytes with a float16 scale. All block encodings are defined in llama.cpp's
    /// `ggml-common.h`, and decoded as there.
    Q8_0,
    /// GGUF: blocks of 32 numbers of 4 bits, less 8, with a float16 scale.
    Q4_0,
    /// GGUF: blocks of 32 numbers of 4 bits with a float16 scale and a float16 that is added.
    Q4_1,
    /// GGUF: as `Q4_0`, of 5 bits, less 16.
    Q5_0,
    /// GGUF: as `Q4_1`, of 5 bits.
    Q5_1,
    /// GGUF: blocks of 256 numbers of 4 bits, in runs of 32 with a scale and a minimum of 6 bits each.
    Q4K,
    /// GGUF: as `Q4K`, of 5 bits.
    Q5K,
    /// GGUF: blocks of 256 numbers of 6 bits, less 32, in runs of 16 with a scale of 8 bits each.
    Q6K,
    /// E2M1, two in a byte, with an exponent for each 32 (MXFP4); only experts are stored like this, see
    /// [`crate::program::Expert`].
    Mxfp4,
    /// Signed bytes. Factors are elsewhere, as for all that follow: see [`crate::program::Groups`].
    Int8,
    /// Bytes less 128, as compressed-tensors packs them.
    Offset8,
    /// Numbers of four bits less 8, two in a byte, the first in its lower half: compressed-tensors.
    Offset4,
    /// Indices into [`NF4`], two in a byte, the first in its upper half: bitsandbytes.
    Nf4,
    /// Indices into [`FP4`], as `Nf4`.
    Fp4,
    /// GPTQ: of a matrix that is stored as its transpose, words of 32 bits with the weights of one output for eight inputs,
    /// lowest bits first.
    Gptq4,
    /// As `Gptq4`, bytes of four inputs.
    Gptq8,
    /// AWQ: of a matrix that is stored as its transpose, words of 32 bits with the weights of one input for eight outputs: from
    /// the lowest bits up those of output 0, 2, 4, 6, 1, 3, 5, 7.
    Awq4,
    /// As `layerstream pack` writes them, every row with its own factors.
    Packed(Packed),
}

impl Encoding {
    /// Those that rows of outputs can be stored in.
    pub const ALL: [Encoding; 22] = [
        Encoding::F32,
        Encoding::F16,
        Encoding::Bf16,
        Encoding::F8E4M3,
        Encoding::Q8_0,
        Encoding::Q4_0,
        Encoding::Q4_1,
        Encoding::Q5_0,
        Encoding::Q5_1,
        Encoding::Q4K,
        Encoding::Q5K,
        Encoding::Q6K,
        Encoding::Mxfp4,
        Encoding::Int8,
        Encoding::Offset8,
        Encoding::Offset4,
        Encoding::Nf4,
        Encoding::Fp4,
        Encoding::Packed(Packed::KINDS[0]),
        Encoding::Packed(Packed::KINDS[1]),
        Encoding::Packed(Packed::KINDS[2]),
        Encoding::Packed(Packed::KINDS[3]),
    ];

    /// What tensors of this type are made of; `None` for those that no matrix can be.
    pub fn of(dtype: Dtype) -> Option<Encoding> {
        Some(match dtype {
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::Bf16 => Encoding::Bf16,
            Dtype::F8E4M3 => Encoding::F8E4M3,
            Dtype::I8 => Encoding::Int8,
            Dtype::Q8_0 => Encoding::Q8_0,
            Dtype::Q4_0 => Encoding::Q4_0,
            Dtype::Q4_1 => Encoding::Q4_1,
            Dtype::Q5_0 => Encoding::Q5_0,
            Dtype::Q5_1 => Encoding::Q5_1,
            Dtype::Q4K => Encoding::Q4K,
            Dtype::Q5K => Encoding::Q5K,
            Dtype::Q6K => Encoding::Q6K,
            Dtype::Packed(packed) => Encoding::Packed(packed),
            _ => return None,
        })
    }

    /// Numbers in a block, and its bytes. A row is made of whole blocks, unless it is packed.
    const fn block(self) -> (usize, usize) {
        match self {
            Encoding::F32 => Dtype::F32,
            Encoding::F16 => Dtype::F16,
            Encoding::Bf16 => Dtype::Bf16,
            Encoding::F8E4M3 => Dtype::F8E4M3,
            Encoding::Q8_0 => Dtype::Q8_0,
            Encoding::Q4_0 => Dtype::Q4_0,
            Encoding::Q4_1 => Dtype::Q4_1,
            Encoding::Q5_0 => Dtype::Q5_0,
            Encoding::Q5_1 => Dtype::Q5_1,
            Encoding::Q4K => Dtype::Q4K,
            Encoding::Q5K => Dtype::Q5K,
            Encoding::Q6K => Dtype::Q6K,
            // No tensor says that it is made of these.
            Encoding::Mxfp4 => return (32, 16),
            Encoding::Int8 | Encoding::Offset8 => return (1, 1),
            Encoding::Offset4 | Encoding::Nf4 | Encoding::Fp4 => return (2, 1),
            Encoding::Gptq4 | Encoding::Gptq8 => return (1, 4),
            Encoding::Awq4 => return (8, 4),
            // Any number of them makes a row.
            Encoding::Packed(packed) => return (1, packed.row_bytes(1)),
        }
        .block()
    }

    /// The number that a row's length must be a multiple of.
    pub const fn multiple(self) -> usize {
        self.block().0
    }

    /// Bytes of so many numbers, which are whole blocks; of a packed encoding, those of one row.
    pub const fn bytes(self, numbers: usize) -> usize {
        if let Encoding::Packed(packed) = self {
            return packed.row_bytes(numbers);
        }
        let (block, bytes) = self.block();
        numbers / block * bytes
    }

    /// Whether numbers are decoded many at a time, which takes more than to multiply with them.
    pub fn by_blocks(self) -> bool {
        self.multiple() > 1 || matches!(self, Encoding::Packed(_))
    }

    /// Whether every number stands for itself, without a factor that is stored elsewhere.
    pub fn is_complete(self) -> bool {
        let bytes = matches!(self, Encoding::F8E4M3 | Encoding::Int8 | Encoding::Offset8);
        let words = matches!(self, Encoding::Gptq4 | Encoding::Gptq8 | Encoding::Awq4);
        let halves = matches!(self, Encoding::Mxfp4 | Encoding::Offset4 | Encoding::Nf4 | Encoding::Fp4);
        !(bytes || words || halves)
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
            Encoding::Q4_1 => "q4_1",
            Encoding::Q5_0 => "q5_0",
            Encoding::Q5_1 => "q5_1",
            Encoding::Q4K => "q4_k",
            Encoding::Q5K => "q5_k",
            Encoding::Q6K => "q6_k",
            Encoding::Mxfp4 => "mxfp4",
            Encoding::Int8 => "int8",
            Encoding::Offset8 => "offset_int8",
            Encoding::Offset4 => "offset_int4",
            Encoding::Nf4 => "bnb_nf4",
            Encoding::Fp4 => "bnb_fp4",
            Encoding::Gptq4 => "gptq_int4",
            Encoding::Gptq8 => "gptq_int8",
            Encoding::Awq4 => "awq_int4",
            Encoding::Packed(packed) => packed.name(),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The sixteen numbers of NF4: the quantiles of a normal distribution that QLoRA defines (Dettmers et al., 2023,
/// arXiv:2305.14314), as bitsandbytes has them.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The sixteen numbers of bitsandbytes' FP4: twelfths of 0, 1/16, 8, 12, 4, 6, 2 and 3, then these again, negative.
pub const FP4: [f32; 16] = {
    let twelfths = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut numbers = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        numbers[i] = twelfths[i] / 12.0;
        numbers[i + 8] = -numbers[i];
        i += 1;
    }
    numbers
};

/// What the 256 codes of a scale stand for, rising: the signed dynamic map of bitsandbytes (Dettmers et al., 2022,
/// arXiv:2110.02861). For each power of ten from 10⁻⁶ to 1 there are twice as many numbers as for the one before, halfway
/// between points that divide the stretch from its tenth to itself evenly; and zero, and one.
pub const fn scale_map() -> [f32; 256] {
    let mut map = [0.0; 256];
    let powers = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    // The negative ones first, largest power first; zero is in their middle, one at the end.
    let (mut below, mut above) = (126, 128);
    let mut exponent = 0;
    while exponent < 7 {
        let parts = 1 << exponent;
        let mut i = 0;
        while i < parts {
            let number = powers[exponent] * ((point(i, parts) + point(i + 1, parts)) / 2.0);
            map[above] = number;
            map[below] = -number;
            above += 1;
            below = below.saturating_sub(1);
            i += 1;
        }
        exponent += 1;
    }
    map[255] = 1.0;
    map
}

/// Point `i` of those that divide [0.1, 1] into so many parts, counted from the nearer end and rounded once, as PyTorch does.
const fn point(i: usize, parts: usize) -> f32 {
    let step = ((1.0 - 0.1f32) / parts as f32) as f64;
    let point = if i < parts.div_ceil(2) { 0.1f32 as f64 + step * i as f64 } else { 1.0 - step * (parts - i) as f64 };
    point as f32
}

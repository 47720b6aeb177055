//! What there is to measure of each kernel: its launches for a shape, the bytes they have to move and the operations they
//! have to do, on any device that can launch kernels. The workbench times it on a GPU; the tests run it, small, on the host
//! build, which notices arguments that are wrong.

use half::{bf16, f16};

use crate::check::{Device, Output};
use crate::launch::Launch;
use crate::launch::gemm::Encoding;

pub mod attention;
pub mod convert;
pub mod factors;
pub mod gated_add;
pub mod gemm;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod recurrent;
pub mod rope;
pub mod rows;
pub mod sample;

/// The shape to measure. Each kernel takes what it knows of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of activations.
    pub m: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Length of a row of the weight, or of what is normalised.
    pub k: usize,
    pub encoding: Encoding,
    /// Positions in the KV cache, those of new rows included.
    pub context: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// What a case is meant to reach on an H100-class card, as a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Of measured copy bandwidth.
    Copy(f64),
    /// Of the speed of somebody else's kernel for the same thing.
    Peer(f64, Peer),
}

/// A problem that PyTorch solves too, in bfloat16: by cuBLAS, and by its flash attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Peer {
    /// [m, k] times the transpose of [n, k].
    Matmul { m: usize, n: usize, k: usize },
    /// Causal, of so many rows over themselves.
    Attention { rows: usize, heads: usize, kv_heads: usize, head_dim: usize },
}

/// Launches to be timed together, their arguments in a device's memory.
pub struct Case {
    pub name: String,
    pub steps: Vec<(Launch, Vec<u8>)>,
    /// Bytes that have to be read and written, each once.
    pub bytes: u64,
    /// Multiplies and adds of products, each counted.
    pub flops: u64,
    /// The result.
    pub out: Output,
    pub goal: Option<Goal>,
}

/// One kind of kernel to measure.
pub struct Bench {
    /// As in `kernels bench NAME`; the checks of these kernels have it in their names.
    pub name: &'static str,
    pub about: &'static str,
    pub prepare: fn(&mut dyn Device, &Shape) -> Result<Case, String>,
}

/// All there are.
pub const ALL: &[Bench] = &[
    Bench { name: "gemm", about: "matrix multiply of --m up to 64 by --n x --k in --encoding", prepare: gemm::prepare },
    Bench {
        name: "gemm_prefill",
        about: "matrix multiply of any --m by --n x --k in --encoding",
        prepare: gemm::prepare_prefill,
    },
    Bench {
        name: "attention_decode",
        about: "--m sequences of --context positions, a new row each; --heads --kv-heads --head-dim",
        prepare: attention::prepare_decode,
    },
    Bench {
        name: "attention_prefill",
        about: "--m new rows that end at --context (at least --m); --heads --kv-heads --head-dim",
        prepare: attention::prepare_prefill,
    },
    Bench { name: "norm", about: "RMSNorm of --m rows of --k, the residual added", prepare: norm::prepare },
    Bench {
        name: "rope",
        about: "rotation and append to the cache of --m rows; --heads --kv-heads --head-dim",
        prepare: rope::prepare,
    },
    Bench { name: "convert", about: "--m rows of --k, picked from an embedding of --n", prepare: convert::prepare },
    Bench {
        name: "transposed",
        about: "matrix multiply of any --m by --n x --k that is stored as its transpose, in bfloat16",
        prepare: gemm::prepare_transposed,
    },
    Bench {
        name: "lengths",
        about: "Euclidean lengths of --n rows of --k in --encoding",
        prepare: gemm::prepare_lengths,
    },
    Bench {
        name: "factors",
        about: "float16 scales of --n x --k, one for each 64, that become float32",
        prepare: factors::prepare,
    },
    Bench { name: "mlp_glu", about: "SwiGLU of --m rows of --n", prepare: mlp::prepare },
    Bench { name: "mlp_activations", about: "GELU of --m rows of --n", prepare: mlp::prepare_activate },
    Bench { name: "rows_scaled", about: "--m rows of --n times a number each", prepare: rows::prepare },
    Bench {
        name: "moe_route",
        about: "choice of 8 of --n experts for --m rows, and lists",
        prepare: moe::prepare_route,
    },
    Bench { name: "moe_sum", about: "sum of what 8 experts made of --m rows of --k", prepare: moe::prepare_sum },
    Bench {
        name: "gated_add",
        about: "--m rows of --n times a gate each, added to others",
        prepare: gated_add::prepare,
    },
    Bench {
        name: "recurrent_convolve",
        about: "convolution of --n channels over --m tokens, four at a time",
        prepare: recurrent::prepare_convolve,
    },
    Bench {
        name: "recurrent_delta_rule",
        about: "gated delta rule over --m tokens; --heads --kv-heads --head-dim",
        prepare: recurrent::prepare_delta_rule,
    },
    Bench { name: "sample_soft_cap", about: "soft cap of --m rows of --n logits", prepare: sample::prepare_soft_cap },
    Bench { name: "sample_top_k", about: "the --k largest of --m rows of --n logits", prepare: sample::prepare_top_k },
];

/// The bytes of a parameter struct of params.h.
pub fn bytes_of<P: Copy>(params: &P) -> Vec<u8> {
    // SAFETY: plain data; padding is read as bytes that nobody interprets.
    unsafe { std::slice::from_raw_parts((params as *const P).cast::<u8>(), size_of::<P>()) }.to_vec()
}

/// Float32 numbers as bytes.
fn f32_bytes(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Numbers that look random, from -1 to 1, never the same for long: what the power that a multiply draws depends on.
fn numbers(count: usize) -> impl Iterator<Item = f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// Numbers that are made; where more are needed, these come over and over.
const PATTERN: usize = 1 << 18;

/// [`PATTERN`] numbers in an encoding, without what makes NaN of it.
fn pattern(encoding: Encoding) -> Vec<u8> {
    let numbers = numbers(PATTERN);
    match encoding {
        Encoding::F32 => f32_bytes(numbers),
        Encoding::F16 => numbers.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
        Encoding::Bf16 => numbers.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        Encoding::Int8
        | Encoding::Int8Zero
        | Encoding::Offset8
        | Encoding::Offset4
        | Encoding::Nf4
        | Encoding::Fp4
        | Encoding::Mxfp4 => numbers.map(|v| (v * 127.0) as i8 as u8).collect(),
        Encoding::Fp8 => {
            numbers.map(|v| (v * 126.0) as i8 as u8).map(|q| if q & 0x7f == 0x7f { 0 } else { q }).collect()
        }
        // Below 0x40, so that four bytes that are a float32 are below 2, and its square is finite.
        Encoding::Nf4d => numbers.map(|v| ((v + 1.0) * 31.5) as u8).collect(),
        // Below 0x70, so that no bytes are a float16, or a float32, that is not finite.
        _ => numbers.map(|v| ((v + 1.0) * 55.0) as u8).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Copies, Dialect, HostDevice, Order, Schedule};

    const ENCODINGS: [Encoding; 21] = [
        Encoding::F32,
        Encoding::F16,
        Encoding::Bf16,
        Encoding::Int8,
        Encoding::Fp8,
        Encoding::Nf4,
        Encoding::Nf4d,
        Encoding::Lossless,
        Encoding::Fp4,
        Encoding::Int8Zero,
        Encoding::Offset8,
        Encoding::Offset4,
        Encoding::Mxfp4,
        Encoding::Q8_0,
        Encoding::Q4_0,
        Encoding::Q4_1,
        Encoding::Q5_0,
        Encoding::Q5_1,
        Encoding::Q4K,
        Encoding::Q5K,
        Encoding::Q6K,
    ];

    /// Runs every bench on the host build, where an argument that is wrong shows as a fault or as NaN.
    #[test]
    fn every_case_runs_and_writes_all_of_its_output() {
        let schedule = Schedule { order: Order::Forward, seed: 1, copies: Copies::LandAtWait };
        for bench in ALL {
            for encoding in ENCODINGS {
                for (m, n, k) in [(1, 128, 256_usize), (9, 33, 192)] {
                    let k = k.next_multiple_of(encoding.multiple());
                    let mut device = HostDevice::new(Dialect::Sm90, schedule);
                    let shape = Shape { m, n, k, encoding, context: 70, heads: 4, kv_heads: 2, head_dim: 64 };
                    let case = (bench.prepare)(&mut device, &shape).expect("memory");
                    for (launch, params) in &case.steps {
                        device.launch(launch, params).unwrap_or_else(|e| panic!("{}: {e}", case.name));
                    }
                    let numbers = case.out.read(&mut device);
                    assert!(numbers.iter().all(|v| v.is_finite()), "{}: something was not written", case.name);
                    assert!(case.bytes > 0 && case.flops > 0, "{}", case.name);
                }
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_encoding() {
        let schedule = Schedule { order: Order::Forward, seed: 1, copies: Copies::LandAtWait };
        let mut device = HostDevice::new(Dialect::Sm90, schedule);
        let mut bytes = |encoding| {
            let shape = Shape { m: 1, n: 128, k: 256, encoding, context: 0, heads: 0, kv_heads: 0, head_dim: 0 };
            gemm::prepare(&mut device, &shape).expect("memory").bytes
        };
        let around = |operand: u64| 256 * operand + 128 * 4; // x and out
        assert_eq!(bytes(Encoding::F32), 128 * 256 * 4 + around(4));
        assert_eq!(bytes(Encoding::Bf16), 128 * 256 * 2 + around(2));
        assert_eq!(bytes(Encoding::Int8), 128 * 256 + 128 * 256 / 64 * 4 + around(2));
        assert_eq!(bytes(Encoding::Nf4), 128 * 256 / 2 + 128 * 256 / 64 * 4 + around(2));
        // Two exponents, a count, and no escapes; in all, a multiple of 16.
        assert_eq!(bytes(Encoding::Lossless), 128 * (256 / 64 * 88 + 16) + around(2));
        assert_eq!(bytes(Encoding::Mxfp4), 128 * 256 / 2 + 128 * 256 / 32 + around(2));
        assert_eq!(bytes(Encoding::Fp8), 128 * 256 + 2 * 4 + around(2));
    }
}

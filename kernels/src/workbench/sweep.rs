//! The shapes of real models.

use crate::bench::Shape;
use crate::launch::gemm::Encoding;

/// A model's attention, and its weight matrices as (what, n, k); what an earlier model has is not repeated.
pub struct Model {
    pub name: &'static str,
    pub heads: usize,
    pub matrices: &'static [(&'static str, usize, usize)],
}

const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;

/// From the configurations that their makers publish. Keys and values have 8 heads of 128 in all four.
pub const MODELS: &[Model] = &[
    Model {
        name: "Llama 3.1 8B",
        heads: 32,
        matrices: &[
            ("q, o", 4096, 4096),
            ("k, v", 1024, 4096),
            ("gate, up", 14336, 4096),
            ("down", 4096, 14336),
            ("head", 128_256, 4096),
        ],
    },
    Model {
        name: "Llama 3.1 70B",
        heads: 64,
        matrices: &[
            ("q, o", 8192, 8192),
            ("k, v", 1024, 8192),
            ("gate, up", 28672, 8192),
            ("down", 8192, 28672),
            ("head", 128_256, 8192),
        ],
    },
    Model {
        name: "Llama 3.1 405B",
        heads: 128,
        matrices: &[
            ("q, o", 16384, 16384),
            ("k, v", 1024, 16384),
            ("gate, up", 53248, 16384),
            ("down", 16384, 53248),
            ("head", 128_256, 16384),
        ],
    },
    // Its attention, q, o, k, v and experts are those of Llama 8B; what is left is the router and the head, whose shapes
    // also bring the choice of experts and the sum of what they made.
    Model { name: "Mixtral 8x7B", heads: 0, matrices: &[("router", 8, 4096), ("head", 32000, 4096)] },
];

/// Rows of activations: decode, and verification of drafts.
const DECODE_ROWS: [usize; 4] = [1, 4, 8, 64];
/// Rows of a prompt.
const PREFILL_ROWS: [usize; 2] = [512, 2048];
/// Positions.
const CONTEXTS: [usize; 2] = [4096, 32768];

const ENCODINGS: [Encoding; 5] = [Encoding::Bf16, Encoding::Lossless, Encoding::Int8, Encoding::Nf4, Encoding::Fp8];

/// A shape of no attention.
fn matrix(m: usize, n: usize, k: usize, encoding: Encoding) -> Shape {
    Shape { m, n, k, encoding, context: 0, heads: 0, kv_heads: 0, head_dim: 0 }
}

/// Every shape of a model: bench, what it is, and its numbers.
fn shapes(model: &'static Model) -> Vec<(&'static str, String, Shape)> {
    let mut all = Vec::new();
    let mut add = |bench, what: &str, shape| all.push((bench, format!("{} {what}", model.name), shape));
    for &(what, n, k) in model.matrices {
        for encoding in ENCODINGS {
            DECODE_ROWS.iter().for_each(|&m| add("gemm", what, matrix(m, n, k, encoding)));
            // Of a prompt only the last row meets the head.
            if what != "head" {
                PREFILL_ROWS.iter().for_each(|&m| add("gemm_prefill", what, matrix(m, n, k, encoding)));
            }
        }
        for m in [1, 2048] {
            let plain = matrix(m, n, k, Encoding::Bf16);
            match what {
                "q, o" => add("norm", "norm", Shape { n: 0, ..plain }),
                "gate, up" => add("mlp_glu", "SwiGLU", plain),
                "router" => {
                    add("moe_route", "routing", plain);
                    add("moe_sum", "sum of experts", plain);
                }
                _ => {}
            }
        }
        if what == "head" {
            add("convert", "embedding", matrix(512, n, k, Encoding::Bf16));
            // The larger models have the same vocabulary.
            if k == 4096 {
                add("sample_top_k", "argmax", matrix(1, n, 1, Encoding::Bf16));
            }
        }
    }
    if model.heads > 0 {
        let attention =
            Shape { heads: model.heads, kv_heads: KV_HEADS, head_dim: HEAD_DIM, ..matrix(1, 0, 0, Encoding::Bf16) };
        [1, 2048].iter().for_each(|&m| add("rope", "rope", Shape { m, ..attention }));
        for context in CONTEXTS {
            add("attention_decode", "attention", Shape { context, ..attention });
            add("attention_prefill", "attention", Shape { m: context, context, ..attention });
        }
    }
    all
}

/// The shapes of all models.
pub fn all() -> impl Iterator<Item = (&'static str, String, Shape)> {
    MODELS.iter().flat_map(shapes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench;

    #[test]
    fn every_shape_has_its_bench_and_is_there_once() {
        let mut seen = std::collections::HashSet::new();
        for (name, what, shape) in all() {
            assert!(bench::ALL.iter().any(|bench| bench.name == name), "{name}");
            assert!(seen.insert(format!("{name} {shape:?}")), "{what}: {shape:?} is there twice");
        }
        assert!(seen.len() > 350, "{}", seen.len());
    }
}

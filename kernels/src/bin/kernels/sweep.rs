//! The shapes of real models.

use layerstream_kernels::bench::Shape;
use layerstream_kernels::launch::gemm::Encoding;

/// A model's weight matrices as (what, n, k), each shape once.
pub struct Model {
    pub name: &'static str,
    pub matrices: &'static [(&'static str, usize, usize)],
}

/// From the configurations that their makers publish. Keys and values have 8 heads of 128 in all four.
pub const MODELS: [Model; 4] = [
    Model {
        name: "Llama 3.1 8B",
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
        matrices: &[
            ("q, o", 16384, 16384),
            ("k, v", 1024, 16384),
            ("gate, up", 53248, 16384),
            ("down", 16384, 53248),
            ("head", 128_256, 16384),
        ],
    },
    // Its q, o, k, v and experts are those of Llama 8B; what is left is the router and the head.
    Model { name: "Mixtral 8x7B", matrices: &[("router", 8, 4096), ("head", 32000, 4096)] },
];

/// Rows of activations: decode, and verification of drafts.
const ROWS: [usize; 4] = [1, 4, 8, 64];

const ENCODINGS: [Encoding; 4] = [Encoding::Bf16, Encoding::Int8, Encoding::Nf4, Encoding::Fp8];

/// Every shape: bench, what it is, and its numbers.
pub fn all() -> impl Iterator<Item = (&'static str, String, Shape)> {
    MODELS.iter().flat_map(|model| {
        let gemms = model.matrices.iter().flat_map(move |&(what, n, k)| {
            ENCODINGS.into_iter().flat_map(move |encoding| {
                ROWS.into_iter().map(move |m| {
                    let shape = Shape { m, n, k, encoding, context: 0 };
                    ("gemm", format!("{} {what}", model.name), shape)
                })
            })
        });
        let widths = model.matrices.iter().filter(|(what, ..)| *what == "q, o");
        let norms = widths.flat_map(move |&(_, _, k)| {
            [1, 2048].map(|m| {
                let shape = Shape { m, n: 0, k, encoding: Encoding::Bf16, context: 0 };
                ("norm", format!("{} norm", model.name), shape)
            })
        });
        gemms.chain(norms)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use layerstream_kernels::bench;

    #[test]
    fn every_shape_has_its_bench_and_is_there_once() {
        let mut seen = std::collections::HashSet::new();
        for (name, what, shape) in all() {
            assert!(bench::ALL.iter().any(|bench| bench.name == name), "{name}");
            assert!(seen.insert(format!("{name} {shape:?}")), "{what}: {shape:?} is there twice");
        }
        assert!(seen.len() > 250);
    }
}

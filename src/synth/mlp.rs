//! The MLP's tensors: one dense MLP, or a router and its experts, by the names of each family.

use super::Keys;
use crate::error::Result;

/// What follows attention in every layer.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    /// Width of the dense MLP.
    pub intermediate: usize,
    pub bias: bool,
    pub experts: Option<Experts>,
}

/// The experts of the layers that have them.
#[derive(Clone, Debug)]
pub(super) struct Experts {
    names: Names,
    count: usize,
    intermediate: usize,
    /// Width of the expert that every token has (Qwen2-MoE).
    shared: Option<usize>,
    /// Layer i has experts where i + 1 is a multiple of this.
    step: usize,
    /// Layers that have none all the same.
    dense: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Names {
    Mixtral,
    Qwen,
}

impl Mlp {
    /// Reads what the family named by its class has.
    pub fn read(keys: &Keys, family: &str, bias: bool) -> Result<Mlp> {
        let intermediate = keys.size("intermediate_size")?;
        let experts = match family {
            "MixtralForCausalLM" => Some(Experts {
                names: Names::Mixtral,
                count: keys.size("num_local_experts")?,
                intermediate,
                shared: None,
                step: 1,
                dense: Vec::new(),
            }),
            "Qwen2MoeForCausalLM" | "Qwen3MoeForCausalLM" => Some(Experts {
                names: Names::Qwen,
                count: keys.size("num_experts")?,
                intermediate: keys.size("moe_intermediate_size")?,
                shared: match family {
                    "Qwen2MoeForCausalLM" => Some(keys.size("shared_expert_intermediate_size")?),
                    _ => None,
                },
                step: keys.get("decoder_sparse_step").map_or(Ok(1), |_| keys.size("decoder_sparse_step"))?,
                dense: keys.indices("mlp_only_layers")?,
            }),
            _ => None,
        };
        Ok(Mlp { intermediate, bias, experts })
    }

    /// Adds one layer's tensors, in the order in which they are used.
    pub fn shapes(&self, layer: usize, hidden: usize, add: &mut dyn FnMut(&str, &[usize])) {
        match &self.experts {
            Some(experts) if experts.has(layer) => experts.shapes(hidden, add),
            _ => {
                for (name, shape) in gated("mlp", ["gate_proj", "up_proj", "down_proj"], self.intermediate, hidden) {
                    add(&format!("{name}.weight"), &shape);
                    if self.bias {
                        add(&format!("{name}.bias"), &shape[..1]);
                    }
                }
            }
        }
    }
}

impl Experts {
    fn has(&self, layer: usize) -> bool {
        !self.dense.contains(&layer) && (layer + 1).is_multiple_of(self.step)
    }

    fn shapes(&self, hidden: usize, add: &mut dyn FnMut(&str, &[usize])) {
        let (block, parts) = match self.names {
            Names::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            Names::Qwen => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        };
        add(&format!("{block}.gate.weight"), &[self.count, hidden]);
        for expert in 0..self.count {
            for (name, shape) in gated(&format!("{block}.experts.{expert}"), parts, self.intermediate, hidden) {
                add(&format!("{name}.weight"), &shape);
            }
        }
        if let Some(shared) = self.shared {
            for (name, shape) in gated(&format!("{block}.shared_expert"), parts, shared, hidden) {
                add(&format!("{name}.weight"), &shape);
            }
            add(&format!("{block}.shared_expert_gate.weight"), &[1, hidden]);
        }
    }
}

/// Gate, up and down.
fn gated(at: &str, names: [&str; 3], intermediate: usize, hidden: usize) -> [(String, [usize; 2]); 3] {
    let shapes = [[intermediate, hidden], [intermediate, hidden], [hidden, intermediate]];
    std::array::from_fn(|i| (format!("{at}.{}", names[i]), shapes[i]))
}

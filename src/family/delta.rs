//! Layers with the gated delta rule, as the newer Qwen families have them in the place of attention: projections, a short
//! convolution, the rule, a norm, and a gate.

use serde_json::json;

use crate::error::Result;
use crate::program::{Activation, Buffer, Convolution, DeltaRule, Step};

use super::Config;
use super::builder::{Builder, NormStyle, Projection};
use super::dense::Dense;

/// The layers with the gated delta rule.
#[derive(Clone)]
pub struct Delta {
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Tokens that the convolution looks at.
    pub taps: usize,
    pub inputs: Inputs,
    /// Which layers have it; the others attend.
    pub layers: Vec<bool>,
}

/// How the projections of the input lie in the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Inputs {
    /// In two, whose rows are, for each key head: its query, key, values and gates; and its writes and decays.
    Grouped,
    /// In four.
    Separate,
}

/// The buffers of these layers.
pub struct DeltaBuffers {
    /// Both projections as they come, where they are grouped.
    packed: Option<[Buffer; 2]>,
    /// Parts of the first before they lie side by side.
    parts: Option<[Buffer; 3]>,
    mixed: Buffer,
    gate: Buffer,
    write: Buffer,
    decay: Buffer,
    made: Buffer,
}

impl Delta {
    /// Reads sizes, and which layers: those that `layer_types` names, or all but every `full_attention_interval`-th.
    pub fn read(config: &Config, layers: usize, inputs: Inputs) -> Result<Delta> {
        let config = config.or(json!({
            "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
            "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4
        }));
        let (key_heads, value_heads) = (config.count("linear_num_key_heads")?, config.count("linear_num_value_heads")?);
        if !value_heads.is_multiple_of(key_heads) {
            return Err(config.problem(format!(
                "`linear_num_value_heads` {value_heads} is no multiple of `linear_num_key_heads` {key_heads}"
            )));
        }
        let interval = config.count("full_attention_interval")?;
        let layers = match config.strings("layer_types")? {
            None => (0..layers).map(|layer| (layer + 1) % interval != 0).collect(),
            Some(types) if types.len() != layers => {
                let found = types.len();
                return Err(config.problem(format!("`layer_types` has {found} entries for {layers} layers")));
            }
            Some(types) => {
                let of = |kind: &&str| match *kind {
                    "linear_attention" => Ok(true),
                    "full_attention" => Ok(false),
                    other => Err(config.unsupported(format!("a layer of type `{other}` (layer_types)"))),
                };
                types.iter().map(of).collect::<Result<_>>()?
            }
        };
        let (key_dim, value_dim) = (config.count("linear_key_head_dim")?, config.count("linear_value_head_dim")?);
        let taps = config.count("linear_conv_kernel_dim")?;
        Ok(Delta { key_heads, value_heads, key_dim, value_dim, taps, inputs, layers })
    }

    fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }
}

impl Builder<'_> {
    pub(super) fn delta_buffers(&mut self, delta: &Delta) -> DeltaBuffers {
        let (keys, values, heads) = (delta.keys(), delta.values(), delta.value_heads);
        let grouped = delta.inputs == Inputs::Grouped;
        DeltaBuffers {
            packed: grouped.then(|| [self.buffer(2 * keys + 2 * values), self.buffer(2 * heads)]),
            parts: grouped.then(|| [self.buffer(keys), self.buffer(keys), self.buffer(values)]),
            mixed: self.buffer(2 * keys + values),
            gate: self.buffer(values),
            write: self.buffer(heads),
            decay: self.buffer(heads),
            made: self.buffer(values),
        }
    }

    /// `output += layer(input)`, with the tensors of the layer that `prefix` names.
    pub(super) fn delta(
        &mut self,
        dense: &Dense,
        delta: &Delta,
        on: &DeltaBuffers,
        prefix: &str,
        [input, output]: [Buffer; 2],
    ) -> Result<()> {
        let name = |part: &str| format!("{prefix}linear_attn.{part}");
        let Delta { key_heads, value_heads, key_dim, value_dim, taps, .. } = *delta;
        let channels = 2 * delta.keys() + delta.values();
        self.delta_inputs(dense, delta, on, &name, input)?;
        let weight = self.vector(&name("conv1d.weight"), &[channels, 1, taps])?;
        let state = self.state((taps - 1) * channels);
        self.step(Step::Convolve(Convolution { state, buffer: on.mixed, weight, taps }));
        self.step(Step::Activate { activation: Activation::Silu, buffer: on.mixed });
        let log_decay = self.vector(&name("A_log"), &[value_heads])?;
        let decay_bias = self.vector(&name("dt_bias"), &[value_heads])?;
        let state = self.state(value_heads * key_dim * value_dim);
        self.step(Step::DeltaRule(DeltaRule {
            state,
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            mixed: on.mixed,
            decay: on.decay,
            write: on.write,
            log_decay,
            decay_bias,
            output: on.made,
        }));
        // The one norm of these families whose weights are whole.
        let norm = self.norm(&name("norm"), &[value_dim], NormStyle { offset: 0.0, ..dense.norm })?;
        self.step(Step::HeadNorm { norm, buffer: on.made, head_dim: value_dim });
        self.step(Step::Glu { activation: Activation::Silu, gate: on.gate, up: on.made });
        let out = name("out_proj");
        self.project(Projection { add: true, ..Projection::new(&out, dense.hidden, delta.values(), on.gate, output) })
    }

    fn delta_inputs(
        &mut self,
        dense: &Dense,
        delta: &Delta,
        on: &DeltaBuffers,
        name: &impl Fn(&str) -> String,
        input: Buffer,
    ) -> Result<()> {
        let (keys, values, heads, hidden) = (delta.keys(), delta.values(), delta.value_heads, dense.hidden);
        let (Some([packed, gates]), Some(parts)) = (on.packed, on.parts) else {
            for (part, rows, output) in [
                ("in_proj_qkv", 2 * keys + values, on.mixed),
                ("in_proj_z", values, on.gate),
                ("in_proj_b", heads, on.write),
                ("in_proj_a", heads, on.decay),
            ] {
                self.project(Projection::new(&name(part), rows, hidden, input, output))?;
            }
            return Ok(());
        };
        self.project(Projection::new(&name("in_proj_qkvz"), 2 * keys + 2 * values, hidden, input, packed))?;
        self.project(Projection::new(&name("in_proj_ba"), 2 * heads, hidden, input, gates))?;
        let (key, value) = (delta.key_dim, values / delta.key_heads);
        let stride = 2 * key + 2 * value;
        for (first, run, output) in
            [(0, key, parts[0]), (key, key, parts[1]), (2 * key, value, parts[2]), (2 * key + value, value, on.gate)]
        {
            self.step(Step::Rearrange { input: packed, output, first, run, stride });
        }
        self.step(Step::Join { parts: parts.to_vec(), output: on.mixed });
        let run = heads / delta.key_heads;
        for (first, output) in [(0, on.write), (run, on.decay)] {
            self.step(Step::Rearrange { input: gates, output, first, run, stride: 2 * run });
        }
        Ok(())
    }
}

//! What a decoder is, as data: sizes, names of tensors, and what of the things that decoders differ in it has. It
//! begins as Llama; a family says what is different.

use crate::error::Result;
use crate::program::{Activation, NormKind, QueryScale, Rope};

use super::Config;
use super::builder::NormStyle;
use super::delta::Delta;
use super::latent::Latent;
use super::moe::Sparse;
use super::rope::Rotation;

/// A decoder. Dense, but for what `moe` says.
pub struct Dense {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub max_positions: usize,
    pub names: Names,
    pub norm: NormStyle,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases on all MLP projections.
    pub mlp_bias: bool,
    pub qk_norm: QkNorm,
    /// Keys and values of all heads come from one short vector.
    pub latent: Option<Latent>,
    /// Layers with the gated delta rule in the place of attention.
    pub delta: Option<Delta>,
    /// Each query head comes with a gate for what it attends to, as many rows after its own.
    pub gated: bool,
    /// Attention and MLP read the same residual stream, and both are added to it.
    pub parallel: bool,
    pub activation: Activation,
    /// Experts in the place of MLPs.
    pub moe: Option<Sparse>,
    pub ropes: Vec<Rope>,
    /// Keys go to the cache as they are, and all of them are turned whenever they are looked at.
    pub turn_cached_keys: bool,
    /// Which of `ropes` turns the queries and keys of each layer, if any.
    pub layer_ropes: Vec<Option<usize>>,
    /// The sliding window of each layer.
    pub windows: Vec<Option<usize>>,
    /// The chunk of positions that each layer's attention stays in.
    pub chunks: Vec<Option<usize>>,
    /// What dot products of queries and keys are multiplied by.
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// ALiBi: for each head its slope.
    pub slopes: Option<Vec<f32>>,
    /// What biases that are rounded to bfloat16 count ([`Attention::bias_factor`](crate::program::Attention::bias_factor)).
    pub bias_factor: Option<f32>,
    pub query_scale: Option<QueryScale>,
    /// The same, of layers without rotation alone.
    pub unrotated_scale: Option<QueryScale>,
    /// For each head a score that takes its share of attention and has no value: the name of these.
    pub sinks: Option<&'static str>,
    pub embedding_scale: f32,
    /// What a layer's two results are multiplied by before they are added to the residual stream.
    pub residual_scale: f32,
    /// The head is the embedding table.
    pub tied: bool,
    pub logit_scale: f32,
    pub logit_cap: Option<f32>,
    /// Each row of the head is divided by its length.
    pub normalise_head: bool,
}

/// A norm of queries and keys, before they are rotated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Over each head, with one weight for all of them.
    Heads,
    /// Over each head, with a weight for each: `[heads, head_dim]`.
    EachHead,
    /// Over the whole projection.
    Whole,
    /// Over each head, without a weight, and after it was rotated; on layers with rotation alone (Llama 4).
    Rotated,
}

/// The names of tensors, without `.weight` and `.bias`. Those of a layer come after `{root}{layers}.{number}.`.
#[derive(Clone, Copy)]
pub struct Names {
    /// What the names of embedding, layers and final norm begin with.
    pub root: &'static str,
    pub embedding: &'static str,
    pub layers: &'static str,
    /// The norm before attention.
    pub attention_norm: Option<&'static str>,
    pub qkv: Qkv,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub attention_output: &'static str,
    /// The norm of what attention gives.
    pub attention_post_norm: Option<&'static str>,
    /// The norm before the MLP. In a parallel layer without one, the MLP reads what attention reads.
    pub mlp_norm: Option<&'static str>,
    pub mlp: Mlp,
    pub mlp_output: &'static str,
    /// The norm of what the MLP gives.
    pub mlp_post_norm: Option<&'static str>,
    pub final_norm: &'static str,
    /// Without the root.
    pub head: &'static str,
}

/// How the query, key and value projections lie in the checkpoint.
#[derive(Clone, Copy)]
pub enum Qkv {
    Separate([&'static str; 3]),
    /// Rows of one tensor: all queries, all keys, all values.
    Packed(&'static str),
    /// Rows of one tensor: for each key head its query heads, its key, its value.
    Grouped(&'static str),
}

/// How the first projections of an MLP lie in the checkpoint.
#[derive(Clone, Copy)]
pub enum Mlp {
    /// `activation(gate) · up`
    Gated { gate: &'static str, up: &'static str },
    /// The same, as rows of one tensor: gate, then up.
    Packed(&'static str),
    /// `activation(up)`
    Plain(&'static str),
}

/// The names that Llama has, and most families after it.
pub const LLAMA: Names = Names {
    root: "model.",
    embedding: "embed_tokens",
    layers: "layers",
    attention_norm: Some("input_layernorm"),
    qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    attention_output: "self_attn.o_proj",
    attention_post_norm: None,
    mlp_norm: Some("post_attention_layernorm"),
    mlp: Mlp::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj" },
    mlp_output: "mlp.down_proj",
    mlp_post_norm: None,
    final_norm: "norm",
    head: "lm_head",
};

impl Dense {
    /// Reads what nearly every family has, under all names that are in use for it, as Llama means it; whole heads are
    /// rotated in halves. What the configuration may leave out is what `config` has been given by [`Config::or`].
    pub fn read(config: &Config) -> Result<Dense> {
        let (head_dim, max_positions) = (Dense::head_dim(config)?, config.size("max_position_embeddings")?);
        let dense = Dense::without_rope(config)?;
        Ok(dense.with_rope(Rotation::new(head_dim, max_positions).read(config)?))
    }

    /// The same without any rotation.
    pub fn without_rope(config: &Config) -> Result<Dense> {
        let (hidden, heads) = (config.size("hidden_size")?, config.count("num_attention_heads")?);
        let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(config
                .problem(format!("`num_attention_heads` {heads} is no multiple of `num_key_value_heads` {kv_heads}")));
        }
        let head_dim = Dense::head_dim(config)?;
        let layers = config.count("num_hidden_layers")?;
        Ok(Dense {
            hidden,
            intermediate: config.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab: config.size("vocab_size")?,
            max_positions: config.size("max_position_embeddings")?,
            names: LLAMA,
            norm: NormStyle {
                kind: NormKind::Rms,
                eps: config.number("norm_eps", 1e-6)? as f32,
                offset: 0.0,
                bias: false,
            },
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: QkNorm::None,
            latent: None,
            delta: None,
            gated: false,
            parallel: false,
            activation: config.activation("hidden_act")?,
            moe: None,
            ropes: Vec::new(),
            turn_cached_keys: false,
            layer_ropes: vec![None; layers],
            windows: vec![None; layers],
            chunks: vec![None; layers],
            scale: 1.0 / (head_dim as f32).sqrt(),
            soft_cap: None,
            slopes: None,
            bias_factor: None,
            query_scale: None,
            unrotated_scale: None,
            sinks: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            tied: config.flag("tie_word_embeddings", false)?,
            logit_scale: 1.0,
            logit_cap: None,
            normalise_head: false,
        })
    }

    /// The size of a head: `head_dim`, or hidden size by heads.
    pub fn head_dim(config: &Config) -> Result<usize> {
        let (hidden, heads) = (config.size("hidden_size")?, config.count("num_attention_heads")?);
        let head_dim = match config.optional_size("head_dim")? {
            Some(dim) => dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(config.problem(format!(
                    "`hidden_size` {hidden} is no multiple of `num_attention_heads` {heads}, and there is no `head_dim`"
                )));
            }
        };
        match head_dim > 256 {
            true => Err(config.unsupported(format!("a head size of {head_dim} (up to 256 is)"))),
            false => Ok(head_dim),
        }
    }

    /// The same with one rotation for all layers.
    pub fn with_rope(self, rope: Rope) -> Dense {
        Dense { ropes: vec![rope], layer_ropes: vec![Some(0); self.layers], ..self }
    }

    /// The same with LayerNorm, mean and all.
    pub fn with_layer_norm(self, bias: bool) -> Dense {
        Dense { norm: NormStyle { kind: NormKind::Layer, bias, ..self.norm }, ..self }
    }

    /// Rows of the query projection.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of the key projection, and of that of the values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// The slopes of ALiBi (Press et al., 2021, arXiv:2108.12409) for any number of heads: for a power of two, a geometric
/// sequence that ends with 2⁻⁸; else that of the power of two below, and every other one of that above.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let geometric = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2() as f32);
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    geometric(below).chain(geometric(2 * below).step_by(2)).take(heads).collect()
}

//! The metadata of a GGUF file as a configuration: the keys of `config.json` that the families read, made from those that
//! llama.cpp's converter wrote from them. What the converter leaves out or changes is put back: whether the head is tied,
//! which biases there are, and how queries and keys are paired for rotation.

use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, Metadata};
use crate::error::{Error, Result};
use crate::program::{Program, RopeStyle};

use super::Config;

/// The classes that GGUF files are read as.
pub const CLASSES: [&str; 4] = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"];

/// Makes the configuration of the model in a GGUF file.
///
/// # Errors
/// An architecture or an option that is not implemented, or a key that is missing or of another type.
pub fn config(checkpoint: &Checkpoint, metadata: &Metadata) -> Result<Config> {
    let unsupported = |what: String| Error::Unsupported { path: metadata.path().into(), what };
    let name = metadata.text("general.architecture")?;
    let name = name.ok_or_else(|| metadata.problem("no `general.architecture`, so the family is unknown"))?;
    let keys = Keys { metadata, architecture: name };
    let window = keys.size("attention.sliding_window")?.filter(|window| *window > 0);
    let has = |part: &str| checkpoint.get(&format!("model.layers.0.{part}.bias")).is_some();
    let mut config = Map::new();
    match name {
        "llama" => {
            let class = if window.is_some() { "MistralForCausalLM" } else { "LlamaForCausalLM" };
            let (inputs, output) = (has("self_attn.q_proj"), has("self_attn.o_proj"));
            if inputs != output {
                return Err(unsupported("a llama GGUF with biases on some of the attention's projections".into()));
            }
            config.extend(object(json!({
                "architectures": [class],
                "sliding_window": window,
                "attention_bias": inputs,
                "mlp_bias": has("mlp.gate_proj"),
            })));
        }
        "qwen2" => config.extend(object(json!({"architectures": ["Qwen2ForCausalLM"]}))),
        "qwen3" => config.extend(object(json!({
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": has("self_attn.q_proj"),
        }))),
        other => {
            return Err(unsupported(format!("the GGUF architecture `{other}` (known: llama, qwen2, qwen3)")));
        }
    }
    let context = keys.required("context_length")?;
    if name != "llama" && window.is_some_and(|window| window < context) {
        return Err(unsupported(format!("`{name}.attention.sliding_window`")));
    }
    if keys.size("expert_count")?.is_some_and(|count| count > 0) {
        return Err(unsupported(format!("a mixture of experts in GGUF form (`{name}.expert_count`)")));
    }
    let heads = keys.required("attention.head_count")?;
    let key_length = keys.size("attention.key_length")?;
    if keys.size("attention.value_length")? != key_length {
        return Err(unsupported(format!("`{name}.attention.value_length` that differs from `key_length`")));
    }
    let vocab = checkpoint.require("model.embed_tokens.weight")?.shape.first().copied();
    let hidden = keys.required("embedding_length")?;
    // The converter leaves the head size out where it is the usual one.
    let head_dim = key_length.or_else(|| hidden.checked_div(heads));
    let rotated = keys.size("rope.dimension_count")?;
    config.extend(object(json!({
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": keys.required("block_count")?,
        "max_position_embeddings": context,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")?,
        "rope_theta": keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        "rope_scaling": scaling(&keys)?,
        "tie_word_embeddings": checkpoint.get("lm_head.weight").is_none(),
    })));
    if let (Some(rotated), Some(dim)) = (rotated, head_dim.filter(|dim| Some(*dim) != rotated)) {
        config.insert("partial_rotary_factor".into(), json!(rotated as f64 / dim as f64));
    }
    Config::new(metadata.path(), Value::Object(config))
}

/// What a configuration cannot say: in llama files the rows of queries and keys are in such an order that neighbours
/// rotate together, and frequencies may be divided by factors that lie in the file.
pub fn finish(program: &mut Program, metadata: &Metadata) -> Result<()> {
    let interleaved = metadata.text("general.architecture")? == Some("llama");
    for rope in &mut program.ropes {
        if interleaved {
            rope.style = RopeStyle::Interleaved;
        }
        let Some(factors) = metadata.rope_factors() else { continue };
        if factors.len() != rope.inv_freq.len() || rope.dynamic.is_some() {
            let (found, expected) = (factors.len(), rope.inv_freq.len());
            return Err(metadata.problem(format!("`rope_freqs.weight` has {found} factors for {expected} frequencies")));
        }
        rope.inv_freq.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    }
    Ok(())
}

/// `rope_scaling`, or null.
fn scaling(keys: &Keys) -> Result<Value> {
    let unsupported = |what: String| Err(Error::Unsupported { path: keys.metadata.path().into(), what });
    let factor = keys.number("rope.scaling.factor")?;
    let kind = match keys.text("rope.scaling.type")? {
        Some(kind) => kind,
        // As files before scaling had types.
        None => {
            let linear = keys.number("rope.scale_linear")?.or(factor).filter(|factor| *factor != 1.0);
            return Ok(linear.map_or(Value::Null, |factor| json!({"rope_type": "linear", "factor": factor})));
        }
    };
    if kind == "none" {
        return Ok(Value::Null);
    }
    if keys.metadata.rope_factors().is_some() {
        return unsupported(format!("rope scaling of type `{kind}` together with `rope_freqs.weight`"));
    }
    match kind {
        "linear" => Ok(json!({"rope_type": "linear", "factor": factor})),
        "yarn" => {
            let mut scaling = object(json!({"rope_type": "yarn", "factor": factor}));
            let names = [
                ("original_context_length", "original_max_position_embeddings"),
                ("yarn_beta_fast", "beta_fast"),
                ("yarn_beta_slow", "beta_slow"),
            ];
            for (key, name) in names {
                if let Some(value) = keys.number(&format!("rope.scaling.{key}"))? {
                    scaling.insert(name.into(), json!(value));
                }
            }
            // llama.cpp multiplies its own factor with this one.
            if keys.number("rope.scaling.attn_factor")?.is_some_and(|factor| factor != 1.0) {
                return unsupported(format!("`{}.rope.scaling.attn_factor`", keys.architecture));
            }
            Ok(Value::Object(scaling))
        }
        other => unsupported(format!("rope scaling of type `{other}`")),
    }
}

/// The keys that begin with the name of the architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        self.metadata.text(&self.key(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(key))
    }

    /// A size; or one for each layer, if they are all the same.
    fn size(&self, key: &str) -> Result<Option<u64>> {
        let key = self.key(key);
        match self.metadata.ints(&key) {
            Ok(Some([first, rest @ ..])) if *first >= 0 => match rest.iter().all(|size| size == first) {
                true => Ok(Some(*first as u64)),
                false => {
                    let what = format!("`{key}` that differs from layer to layer");
                    Err(Error::Unsupported { path: self.metadata.path().into(), what })
                }
            },
            _ => self.metadata.size(&key),
        }
    }

    fn required(&self, key: &str) -> Result<u64> {
        self.size(key)?.ok_or_else(|| self.metadata.problem(format!("`{}` is missing", self.key(key))))
    }
}

/// The entries of an object without those that are null.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(keys) => keys.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    }
}

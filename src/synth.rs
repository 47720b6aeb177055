//! Synthetic checkpoints: any published shape with random weights, or with none at all (sparse), for trying and
//! measuring without a download. A [`Spec`] knows which tensors a `config.json` stands for; [`write()`] writes them.

mod content;
mod mlp;
mod noise;
mod write;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::{Dtype, read_json};
use crate::error::{Error, Result};
use mlp::Mlp;
pub(crate) use write::write;

/// Published configurations by name, `{name: config.json}`.
const PRESETS: &str = include_str!("synth/presets.json");

/// More layers than any model has, and few enough to list.
const MAX_LAYERS: usize = 10_000;

/// Bytes per element of the widest type that weights are written in.
const WIDEST: u64 = 4;

/// How a synthetic checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Leave every weight zero and unwritten: nearly free on disk, at any size.
    pub sparse: bool,
    /// Equal seeds give equal weights, tensor by tensor, whatever the number of layers, shards or threads.
    pub seed: u64,
    /// `Bf16`, `F16` or `F32`.
    pub dtype: Dtype,
}

impl Default for Options {
    fn default() -> Options {
        Options { sparse: false, seed: 0, dtype: Dtype::Bf16 }
    }
}

/// A model of one of the families below, as its `config.json` describes it.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    config: Map<String, Value>,
    /// The file that the configuration is from, or the name of the preset: for errors.
    source: PathBuf,
    hidden: usize,
    mlp: Mlp,
    vocab: usize,
    layers: usize,
    /// Rows of the query projection: heads × head_dim.
    query: usize,
    /// Rows of the key and of the value projection.
    key_value: usize,
    head_dim: usize,
    tied: bool,
    /// Biases on q, k, v; on o.
    qkv_bias: bool,
    output_bias: bool,
    /// RMS norms of each head's query and key.
    qk_norm: bool,
}

impl Spec {
    /// The names that [`Spec::preset`] knows.
    pub(crate) fn presets() -> Vec<String> {
        presets().into_iter().map(|(name, _)| name).collect()
    }

    /// A published configuration, by the name of its model.
    pub(crate) fn preset(name: &str) -> Result<Spec> {
        match presets().remove(name) {
            Some(config) => Spec::new(config, Path::new(name)),
            None => {
                Err(Error::Request(format!("no model is called `{name}`; there are {}", Spec::presets().join(", "))))
            }
        }
    }

    /// Reads a `config.json`.
    pub(crate) fn read(path: &Path) -> Result<Spec> {
        Spec::new(read_json(path)?, path)
    }

    /// Takes a parsed `config.json`; `source` is for errors.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for another architecture or a quantized model, whose tensors would be others;
    /// [`Error::Config`] for a size that is missing or impossible.
    pub(crate) fn new(config: Value, source: &Path) -> Result<Spec> {
        let Value::Object(config) = config else {
            return Err(Error::Config { path: source.into(), problem: "is not a JSON object".into() });
        };
        let keys = Keys { config: &config, source };
        if keys.get("quantization_config").is_some() {
            return Err(keys.unsupported("writing quantized weights (`quantization_config`)"));
        }
        let family = keys.family()?;
        let (heads, attention_bias) = (keys.size("num_attention_heads")?, keys.flag("attention_bias")?);
        let key_value_heads = match keys.get("num_key_value_heads") {
            None if family == "LlamaForCausalLM" => heads,
            _ => keys.size("num_key_value_heads")?,
        };
        let hidden = keys.size("hidden_size")?;
        let head_dim = match keys.get("head_dim") {
            Some(_) => keys.size("head_dim")?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(keys.wrong(format!("{heads} heads do not divide hidden_size {hidden}"))),
        };
        // The families differ, as far as tensors go, in these alone.
        let (qkv_bias, output_bias, mlp_bias, qk_norm) = match family {
            "LlamaForCausalLM" => (attention_bias, attention_bias, keys.flag("mlp_bias")?, false),
            "MistralForCausalLM" | "MixtralForCausalLM" => (false, false, false, false),
            "Qwen2ForCausalLM" => (true, false, false, false),
            "Qwen2MoeForCausalLM" => (keys.get("qkv_bias").is_none_or(|bias| bias == true), false, false, false),
            "Qwen3ForCausalLM" | "Qwen3MoeForCausalLM" => (attention_bias, attention_bias, false, true),
            other => return Err(keys.unsupported(&format!("writing weights of the architecture `{other}`"))),
        };
        let rows = |heads: usize| {
            heads.checked_mul(head_dim).ok_or_else(|| keys.wrong(format!("{heads} heads of {head_dim} are too many")))
        };
        let spec = Spec {
            hidden,
            mlp: Mlp::read(&keys, family, mlp_bias)?,
            vocab: keys.size("vocab_size")?,
            layers: keys.size("num_hidden_layers")?,
            query: rows(heads)?,
            key_value: rows(key_value_heads)?,
            head_dim,
            tied: keys.flag("tie_word_embeddings")?,
            qkv_bias,
            output_bias,
            qk_norm,
            source: source.into(),
            config,
        };
        spec.check_size()?;
        Ok(spec)
    }

    /// The same model with another number of layers.
    pub(crate) fn with_layers(mut self, layers: usize) -> Result<Spec> {
        if layers == 0 {
            return Err(Error::Request("a model has at least one layer".into()));
        }
        self.layers = layers;
        self.config.insert("num_hidden_layers".into(), layers.into());
        // Newer configurations give the kind of every layer.
        if let Some(Value::Array(kinds)) = self.config.get_mut("layer_types")
            && !kinds.is_empty()
        {
            *kinds = kinds.iter().cycle().take(layers).cloned().collect();
        }
        self.check_size()?;
        Ok(self)
    }

    /// Refuses a number of layers that cannot be listed and bytes that cannot be counted.
    fn check_size(&self) -> Result<()> {
        let wrong = |problem: String| Error::Config { path: self.source.clone(), problem };
        if self.layers > MAX_LAYERS {
            return Err(wrong(format!("{} layers are more than {MAX_LAYERS}", self.layers)));
        }
        let bytes = |shape: Vec<usize>| shape.iter().try_fold(WIDEST, |n, &dim| n.checked_mul(dim as u64));
        let total = self.shapes().into_iter().try_fold(0u64, |sum, (_, shape)| sum.checked_add(bytes(shape)?));
        total.map(|_| ()).ok_or_else(|| wrong("describes a model of more bytes than can be counted".into()))
    }

    /// Every tensor, by the name it has on the Hub, with its shape; in the order in which the model uses them.
    pub(crate) fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab, self.hidden])];
        for layer in 0..self.layers {
            let mut add =
                |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.into()));
            let mut linear = |name: &str, rows: usize, columns: usize, bias: bool| {
                add(&format!("{name}.weight"), &[rows, columns]);
                if bias {
                    add(&format!("{name}.bias"), &[rows]);
                }
            };
            linear("self_attn.q_proj", self.query, self.hidden, self.qkv_bias);
            linear("self_attn.k_proj", self.key_value, self.hidden, self.qkv_bias);
            linear("self_attn.v_proj", self.key_value, self.hidden, self.qkv_bias);
            linear("self_attn.o_proj", self.hidden, self.query, self.output_bias);
            self.mlp.shapes(layer, self.hidden, &mut add);
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
            add("input_layernorm.weight", &[self.hidden]);
            add("post_attention_layernorm.weight", &[self.hidden]);
        }
        shapes.push(("model.norm.weight".into(), vec![self.hidden]));
        if !self.tied {
            shapes.push(("lm_head.weight".into(), vec![self.vocab, self.hidden]));
        }
        shapes
    }

    /// Bytes of all weights of that type.
    pub(crate) fn bytes(&self, dtype: Dtype) -> u64 {
        self.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64 * dtype.size() as u64).sum()
    }
}

/// The table of published configurations, which is part of the program.
fn presets() -> Map<String, Value> {
    serde_json::from_str(PRESETS).expect("presets.json is an object, as a test assures")
}

/// A configuration being read.
struct Keys<'a> {
    config: &'a Map<String, Value>,
    source: &'a Path,
}

impl Keys<'_> {
    /// The value of a key; `null` is as good as none.
    fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// The architecture, in the name of its class.
    fn family(&self) -> Result<&str> {
        let first = self.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        first.ok_or_else(|| self.wrong("`architectures` names none".into()))
    }

    /// A whole number of at least one.
    fn size(&self, key: &str) -> Result<usize> {
        let value = self.get(key).ok_or_else(|| self.wrong(format!("`{key}` is missing")))?;
        let size = value.as_u64().filter(|&size| size > 0).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(format!("`{key}` is {value} where a whole number of at least 1 was expected")))
    }

    /// True or false; false where it is not there, as in the libraries that write these files.
    fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(format!("`{key}` is {value} where true or false was expected")))
    }

    /// A list of whole numbers; none where it is not there.
    fn indices(&self, key: &str) -> Result<Vec<usize>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map(|list| list.iter().map(|item| item.as_u64().map(|i| i as usize)));
        list.and_then(|mut list| {
            list.try_fold(Vec::new(), |mut all, item| {
                all.push(item?);
                Some(all)
            })
        })
        .ok_or_else(|| self.wrong(format!("`{key}` is {value} where a list of whole numbers was expected")))
    }

    fn wrong(&self, problem: String) -> Error {
        Error::Config { path: self.source.into(), problem }
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported { path: self.source.into(), what: what.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use serde_json::json;

    /// Parameters of the published checkpoints, from their own listings.
    const PARAMETERS: [(&str, u64); 26] = [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_241_732_096),
        ("mixtral-8x22b", 140_620_634_112),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
        // The published file repeats the tied embedding as its head: 751,632,384 with that.
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("yi-6b", 6_061_035_520),
        ("yi-34b", 34_388_917_248),
    ];

    #[test]
    fn presets_have_the_published_number_of_parameters() {
        let names: Vec<&str> = PARAMETERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(Spec::presets(), names);
        for (name, parameters) in PARAMETERS {
            assert_eq!(Spec::preset(name).unwrap().bytes(Dtype::Bf16), 2 * parameters, "{name}");
        }
    }

    #[test]
    fn names_and_shapes_are_those_of_real_checkpoints() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
        let cases = [
            "llama2_mha",
            "llama31_gqa",
            "llama32_tied",
            "llama_bias",
            "mistral_window",
            "mixtral",
            "qwen2",
            "qwen2_moe",
            "qwen3_moe",
            "qwen25_tied",
            "qwen3",
            "yi",
        ];
        if !golden.exists() {
            eprintln!("SKIPPED: there are no reference checkpoints in {}", golden.display());
            return;
        }
        for case in cases.map(|case| golden.join(case)) {
            let checkpoint = Checkpoint::open(&case).unwrap();
            let mut real: Vec<_> = checkpoint.tensors().map(|t| (t.name.clone(), t.shape.clone())).collect();
            let mut ours = Spec::read(&case.join("config.json")).unwrap().shapes();
            real.sort();
            ours.sort();
            assert_eq!(ours, real, "{}", case.display());
        }
    }

    fn refused(change: Value, part: &str) {
        let mut config = presets().remove("llama-2-7b").unwrap();
        for (key, value) in change.as_object().unwrap() {
            config[key.as_str()] = value.clone();
        }
        let error = Spec::new(config, Path::new("config.json")).unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(part), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        refused(json!({"architectures": ["MambaForCausalLM"]}), "`MambaForCausalLM`");
        refused(json!({"architectures": ["MixtralForCausalLM"]}), "`num_local_experts` is missing");
        refused(json!({"architectures": []}), "`architectures`");
        refused(json!({"quantization_config": {"bits": 4}}), "`quantization_config`");
        refused(json!({"hidden_size": null}), "`hidden_size` is missing");
        refused(json!({"hidden_size": -1}), "`hidden_size` is -1");
        refused(json!({"vocab_size": 0}), "`vocab_size` is 0");
        refused(json!({"tie_word_embeddings": "no"}), "`tie_word_embeddings` is \"no\"");
        refused(json!({"num_attention_heads": 33}), "33 heads do not divide");
        refused(json!({"num_hidden_layers": 1_000_000_000_000u64}), "more than 10000");
        refused(json!({"vocab_size": u64::MAX}), "more bytes than can be counted");
        refused(json!({"head_dim": u64::MAX}), "too many");
        let error = Spec::preset("gpt-5").unwrap_err().to_string();
        assert!(error.contains("gpt-5") && error.contains("llama-2-7b, "), "{error}");
    }

    #[test]
    fn fewer_layers_are_the_first_ones() {
        let whole = Spec::preset("qwen3-8b").unwrap();
        let cut = whole.clone().with_layers(2).unwrap();
        assert_eq!(cut.config["num_hidden_layers"], 2);
        assert_eq!(cut.shapes()[..23], whole.shapes()[..23]);
        assert_eq!(cut.shapes().len(), 1 + 2 * 11 + 2);
        assert!(whole.with_layers(0).is_err());
    }
}

//! `config.json`, read key by key. Every getter knows the file and the key, so a wrong value is one clear error; both
//! the published key style (`torch_dtype`, `rope_theta` + `rope_scaling`) and the newer one (`dtype`,
//! `rope_parameters`) are understood here, so that families need not care.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, read_json};
use crate::error::{Error, Result};
use crate::program::Activation;

use super::gguf;

/// The largest value any size in a configuration may have. Larger ones are damage, and would only overflow later.
const ABSURD: u64 = 1 << 31;

/// Names for the same thing, newest first.
const ALIASES: &[(&str, &[&str])] = &[
    ("hidden_size", &["n_embd", "n_embed"]),
    ("intermediate_size", &["ffn_hidden_size"]),
    ("num_hidden_layers", &["num_layers", "n_layer"]),
    ("num_attention_heads", &["n_head"]),
    ("num_key_value_heads", &["num_kv_heads", "n_head_kv"]),
    ("head_dim", &["kv_channels"]),
    ("vocab_size", &["padded_vocab_size"]),
    ("max_position_embeddings", &["seq_length"]),
    (
        "norm_eps",
        &[
            "rms_norm_eps",
            "layer_norm_epsilon",
            "layernorm_epsilon",
            "layer_norm_eps",
            "layer_norm_rms_eps",
            "norm_epsilon",
        ],
    ),
    ("rope_theta", &["rotary_emb_base"]),
    ("num_experts", &["num_local_experts"]),
    ("num_experts_per_tok", &["experts_per_token"]),
    ("partial_rotary_factor", &["rotary_pct"]),
    ("sliding_window_pattern", &["_sliding_window_pattern"]),
];

/// A parsed `config.json`.
#[derive(Clone)]
pub struct Config {
    path: PathBuf,
    keys: Map<String, Value>,
}

impl Config {
    /// The configuration of the model in `checkpoint`: the `config.json` beside it, or what a GGUF file says of itself.
    ///
    /// # Errors
    /// If there is none, or one that cannot be understood.
    pub fn of(checkpoint: &Checkpoint) -> Result<Config> {
        match checkpoint.metadata() {
            Some(metadata) => gguf::config(checkpoint, metadata),
            None => Config::open(checkpoint.dir()),
        }
    }

    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// If it is missing or no JSON object.
    pub fn open(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        Config::new(&path, read_json(&path)?)
    }

    /// A configuration that was made from something else, such as metadata; `path` is what errors name.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn new(path: &Path, config: Value) -> Result<Config> {
        match config {
            Value::Object(keys) => Ok(Config { path: path.into(), keys }),
            other => Err(Error::Config {
                path: path.into(),
                problem: format!("expected a JSON object with the model's configuration, found {}", kind(&other)),
            }),
        }
    }

    /// The keys of another JSON file of the same directory, if it is there.
    pub fn beside(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        let path = self.path.with_file_name(name);
        if !path.exists() {
            return Ok(None);
        }
        match read_json(&path)? {
            Value::Object(keys) => Ok(Some(keys)),
            other => Err(Error::Config { path, problem: format!("expected a JSON object, found {}", kind(&other)) }),
        }
    }

    /// The text part of a multimodal configuration: `text_config`, and what of the outer one is about it too. Any other
    /// configuration as it is.
    pub fn text(&self) -> Result<Config> {
        let Some(inner) = self.section("text_config")? else { return Ok(self.clone()) };
        let mut keys = inner.clone();
        for key in ["architectures", "tie_word_embeddings", "quantization_config"] {
            if let (false, Some(value)) = (keys.contains_key(key), self.keys.get(key)) {
                keys.insert(key.into(), value.clone());
            }
        }
        // The outer class ties, and writes what the inner one would do by default.
        if self.keys.get("tie_word_embeddings") == Some(&Value::Bool(true)) {
            keys.insert("tie_word_embeddings".into(), true.into());
        }
        Ok(Config { path: self.path.clone(), keys })
    }

    /// The same, with these values where the file has none, not even null.
    pub fn or(&self, defaults: Value) -> Config {
        let mut config = self.clone();
        let Value::Object(defaults) = defaults else { unreachable!("defaults are an object") };
        for (key, value) in defaults {
            if self.entry(&key).is_none() {
                config.keys.insert(key, value);
            }
        }
        config
    }

    /// The same with another value for a key.
    pub fn with(&self, key: &str, value: impl Into<Value>) -> Config {
        let mut config = self.clone();
        config.keys.insert(key.into(), value.into());
        config
    }

    /// A string, if it is one.
    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::as_str)
    }

    /// The first entry of `architectures`: the class that the checkpoint was saved from.
    pub fn architecture(&self) -> Result<&str> {
        self.keys.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str).ok_or_else(|| {
            self.problem("no `architectures` entry, so the family is unknown; take config.json from the model's page")
        })
    }

    /// A size or count that must be there and be at least 1.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.problem(format!("`{key}` is missing")))
    }

    /// A count that must be there and small: of layers, heads, or dimensions of a head.
    pub fn count(&self, key: &str) -> Result<usize> {
        match self.size(key)? {
            count if count < 1 << 16 => Ok(count),
            count => Err(self.problem(format!("`{key}` is {count}; expected less than 65536"))),
        }
    }

    /// A size that may be absent or null.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(size) if (1..ABSURD).contains(&size) => Ok(Some(size as usize)),
                _ => Err(self.wrong(key, "a whole number of at least 1", value)),
            },
        }
    }

    /// A number of things that may be 0, or absent or null.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = value.as_u64().filter(|count| *count < 1 << 16).map(|count| count as usize);
        count.map(Some).ok_or_else(|| self.wrong(key, "a whole number below 65536", value))
    }

    /// A finite number, or `default` where absent.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| self.wrong(key, "a number", value)),
        }
    }

    /// A number above 0, or none where absent or null.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(key, "a number above 0", value))
    }

    /// true or false, or `default` where absent.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value)),
        }
    }

    /// The same, or a number that is 0 or not.
    pub fn switch(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key).and_then(Value::as_f64) {
            Some(number) => Ok(number != 0.0),
            None => self.flag(key, default),
        }
    }

    /// Refuses, by name, an option with any value but `only`.
    pub fn require(&self, key: &str, only: impl Into<Value>) -> Result<()> {
        let only = only.into();
        match self.value(key) {
            Some(found) if *found != only => {
                Err(self.unsupported(format!("`{key}`: {found} (only {only} is implemented)")))
            }
            _ => Ok(()),
        }
    }

    /// A list of strings, e.g. `layer_types`.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.wrong(key, "a list of strings", value))
    }

    /// A list of whole numbers, e.g. `mlp_only_layers`.
    pub fn indices(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let index = |item: &Value| item.as_u64().filter(|&i| i < ABSURD).map(|i| i as usize);
        let list = value.as_array().and_then(|list| list.iter().map(index).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.wrong(key, "a list of whole numbers", value))
    }

    /// The activation function that `hidden_act`, or what the family calls it, names.
    pub fn activation(&self, key: &str) -> Result<Activation> {
        match self.value(key) {
            Some(Value::String(name)) => match name.as_str() {
                "silu" | "swish" => Ok(Activation::Silu),
                "gelu" | "gelu_python" => Ok(Activation::Gelu),
                "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
                "relu" => Ok(Activation::Relu),
                other => {
                    Err(self.unsupported(format!("`{key}`: \"{other}\" (silu, gelu, gelu_pytorch_tanh, relu are)")))
                }
            },
            Some(other) => Err(self.wrong(key, "the name of an activation function", other)),
            None => Err(self.problem(format!("`{key}` is missing"))),
        }
    }

    /// Which layers slide: those that `layer_types` names, or where it is silent, those that the family says.
    pub fn sliding_layers(&self, layers: usize, by_default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let Some(types) = self.strings("layer_types")? else { return Ok((0..layers).map(by_default).collect()) };
        if types.len() != layers {
            return Err(self.problem(format!("`layer_types` has {} entries for {layers} layers", types.len())));
        }
        let slides = |kind: &&str| match *kind {
            "full_attention" => Ok(false),
            "sliding_attention" => Ok(true),
            other => Err(self.unsupported(format!("a layer of type `{other}` (layer_types)"))),
        };
        types.iter().map(slides).collect()
    }

    /// The window of every layer, `sliding_window` positions on those that slide.
    pub fn windows(&self, slides: &[bool]) -> Result<Vec<Option<usize>>> {
        let window = self.optional_size("sliding_window")?;
        let of = |slides: &bool| match (slides, window) {
            (false, _) => Ok(None),
            (true, Some(window)) => Ok(Some(window)),
            (true, None) => {
                Err(self.problem("`layer_types` has sliding layers, but there is no `sliding_window` in use"))
            }
        };
        slides.iter().map(of).collect()
    }

    /// An [`Error::Config`] about this file.
    pub fn problem(&self, problem: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), problem: problem.into() }
    }

    /// An [`Error::Unsupported`] about this file.
    pub fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { path: self.path.clone(), what: what.into() }
    }

    /// An [`Error::Config`] about a value of this file.
    pub fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.problem(format!("`{key}` is {found}; expected {expected}"))
    }

    /// Whether the key is there and not null.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// A value that is there, under this name or an older one, and not null.
    fn value(&self, key: &str) -> Option<&Value> {
        self.entry(key).filter(|value| !value.is_null())
    }

    fn entry(&self, key: &str) -> Option<&Value> {
        let older = ALIASES.iter().filter(|(name, _)| *name == key).flat_map(|(_, older)| older.iter());
        std::iter::once(&key).chain(older).find_map(|name| self.keys.get(*name))
    }

    /// The keys of a nested object.
    pub fn section(&self, key: &str) -> Result<Option<&Map<String, Value>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(keys)),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

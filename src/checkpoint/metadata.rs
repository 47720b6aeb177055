//! The metadata of a GGUF file: keys with values of a few types. Getters name the file and the key, and say what was found,
//! as those of `config.json` do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What a GGUF file says of its model, beside the tensors.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    keys: BTreeMap<String, Value>,
    rope_factors: Option<Vec<f32>>,
}

/// A value. Arrays of one type are kept as such; whole numbers of any width are one type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::Text(_) => "text",
            Value::Ints(_) => "a list of whole numbers",
            Value::Floats(_) => "a list of numbers",
            Value::Texts(_) => "a list of texts",
        }
    }
}

impl Metadata {
    pub(super) fn new(path: &Path, keys: BTreeMap<String, Value>) -> Metadata {
        Metadata { path: path.into(), keys, rope_factors: None }
    }

    pub(super) fn set_rope_factors(&mut self, factors: Vec<f32>) {
        self.rope_factors = Some(factors);
    }

    /// The file that it is from: the first, if there are several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Numbers by which rotary frequencies are to be divided (the tensor `rope_freqs.weight`).
    pub fn rope_factors(&self) -> Option<&[f32]> {
        self.rope_factors.as_deref()
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number of at least 0.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "a whole number of at least 0", |value| match value {
            Value::Int(int) => u64::try_from(*int).ok(),
            _ => None,
        })
    }

    /// The id of a token. Files say "none" with the largest number of 32 bits, or with -1.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        let id = self.get(key, "a whole number", |value| match value {
            Value::Int(int) => Some(*int),
            _ => None,
        })?;
        Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX))
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", |value| match value {
            Value::Int(int) => Some(*int as f64),
            Value::Float(float) => Some(*float).filter(|float| float.is_finite()),
            _ => None,
        })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.get(key, "a list of texts", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub fn numbers(&self, key: &str) -> Result<Option<&[f32]>> {
        self.get(key, "a list of numbers", |value| match value {
            Value::Floats(floats) => Some(floats.as_slice()),
            _ => None,
        })
    }

    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        self.get(key, "a list of whole numbers", |value| match value {
            Value::Ints(ints) => Some(ints.as_slice()),
            _ => None,
        })
    }

    /// An error about this file's metadata.
    pub fn problem(&self, problem: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), problem: problem.into() }
    }

    fn get<'a, T>(&'a self, key: &str, expected: &str, of: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.keys.get(key) else { return Ok(None) };
        match of(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.problem(format!("`{key}` is {}; expected {expected}", value.kind()))),
        }
    }
}

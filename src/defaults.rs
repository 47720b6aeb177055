//! What a model's own `generation_config.json` asks for, with the meaning that transformers gives to what is absent.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, read_json};
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::sample::Sampling;
use crate::text::TextSide;

/// The `top_k` of transformers where sampling is on and the file does not say.
const TOP_K: usize = 50;

/// Options that change which tokens come, are not implemented, and do nothing at the value given here.
const NEUTRAL: [(&str, f64); 8] = [
    ("num_beams", 1.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("penalty_alpha", 0.0),
    ("guidance_scale", 1.0),
    ("min_new_tokens", 0.0),
];

impl GenerateOptions {
    /// What a model asks for: the metadata of a GGUF file, or what lies beside other checkpoints (see
    /// [`GenerateOptions::of_directory`]); and the ends of its chat format (see [`TextSide::ends`]).
    ///
    /// # Errors
    /// If a file is damaged or asks for something impossible.
    pub fn of_model(checkpoint: &Checkpoint, text: &TextSide) -> Result<GenerateOptions> {
        let Some(metadata) = checkpoint.metadata() else {
            let mut options = GenerateOptions::of_directory(checkpoint.dir())?;
            for end in text.ends() {
                if !options.eos.contains(&end) {
                    options.eos.push(end);
                }
            }
            return Ok(options);
        };
        // A chat ends with the end of a turn, which some models have beside the end of a text.
        let mut eos = Vec::new();
        for key in ["eos_token_id", "eot_token_id"] {
            eos.extend(metadata.token_id(&format!("tokenizer.ggml.{key}"))?);
        }
        eos.dedup();
        Ok(GenerateOptions { eos, ..GenerateOptions::default() })
    }

    /// What the `generation_config.json` of the model in `dir` asks for; without the file, greedy to the end token of
    /// `config.json`. Options of it that are not implemented are named in a warning: they are wishes about the answer,
    /// which the caller may overrule anyway, and no part of the model.
    ///
    /// # Errors
    /// If a file is damaged or asks for something impossible.
    pub fn of_directory(dir: &Path) -> Result<GenerateOptions> {
        let file = Keys::open(dir, "generation_config.json")?;
        let model = Keys::open(dir, "config.json")?;
        let mut sampling =
            Sampling { repetition_penalty: file.number("repetition_penalty", 1.0)? as f32, ..Sampling::default() };
        if file.get("do_sample").and_then(Value::as_bool).unwrap_or(false) {
            sampling.temperature = file.number("temperature", 1.0)? as f32;
            sampling.top_k = file.number("top_k", TOP_K as f64)? as usize;
            sampling.top_p = file.number("top_p", 1.0)? as f32;
            sampling.min_p = file.number("min_p", 0.0)? as f32;
        }
        sampling.check().map_err(|error| file.problem(error.to_string()))?;
        file.warn_of_others()?;
        let default = GenerateOptions::default();
        let eos = match file.get("eos_token_id") {
            Some(_) => file.ids("eos_token_id")?,
            None => model.text_part().ids("eos_token_id")?,
        };
        let max_new_tokens = file.number("max_new_tokens", default.max_new_tokens as f64)? as usize;
        Ok(GenerateOptions { max_new_tokens, sampling, eos, ..default })
    }
}

/// The keys of a JSON file that may be absent.
struct Keys {
    path: std::path::PathBuf,
    keys: Map<String, Value>,
}

impl Keys {
    fn open(dir: &Path, name: &str) -> Result<Keys> {
        let path = dir.join(name);
        let keys = match path.exists() {
            true => read_json(&path)?.as_object().cloned().unwrap_or_default(),
            false => Map::new(),
        };
        Ok(Keys { path, keys })
    }

    /// The text part of a multimodal configuration, where that alone has an end; else all of it.
    fn text_part(self) -> Keys {
        match self.get("text_config").and_then(Value::as_object) {
            Some(text) if self.get("eos_token_id").is_none() => Keys { keys: text.clone(), ..self },
            _ => self,
        }
    }

    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.problem(format!("`{key}` is {value}; expected a number"))),
        }
    }

    /// One id or a list of them.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.problem(format!("`{key}` is {value}; expected a token id or a list of them")))
    }

    fn warn_of_others(&self) -> Result<()> {
        for (key, neutral) in NEUTRAL {
            let value = self.number(key, neutral)?;
            if value != neutral {
                tracing::warn!("{}: `{key}` {value} is not supported and ignored", self.path.display());
            }
        }
        Ok(())
    }

    fn problem(&self, problem: String) -> Error {
        Error::Config { path: self.path.clone(), problem }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What a model with these two files asks for.
    fn of(generation: Option<&str>, config: &str) -> Result<GenerateOptions> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        if let Some(generation) = generation {
            fs::write(dir.path().join("generation_config.json"), generation).unwrap();
        }
        GenerateOptions::of_directory(dir.path())
    }

    #[test]
    fn without_sampling_it_is_greedy_whatever_else_is_there() {
        let options = of(Some(r#"{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 6]}"#), "{}").unwrap();
        assert_eq!((options.sampling, options.eos), (Sampling::default(), vec![1, 6]));
    }

    #[test]
    fn with_sampling_what_is_absent_is_transformers_default() {
        let sampling = of(Some(r#"{"do_sample": true, "temperature": 0.5}"#), "{}").unwrap().sampling;
        assert_eq!(sampling, Sampling { temperature: 0.5, top_k: 50, ..Sampling::default() });
    }

    #[test]
    fn the_end_token_may_be_in_either_file() {
        assert_eq!(of(None, r#"{"eos_token_id": 2}"#).unwrap().eos, [2]);
        assert_eq!(of(Some(r#"{"eos_token_id": null}"#), r#"{"eos_token_id": 2}"#).unwrap().eos, [2]);
        assert_eq!(of(Some(r#"{"eos_token_id": 5}"#), r#"{"eos_token_id": 2}"#).unwrap().eos, [5]);
    }

    #[test]
    fn nonsense_is_refused() {
        for wrong in [
            r#"{"do_sample": true, "temperature": -1}"#,
            r#"{"do_sample": true, "top_p": "most"}"#,
            r#"{"eos_token_id": "</s>"}"#,
            r#"{"num_beams": "four"}"#,
        ] {
            let error = of(Some(wrong), "{}").unwrap_err().to_string();
            assert!(error.contains("generation_config.json"), "{error}");
        }
    }
}

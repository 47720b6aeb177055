//! `config.json`, read key by key. Every getter knows the file and the key, so a wrong value is one clear error; both
//! the published key style (`torch_dtype`, `rope_theta` + `rope_scaling`) and the newer one (`dtype`,
//! `rope_parameters`) are understood here, so that families need not care.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::read_json;
use crate::error::{Error, Result};
use crate::program::{DynamicNtk, Rope, RopeStyle, inv_freq};

/// The largest value any size in a configuration may have. Larger ones are damage, and would only overflow later.
const ABSURD: u64 = 1 << 31;

/// A parsed `config.json`.
pub struct Config {
    path: PathBuf,
    keys: Map<String, Value>,
}

impl Config {
    /// Reads `config.json` in `dir`.
    pub fn open(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        match read_json(&path)? {
            Value::Object(keys) => Ok(Config { path, keys }),
            other => Err(Error::Config {
                path,
                problem: format!("expected a JSON object with the model's configuration, found {}", kind(&other)),
            }),
        }
    }

    /// A configuration that was made from something else, at `path`.
    pub fn of(path: &Path, keys: Map<String, Value>) -> Config {
        Config { path: path.into(), keys }
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

    /// A finite number, or `default` where absent.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| self.wrong(key, "a number", value)),
        }
    }

    /// true or false, or `default` where absent.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value)),
        }
    }

    /// Refuses, by name, a string option with any value but `only`.
    pub fn require(&self, key: &str, only: &str) -> Result<()> {
        match self.value(key) {
            None => Ok(()),
            Some(Value::String(found)) if found == only => Ok(()),
            Some(found) => Err(self.unsupported(format!("`{key}`: {found} (only \"{only}\" is implemented)"))),
        }
    }

    /// A list of strings, e.g. `layer_types`.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.wrong(key, "a list of strings", value))
    }

    /// The rotary frequencies for heads of `head_dim` dimensions.
    ///
    /// Scaling follows the definitions of transformers' `modeling_rope_utils`: `linear` (positions divided), `dynamic`
    /// (NTK, base grows with the length), `llama3` (low frequencies divided, smooth between), and `yarn` (Peng et al.,
    /// 2023, arXiv:2309.00071).
    pub fn rope(&self, head_dim: usize, max_positions: usize) -> Result<Rope> {
        let nested = self.section("rope_parameters")?;
        let scaling = match nested.is_some() {
            true => nested,
            false => self.section("rope_scaling")?,
        };
        let theta = match nested.and_then(|keys| keys.get("rope_theta")) {
            Some(value) => value.as_f64().ok_or_else(|| self.wrong("rope_theta", "a number", value))?,
            None => self.number("rope_theta", 10_000.0)?,
        };
        if !(theta.is_finite() && theta > 1.0) {
            return Err(self.problem(format!("`rope_theta` is {theta}; expected a number above 1")));
        }
        let partial = match nested.and_then(|keys| keys.get("partial_rotary_factor")) {
            Some(value) => value.as_f64().unwrap_or(f64::NAN),
            None => self.number("partial_rotary_factor", 1.0)?,
        };
        if partial != 1.0 {
            return Err(self.unsupported(format!("`partial_rotary_factor`: {partial} in this family")));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(self.problem(format!("head size {head_dim} is odd, so it cannot be rotated in pairs")));
        }
        let plain =
            Rope { style: RopeStyle::Half, inv_freq: inv_freq(theta, head_dim), attention_factor: 1.0, dynamic: None };
        let Some(scaling) = scaling else { return Ok(plain) };
        let scaling = Scaling { config: self, keys: scaling };
        match scaling.kind()? {
            "default" => Ok(plain),
            "linear" => {
                let factor = scaling.factor()?;
                Ok(Rope { inv_freq: plain.inv_freq.iter().map(|f| (*f as f64 / factor) as f32).collect(), ..plain })
            }
            "dynamic" => {
                let ntk = DynamicNtk { base: theta, factor: scaling.factor()?, original: max_positions, dim: head_dim };
                Ok(Rope { dynamic: Some(ntk), ..plain })
            }
            "llama3" => scaling.llama3(plain),
            "yarn" => scaling.yarn(theta, head_dim, max_positions),
            other => Err(self.unsupported(format!("rope scaling of type `{other}`"))),
        }
    }

    /// An [`Error::Config`] about this file.
    pub fn problem(&self, problem: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), problem: problem.into() }
    }

    /// An [`Error::Unsupported`] about this file.
    pub fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { path: self.path.clone(), what: what.into() }
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.problem(format!("`{key}` is {found}; expected {expected}"))
    }

    /// A value that is there and not null.
    fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// An object inside the configuration, if it is there.
    pub fn section(&self, key: &str) -> Result<Option<&Map<String, Value>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(keys)),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }
}

/// `rope_scaling`, or the same keys inside `rope_parameters`.
struct Scaling<'a> {
    config: &'a Config,
    keys: &'a Map<String, Value>,
}

impl Scaling<'_> {
    fn kind(&self) -> Result<&str> {
        let kind = self.keys.get("rope_type").or_else(|| self.keys.get("type"));
        kind.and_then(Value::as_str).ok_or_else(|| self.config.problem("rope scaling without a `rope_type`"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.keys.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|n| n.is_finite() && *n > 0.0) {
                Some(number) => Ok(Some(number)),
                None => Err(self.config.problem(format!("rope scaling `{key}` is {value}; expected a number above 0"))),
            },
        }
    }

    fn required(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.config.problem(format!("rope scaling lacks `{key}`")))
    }

    fn factor(&self) -> Result<f64> {
        let factor = self.required("factor")?;
        match factor >= 1.0 {
            true => Ok(factor),
            false => Err(self.config.problem(format!("rope scaling `factor` is {factor}; expected at least 1"))),
        }
    }

    /// Llama 3.1: wavelengths longer than `original / low_freq_factor` are stretched by `factor`, those shorter than
    /// `original / high_freq_factor` are kept, and those between are blended.
    fn llama3(&self, plain: Rope) -> Result<Rope> {
        let factor = self.factor()?;
        let (low, high) = (self.required("low_freq_factor")?, self.required("high_freq_factor")?);
        let original = self.required("original_max_position_embeddings")?;
        if high <= low {
            return Err(self
                .config
                .problem(format!("rope scaling `high_freq_factor` {high} must be above `low_freq_factor` {low}")));
        }
        let scale = |freq: f32| {
            let freq = freq as f64;
            let turns = original * freq / std::f64::consts::TAU;
            let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            ((1.0 - keep) * freq / factor + keep * freq) as f32
        };
        Ok(Rope { inv_freq: plain.inv_freq.iter().copied().map(scale).collect(), ..plain })
    }

    /// YaRN: dimensions that turn less than `beta_slow` times over the original context are interpolated, those that
    /// turn more than `beta_fast` times are kept, with a linear ramp over the dimensions between.
    fn yarn(&self, theta: f64, dim: usize, max_positions: usize) -> Result<Rope> {
        let original = self.number("original_max_position_embeddings")?.unwrap_or(max_positions as f64);
        let factor = match self.number("factor")? {
            Some(_) => self.factor()?,
            None => max_positions as f64 / original,
        };
        let turns_at = |turns: f64| dim as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
        let mut low = turns_at(self.number("beta_fast")?.unwrap_or(32.0));
        let mut high = turns_at(self.number("beta_slow")?.unwrap_or(1.0));
        if self.keys.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let freqs = inv_freq(theta, dim).into_iter().enumerate().map(|(i, freq)| {
            let interpolate = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let freq = freq as f64;
            (interpolate * freq / factor + (1.0 - interpolate) * freq) as f32
        });
        Ok(Rope {
            style: RopeStyle::Half,
            inv_freq: freqs.collect(),
            attention_factor: self.yarn_attention(factor)? as f32,
            dynamic: None,
        })
    }

    /// The factor on cosines and sines: given, or from `mscale`, or `0.1 ln(factor) + 1`.
    fn yarn_attention(&self, factor: f64) -> Result<f64> {
        if let Some(given) = self.number("attention_factor")? {
            return Ok(given);
        }
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        Ok(match (self.number("mscale")?, self.number("mscale_all_dim")?) {
            (Some(m), Some(all)) => mscale(m) / mscale(all),
            _ => mscale(1.0),
        })
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

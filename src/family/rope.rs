//! The rotary part of a configuration, in the key styles that are in use: `rope_theta` and `rope_scaling`; the newer
//! `rope_parameters`, which holds both; and the same for each type of layer.
//!
//! Scaling follows the definitions of transformers' `modeling_rope_utils`: `linear` (positions divided), `dynamic` (NTK,
//! the base grows with the length), `llama3` (low frequencies divided, smooth between), `yarn` (Peng et al., 2023,
//! arXiv:2309.00071), `longrope` (Ding et al., 2024, arXiv:2402.13753: a factor for each frequency, others beyond the
//! original length).

use serde_json::{Map, Value};

use crate::error::Result;
use crate::program::{Dynamic, Rope, RopeStyle, inv_freq};

use super::Config;

/// What a family says of its rotation, beside what the configuration does.
#[derive(Clone, Copy)]
pub struct Rotation<'a> {
    pub head_dim: usize,
    pub max_positions: usize,
    pub style: RopeStyle,
    /// The base where the configuration names none.
    pub theta: f64,
    /// The part of a head that turns where the configuration names none. Nothing: all of it, and families of this kind know
    /// no other.
    pub partial: Option<f64>,
    /// The type of layers that it is for, where `rope_parameters` has one entry for each.
    pub layer_type: Option<&'a str>,
}

impl Rotation<'_> {
    /// Whole heads in halves, with base 10000.
    pub fn new(head_dim: usize, max_positions: usize) -> Rotation<'static> {
        let (style, theta) = (RopeStyle::Half, 10_000.0);
        Rotation { head_dim, max_positions, style, theta, partial: None, layer_type: None }
    }

    /// The frequencies that `config` asks for.
    pub fn read(&self, config: &Config) -> Result<Rope> {
        let parameters = self.parameters(config)?;
        let scaling = match parameters {
            Some(keys) => Some(keys),
            None => config.section("rope_scaling")?,
        };
        let theta = match parameters.and_then(|keys| keys.get("rope_theta")) {
            Some(value) => value.as_f64().ok_or_else(|| config.wrong("rope_theta", "a number", value))?,
            None => config.number("rope_theta", self.theta)?,
        };
        let dim = self.rotary_dim(config, parameters)?;
        let plain = self.plain(config, theta, dim)?;
        match scaling {
            // What holds the base too need not scale anything.
            Some(keys) if parameters.is_some() && !keys.contains_key("rope_type") && !keys.contains_key("type") => {
                Ok(plain)
            }
            Some(keys) => Scaling { config, keys, theta, max_positions: self.max_positions }.apply(plain),
            None => Ok(plain),
        }
    }

    /// What DeepSeek's models multiply dot products by beside `1/√dim`: the square of what YaRN's `mscale_all_dim` makes of
    /// the stretch.
    pub fn score_scale(&self, config: &Config) -> Result<f32> {
        let keys = match self.parameters(config)? {
            Some(keys) => Some(keys),
            None => config.section("rope_scaling")?,
        };
        let Some(keys) = keys else { return Ok(1.0) };
        let scaling = Scaling { config, keys, theta: self.theta, max_positions: self.max_positions };
        match (scaling.kind()?, scaling.strength("mscale_all_dim")?) {
            ("default", _) | (_, None) => Ok(1.0),
            (_, Some(all)) => Ok(mscale(scaling.factor()?, all).powi(2) as f32),
        }
    }

    /// Unscaled frequencies of this base, over `dim` dimensions.
    pub fn plain(&self, config: &Config, theta: f64, dim: usize) -> Result<Rope> {
        if !(theta.is_finite() && theta > 1.0) {
            return Err(config.problem(format!("`rope_theta` is {theta}; expected a number above 1")));
        }
        Ok(Rope { style: self.style, inv_freq: inv_freq(theta, dim), attention_factor: 1.0, dynamic: None })
    }

    /// `rope_parameters`, or its entry for the type of layers.
    fn parameters<'c>(&self, config: &'c Config) -> Result<Option<&'c Map<String, Value>>> {
        let Some(keys) = config.section("rope_parameters")? else { return Ok(None) };
        match self.layer_type.and_then(|kind| keys.get(kind)) {
            None => Ok(Some(keys)),
            Some(Value::Object(keys)) => Ok(Some(keys)),
            Some(other) => Err(config.wrong("rope_parameters", "an object for each type of layer", other)),
        }
    }

    fn rotary_dim(&self, config: &Config, parameters: Option<&Map<String, Value>>) -> Result<usize> {
        let head_dim = self.head_dim;
        let partial = match parameters.and_then(|keys| keys.get("partial_rotary_factor")) {
            Some(value) => value.as_f64().unwrap_or(f64::NAN),
            None => config.number("partial_rotary_factor", self.partial.unwrap_or(1.0))?,
        };
        if self.partial.is_none() && partial != 1.0 {
            return Err(config.unsupported(format!("`partial_rotary_factor`: {partial} in this family")));
        }
        let dim = (head_dim as f64 * partial) as usize;
        match dim {
            _ if !(0.0..=1.0).contains(&partial) || dim < 2 => {
                Err(config.problem(format!("`partial_rotary_factor` {partial} of a head size of {head_dim}")))
            }
            dim if dim % 2 == 1 && dim == head_dim => {
                Err(config.problem(format!("head size {head_dim} is odd, so it cannot be rotated in pairs")))
            }
            dim if dim % 2 == 1 => Err(config.problem(format!(
                "`partial_rotary_factor` {partial} of a head size of {head_dim} is {dim}, which is odd"
            ))),
            dim => Ok(dim),
        }
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// `rope_scaling`, or the same keys inside `rope_parameters`.
struct Scaling<'a> {
    config: &'a Config,
    keys: &'a Map<String, Value>,
    theta: f64,
    max_positions: usize,
}

impl Scaling<'_> {
    fn apply(&self, plain: Rope) -> Result<Rope> {
        // Early LongRoPE configurations call it `su` or `yarn`; only theirs have a factor for each frequency.
        let kind = match self.kind()? {
            "su" | "yarn" if self.keys.contains_key("long_factor") => "longrope",
            kind => kind,
        };
        match kind {
            "default" => Ok(plain),
            "linear" => {
                let factor = self.factor()?;
                Ok(Rope { inv_freq: plain.inv_freq.iter().map(|f| (*f as f64 / factor) as f32).collect(), ..plain })
            }
            "dynamic" => {
                let (base, factor, original, dim) =
                    (self.theta, self.factor()?, self.max_positions, plain.rotary_dim());
                Ok(Rope { dynamic: Some(Dynamic::Ntk { base, factor, original, dim }), ..plain })
            }
            "llama3" => self.llama3(plain),
            "yarn" => self.yarn(plain),
            "longrope" => self.longrope(plain),
            other => Err(self.config.unsupported(format!("rope scaling of type `{other}`"))),
        }
    }

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

    /// A number that says nothing where it is 0.
    fn strength(&self, key: &str) -> Result<Option<f64>> {
        match self.keys.get(key).and_then(Value::as_f64) {
            Some(0.0) => Ok(None),
            _ => self.number(key),
        }
    }

    /// The length that the model was first trained for: beside what is said about scaling, or in it, or the longest.
    fn original(&self) -> Result<usize> {
        let inside = self.number(ORIGINAL)?.map(|length| length as usize);
        Ok(self.config.optional_size(ORIGINAL)?.or(inside).unwrap_or(self.max_positions))
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
        let original = self.original()? as f64;
        if high < low {
            let problem = format!("rope scaling `high_freq_factor` {high} must not be below `low_freq_factor` {low}");
            return Err(self.config.problem(problem));
        }
        let scale = |freq: f32| {
            let freq = freq as f64;
            let turns = original * freq / std::f64::consts::TAU;
            // Llama 4 Scout has nothing between the two.
            let keep = match high == low {
                true => f64::from(turns >= low),
                false => ((turns - low) / (high - low)).clamp(0.0, 1.0),
            };
            ((1.0 - keep) * freq / factor + keep * freq) as f32
        };
        Ok(Rope { inv_freq: plain.inv_freq.iter().copied().map(scale).collect(), ..plain })
    }

    /// YaRN: dimensions that turn less than `beta_slow` times over the original context are interpolated, those that
    /// turn more than `beta_fast` times are kept, with a linear ramp over the dimensions between.
    fn yarn(&self, plain: Rope) -> Result<Rope> {
        let (dim, theta, max_positions) = (plain.rotary_dim(), self.theta, self.max_positions as f64);
        let original = self.original()? as f64;
        let factor = match self.number("factor")? {
            Some(_) => self.factor()?,
            None => max_positions / original,
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
        let freqs = plain.inv_freq.iter().enumerate().map(|(i, freq)| {
            let interpolate = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let freq = *freq as f64;
            (interpolate * freq / factor + (1.0 - interpolate) * freq) as f32
        });
        let (inv_freq, attention_factor) = (freqs.collect(), self.yarn_attention(factor)? as f32);
        Ok(Rope { inv_freq, attention_factor, ..plain })
    }

    /// The factor on cosines and sines: given, or from `mscale`, or `0.1 ln(factor) + 1`.
    fn yarn_attention(&self, factor: f64) -> Result<f64> {
        if let Some(given) = self.number("attention_factor")? {
            return Ok(given);
        }
        Ok(match (self.strength("mscale")?, self.strength("mscale_all_dim")?) {
            (Some(m), Some(all)) => mscale(factor, m) / mscale(factor, all),
            _ => mscale(factor, 1.0),
        })
    }

    /// LongRoPE: each frequency divided by its `short_factor`, or beyond the original length by its `long_factor`;
    /// cosines and sines scaled by `√(1 + ln(stretch) / ln(original))`.
    fn longrope(&self, plain: Rope) -> Result<Rope> {
        let original = self.original()?;
        if original < 2 {
            return Err(self.config.problem(format!("rope scaling `{ORIGINAL}` is {original}; expected at least 2")));
        }
        let stretch = self.number("factor")?.unwrap_or(self.max_positions as f64 / original as f64);
        let attention_factor = match self.number("attention_factor")? {
            Some(given) => given,
            None if stretch <= 1.0 => 1.0,
            None => (1.0 + stretch.ln() / (original as f64).ln()).sqrt(),
        } as f32;
        let long = self.divided(&plain.inv_freq, "long_factor")?;
        let inv_freq = self.divided(&plain.inv_freq, "short_factor")?;
        Ok(Rope { inv_freq, attention_factor, dynamic: Some(Dynamic::Long { original, inv_freq: long }), ..plain })
    }

    /// Each frequency divided by its factor in a list.
    fn divided(&self, frequencies: &[f32], key: &str) -> Result<Vec<f32>> {
        let list = self.keys.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let factors: Vec<f64> = list.iter().filter_map(Value::as_f64).filter(|f| f.is_finite() && *f > 0.0).collect();
        if factors.len() != frequencies.len() || factors.len() != list.len() {
            let (found, expected) = (list.len(), frequencies.len());
            return Err(self.config.problem(format!(
                "rope scaling `{key}` has {found} entries; expected {expected} numbers above 0, one for each pair of \
                 dimensions that turns"
            )));
        }
        Ok(frequencies.iter().zip(factors).map(|(freq, factor)| (*freq as f64 / factor) as f32).collect())
    }
}

/// How much YaRN sharpens attention for a stretch by `factor`, with `m` of its full strength.
fn mscale(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

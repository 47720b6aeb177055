//! Rotary position embedding (Su et al., 2021, arXiv:2104.09864): the frequencies, and how they depend on the length of
//! a sequence where they do.

use std::borrow::Cow;

/// Index into [`Program::ropes`](super::Program::ropes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeId(pub usize);

/// Pairs of dimensions that turn by `position · inv_freq[i]`; cosines and sines are scaled by `attention_factor` (YaRN).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub style: RopeStyle,
    /// Radians per position for each pair: half as many as dimensions that turn.
    pub inv_freq: Vec<f32>,
    pub attention_factor: f32,
    /// Frequencies that depend on the length of the sequence.
    pub dynamic: Option<Dynamic>,
}

/// Which dimensions make a pair, counted from the first that turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// i and i + rotary_dim/2 (Llama as published on the hub, Qwen, Mistral).
    Half,
    /// 2i and 2i + 1 (ChatGLM, GPT-J, Cohere).
    Interleaved,
}

/// Frequencies that depend on the length. What is already in the cache keeps the rotation it was written with, as in
/// the reference implementations.
#[derive(Clone, Debug, PartialEq)]
pub enum Dynamic {
    /// Past `original` positions the base grows with the length of the sequence at the call that rotates.
    Ntk { base: f64, factor: f64, original: usize, dim: usize },
    /// Past `original` positions the base grows by steps, with the length of the prompt alone (Qwen v1).
    NtkOfPrompt { base: f64, original: usize, dim: usize },
    /// Past `original` positions these frequencies (LongRoPE: Ding et al., 2024, arXiv:2402.13753). When a sequence
    /// grows beyond, everything that its cache holds is computed again.
    Long { original: usize, inv_freq: Vec<f32> },
}

impl Rope {
    /// Dimensions of a head that turn.
    pub fn rotary_dim(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// The frequencies for a sequence that began with a prompt of `prompt` tokens and will be `length` tokens long when
    /// this call is done.
    pub fn inv_freq(&self, prompt: usize, length: usize) -> Cow<'_, [f32]> {
        match &self.dynamic {
            Some(Dynamic::Ntk { base, factor, original, dim }) if length > *original => {
                let stretch = factor * length as f64 / *original as f64 - (factor - 1.0);
                inv_freq(stretched(*base, stretch, *dim), *dim).into()
            }
            Some(Dynamic::NtkOfPrompt { base, original, dim }) if prompt > *original => {
                let doublings = (prompt as f64 / *original as f64).log2() + 1.0;
                inv_freq(stretched(*base, doublings.ceil().exp2() - 1.0, *dim), *dim).into()
            }
            Some(Dynamic::Long { original, inv_freq }) if length > *original => inv_freq.as_slice().into(),
            _ => self.inv_freq.as_slice().into(),
        }
    }
}

/// The base with which the slowest of `dim` dimensions turns `stretch` times slower.
fn stretched(base: f64, stretch: f64, dim: usize) -> f64 {
    base * stretch.powf(dim as f64 / (dim as f64 - 2.0))
}

/// Plain rotary frequencies: `base^(−2i/dim)` for `i` in `0..dim/2`.
pub fn inv_freq(base: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim as f64) as f32).collect()
}

//! What the reference gave for the three prompts of a golden case, and the measure of how far another result is from it.

use std::path::Path;

use layerstream::{Error, Result};
use safetensors::{Dtype, SafeTensors};

/// Of one prompt.
pub struct Prompt {
    pub ids: Vec<u32>,
    /// `[positions, vocabulary]`
    pub logits: Vec<f32>,
    /// What it goes on with, if the most probable token is always taken.
    pub greedy: Vec<u32>,
}

/// Those of a case.
///
/// # Errors
/// A file that cannot be read, or that is not what a golden case has.
pub fn prompts(case: &Path) -> Result<Vec<Prompt>> {
    let path = case.join("expected.safetensors");
    let bytes = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), doing: "read", source })?;
    let damaged = || Error::Request(format!("{}: is not what a golden case has", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).map_err(|_| damaged())?;
    let data = |name: String, dtype: Dtype| match tensors.tensor(&name) {
        Ok(view) if view.dtype() == dtype => Ok(view.data().to_vec()),
        _ => Err(damaged()),
    };
    let ids = |name: String| {
        let data = data(name, Dtype::I64)?;
        Ok(data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect())
    };
    let prompt = |i: usize| {
        let logits = data(format!("logits.{i}"), Dtype::F32)?;
        Ok(Prompt {
            ids: ids(format!("ids.{i}"))?,
            logits: logits.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            greedy: ids(format!("greedy.{i}"))?,
        })
    };
    (0..3).map(prompt).collect()
}

/// Σ(a − b)² / Σ(b − mean b)²
pub fn nmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = b.iter().map(|b| *b as f64).sum::<f64>() / b.len() as f64;
    let error: f64 = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    let spread: f64 = b.iter().map(|b| (*b as f64 - mean).powi(2)).sum();
    error / spread
}

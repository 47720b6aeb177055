//! Golden cases, for the tests that run them: the checkpoint, what the reference gave for each prompt, and the measure of
//! how far two results are apart.

use std::fs;
use std::path::{Path, PathBuf};

use layerstream::Model;
use safetensors::{Dtype, SafeTensors};

/// The largest error, as normalised mean squared error over a prompt's logits, that two float32 implementations may have.
pub const GATE: f64 = 1e-6;

/// The cases that the project carries: every folder of `tests/golden/models`, which has every family, option and element
/// type once.
pub fn cases() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let cases = entries.filter(|path| path.join("expected.safetensors").exists());
    let mut cases: Vec<_> = cases.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    cases.sort();
    assert!(cases.len() >= 46, "cases are missing: {cases:?}");
    cases
}

/// Where a case that the project carries is.
pub fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

/// What the reference gave for one prompt.
pub struct Prompt {
    pub ids: Vec<u32>,
    pub logits: Vec<f32>,
    pub greedy: Vec<u32>,
}

/// All of them.
pub fn prompts(case: &Path) -> Vec<Prompt> {
    let bytes = fs::read(case.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: String| {
        let view = tensors.tensor(&name).unwrap();
        assert_eq!(view.dtype(), Dtype::I64);
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect::<Vec<_>>()
    };
    let floats = |name: String| {
        let view = tensors.tensor(&name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32);
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    (0..3)
        .map(|i| Prompt {
            ids: ids(format!("ids.{i}")),
            logits: floats(format!("logits.{i}")),
            greedy: ids(format!("greedy.{i}")),
        })
        .collect()
}

/// Σ(a − b)² / Σ(b − mean b)²
pub fn nmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = b.iter().map(|b| *b as f64).sum::<f64>() / b.len() as f64;
    let error: f64 = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    let spread: f64 = b.iter().map(|b| (*b as f64 - mean).powi(2)).sum();
    error / spread
}

/// Logits at every position.
pub fn logits(model: &mut Model, ids: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    model
        .logits(ids, |rows| {
            all.extend_from_slice(rows);
            Ok(())
        })
        .unwrap();
    all
}

//! Golden cases, for the tests that run them: the checkpoint, what the reference gave for each prompt, and the measure of
//! how far two results are apart.

mod expected;

use std::fs;
use std::path::{Path, PathBuf};

use layerstream::Model;

#[allow(unused_imports, reason = "each test uses some of it")]
pub use expected::{Prompt, nmse};

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

/// What the reference gave for a case's prompts.
pub fn prompts(case: &Path) -> Vec<Prompt> {
    expected::prompts(case).unwrap()
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

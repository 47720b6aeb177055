//! Checkpoints as a caller meets them: what opens, and what every kind of damaged or misplaced file is told.

mod gguf;
mod mutations;
mod opens;
mod refuses;
mod torch;

use std::fmt::Debug;
use std::fs;

use tempfile::TempDir;

/// A safetensors file: the header's length, the header, `data` bytes of zeros.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The header entry of one tensor.
fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

/// A file of float32 vectors of four elements, one after another.
fn vectors(names: &[&str]) -> Vec<u8> {
    let entries = names.iter().zip(0..).map(|(name, i)| entry(name, "F32", "[4]", 16 * i, 16 * i + 16));
    file(&format!("{{{}}}", entries.collect::<Vec<_>>().join(",")), 16 * names.len())
}

fn index(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(tensor, shard)| format!(r#""{tensor}": "{shard}""#)).collect();
    format!(r#"{{"metadata": {{"total_size": 0}}, "weight_map": {{{}}}}}"#, pairs.join(", "))
}

/// A model directory with these files.
fn directory(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

/// The text of an error, which must contain all of `parts`.
#[track_caller]
fn refused<T: Debug>(result: layerstream::Result<T>, parts: &[&str]) -> String {
    let text = result.expect_err("should have been refused").to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in the message: {text}");
    }
    assert!(text.len() < 2000, "a message of {} bytes", text.len());
    text
}

const INDEX: &str = "model.safetensors.index.json";
const SHARD_1: &str = "model-00001-of-00002.safetensors";
const SHARD_2: &str = "model-00002-of-00002.safetensors";

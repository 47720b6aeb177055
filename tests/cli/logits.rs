//! `logits`: the golden gates through the command line, and a file that is whole or not there.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::{fails, golden, json, layerstream, on_demo, text};

/// As in the library's golden tests.
const GATE: f64 = 1e-6;

/// A float32 or int64 tensor of a file, and its shape.
fn tensor(file: &Path, name: &str) -> (Vec<f64>, Vec<usize>) {
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(name).unwrap();
    let values = match view.dtype() {
        Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::I64 => view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
        other => panic!("{name} is {other:?}"),
    };
    (values, view.shape().to_vec())
}

fn nmse(a: &[f64], b: &[f64]) -> f64 {
    let mean = b.iter().sum::<f64>() / b.len() as f64;
    let error: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    error / b.iter().map(|b| (b - mean).powi(2)).sum::<f64>()
}

/// The floor of a model for so many tokens, in bytes, as `plan` tells it; with a little for logits at every position.
fn floor(model: &Path, tokens: usize) -> u64 {
    let tokens = tokens.to_string();
    let plan = json(layerstream(["plan", "--json", "--threads", "2", "--context", &tokens]).arg(model));
    plan["memory"]["floor_bytes"].as_u64().unwrap() + (64 << 10)
}

fn readers(model: &Path) -> Vec<&'static str> {
    let works = |reader: &&str| {
        let args = ["generate", "--ids", "1", "--max-new-tokens", "1", "--reader", reader];
        let works = layerstream(args).arg(model).output().unwrap().status.success();
        if !works {
            println!("SKIPPED: reader {reader} does not work here");
        }
        works
    };
    ["uring", "pread", "buffered"].into_iter().filter(works).collect()
}

#[test]
fn golden_logits_at_every_position_at_three_budgets_with_each_reader() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    let readers = readers(&golden("models/yi"));
    for name in ["llama31_gqa", "mistral_window", "qwen2_yarn", "qwen3_yarn", "yi"] {
        let model = golden("models").join(name);
        let expected = model.join("expected.safetensors");
        for prompt in 0..3 {
            let (ids, _) = tensor(&expected, &format!("ids.{prompt}"));
            let (reference, shape) = tensor(&expected, &format!("logits.{prompt}"));
            let list = ids.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
            let floor = floor(&model, ids.len());
            let mut first = None;
            for ram in [floor, floor + (1 << 20), 1 << 30] {
                for reader in &readers {
                    let ram = ram.to_string();
                    let args = ["logits", "--ids", &list, "--ram", &ram, "--reader", reader, "--threads", "2", "--out"];
                    assert_eq!(text(layerstream(args).arg(&out).arg(&model)), "");
                    let (logits, found) = tensor(&out, "logits");
                    assert_eq!(found, shape);
                    let error = nmse(&logits, &reference);
                    assert!(error <= GATE, "{name}: prompt {prompt}: NMSE {error:e}, ram {ram}, {reader}");
                    let first = first.get_or_insert_with(|| logits.clone());
                    assert!(*first == logits, "{name}: prompt {prompt}: other bits with ram {ram}, {reader}");
                }
            }
        }
    }
}

#[test]
fn an_earlier_file_is_replaced_by_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    fs::write(&out, "old").unwrap();
    text(on_demo("logits", &["--ids", "0,495,277,444,278,285,37", "--out"]).arg(&out));
    let (logits, shape) = tensor(&out, "logits");
    assert_eq!(shape, [7, 1536]);
    let last = &logits[6 * 1536..];
    let best = (0..1536).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
    assert_eq!(best, 351, "the demo model's answer");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_failure_leaves_an_earlier_file_as_it_was_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    fs::write(&out, "old").unwrap();
    fails(on_demo("logits", &["--ids", "0,99999", "--out"]).arg(&out), 1, &["99999", "vocabulary of 1536"]);
    fails(on_demo("logits", &["--ids", "", "--out"]).arg(&out), 1, &["no token ids"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fails(on_demo("logits", &["--ids", "0", "--out"]).arg(dir.path()), 1, &["not a regular file"]);
    fails(
        on_demo("logits", &["--ids", "0", "--out"]).arg(dir.path().join("no/file")),
        1,
        &["no/file", "cannot create"],
    );
    fails(&mut on_demo("logits", &["--ids", "0"]), 2, &["--out"]);
    fails(&mut on_demo("logits", &["--out", "x"]), 2, &["--ids"]);
}

//! `eval`: what it prints, and what it refuses.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{demo, golden, json, layerstream, on_demo, stderr, text};

const TEXT: &str = "What is the capital of France? Paris\nWhat is 27 + 58? 85\n";

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_model_alone() {
    let file = file(TEXT);
    let args = ["--text", arg(file.path()), "--ram", "32MiB", "--worst", "3"];
    let found: Value = json(on_demo("eval", &args).arg("--json"));
    let (nll, perplexity) = (found["mean_nll"].as_f64().unwrap(), found["perplexity"].as_f64().unwrap());
    assert!((perplexity - nll.exp()).abs() < 1e-9 * perplexity && perplexity > 1.0);
    assert_eq!(found["predicted"].as_u64().unwrap() + 1, found["tokens"].as_u64().unwrap());
    assert!(found.get("against").is_none() && found["worst"].as_array().unwrap().len() == 3);
    assert!(found["worst"][0]["text"].is_string() && found["worst"][0]["predicted_text"].is_string());
    let table = text(&mut on_demo("eval", &args));
    assert!(table.starts_with(&format!("perplexity  {perplexity:.4} ")), "{table}");
    assert_eq!(table.lines().filter(|line| line.contains("most probable")).count(), 3, "{table}");
}

#[test]
fn a_model_against_itself() {
    let file = file(TEXT);
    let args = ["--text", arg(file.path()), "--ram", "64MiB", "--context", "16", "--stride", "4", "--against"];
    let found: Value = json(on_demo("eval", &args).arg(demo()).arg("--json"));
    assert_eq!(found["against"]["mean_kl"], 0.0);
    assert_eq!(found["against"]["top1_agreement"], 1.0);
    assert_eq!(found["against"]["perplexity"], found["perplexity"]);
    assert_eq!((&found["window"], &found["stride"]), (&16.into(), &4.into()));
    assert_eq!(found["worst"][0]["kl"], 0.0);
    assert!(text(on_demo("eval", &args).arg(demo())).contains("same top token"));
}

#[test]
fn what_it_refuses() {
    let good = file(TEXT);
    let (good, ram) = (arg(good.path()), ["--ram", "64MiB"]);
    let refused = |command: &mut assert_cmd::Command, what: &str| {
        let output = command.output().unwrap();
        let text = stderr(&output);
        assert!(output.status.code() == Some(1) && text.contains(what) && output.stdout.is_empty(), "{text}");
    };
    for (content, what) in [("", "is empty"), (" \n", "is empty")] {
        let file = file(content);
        refused(on_demo("eval", &["--text", arg(file.path())]).args(ram), what);
    }
    refused(on_demo("eval", &["--text", "/nonexistent.txt"]).args(ram), "/nonexistent.txt");
    refused(on_demo("eval", &["--text", good, "--context", "8", "--stride", "8"]).args(ram), "stride");
    refused(on_demo("eval", &["--text", good, "--ram", "1MiB", "--against"]).arg(demo()), "half of it");
    // Another vocabulary, and no tokenizer that could show it before.
    let other = golden("models/llama31_gqa");
    refused(on_demo("eval", &["--text", good, "--against"]).arg(other).args(ram), "cannot be compared");
    refused(layerstream(["eval"]).arg(golden("models/llama31_gqa")).args(["--text", good]).args(ram), "no tokenizer");
}

//! What packing costs in quality, measured on the demo model: the table in README.md is what the commands of this test print.
//! All arithmetic has the same bits on every processor, so the table is compared, not its likes.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A name, and how the demo model is packed; the first is the demo model as it is.
const FORMS: [(&str, &[&str]); 6] = [
    ("bf16", &[]),
    ("lossless", &["--to", "lossless"]),
    ("int8", &["--to", "int8"]),
    ("int8, blocks of 2048", &["--to", "int8", "--block", "2048"]),
    ("nf4", &["--to", "nf4"]),
    ("nf4, double quantised", &["--to", "nf4", "--double-quant"]),
];

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn run(arguments: &[&str], paths: &[&Path]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    let output = command.args(arguments).args(paths).env_remove("RUST_LOG").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn bytes_of(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let weights = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "safetensors"));
    weights.map(|file| file.metadata().unwrap().len()).sum()
}

/// Of the questions of `expected.json` that need no chat template, how many have the expected answer.
fn answers(model: &Path, cases: &[&Value], scratch: &Path) -> usize {
    let prompts: String = cases.iter().map(|case| format!("{}\n", case["prompt"])).collect();
    let file = scratch.join("prompts.txt");
    fs::write(&file, prompts).unwrap();
    let arguments =
        ["generate", "--ram", "64MiB", "--device", "cpu", "--max-new-tokens", "160", "--json", "--prompts-file"];
    let report: Value = serde_json::from_slice(&run(&arguments, &[&file, model])).unwrap();
    let outputs = report["outputs"].as_array().unwrap();
    outputs.iter().zip(cases).filter(|(output, case)| output["text"] == case["text"]).count()
}

#[test]
fn the_table_of_the_readme_is_what_is_measured() {
    let scratch = tempfile::tempdir().unwrap();
    let expected: Value = serde_json::from_slice(&fs::read(demo().join("expected.json")).unwrap()).unwrap();
    let cases: Vec<&Value> = expected.as_array().unwrap().iter().filter(|case| case["chat"] == false).collect();
    let words = |value: &Value| value.as_str().unwrap().to_string();
    let text: String = cases.iter().map(|case| words(&case["prompt"]) + &words(&case["text"]) + "\n").collect();
    let file = scratch.path().join("text.txt");
    fs::write(&file, text).unwrap();

    let mut table = String::from(
        "| | bytes | perplexity | mean KL | top-1 agreement | answers |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for (name, how) in FORMS {
        let mut model = demo();
        if !how.is_empty() {
            model = scratch.path().join(name);
            run(&[&["pack"], how, &["--out"]].concat(), &[&model, &demo()]);
        }
        let eval = ["eval", "--ram", "64MiB", "--device", "cpu", "--json", "--text"];
        let report = run(&eval, &[&file, Path::new("--against"), &demo(), &model]);
        let report: Value = serde_json::from_slice(&report).unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        let against = &report["against"];
        table += &format!(
            "| {name} | {} | {:.1} | {:.4} | {:.1} % | {} of {} |\n",
            bytes_of(&model),
            number(&report["perplexity"]),
            number(&against["mean_kl"]),
            100.0 * number(&against["top1_agreement"]),
            answers(&model, &cases, scratch.path()),
            cases.len(),
        );
    }
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let marked = readme.split_once("<!-- quality -->\n").and_then(|(_, rest)| Some(rest.split_once("<!-- end -->")?.0));
    assert_eq!(marked, Some(table.as_str()), "put this between the marks in README.md:\n{table}");
}

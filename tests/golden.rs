//! The gates of the CPU path: tiny checkpoints with reference logits that other implementations computed. Every position
//! must agree (NMSE ≤ 1e-6), greedy continuations must be the same tokens, and not one bit may depend on the budget, the
//! reader, the number of threads or who shares the pass.

mod reference;

use std::fs;
use std::path::{Path, PathBuf};

use layerstream::disk::{DiskOptions, ReaderKind};
use layerstream::text::ChatInput;
use layerstream::{GenerateOptions, Model, Options, Outline};
use serde_json::{Value, json};

use reference::{GATE, case, cases, logits, nmse, prompts};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// The floor of a model, as the error that refuses less names it, in bytes.
fn floor(model: &Path, options: &Options) -> u64 {
    let Err(error) = Model::open(model, &Options { ram: Some(1), ..options.clone() }) else {
        panic!("one byte cannot be enough");
    };
    let text = error.to_string();
    let mib = text.split("at least ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    mib.parse::<u64>().unwrap() << 20
}

/// The floor, something between, and everything resident.
fn budgets(model: &Path, options: &Options) -> [u64; 3] {
    let floor = floor(model, options);
    [floor, floor + (1 << 20), 1 << 30]
}

fn check_logits(case: &Path, readers: &[ReaderKind]) {
    let prompts = prompts(case);
    let base = Options { context: Some(192), all_logits: true, ..Options::default() };
    let mut first: Option<Vec<Vec<f32>>> = None;
    for ram in budgets(case, &base) {
        for reader in readers {
            for threads in [1, 2] {
                let disk = DiskOptions { reader: Some(*reader), ..DiskOptions::default() };
                let options = Options { ram: Some(ram), threads: Some(threads), disk, ..base.clone() };
                let mut model = Model::open(case, &options).unwrap();
                let found: Vec<_> = prompts.iter().map(|prompt| logits(&mut model, &prompt.ids)).collect();
                for (i, (found, prompt)) in found.iter().zip(&prompts).enumerate() {
                    let error = nmse(found, &prompt.logits);
                    assert!(error <= GATE, "{}: prompt {i}: NMSE {error:e}, ram {ram}, {reader}", case.display());
                }
                let first = first.get_or_insert_with(|| found.clone());
                assert!(
                    bits(first) == bits(&found),
                    "{}: bits differ at ram {ram}, {reader}, {threads} threads",
                    case.display()
                );
            }
        }
    }
}

fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

/// Readers that can run here; the ones that cannot are named aloud.
fn readers(model: &Path) -> Vec<ReaderKind> {
    let all = [ReaderKind::Uring, ReaderKind::Pread, ReaderKind::Buffered];
    all.into_iter()
        .filter(|reader| {
            let disk = DiskOptions { reader: Some(*reader), ..DiskOptions::default() };
            match Model::open(model, &Options { ram: Some(64 << 20), context: Some(16), disk, ..Options::default() }) {
                Ok(_) => true,
                Err(error) => {
                    println!("SKIPPED: reader {reader}: {error}");
                    false
                }
            }
        })
        .collect()
}

#[test]
fn logits_of_every_family_pass_the_gate_at_every_budget_with_every_reader() {
    cases().iter().for_each(|name| check_logits(&case(name), &readers(&case(name))));
}

#[test]
fn greedy_continuations_are_the_references() {
    cases().iter().for_each(|name| check_greedy(&case(name)));
}

fn check_greedy(case: &Path) {
    let prompts = prompts(case);
    let base = Options { context: Some(192), sequences: 3, ..Options::default() };
    let greedy = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    for ram in budgets(case, &base) {
        let mut model = Model::open(case, &Options { ram: Some(ram), ..base.clone() }).unwrap();
        let mut run = |ids: Vec<Vec<u32>>| model.generate(ids, &greedy).unwrap().outputs().unwrap();
        // All together, then each alone: neighbours in the pass must not matter.
        let together = run(prompts.iter().map(|prompt| prompt.ids.clone()).collect());
        for (i, prompt) in prompts.iter().enumerate() {
            assert_eq!(together[i].ids, prompt.greedy, "{}: prompt {i}, ram {ram}", case.display());
            let alone = run(vec![prompt.ids.clone()]);
            assert_eq!(alone[0].ids, prompt.greedy, "{}: prompt {i} alone, ram {ram}", case.display());
        }
    }
}

#[test]
fn every_answer_of_the_demo_model_is_the_expected_one() {
    let expected: Value = serde_json::from_slice(&fs::read(demo().join("expected.json")).unwrap()).unwrap();
    let options = Options { ram: Some(16 << 20), context: Some(512), ..Options::default() };
    let mut model = Model::open(demo(), &options).unwrap();
    let defaults = model.defaults().clone();
    let ids =
        |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
    for case in expected.as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let prompt_ids = match case["chat"].as_bool().unwrap() {
            true => model.text().encode_chat(&ChatInput::new(&json!([{"role": "user", "content": prompt}]))).unwrap(),
            false => model.text().encode(prompt).unwrap(),
        };
        assert_eq!(prompt_ids, ids(&case["ids"]), "{prompt}");
        let output = model.generate(vec![prompt_ids], &defaults).unwrap().outputs().unwrap().remove(0);
        assert_eq!(output.ids, ids(&case["greedy_ids"]), "{prompt}");
        assert_eq!(output.text, case["text"].as_str().unwrap(), "{prompt}");
    }
}

#[test]
fn every_other_case_is_run_too_or_refused_by_name() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    let Ok(entries) = fs::read_dir(&shared) else {
        return println!("SKIPPED: the larger collection of golden cases is not here");
    };
    for entry in entries.map(|entry| entry.unwrap().path()).filter(|path| path.join("expected.safetensors").exists()) {
        match Outline::new(&entry, &Options { ram: Some(1 << 30), ..Options::default() }) {
            Ok(_) => {
                check_logits(&entry, &[ReaderKind::Buffered]);
                check_greedy(&entry);
            }
            Err(error) => {
                let text = error.to_string();
                let named = ["not supported", "neither model.safetensors nor"].iter().any(|word| text.contains(word));
                assert!(named, "{}: {text}", entry.display());
                println!("refused: {text}");
            }
        }
    }
}

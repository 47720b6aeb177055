//! Keys that the cache holds unrotated, turned anew as a sequence outgrows the length of its frequencies (InternLM with dynamic
//! NTK): what a GPU makes of them is what the processor does, alone and together, wherever weights, keys and values are.

use std::fs;
use std::path::Path;

use layerstream::{Device, GenerateOptions, Model, Options};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::child::{Job, Outcome};
use crate::expected::nmse;
use crate::gpu::widen;
use crate::parent::{case, run};

/// Positions up to which frequencies are as they began.
const ORIGINAL: usize = 48;

/// Tokens that are generated: the first prompt grows beyond the length, the second begins beyond it, the third stays below.
const NEW: usize = 14;

fn prompts() -> Vec<Vec<u32>> {
    [ORIGINAL - 6, ORIGINAL + 9, 5].map(|len| (0..len as u32).map(|i| i * 37 % 199 + 3).collect()).to_vec()
}

/// The golden case, its weights as they are or widened to float32, with this key in its configuration.
fn model(wide: bool, key: &str, value: Value) -> TempDir {
    let golden = case("internlm1");
    let dir = if wide { widen(&golden).unwrap() } else { tempfile::tempdir().unwrap() };
    let mut config: Value = serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(ORIGINAL);
    config[key] = value;
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    if !wide {
        fs::copy(golden.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    }
    dir
}

fn turned(wide: bool) -> TempDir {
    model(wide, "rotary", json!({"base": 100, "type": "dynamic", "scaling_factor": 8.0}))
}

/// Gives a model of two layers these once more: a GPU holds the keys and values of two in any case.
fn deepen(dir: &Path) {
    let [weights, config] = ["model.safetensors", "config.json"].map(|name| dir.join(name));
    let bytes = fs::read(&weights).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    for i in 0..tensors.len() {
        let (name, view) = tensors[i].clone();
        for layer in 0..2 {
            if let Some(rest) = name.strip_prefix(&format!("model.layers.{layer}.")) {
                tensors.push((format!("model.layers.{}.{rest}", layer + 2), view.clone()));
            }
        }
    }
    fs::write(&weights, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let mut keys: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    keys["num_hidden_layers"] = json!(4);
    fs::write(&config, keys.to_string()).unwrap();
}

fn job(dir: &Path, new_tokens: usize) -> Job {
    Job {
        model: dir.to_str().unwrap().into(),
        prompts: prompts(),
        context: 96,
        sequences: if new_tokens > 0 { 3 } else { 1 },
        new_tokens,
        ..Job::default()
    }
}

fn done(jobs: &[Job], seed: u64) -> Vec<Outcome> {
    let (outcomes, _) = run(jobs, &[("SEED", &seed.to_string())]).done();
    let errors: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.errors).collect();
    assert!(errors.is_empty(), "seed {seed}: {errors:?}");
    outcomes
}

/// Logits at every position of each prompt, and continuations.
fn by_processor(dir: &Path) -> (Vec<Vec<f32>>, Vec<Vec<u32>>) {
    let options =
        Options { device: Device::Cpu, context: Some(96), all_logits: true, sequences: 3, ..Options::default() };
    let mut model = Model::open(dir, &options).unwrap();
    let mut logits = |ids: &Vec<u32>| {
        let mut all = Vec::new();
        model
            .logits(ids, |rows| {
                all.extend_from_slice(rows);
                Ok(())
            })
            .unwrap();
        all
    };
    let logits = prompts().iter().map(&mut logits).collect();
    let greedy = GenerateOptions { max_new_tokens: NEW, ..GenerateOptions::default() };
    let outputs = model.generate(prompts(), &greedy).unwrap().outputs().unwrap();
    (logits, outputs.into_iter().map(|output| output.ids).collect())
}

fn errors(outcome: &Outcome, expected: &[Vec<f32>]) -> Vec<f64> {
    let floats = |bits: &Vec<u32>| bits.iter().map(|bits| f32::from_bits(*bits)).collect::<Vec<_>>();
    outcome.logits.iter().zip(expected).map(|(bits, expected)| nmse(&floats(bits), expected)).collect()
}

#[test]
fn in_float32_a_gpu_turns_keys_as_the_processor_does() {
    let dir = turned(true);
    let (logits, tokens) = by_processor(dir.path());
    let outcomes = done(&[job(dir.path(), 0), job(dir.path(), NEW)], 3);
    for error in errors(&outcomes[0], &logits) {
        assert!(error <= 1e-6, "NMSE {error:e}");
    }
    assert_eq!(outcomes[1].tokens, tokens);
    // The frequencies have grown with the sequences: keys as they were first turned give others.
    let plain = model(true, "rotary", json!({"base": 100, "type": "origin"}));
    let (other, _) = by_processor(plain.path());
    let errors = errors(&outcomes[0], &other);
    assert!(errors[1] > 1e-3 && errors[2] <= 1e-6, "{errors:?}");
}

/// A prompt alone has the same rotation on either side of the cache.
#[test]
fn in_16_bits_turned_keys_are_no_worse_than_rotated_ones() {
    let [turned, rotated] = [
        model(false, "rotary", json!({"base": 10000, "type": "dynamic", "scaling_factor": 2.0})),
        model(false, "rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
    ];
    let (expected, _) = by_processor(rotated.path());
    let outcomes = done(&[job(turned.path(), 0), job(rotated.path(), 0)], 4);
    let [turned, rotated] = [0, 1].map(|i| errors(&outcomes[i], &expected));
    for (turned, rotated) in turned.iter().zip(&rotated) {
        assert!(*rotated > 0.0 && *turned <= 2.0 * rotated, "NMSE {turned:e}, rotated {rotated:e}");
    }
}

#[test]
fn bits_do_not_depend_on_where_turned_keys_come_from() {
    let dir = turned(false);
    deepen(dir.path());
    let (generating, scoring) = (job(dir.path(), NEW), job(dir.path(), 0));
    let in_budgets = |job: Job| {
        [
            job.clone(),
            Job { vram: Some(60_000), ram: Some(0), ..job.clone() },
            Job { vram: Some(200_000), ram: Some(0), stream_kv: true, ..job },
        ]
    };
    let mut jobs = [in_budgets(generating.clone()), in_budgets(scoring)].concat();
    // What a second call finds of a first one is of other lengths.
    jobs.push(Job { goes_on: vec![5, 9], ..generating });
    let expected = done(&jobs, 0);
    for some in expected[..6].chunks(3) {
        assert!(!some[2].kv_on_gpu, "keys and values are on the GPU");
        for outcome in &some[1..] {
            assert!(outcome.tokens == some[0].tokens, "memory changes tokens");
            assert!(outcome.logits == some[0].logits, "memory changes logits");
        }
    }
    for seed in 1..4 {
        for (found, expected) in done(&jobs, seed).iter().zip(&expected) {
            assert!(found.tokens == expected.tokens, "seed {seed} changes tokens");
            assert!(found.logits == expected.logits, "seed {seed} changes logits");
        }
    }
}

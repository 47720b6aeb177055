//! Golden cases: the CPU's gate for float32 checkpoints, for others the error of the reference's own bfloat16 run.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::child::Job;
use crate::parent::{case, model, run};

/// What the reference gave for one prompt.
pub struct Prompt {
    pub ids: Vec<u32>,
    pub logits: Vec<f32>,
    pub greedy: Vec<u32>,
    /// The gate.
    pub nmse: f64,
    /// The smallest distance between the two best tokens of the greedy continuation.
    pub gap: f64,
}

/// That of the processor, for checkpoints in float32.
const FLOAT32_GATE: f64 = 1e-6;

pub fn prompts(case: &Path) -> Vec<Prompt> {
    let bytes = fs::read(case.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let about: Value = serde_json::from_str(&fs::read_to_string(case.join("expected.json")).unwrap()).unwrap();
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
    let number = |name: &str, i: usize| {
        let value = &about[name];
        // A gate that is not there lets nothing pass.
        value.get(i).unwrap_or(value).as_f64().unwrap_or(f64::NAN)
    };
    let float32 = is_float32(case);
    (0..3)
        .map(|i| Prompt {
            ids: ids(format!("ids.{i}")),
            logits: floats(format!("logits.{i}")),
            greedy: ids(format!("greedy.{i}")),
            nmse: if float32 { FLOAT32_GATE } else { number("nmse_bf16_vs_f32", i) },
            gap: number("greedy_gap_per_prompt", i),
        })
        .collect()
}

/// A GGUF file has no configuration beside it; what its numbers decode to is multiplied in 16 bits.
fn is_float32(case: &Path) -> bool {
    let Ok(config) = fs::read_to_string(case.join("config.json")) else { return false };
    let config: Value = serde_json::from_str(&config).unwrap();
    let dtype = config.get("dtype").or(config.get("torch_dtype"));
    dtype.and_then(Value::as_str) == Some("float32")
}

pub fn nmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = b.iter().map(|b| *b as f64).sum::<f64>() / b.len() as f64;
    let error: f64 = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    let spread: f64 = b.iter().map(|b| (*b as f64 - mean).powi(2)).sum();
    error / spread
}

/// The same with experts: a router whose best two are nearly equal may choose the other one in 16 bits, and then a position is
/// wrong by far more than by rounding. So the median over positions counts, each with its share of the spread.
fn median_nmse(a: &[f32], b: &[f32], positions: usize) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = b.iter().map(|b| *b as f64).sum::<f64>() / b.len() as f64;
    let spread: f64 = b.iter().map(|b| (*b as f64 - mean).powi(2)).sum();
    let width = b.len() / positions;
    let error = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>();
    let mut errors: Vec<f64> = a.chunks(width).zip(b.chunks(width)).map(error).collect();
    errors.sort_by(f64::total_cmp);
    // NaN, which is sorted behind all others, is wrong at any position.
    if errors.iter().any(|error| error.is_nan()) {
        return f64::NAN;
    }
    errors[positions / 2] * positions as f64 / spread
}

/// Cases whose weights are widened to float32 first, which changes none of them, and which are then held to the gate of float32.
///
/// As it is, the first token of this one's first prompt has a query so nearly orthogonal to its key that the rounding of
/// activations to 16 bits decides what the norm behind the delta rule then scales up: NMSE 7e-4 over that prompt, 1e-4 and
/// 4e-5 over the others, where the reference's own bfloat16 has 3e-4, 3e-4 and 2e-4. The rule in 16 bits is held to its gate
/// by `qwen3_next`, and by `qwen3_5_text` where all golden cases are at hand.
const WIDENED: [&str; 1] = ["qwen3_5_vl_wrapper"];

/// Cases whose weights are widened besides, and whose continuations are compared in that form alone: with one expert for a
/// token, a near-tie of its router that 16 bits decide differently changes all that follows, however clear the tokens were.
const ALSO_WIDENED: [&str; 1] = ["llama4_vl_wrapper"];

/// A copy of a case with its bfloat16 weights as float32.
fn widen(case: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(case.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = fs::read(case.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let wide = |data: &[u8]| data.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect::<Vec<u8>>();
    let tensors: Vec<_> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| match view.dtype() {
            Dtype::BF16 => (name, Dtype::F32, view.shape().to_vec(), wide(view.data())),
            other => (name, other, view.shape().to_vec(), view.data().to_vec()),
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

/// Cases that are not carried along: for where all golden cases are at hand.
const NOT_CARRIED: [&str; 11] = [
    "awq_int4_gemm",
    "bnb_fp4",
    "bnb_int8",
    "bnb_nf4",
    "bnb_nf4_double",
    "ct_int8_channel",
    "ct_pack_int4_asym",
    "ct_pack_int4_sym",
    "gptq_int4",
    "gptq_int4_actorder",
    "qwen3_5_text",
];

/// Every golden case, with everything on the GPU and with hardly anything in memory at all; each in another order.
/// `CASES=falcon,/path/to/another` runs those alone.
#[test]
fn every_case_passes_the_gate_with_the_same_bits_at_every_budget() {
    let mut names: Vec<String> = fs::read_dir(case(""))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    for more in NOT_CARRIED.map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden").join(name)) {
        match more.is_dir() {
            true => names.push(more.to_str().unwrap().into()),
            false => println!("SKIPPED: {}, which is not there", more.display()),
        }
    }
    names.sort();
    if let Ok(some) = std::env::var("CASES") {
        println!("SKIPPED: all cases but {some}");
        names = some.split(',').map(String::from).collect();
    }
    let names = &names;
    let one = |i: usize| {
        let (name, seed) = (names[i].as_str(), i as u64);
        let first = check(name, seed, WIDENED.contains(&name));
        let both = if ALSO_WIDENED.contains(&name) { first.and_then(|()| check(name, seed, true)) } else { first };
        both.inspect_err(|problem| println!("{problem}")).err()
    };
    let problems: Vec<String> = std::thread::scope(|scope| {
        let part = move |part: usize| (part..names.len()).step_by(2).filter_map(one).collect::<Vec<_>>();
        let threads = [0, 1].map(|number| scope.spawn(move || part(number)));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

fn check(name: &str, seed: u64, wide: bool) -> Result<(), String> {
    let mut prompts = prompts(&case(name));
    let widened = wide.then(|| widen(&case(name)));
    if wide {
        prompts.iter_mut().for_each(|prompt| prompt.nmse = FLOAT32_GATE);
    }
    let path = widened.as_ref().map_or(model(name), |folder| folder.path().to_str().unwrap().into());
    let continues = !ALSO_WIDENED.contains(&name) || wide;
    agrees(name, path, &prompts, seed, continues)
}

/// Whether a model gives what is expected within the gates, with the same bits at every budget and beside others; and where
/// `continues`, whether its tokens are the expected ones.
pub fn agrees(name: &str, model: String, prompts: &[Prompt], seed: u64, continues: bool) -> Result<(), String> {
    let base = Job {
        model,
        prompts: prompts.iter().map(|prompt| prompt.ids.clone()).collect(),
        context: 192,
        sequences: 1,
        ..Job::default()
    };
    // Tiles of a few rows would be right as well, but a launch of theirs takes as long as one of many rows.
    let budgets = [(None, None), (Some(200_000), Some(0))];
    let mut jobs: Vec<Job> = budgets.map(|(vram, ram)| Job { vram, ram, ..base.clone() }).into();
    let greedy = Job { sequences: 3, new_tokens: 12, ..base.clone() };
    jobs.push(Job { vram: Some(250_000), ram: Some(4 << 20), ..greedy.clone() });
    // Alone, and all of it on the GPU.
    jobs.push(Job { prompts: vec![base.prompts[0].clone()], ..greedy });
    let (outcomes, _) = match run(&jobs, &[("SEED", &seed.to_string())]) {
        crate::parent::End::Done(outcomes, report) => (outcomes, report),
        other => return Err(format!("{name}: {other:?}")),
    };
    if let Some(error) = outcomes.iter().flat_map(|outcome| &outcome.errors).next() {
        return Err(format!("{name}: {error}"));
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let found: Vec<f32> = outcomes[0].logits[i].iter().map(|bits| f32::from_bits(*bits)).collect();
        let error = match outcomes[0].experts_used > 0 {
            true => median_nmse(&found, &prompt.logits, prompt.ids.len()),
            false => nmse(&found, &prompt.logits),
        };
        // Written so that NaN fails.
        let good = error <= prompt.nmse;
        if !good {
            return Err(format!("{name}: prompt {i}: NMSE {error:e}, the gate is {:e}", prompt.nmse));
        }
    }
    for (outcome, budget) in outcomes.iter().zip(budgets) {
        if outcome.logits != outcomes[0].logits {
            return Err(format!("{name}: bits differ at {budget:?} (tiers {:?})", outcome.tiers));
        }
    }
    let [together, alone] = &outcomes[budgets.len()..] else { panic!("two more jobs") };
    if alone.tokens[0] != together.tokens[0] {
        return Err(format!("{name}: tokens differ when it is alone: {:?} and {:?}", alone.tokens, together.tokens));
    }
    if !continues {
        return Ok(());
    }
    for (i, prompt) in prompts.iter().enumerate() {
        // Closer than this, 16 bits may choose the other one.
        if prompt.gap > 0.05 && together.tokens[i] != prompt.greedy {
            return Err(format!("{name}: prompt {i}: {:?}, the reference has {:?}", together.tokens[i], prompt.greedy));
        }
    }
    Ok(())
}

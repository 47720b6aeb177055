//! `golden-check`: the golden cases on one device, at several budgets, for machines that have neither the sources nor cargo.
//! Logits must be within the gate of the reference's, and have the same bits at every budget. It needs a directory of cases
//! as tests/golden/models has them, and prints a line for each case, or JSON.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use layerstream::plan::{GpuRequest, Plan, Request, Tier};
use layerstream::{Device, Error, Model, Options, Outline, Result};
use layerstream_kernels::driver::Gpu;
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Check golden cases on a device: logits against those of the reference, and the same bits at every budget.
#[derive(Parser)]
#[command(name = "golden-check", version)]
struct Arguments {
    /// Directory with a directory for each case
    #[arg(value_name = "CASES")]
    cases: PathBuf,
    /// Where to compute: cpu or cuda:N
    #[arg(long, default_value = "cuda:0")]
    device: Device,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// More than a case can use.
const PLENTY: u64 = 256 << 20;

/// Runs what the arguments of this process ask for.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("golden-check: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every case that can be computed there is right, and there is one.
fn run(arguments: &Arguments) -> Result<bool> {
    // Held, so that its context is made once and not for each model. What is wrong with it, the first case tells.
    let _gpu = match arguments.device {
        Device::Cuda(number) => Gpu::open(number).ok(),
        _ => None,
    };
    let dir = std::fs::read_dir(&arguments.cases).map_err(|e| io(&arguments.cases, e))?;
    let mut cases: Vec<PathBuf> = dir.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    let (mut results, mut counts) = (Vec::new(), [0; 3]);
    for case in &cases {
        let begin = Instant::now();
        let (index, mut result) = match check(case, arguments.device) {
            Ok(Verdict::Right(figures)) => (0, figures),
            Ok(Verdict::Wrong(problem)) => (1, json!({"problem": problem})),
            Ok(Verdict::NoKernel(message)) => (2, json!({"not_computed": message})),
            Err(error) => (1, json!({"problem": error.to_string()})),
        };
        counts[index] += 1;
        let name = case.file_name().map(|name| name.to_string_lossy().into_owned());
        let verdict = ["right", "WRONG", "SKIPPED"][index];
        if !arguments.json {
            println!("{verdict:<8} {}  {result}", name.as_deref().unwrap_or_default());
        }
        result["case"] = json!(name);
        result["verdict"] = json!(verdict);
        result["seconds"] = json!(begin.elapsed().as_secs_f64());
        results.push(result);
    }
    let [right, wrong, skipped] = counts;
    if arguments.json {
        println!("{}", json!({"right": right, "wrong": wrong, "skipped": skipped, "cases": results}));
    } else {
        println!("{right} right, {wrong} wrong, {skipped} skipped for want of a kernel");
    }
    Ok(wrong == 0 && right > 0)
}

enum Verdict {
    Right(Value),
    Wrong(String),
    NoKernel(String),
}

struct Prompt {
    ids: Vec<u32>,
    logits: Vec<f32>,
    gate: f64,
}

fn check(case: &Path, device: Device) -> Result<Verdict> {
    let prompts = prompts(case, device)?;
    let context = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(1);
    let roomy = Options {
        ram: Some(PLENTY),
        vram: None,
        context: Some(context),
        all_logits: true,
        device,
        ..Options::default()
    };
    let outline = match Outline::new(case, &roomy) {
        Err(error) if error.to_string().contains("cannot be computed on a GPU yet") => {
            return Ok(Verdict::NoKernel(error.to_string()));
        }
        outline => outline?,
    };
    // All on the GPU; nearly nothing on either side, though tiles of single rows would take for ever; and some of the weights
    // in each place.
    let mut budgets = vec![roomy.clone()];
    for (vram, ram) in [(100_000, 0), (150_000, 300_000), (200_000, 4 << 20), (300_000, 100_000)] {
        budgets.push(tight(case, &outline, &roomy, vram, ram)?);
    }
    drop(outline);
    let (mut first, mut worst, mut tiers): (Option<Vec<Vec<f32>>>, f64, Vec<Value>) = (None, 0.0, Vec::new());
    for options in &budgets {
        let mut model = Model::open(case, options)?;
        let count = |tier: Tier| model.plan().tiles.iter().filter(|tile| tile.tier == tier).count();
        tiers.push(json!([count(Tier::Device), count(Tier::Host), count(Tier::Disk)]));
        let logits: Vec<Vec<f32>> = prompts.iter().map(|prompt| all(&mut model, &prompt.ids)).collect::<Result<_>>()?;
        for (i, (found, prompt)) in logits.iter().zip(&prompts).enumerate() {
            let error = nmse(found, &prompt.logits);
            // NaN is no pass either.
            if error.is_nan() || error > prompt.gate {
                return Ok(Verdict::Wrong(format!("prompt {i}: NMSE {error:e}, the gate is {:e}", prompt.gate)));
            }
            worst = worst.max(error / prompt.gate);
        }
        let bits = |logits: &[Vec<f32>]| logits.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        if first.as_ref().is_some_and(|first| bits(first) != bits(&logits)) {
            return Ok(Verdict::Wrong(format!("other bits with tiles on GPU, in memory, on disk: {tiers:?}")));
        }
        first.get_or_insert(logits);
    }
    Ok(Verdict::Right(json!({"share_of_gate": (worst * 1e3).round() / 1e3, "tiles_gpu_memory_disk": tiers})))
}

/// What a GPU gives memory in.
const PAGE: usize = 2 << 20;

/// Options with about so many bytes of the GPU for weights, and so many of memory above the floor. The pages of a GPU are
/// larger than most of these models, so the context, which changes no bits, is made longer until they leave just that.
fn tight(case: &Path, outline: &Outline, roomy: &Options, bytes: usize, ram: u64) -> Result<Options> {
    let mut options = roomy.clone();
    if let Some(gpu) = &outline.plan().gpu {
        let mut tokens = outline.plan().context;
        for _ in 0..20 {
            let plan = |vram: u64| {
                let (gpu, sequences) = (Some(GpuRequest { vram, context: gpu.context }), outline.plan().sequences);
                let request =
                    Request { ram: PLENTY, context: tokens, sequences, all_logits: true, align: 4096, scratch: 0, gpu };
                Ok::<_, Error>(Plan::new(outline.program(), &request)?.gpu.expect("planned for a GPU"))
            };
            let floor = plan(u64::MAX / 2)?.floor;
            let least = plan(floor)?;
            (options.context, options.vram) = (Some(tokens), Some(floor));
            let left = least.allocation() - least.layout.len();
            if (bytes..bytes + 50_000).contains(&left) {
                break;
            }
            let token = (least.layout.kv_len / tokens).max(1);
            tokens += ((left + PAGE - bytes) % PAGE / token).max(1);
        }
    }
    let floor = Outline::new(case, &options)?.plan().floor;
    Ok(Options { ram: Some(floor + ram), ..options })
}

fn all(model: &mut Model, ids: &[u32]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    model.logits(ids, |rows| {
        all.extend_from_slice(rows);
        Ok(())
    })?;
    Ok(all)
}

/// What the reference gave for the three prompts of a case, and how far one may be from it: on a GPU the error of the
/// reference's own bfloat16 run, but for float32 checkpoints and on the processor 1e-6.
fn prompts(case: &Path, device: Device) -> Result<Vec<Prompt>> {
    let path = case.join("expected.safetensors");
    let bytes = std::fs::read(&path).map_err(|e| io(&path, e))?;
    let damaged = || Error::Request(format!("{}: is not what a golden case has", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).map_err(|_| damaged())?;
    let json = |name: &str| {
        let path = case.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| io(&path, e))?;
        serde_json::from_str::<Value>(&text).map_err(|_| damaged())
    };
    let about = json("expected.json")?;
    // A GGUF file has no configuration beside it; what its numbers decode to is multiplied in 16 bits.
    let config = if case.join("config.json").exists() { json("config.json")? } else { Value::Null };
    let dtype = config.get("dtype").or(config.get("torch_dtype")).and_then(Value::as_str);
    let exact = dtype == Some("float32") || device == Device::Cpu;
    let data = |name: String| tensors.tensor(&name).map(|view| view.data().to_vec()).map_err(|_| damaged());
    (0..3)
        .map(|i| {
            let ids = data(format!("ids.{i}"))?;
            let logits = data(format!("logits.{i}"))?;
            let errors = &about["nmse_bf16_vs_f32"];
            let gate = if exact { Some(1e-6) } else { errors.get(i).unwrap_or(errors).as_f64() };
            Ok(Prompt {
                ids: ids.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect(),
                logits: logits.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                gate: gate.ok_or_else(damaged)?,
            })
        })
        .collect()
}

/// Σ(a − b)² / Σ(b − mean b)²
fn nmse(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let mean = b.iter().map(|b| *b as f64).sum::<f64>() / b.len() as f64;
    let error: f64 = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    let spread: f64 = b.iter().map(|b| (*b as f64 - mean).powi(2)).sum();
    error / spread
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.into(), doing: "read", source }
}

//! What a process with the simulated driver does: the jobs that the environment names, one after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use layerstream::{Device, GenerateOptions, Model, Options, Outline};
use serde::{Deserialize, Serialize};

use crate::golden;
use crate::gpu::{self, PLENTY};

/// Where jobs come from and results go.
pub const JOBS: &str = "LAYERSTREAM_TEST_JOBS";
pub const RESULTS: &str = "LAYERSTREAM_TEST_RESULTS";

/// A model to open, and what to do with it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Job {
    pub model: String,
    pub prompts: Vec<Vec<u32>>,
    pub context: usize,
    pub sequences: usize,
    /// About so many bytes of the GPU for weights, and so many of memory above the floor; `None`: as much as can be of
    /// use. Memory of a GPU comes in pages of 2 MiB, larger than most of these models, so this makes the context longer
    /// until that is what it leaves.
    pub vram: Option<usize>,
    pub ram: Option<u64>,
    /// This budget instead.
    pub exact_vram: Option<u64>,
    /// A context so long that keys and values do not fit on the GPU.
    pub stream_kv: bool,
    /// Tokens to generate for all prompts together; 0: logits at every position of each prompt instead.
    pub new_tokens: usize,
    /// A second call, whose prompts are the first one's with their answers and these tokens behind them.
    pub goes_on: Vec<u32>,
    /// While the same model is open already.
    pub beside: bool,
    /// How often. Errors of all but the last time are noted and do no harm.
    pub times: usize,
    /// Stops the first time when a pass has used so many bytes of weights.
    pub stop_at: Option<u64>,
    /// With checksums compared.
    pub check: bool,
    /// The check of a golden case instead, which asks for nothing but the model.
    pub golden: bool,
    /// As the command line has it; nothing: the first GPU.
    pub device: Option<String>,
}

/// What came of a job.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Outcome {
    /// Of each prompt, as bits.
    pub logits: Vec<Vec<u32>>,
    pub tokens: Vec<Vec<u32>>,
    /// Of all that was tried, in order.
    pub errors: Vec<String>,
    pub device: String,
    pub vram: u64,
    pub vram_floor: u64,
    /// Bytes of the GPU that the context takes, and all that is in use of it because of us.
    pub context: u64,
    pub vram_taken: Option<u64>,
    pub ram_floor: u64,
    /// Tiles on the GPU, in memory, on disk.
    pub tiers: [usize; 3],
    /// Bytes of the largest tile, of the ring on the GPU, and of that in memory.
    pub sizes: [usize; 3],
    pub kv_on_gpu: bool,
    pub rows: usize,
    /// Of the last call that generated.
    pub passes: u64,
    /// Bytes that drives delivered, of all weights and of experts; and bytes of experts that were used, and that were at hand.
    pub read: u64,
    pub experts_read: u64,
    pub experts_used: u64,
    pub experts_hit: u64,
    /// Tiles of other weights that were copied while experts were waited for.
    pub meanwhile: u64,
}

/// Does nothing in a process that has no jobs.
pub fn main() {
    let (Ok(jobs), Ok(results)) = (std::env::var(JOBS), std::env::var(RESULTS)) else { return };
    let jobs: Vec<Job> = serde_json::from_str(&jobs).unwrap();
    let outcomes: Vec<Outcome> = jobs.iter().map(run).collect();
    std::fs::write(results, serde_json::to_string(&outcomes).unwrap()).unwrap();
}

fn run(job: &Job) -> Outcome {
    if job.golden {
        return golden::check(job);
    }
    let mut outcome = Outcome::default();
    if let Err(error) = attempt(job, &mut outcome) {
        outcome.errors.push(error.to_string());
    }
    outcome
}

fn attempt(job: &Job, outcome: &mut Outcome) -> layerstream::Result<()> {
    let path = Path::new(&job.model);
    let device = job.device.as_deref().map_or(Ok(Device::Cuda(0)), str::parse)?;
    let base = Options {
        context: Some(job.context),
        sequences: job.sequences,
        all_logits: job.new_tokens == 0,
        check: job.check,
        threads: Some(1),
        device,
        ..Options::default()
    };
    let plenty = Options { ram: Some(PLENTY), vram: Some(PLENTY), ..base };
    let options = match (job.exact_vram, job.vram) {
        (Some(vram), _) => Options { vram: Some(vram), ..plenty },
        (None, Some(bytes)) => {
            let (context, vram) = tight(&Outline::new(path, &plenty)?, job, bytes)?;
            Options { context: Some(context), vram: Some(vram), ..plenty }
        }
        (None, None) => plenty,
    };
    let options = match job.ram {
        Some(above) => Options { ram: Some(Outline::new(path, &options)?.plan().floor + above), ..options },
        None => options,
    };
    let _other = if job.beside { Some(Model::open(path, &options)?) } else { None };
    let mut model = Model::open(path, &options)?;
    let plan = model.plan();
    if let Some(gpu) = &plan.gpu {
        (outcome.vram, outcome.vram_floor, outcome.context) = (gpu.vram, gpu.floor, gpu.context);
        outcome.kv_on_gpu = gpu.layout.kv_resident;
        assert!(gpu.total() <= gpu.vram);
    }
    outcome.vram_taken = model.vram_taken();
    (outcome.ram_floor, outcome.rows) = (plan.floor, plan.rows);
    for tile in &plan.tiles {
        use layerstream::plan::Tier;
        let tier = [Tier::Device, Tier::Host, Tier::Disk].iter().position(|tier| *tier == tile.tier).unwrap();
        outcome.tiers[tier] += 1;
    }
    let largest = plan.tiles.iter().map(|tile| tile.span.len as usize).max().unwrap_or(0);
    outcome.sizes = [largest, plan.gpu.as_ref().map_or(0, |gpu| gpu.ring), plan.memory.ring];
    outcome.device = model.processor().to_string();
    for time in 0..job.times.max(1) {
        let watch = job.stop_at.filter(|_| time == 0).map(|bytes| watch(&model, bytes));
        // A panic in mid pass, which a test may plant, ends the job with the model dropped as it is.
        let result = catch_unwind(AssertUnwindSafe(|| once(&mut model, job)));
        let Ok(result) = result else {
            outcome.errors.push("a panic".into());
            return Ok(());
        };
        if let Some(watch) = watch {
            watch.join().unwrap();
            model.stop_flag().clear();
        }
        match result {
            Ok((logits, tokens, passes)) => {
                (outcome.logits, outcome.tokens, outcome.passes) = (logits, tokens, passes);
            }
            Err(error) => outcome.errors.push(error.to_string()),
        }
    }
    outcome.read = model.stream_stats().bytes_read;
    if let Some(experts) = model.expert_stats() {
        outcome.read += experts.bytes_read;
        (outcome.experts_read, outcome.experts_used) = (experts.bytes_read, experts.bytes_used);
        (outcome.experts_hit, outcome.meanwhile) = (experts.bytes_hit, experts.meanwhile);
    }
    Ok(())
}

/// A context of at least the job's, and the smallest budget for it, which leave about so many bytes for weights.
fn tight(outline: &Outline, job: &Job, bytes: usize) -> layerstream::Result<(usize, u64)> {
    // Two layers' keys and values are on the GPU at any time; those of one more shall take a page.
    let layer = |shape: &layerstream::program::KvShape| job.sequences * shape.token_bytes() / 2;
    let layer = outline.program().kv.iter().map(layer).max().unwrap();
    let least = if job.stream_kv { (3 << 20) / layer } else { job.context };
    gpu::tight(outline, job.new_tokens == 0, least, bytes, !job.stream_kv)
}

/// Sets the stop flag once a pass has used so many bytes of weights, or gives up.
fn watch(model: &Model, bytes: u64) -> std::thread::JoinHandle<()> {
    let (stop, progress) = (model.stop_flag(), model.progress());
    if bytes == 0 {
        stop.stop();
    }
    std::thread::spawn(move || {
        for _ in 0..20_000 {
            if progress.bytes() >= bytes {
                break;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        stop.stop();
    })
}

type Rows = Vec<Vec<u32>>;

/// Logits or tokens of each prompt, and the passes that it took to generate.
fn once(model: &mut Model, job: &Job) -> layerstream::Result<(Rows, Rows, u64)> {
    if job.new_tokens > 0 {
        let (mut answers, mut passes) = answer(model, job.prompts.clone(), job.new_tokens)?;
        if !job.goes_on.is_empty() {
            let longer =
                |(prompt, answer): (&Vec<u32>, &Vec<u32>)| [&prompt[..], &answer[..], &job.goes_on[..]].concat();
            (answers, passes) = answer(model, job.prompts.iter().zip(&answers).map(longer).collect(), job.new_tokens)?;
        }
        return Ok((Vec::new(), answers, passes));
    }
    let mut logits = Vec::new();
    for ids in &job.prompts {
        let mut bits = Vec::new();
        model.logits(ids, |rows| {
            bits.extend(rows.iter().map(|x| x.to_bits()));
            Ok(())
        })?;
        logits.push(bits);
    }
    Ok((logits, Vec::new(), 0))
}

fn answer(model: &mut Model, prompts: Rows, new_tokens: usize) -> layerstream::Result<(Rows, u64)> {
    let options = GenerateOptions { max_new_tokens: new_tokens, ..GenerateOptions::default() };
    let mut generation = model.generate(prompts, &options)?;
    let outputs = generation.outputs()?;
    Ok((outputs.into_iter().map(|output| output.ids).collect(), generation.stats().passes))
}

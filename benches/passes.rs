//! The figure that this project stands for: how much of the drive's bandwidth reaches one-token passes. On a synthetic
//! Llama-shaped checkpoint of about 6 GB and a budget of 1 GiB, raw direct reads (ours over several chunk sizes and depths,
//! and fio where it is installed) and passes of the model take turns on the same files; then prompts are processed.
//!
//! `cargo bench --bench passes -- [--dir DIR] [--rounds N]`: DIR is on the drive to be measured (default: in target/) and
//! keeps the checkpoint. Prints a table and writes it, with the machine, to `benches/results/<date>-<processor>/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use layerstream::disk::{DiskOptions, ReaderKind, Source, measure};
use layerstream::{GenerateOptions, Model, Options, memory};
use serde_json::{Value, json};

const LIKE: &str = "llama-3.2-3b";
const RAM: u64 = 1 << 30;
/// One-token passes in a turn.
const PASSES: usize = 4;
/// A raw read in a turn takes this long, for each way of reading.
const RAW: Duration = Duration::from_secs(3);
/// Chunk (MiB) and depth of the raw reads; the best one is the measure of the passes.
const RAW_SIZES: [(usize, usize); 4] = [(1, 32), (2, 32), (4, 16), (8, 8)];
/// Prompt lengths, in tokens.
const PROMPTS: [usize; 2] = [128, 512];

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing to test here: `cargo bench --bench passes` measures"); // cargo test runs this, too
        return Ok(());
    }
    let arguments = Arguments::parse()?;
    let model_dir = checkpoint(&arguments.dir)?;
    let options = Options { ram: Some(RAM), context: Some(1024), ..Options::default() };
    let mut model = Model::open(&model_dir, &options)?;
    let files = model.checkpoint().files().iter().map(|file| file.path.clone()).collect();
    let source = Source { files, replicas: vec![] };

    let mut rows = Rows::default();
    generate(&mut model, &[1], 2)?; // the tiles that stay are read once, and are not what is measured
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        for (mib, depth) in RAW_SIZES {
            let (reader, chunk_bytes, depth_asked) = (Some(ReaderKind::Uring), Some(mib << 20), Some(depth));
            let disk = DiskOptions { reader, chunk_bytes, depth: depth_asked, ..DiskOptions::default() };
            rows.add(&format!("raw uring {mib} MiB x {depth}, GB/s"), measure(&source, &disk, RAW)? / 1e9);
        }
        for (name, gbps) in fio(&source.files[0]) {
            rows.add(&name, gbps);
        }
        let pass = generate(&mut model, &[1 + round as u32], PASSES)?;
        rows.add("one-token passes, GB/s from disk", pass.bytes as f64 / pass.seconds / 1e9);
        rows.add("one-token passes, s/token", pass.seconds / PASSES as f64);
    }
    for tokens in PROMPTS {
        for round in 0..arguments.rounds.min(3) {
            let ids: Vec<u32> = (0..tokens).map(|i| (100 * (round + 1) + i) as u32).collect();
            rows.add(
                &format!("prompt of {tokens} tokens, tokens/s"),
                tokens as f64 / generate(&mut model, &ids, 1)?.seconds,
            );
        }
    }
    let peak = memory::peak_resident();
    report(&rows, &model, peak)
}

struct Arguments {
    dir: PathBuf,
    rounds: usize,
}

impl Arguments {
    fn parse() -> Result<Arguments> {
        let mut arguments = Arguments { dir: Path::new(env!("CARGO_TARGET_TMPDIR")).into(), rounds: 7 };
        let mut given = std::env::args().skip(1);
        while let Some(name) = given.next() {
            match name.as_str() {
                "--bench" => {} // cargo adds it
                "--dir" => arguments.dir = given.next().ok_or("--dir needs a directory")?.into(),
                "--rounds" => arguments.rounds = given.next().ok_or("--rounds needs a number")?.parse()?,
                other => return Err(format!("unknown argument {other}; there are --dir DIR and --rounds N").into()),
            }
        }
        Ok(arguments)
    }
}

/// The synthetic model, made by the command that anyone would use, once.
fn checkpoint(dir: &Path) -> Result<PathBuf> {
    let model = dir.join(LIKE);
    if !model.join("config.json").exists() {
        let made = Command::new(env!("CARGO_BIN_EXE_layerstream"))
            .args(["synth", "--like", LIKE, "--out"])
            .arg(&model)
            .status()?;
        if !made.success() {
            return Err(format!("could not make a model in {}", model.display()).into());
        }
    }
    Ok(model)
}

struct Ran {
    seconds: f64,
    bytes: u64,
}

/// `passes` passes: the first carries the prompt, the others a token each.
fn generate(model: &mut Model, prompt: &[u32], passes: usize) -> Result<Ran> {
    let options = GenerateOptions { max_new_tokens: passes, ..GenerateOptions::default() };
    let start = Instant::now();
    let mut generation = model.generate(vec![prompt.to_vec()], &options)?;
    generation.outputs()?;
    Ok(Ran { seconds: start.elapsed().as_secs_f64(), bytes: generation.stats().bytes_read })
}

/// GB/s by fio's io_uring engine with the page kinds it knows; nothing where there is no fio.
fn fio(file: &Path) -> Vec<(String, f64)> {
    let run = |memory: &str, mib: usize, depth: usize| -> Option<f64> {
        let output = Command::new("fio")
            .args(["--name=raw", "--readonly", "--rw=read", "--direct=1", "--ioengine=io_uring", "--fixedbufs=1"])
            .args(["--time_based", "--runtime=3", "--output-format=json"])
            .arg(format!("--filename={}", file.display()))
            .arg(format!("--bs={mib}M"))
            .arg(format!("--iodepth={depth}"))
            .arg(format!("--iomem={memory}"))
            .output()
            .ok()?;
        let report: Value = serde_json::from_slice(&output.stdout).ok()?;
        report["jobs"][0]["read"]["bw_bytes"].as_f64().filter(|bytes| *bytes > 0.0).map(|bytes| bytes / 1e9)
    };
    let cases = [("mmap", 4, 16), ("mmaphuge", 4, 16), ("mmaphuge", 1, 32)];
    let named =
        |(memory, mib, depth)| Some((format!("fio {memory} {mib} MiB x {depth}, GB/s"), run(memory, mib, depth)?));
    cases.into_iter().filter_map(named).collect()
}

/// Samples by name, in the order in which the names first came.
#[derive(Default)]
struct Rows(Vec<(String, Vec<f64>)>);

impl Rows {
    fn add(&mut self, name: &str, sample: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((name.into(), vec![sample])),
        }
    }

    fn median(&self, name: &str) -> f64 {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map_or(f64::NAN, |(_, samples)| sorted(samples)[samples.len() / 2])
    }

    /// The largest median among the raw reads.
    fn best_raw(&self) -> (&str, f64) {
        let raw = self.0.iter().filter(|(name, _)| name.starts_with("raw") || name.starts_with("fio"));
        raw.map(|(name, _)| (name.as_str(), self.median(name))).max_by(|a, b| a.1.total_cmp(&b.1)).expect("raw reads")
    }
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn report(rows: &Rows, model: &Model, peak: u64) -> Result {
    let (best, raw) = rows.best_raw();
    let share = rows.median("one-token passes, GB/s from disk") / raw;
    let plan = model.plan();
    let mut text = String::from("| what | median | min | max |\n| --- | --- | --- | --- |\n");
    for (name, samples) in &rows.0 {
        let samples = sorted(samples);
        text +=
            &format!("| {name} | {:.3} | {:.3} | {:.3} |\n", rows.median(name), samples[0], samples[samples.len() - 1]);
    }
    text += &format!("\nPasses reach **{share:.3}** of the best raw reads ({best}).\n");
    text += &format!("Peak resident memory {} MiB at a budget of {} MiB.\n", peak >> 20, RAM >> 20);
    println!("{text}");

    let stats = model.stream_stats();
    let machine = machine();
    let record = json!({
        "machine": machine,
        "model": LIKE,
        "weights_bytes": plan.pass_bytes(),
        "disk_bytes_per_pass": plan.disk_bytes(),
        "ram": RAM,
        "peak_resident_bytes": peak,
        "reader": stats.drives[0].reader.to_string(),
        "chunk_bytes": stats.chunk_bytes,
        "depth": stats.drives[0].depth,
        "registered": stats.drives[0].registered,
        "huge_page_bytes": stats.huge_bytes,
        "samples": rows.0.iter().map(|(name, samples)| (name.clone(), json!(samples))).collect::<serde_json::Map<_, _>>(),
        "best_raw": best,
        "share_of_best_raw": share,
    });
    let date = machine["date"].as_str().unwrap_or("undated");
    let processor =
        machine["processor"].as_str().unwrap_or("cpu").to_lowercase().replace(|c: char| !c.is_alphanumeric(), "-");
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results").join(format!("{date}-{processor}"));
    fs::create_dir_all(&out)?;
    fs::write(out.join("passes.json"), serde_json::to_string_pretty(&record)? + "\n")?;
    let head = format!("# One-token passes, {LIKE}, {} MiB\n\n`cargo bench --bench passes`; {machine}\n\n", RAM >> 20);
    fs::write(out.join("passes.md"), head + &text)?;
    println!("written to {}", out.display());
    Ok(())
}

/// What a reader of the figures needs to know of the machine.
fn machine() -> Value {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':').map(|(_, value)| value.trim().to_string()))
    };
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    json!({
        "date": output("date", &["-u", "+%Y-%m-%d"]),
        "commit": output("git", &["rev-parse", "--short", "HEAD"]),
        "processor": first("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": output("uname", &["-r"]),
        "huge_pages": fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok().map(|text| text.trim().to_string()),
        "fio": output("fio", &["--version"]),
    })
}

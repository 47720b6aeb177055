//! The figure that this project stands for: how much of the drive's bandwidth reaches one-token passes. On a synthetic
//! Llama-shaped checkpoint of about 6 GB and a budget of 1 GiB, raw direct reads (ours over several chunk sizes and depths,
//! and fio where it is installed) and passes of the model take turns on the same files; then prompts are processed.
//!
//! `cargo bench --bench passes -- [--dir DIR] [--rounds N]`: DIR is on the drive to be measured (default: in target/) and
//! keeps the checkpoint. Prints a table and writes it, with the machine, to `benches/results/<date>-<processor>/`.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use layerstream::disk::{DiskOptions, ReaderKind, Source, measure};
use layerstream::{Model, Options, memory};
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

use common::{Arguments, Result, Rows, checkpoint, generate, machine, write_results};

fn main() -> Result {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing to test here: `cargo bench --bench passes` measures"); // cargo test runs this, too
        return Ok(());
    }
    let arguments = Arguments::parse()?;
    let model_dir = checkpoint(&arguments.dir, LIKE, None)?;
    let options = Options { ram: Some(RAM), context: Some(1024), ..Options::default() };
    let mut model = Model::open(&model_dir, &options)?;
    let files = model.checkpoint().files().iter().map(|file| file.path.clone()).collect();
    let source = Source { files, ..Source::default() };

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

/// The largest median among the raw reads.
fn best_raw(rows: &Rows) -> (&str, f64) {
    let raw = rows.0.iter().filter(|(name, _)| name.starts_with("raw") || name.starts_with("fio"));
    raw.map(|(name, _)| (name.as_str(), rows.median(name))).max_by(|a, b| a.1.total_cmp(&b.1)).expect("raw reads")
}

fn report(rows: &Rows, model: &Model, peak: u64) -> Result {
    let (best, raw) = best_raw(rows);
    let share = rows.median("one-token passes, GB/s from disk") / raw;
    let plan = model.plan();
    let mut text = rows.table();
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
        "samples": rows.samples(),
        "best_raw": best,
        "share_of_best_raw": share,
    });
    let head = format!("# One-token passes, {LIKE}, {} MiB\n\n`cargo bench --bench passes`; {machine}\n\n", RAM >> 20);
    let out = write_results("passes", &record, &(head + &text))?;
    println!("written to {}", out.display());
    Ok(())
}

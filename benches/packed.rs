//! What fewer bytes are worth: a synthetic Llama-shaped checkpoint of about 6 GB is packed in every way, each timed beside raw
//! reads and writes of the same drive; then one-token passes of all of them take turns, in 1 GiB, with and without `--check`.
//!
//! `cargo bench --bench packed -- [--dir DIR] [--rounds N]`: DIR is on the drive to be measured (default: in target/) and
//! keeps the checkpoint; it needs 20 GB. Prints a table and writes it, with the machine, to `benches/results/<date>-<processor>/`.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use layerstream::disk::{DiskOptions, ReaderKind, Source, measure};
use layerstream::{Model, Options};
use serde_json::json;

use common::{Arguments, Result, Rows, checkpoint, generate, machine, write_results};

const LIKE: &str = "llama-2-7b";
const LAYERS: usize = 14;
const RAM: u64 = 1 << 30;
/// One-token passes in a turn.
const PASSES: usize = 4;
/// What is packed: a name, and arguments of `layerstream pack`.
const PACKED: [(&str, &[&str]); 4] = [
    ("int8", &["--to", "int8"]),
    ("nf4", &["--to", "nf4"]),
    ("nf4d", &["--to", "nf4", "--double-quant"]),
    ("lossless", &["--to", "lossless"]),
];
/// Bytes of the file that is written to measure writing.
const WRITTEN: u64 = 2 << 30;

fn main() -> Result {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing to test here: `cargo bench --bench packed` measures"); // cargo test runs this, too
        return Ok(());
    }
    let arguments = Arguments::parse()?;
    let plain = checkpoint(&arguments.dir, LIKE, Some(LAYERS))?;
    let mut models = vec![("bf16", plain.clone())];
    models.extend(PACKED.map(|(name, _)| (name, arguments.dir.join(format!("{LIKE}-{LAYERS}-{name}")))));
    let mut rows = Rows::default();
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        rows.add("raw reads, GB/s", raw_read(&plain)?);
        rows.add("raw writes, GB/s", raw_write(&arguments.dir)?);
        for ((name, out), (_, how)) in models[1..].iter().zip(PACKED) {
            let seconds = pack(&plain, out, how)?;
            rows.add(&format!("pack to {name}, GB/s of the source"), bytes_of(&plain)? as f64 / seconds / 1e9);
        }
        for (name, dir) in &models {
            let checks: &[bool] = if *name == "bf16" { &[false] } else { &[false, true] };
            for &check in checks {
                let options = Options { ram: Some(RAM), context: Some(64), check, ..Options::default() };
                let mut model = Model::open(dir, &options)?;
                generate(&mut model, &[1], 2)?; // the tiles that stay are read once, and are not what is measured
                let pass = generate(&mut model, &[1 + round as u32], PASSES)?;
                let how = if check { " with --check" } else { "" };
                rows.add(&format!("{name}{how}, s/token"), pass.seconds / PASSES as f64);
                rows.add(&format!("{name}{how}, GB/s from disk"), pass.bytes as f64 / pass.seconds / 1e9);
            }
        }
    }
    report(&rows, &models)
}

fn bytes_of(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

fn raw_read(model: &Path) -> Result<f64> {
    let files = (1..3).map(|i| model.join(format!("model-{i:05}-of-00002.safetensors"))).collect();
    let disk = DiskOptions {
        reader: Some(ReaderKind::Uring),
        chunk_bytes: Some(4 << 20),
        depth: Some(16),
        ..DiskOptions::default()
    };
    Ok(measure(&Source { files, ..Source::default() }, &disk, Duration::from_secs(3))? / 1e9)
}

/// GB/s of direct writes by dd, of a file that is deleted again.
fn raw_write(dir: &Path) -> Result<f64> {
    let file = dir.join("written-to-measure");
    let start = Instant::now();
    let status = Command::new("dd")
        .args(["if=/dev/zero", "bs=4M", "oflag=direct", "conv=fsync", &format!("count={}", WRITTEN >> 22)])
        .arg(format!("of={}", file.display()))
        .stderr(Stdio::null())
        .status()?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(file)?;
    if !status.success() {
        return Err("dd could not write past the page cache".into());
    }
    Ok(WRITTEN as f64 / seconds / 1e9)
}

/// Seconds from start to end, everything synced and read back.
fn pack(model: &Path, out: &Path, how: &[&str]) -> Result<f64> {
    if out.exists() {
        std::fs::remove_dir_all(out)?;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    command.arg("pack").arg(model).arg("--out").arg(out).args(["--ram", "1GiB"]).args(how).stderr(Stdio::null());
    let start = Instant::now();
    if !command.status()?.success() {
        return Err(format!("could not pack into {}", out.display()).into());
    }
    Ok(start.elapsed().as_secs_f64())
}

fn report(rows: &Rows, models: &[(&str, std::path::PathBuf)]) -> Result {
    let mut text = rows.table();
    let plain = bytes_of(&models[0].1)?;
    let slower = rows.median("raw reads, GB/s").min(rows.median("raw writes, GB/s"));
    let seconds = |name: &str| rows.median(&format!("{name}, s/token"));
    let mut ratios = serde_json::Map::new();
    text += "\n| | bytes | of bf16 | tokens per second, of bf16 | --check costs | packing, of the slower of read and write |\n\
             | --- | --- | --- | --- | --- | --- |\n";
    for (name, dir) in &models[1..] {
        let bytes = bytes_of(dir)?;
        let (size, speed) = (bytes as f64 / plain as f64, seconds("bf16") / seconds(name));
        let check = seconds(&format!("{name} with --check")) / seconds(name) - 1.0;
        let packing = rows.median(&format!("pack to {name}, GB/s of the source")) / slower;
        let percent = 100.0 * check;
        text += &format!("| {name} | {bytes} | {size:.3} | {speed:.2} x | {percent:.0} % | {packing:.2} |\n");
        ratios.insert(
            (*name).into(),
            json!({"bytes": bytes, "size": size, "speed": speed, "check": check, "packing": packing}),
        );
    }
    println!("{text}");
    let machine = machine();
    let record = json!({
        "machine": machine, "model": LIKE, "layers": LAYERS, "bytes": plain, "ram": RAM,
        "samples": rows.samples(), "packed": ratios,
    });
    let head = format!(
        "# Packed models, {LIKE} with {LAYERS} layers, {} MiB\n\n`cargo bench --bench packed`; {machine}\n\n",
        RAM >> 20
    );
    println!("written to {}", write_results("packed", &record, &(head + &text))?.display());
    Ok(())
}

//! Proof of size: checkpoints with the shapes of Llama 3.1 70B and 405B pass through a GPU of 4 GiB, the simulated one, without
//! arithmetic, in bf16 and whole. Every tile has to be delivered once, in order, with the right bytes; memory is measured.
//!
//! The checkpoints are sparse files. Into four places of every matrix a mark is written that no other place has; the simulated
//! driver writes a line for each tile that a product was given, with a fingerprint of its bytes, and each is compared with
//! that of the file's. `LAYERSTREAM_PROVE_LAYERS` says how many layers the models have: 2 without it, `all` for
//! `make prove-size`, which keeps the table under benches/results.

#![cfg(all(feature = "cuda", feature = "cli"))]

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use layerstream::checkpoint::Checkpoint;
use layerstream::family;
use layerstream::program::{Matrix, Program};
use layerstream_cudasim::fingerprint::fingerprint;
use serde_json::{Value, json};

const LIMIT: u64 = 4 << 30;
const RAM: &str = "512MiB";
const MODELS: [&str; 2] = ["llama-3.1-70b", "llama-3.1-405b"];

/// Bytes of a mark: a page and eight more, so that a fingerprint, which takes eight bytes of each page, cannot miss it.
const MARK: usize = 4096 + 8;

fn layerstream() -> Command {
    Command::new(env!("CARGO_BIN_EXE_layerstream"))
}

#[test]
fn models_that_do_not_fit_pass_through_4_gib() {
    let layers = std::env::var("LAYERSTREAM_PROVE_LAYERS").unwrap_or("2".into());
    let layers =
        (layers != "all").then(|| layers.parse::<usize>().expect("LAYERSTREAM_PROVE_LAYERS is a number or `all`"));
    let rows: Vec<Value> = MODELS.iter().map(|like| prove(like, layers)).collect();
    let table = table(&rows);
    println!("{table}");
    if std::env::var("LAYERSTREAM_PROVE_KEEP").is_ok_and(|keep| keep == "1") {
        keep(&rows, &table);
    }
    for row in &rows {
        for peak in ["peak_vram_bytes", "peak_host_bytes"] {
            assert!(row[peak].as_u64().unwrap() <= LIMIT, "{peak} of {row} is above 4 GiB");
        }
    }
}

/// Runs one pass of a model and looks at all of it.
fn prove(like: &str, layers: Option<usize>) -> Value {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let model = dir.path().join("model");
    let mut synth = layerstream();
    synth.args(["synth", "--like", like, "--sparse", "--out"]).arg(&model).stderr(Stdio::null());
    if let Some(layers) = layers {
        synth.args(["--layers", &layers.to_string()]);
    }
    assert!(synth.status().unwrap().success());
    let checkpoint = Checkpoint::open(&model).unwrap();
    let program = family::program(&checkpoint).unwrap();
    let marks = mark(&checkpoint, &program);

    let [report, trace, answer] = ["report.json", "trace", "answer.json"].map(|name| dir.path().join(name));
    let mut run = layerstream();
    run.arg("generate").arg(&model).args(["--ids", "1", "--max-new-tokens", "1", "--ignore-eos", "--json"]);
    run.args(["--device", "cuda:0", "--vram", "4GiB", "--ram", RAM]);
    run.env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap());
    run.env("LAYERSTREAM_SIM_ARITHMETIC", "0").env("LAYERSTREAM_SIM_VRAM", LIMIT.to_string());
    run.env("LAYERSTREAM_SIM_REPORT", &report).env("LAYERSTREAM_SIM_TRACE", &trace);
    let begin = Instant::now();
    let mut child = run.stdout(File::create(&answer).unwrap()).spawn().unwrap();
    let peak_host = watch(&mut child);
    let seconds = begin.elapsed().as_secs_f64();
    let json = |path: &Path| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
    let (report, answer) = (json(&report), json(&answer));
    assert!(report["misuse"].is_null(), "{report}");
    assert_eq!(answer["passes"], 1);

    let delivered = check(&fs::read_to_string(&trace).unwrap(), &checkpoint, &program, &marks);
    let weights: u64 = program.matrices.iter().map(Matrix::bytes).sum();
    assert_eq!(delivered.bytes, weights, "bytes of all matrices");
    json!({
        "model": like,
        "layers": program.kv.len(),
        "checkpoint_bytes": checkpoint.bytes(),
        "pass_bytes": delivered.bytes,
        "tiles": delivered.tiles,
        "marked_tiles": delivered.marked,
        "peak_vram_bytes": report["peak_vram"],
        "peak_pinned_bytes": report["peak_pinned"],
        "peak_host_bytes": peak_host,
        "ram_bytes": answer["ram_bytes"],
        "seconds": seconds,
    })
}

/// Marks four rows of each matrix: the first, the last, and two between. Returns which.
fn mark(checkpoint: &Checkpoint, program: &Program) -> Vec<Vec<usize>> {
    let mut number = 0u64;
    let mut rows_of = |matrix: &Matrix| {
        let last = matrix.rows - 1;
        let mut rows = vec![0, last / 3, last / 3 * 2, last];
        rows.dedup();
        for row in &rows {
            let span = matrix.span(*row..row + 1);
            number += 1;
            let words = (0..MARK as u64 / 8).map(|word| (number << 20 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).take(span.len as usize).collect();
            let file = File::options().write(true).open(checkpoint.file_path(span.file)).unwrap();
            file.write_all_at(&bytes, span.offset).unwrap();
        }
        rows
    };
    program.matrices.iter().map(&mut rows_of).collect()
}

/// The most host memory that the process had. What the simulated card's memory takes of it is left out: that lies in
/// mappings of a file named `poison`, which /proc tells apart.
fn watch(child: &mut Child) -> u64 {
    let smaps = PathBuf::from(format!("/proc/{}/smaps", child.id()));
    let mut peak = 0;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            assert!(peak > 0, "the process was never looked at");
            return peak;
        }
        peak = peak.max(host_bytes(&fs::read_to_string(&smaps).unwrap_or_default()));
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn host_bytes(smaps: &str) -> u64 {
    let (mut card, mut bytes) = (false, 0);
    for line in smaps.lines() {
        match line.split_once(' ') {
            Some(("Rss:", rest)) if !card => {
                bytes += rest.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024;
            }
            // A mapping begins with its addresses.
            Some((name, _)) if !name.ends_with(':') => card = line.contains("/memfd:poison"),
            _ => {}
        }
    }
    bytes
}

struct Delivered {
    tiles: u64,
    bytes: u64,
    marked: u64,
}

/// Holds the trace against the program: each matrix in order, each of its rows once and in order, each tile's bytes.
fn check(trace: &str, checkpoint: &Checkpoint, program: &Program, marks: &[Vec<usize>]) -> Delivered {
    let mut lines = trace.lines();
    let mut zeros: HashMap<u64, u64> = HashMap::new();
    let mut delivered = Delivered { tiles: 0, bytes: 0, marked: 0 };
    for (matrix, marks) in program.matrices.iter().zip(marks) {
        let name = &matrix.tensor.name;
        let mut next = 0;
        while next < matrix.rows {
            let line = lines.next().unwrap_or_else(|| panic!("the trace ends before row {next} of {name}"));
            let [_, first, rows, k, bytes, found] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let [first, rows, k, bytes] = [first, rows, k, bytes].map(|number| number.parse::<usize>().unwrap());
            assert_eq!((first, k), (next, matrix.cols), "{name}: {line}");
            assert!(rows > 0 && first + rows <= matrix.rows, "{name}: {line}");
            assert_eq!(bytes, rows * matrix.row_bytes(), "{name}: {line}");
            let expected = if marks.iter().any(|row| (first..first + rows).contains(row)) {
                delivered.marked += 1;
                let span = matrix.span(first..first + rows);
                let mut tile = vec![0; bytes];
                File::open(checkpoint.file_path(span.file)).unwrap().read_exact_at(&mut tile, span.offset).unwrap();
                assert!(tile.iter().any(|byte| *byte != 0));
                fingerprint(&tile)
            } else {
                *zeros.entry(bytes as u64).or_insert_with(|| fingerprint(&vec![0; bytes]))
            };
            assert_eq!(found, format!("{expected:016x}"), "other bytes in rows {first} to {} of {name}", first + rows);
            delivered.tiles += 1;
            delivered.bytes += bytes as u64;
            next = first + rows;
        }
    }
    assert_eq!(lines.next(), None, "more tiles than the model has");
    delivered
}

fn table(rows: &[Value]) -> String {
    let mut text = String::from(
        "| model, bf16 | layers | weights of a pass | tiles, once and in order | of them marked | peak VRAM of 4 GiB | peak \
         host memory | --ram | time |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let gb = row["pass_bytes"].as_f64().unwrap() / 1e9;
        let mib = |key: &str| row[key].as_u64().unwrap() >> 20;
        text += &format!(
            "| {} | {} | {gb:.1} GB | {} | {} | {} MiB | {} MiB | {} MiB | {:.0} s |\n",
            row["model"].as_str().unwrap(),
            row["layers"],
            row["tiles"],
            row["marked_tiles"],
            mib("peak_vram_bytes"),
            mib("peak_host_bytes"),
            mib("ram_bytes"),
            row["seconds"].as_f64().unwrap(),
        );
    }
    text
}

/// Writes the table where results are kept.
fn keep(rows: &[Value], table: &str) {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
        output.map_or("unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1));
    let processor = name.unwrap_or("cpu");
    let (date, commit, kernel) = (
        output("date", &["-u", "+%Y-%m-%d"]),
        output("git", &["rev-parse", "--short", "HEAD"]),
        output("uname", &["-r"]),
    );
    let folder = format!("{date}-{}", processor.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "-"));
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results").join(folder);
    fs::create_dir_all(&out).unwrap();
    let machine = json!({"date": date, "commit": commit, "processor": processor, "kernel": kernel});
    let record = json!({"command": "make prove-size", "machine": machine, "models": rows});
    fs::write(out.join("prove-size.json"), serde_json::to_string_pretty(&record).unwrap() + "\n").unwrap();
    let head = "# Models that do not fit, through a GPU of 4 GiB\n\n`make prove-size`, sparse checkpoints, one pass of one token \
                on the simulated driver without arithmetic: memory and delivery are shown, not speed. VRAM is the driver's \
                count, its context and its page tables included. Host memory is the process' resident memory without the \
                mappings that play the card's.";
    fs::write(out.join("prove-size.md"), format!("{head}\n\n{machine}\n\n{table}")).unwrap();
}

//! The result, as a table for people and as JSON, whose fields docs/disk2gpu.md describes: they are the fields of the
//! structs here.

use std::fmt::Write;

use serde::Serialize;

use crate::cli::table::{data, memory};

use super::args::Cache;
use super::fio::Fio;
use super::machine::{Drive, Host};
use super::sample::{Pages, Sample};
use super::stats::{Latency, Spread};
use super::sweep::Sweep;

/// What the JSON is; another number where a field changes its meaning or is gone.
pub const SCHEMA: &str = "layerstream.disk2gpu/1";

/// Bytes of a GB.
const GB: f64 = 1e9;

#[derive(Serialize)]
pub struct Report {
    pub schema: &'static str,
    /// Of this program.
    pub version: &'static str,
    pub git: Option<String>,
    /// UTC, ISO 8601.
    pub date: String,
    pub host: Host,
    pub devices: Vec<Drive>,
    pub gpu: Option<GpuFacts>,
    pub config: Config,
    pub runs: Vec<Run>,
    pub roofline: Option<Roofline>,
    pub sweep: Option<Sweep>,
    pub fio: Option<Fio>,
    pub warnings: Vec<String>,
}

/// The GPU.
#[derive(Clone, Debug, Serialize)]
pub struct GpuFacts {
    pub name: String,
    /// The CUDA version that the driver has.
    pub driver: String,
    /// Generation such as 90 for compute capability 9.0.
    pub sm: u32,
    pub memory_bytes: u64,
    /// Where it sits, and how wide its link was just after copies; absent where the system does not tell.
    pub pcie: Option<Pcie>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Pcie {
    pub address: String,
    pub speed: Option<String>,
    pub width: Option<String>,
    pub max_speed: Option<String>,
    pub max_width: Option<String>,
    pub numa_node: Option<u32>,
}

/// What was asked for, after defaults.
#[derive(Serialize)]
pub struct Config {
    pub files: Vec<FileFacts>,
    pub replicas: usize,
    pub striped: bool,
    pub scratch: bool,
    /// Bytes read in a repetition.
    pub bytes: u64,
    /// What the files hold, read or not.
    pub available_bytes: u64,
    /// Absent where it was left to be found out.
    pub reader: Option<String>,
    pub chunk_bytes: usize,
    /// Reads in flight for each drive.
    pub depth: usize,
    pub threads: Option<usize>,
    pub ring_bytes: usize,
    pub cache: Cache,
    pub warmup: usize,
    pub repetitions: usize,
    pub verify: bool,
    /// The same with fio, on huge pages.
    pub fio_command: String,
}

#[derive(Serialize)]
pub struct FileFacts {
    pub path: String,
    /// How much of it is read, from its beginning.
    pub bytes: u64,
    /// CRC-32 of these bytes, in hexadecimal; absent where nothing was verified.
    pub crc32: Option<String>,
}

/// One stage, over all repetitions.
#[derive(Serialize)]
pub struct Run {
    pub stage: Stage,
    /// The readers that really ran: of the original, of each replica. None for copies alone.
    pub readers: Vec<String>,
    pub threads: usize,
    pub chunk_bytes: usize,
    pub in_flight: usize,
    /// Host memory that the bytes go through, how much of it lies on 2 MiB pages, how much is pinned for the disk or the
    /// GPU.
    pub memory_bytes: usize,
    pub huge_bytes: usize,
    pub pages: Pages,
    pub pinned_bytes: usize,
    /// Of a repetition.
    pub bytes: u64,
    pub samples_gbps: Vec<f64>,
    pub gbps: Spread,
    /// How long chunks took, over all repetitions; see `latency_of`.
    pub latency_ms: Option<Latency>,
    /// What of a chunk: its read (asked for until landed), its copy, or both (asked for until on the GPU).
    pub latency_of: &'static str,
    pub cpu_s_per_gb: f64,
    /// Getting ready: threads, memory, registration. In none of the other figures.
    pub init_s: f64,
    pub stalls: Stalls,
    /// Whether the CRC-32 of what arrived was that of the files; absent where nothing was verified.
    pub verified: Option<bool>,
}

/// Fractions of the time.
#[derive(Serialize)]
pub struct Stalls {
    /// Whoever takes chunks waited for the disk.
    pub disk: Option<f64>,
    /// The disk had nothing to do since the ring was full.
    pub copy: Option<f64>,
}

/// The slower of the stages alone, and how much of it the path reaches that does everything at once.
#[derive(Serialize)]
pub struct Roofline {
    pub disk_gbps: f64,
    pub h2d_gbps: Option<f64>,
    /// `disk` or `h2d`.
    pub limit: &'static str,
    /// The path, and its fraction of the limit.
    pub of: Stage,
    pub fraction: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Stage {
    #[serde(rename = "disk-host")]
    DiskHost,
    #[serde(rename = "disk-ring")]
    DiskRing,
    #[serde(rename = "host-gpu-pinned")]
    Pinned,
    #[serde(rename = "host-gpu-pageable")]
    Pageable,
    #[serde(rename = "disk-gpu")]
    DiskGpu,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::DiskHost => "disk -> host",
            Stage::DiskRing => "disk -> ring",
            Stage::Pinned => "host -> GPU, pinned",
            Stage::Pageable => "host -> GPU, pageable",
            Stage::DiskGpu => "disk -> GPU",
        }
    }

    pub fn reads(self) -> bool {
        matches!(self, Stage::DiskHost | Stage::DiskRing | Stage::DiskGpu)
    }
}

impl Run {
    /// Of at least one sample.
    pub fn of(stage: Stage, chunk: usize, samples: &[Sample], verified: Option<bool>) -> Option<Run> {
        let last = samples.last()?;
        let gbps: Vec<f64> = samples.iter().map(|s| s.bytes as f64 / GB / s.seconds).collect();
        let median = |value: &dyn Fn(&Sample) -> Option<f64>| {
            Spread::of(samples.iter().filter_map(value)).map(|spread| spread.median)
        };
        let facts = &last.facts;
        Some(Run {
            stage,
            readers: facts.readers.iter().map(ToString::to_string).collect(),
            threads: facts.threads,
            chunk_bytes: chunk,
            in_flight: facts.in_flight,
            memory_bytes: facts.memory,
            huge_bytes: facts.huge,
            pages: facts.pages(),
            pinned_bytes: facts.pinned(),
            bytes: last.bytes,
            gbps: Spread::of(gbps.iter().copied())?,
            samples_gbps: gbps,
            latency_ms: Latency::of(samples.iter().flat_map(|s| s.latencies.iter().copied())),
            latency_of: match stage {
                Stage::DiskHost | Stage::DiskRing => "read",
                Stage::Pinned | Stage::Pageable => "copy",
                Stage::DiskGpu => "read and copy",
            },
            cpu_s_per_gb: median(&|s| Some(s.cpu_seconds / (s.bytes as f64 / GB)))?,
            init_s: median(&|s| Some(s.init_seconds))?,
            stalls: Stalls {
                disk: median(&|s| Some(s.waited_for_disk? / s.seconds)),
                copy: median(&|s| Some(s.waited_for_copy? / s.seconds)),
            },
            verified,
        })
    }
}

impl Roofline {
    /// What the runs say about each other, if the path is among them and what it is compared with.
    pub fn of(runs: &[Run]) -> Option<Roofline> {
        let speed = |stage| runs.iter().find(|run| run.stage == stage).map(|run| run.gbps.median);
        let disk = speed(Stage::DiskHost)?;
        let h2d = speed(Stage::Pinned);
        let (of, path) = match speed(Stage::DiskGpu) {
            Some(path) => (Stage::DiskGpu, path),
            None => (Stage::DiskRing, speed(Stage::DiskRing)?),
        };
        let (limit, slower) = match h2d.filter(|&h2d| of == Stage::DiskGpu && h2d < disk) {
            Some(h2d) => ("h2d", h2d),
            None => ("disk", disk),
        };
        Some(Roofline { disk_gbps: disk, h2d_gbps: h2d, limit, of, fraction: path / slower })
    }
}

/// The table and what there is to say about it.
pub fn table(report: &Report) -> String {
    let config = &report.config;
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string");
    for file in config.files.iter().take(4) {
        line(format!("{}: {}", file.path, data(file.bytes)));
    }
    if config.files.len() > 4 {
        line(format!("and {} more files, {} in all", config.files.len() - 4, data(config.bytes)));
    }
    if config.bytes < config.available_bytes {
        line(format!("read is the beginning of {} (--bytes)", data(config.available_bytes)));
    }
    for drive in &report.devices {
        let facts = [drive.fs.as_deref(), drive.name.as_deref(), drive.model.as_deref()];
        line(format!("on {}", facts.into_iter().flatten().collect::<Vec<_>>().join(", ")));
    }
    let gpu = report.gpu.as_ref();
    line(gpu.map_or("GPU: none was used; disk to host only".into(), |gpu| {
        format!("GPU: {} (CUDA {})", gpu.name, gpu.driver)
    }));
    if !report.runs.is_empty() {
        line(String::new());
        line(columns(&rows(report)));
        for run in report.runs.iter().filter(|run| run.stage.reads()) {
            let pages = format!("{} on {} pages", memory(run.memory_bytes as u64), page_name(run.pages));
            let registered = if run.pinned_bytes > 0 { ", registered" } else { "" };
            let readers = run.readers.join(" + ");
            let reads = format!("{} x {} by {readers}", memory(run.chunk_bytes as u64), run.in_flight);
            line(format!("{}: {reads}, {} of reading; {pages}{registered}", run.stage.name(), threads(run.threads)));
        }
        let cache = match config.cache {
            _ if report.runs.iter().flat_map(|run| &run.readers).all(|r| r == "uring" || r == "pread") => {
                "past the page cache"
            }
            Cache::Cold => "page cache dropped before each run",
            Cache::Warm => "read through the page cache before each run",
        };
        line(format!("Reads: {cache}. GB = 10^9 bytes. Getting ready is not counted."));
    }
    if let Some(roofline) = &report.roofline {
        let limit = if roofline.limit == "disk" { "the disk" } else { "copying to the GPU" };
        line(format!("The limit is {limit}. {} reaches {:.3} of it.", roofline.of.name(), roofline.fraction));
    }
    if let Some(fio) = &report.fio {
        for run in &fio.runs {
            let result = Spread::of(run.samples_gbps.iter().copied());
            let result = result.map(|spread| format!("{} GB/s", range(&spread)));
            let error = run.error.clone().unwrap_or_default();
            line(format!("{} --iomem={}: {}", fio.version, run.iomem, result.unwrap_or(error)));
        }
    }
    line(format!("The same with fio (huge pages need `sysctl vm.nr_hugepages`):\n  {}", config.fio_command));
    out
}

fn threads(n: usize) -> String {
    crate::cli::table::count(n, "thread")
}

fn page_name(pages: Pages) -> &'static str {
    match pages {
        Pages::Huge => "2 MiB",
        Pages::Small => "4 KiB",
        Pages::Mixed => "2 MiB and 4 KiB",
    }
}

fn range(spread: &Spread) -> String {
    format!("{:.2} [{:.2}-{:.2}]", spread.median, spread.min, spread.max)
}

/// One row for each stage, under two rows of headings.
fn rows(report: &Report) -> Vec<Vec<String>> {
    let head = |cells: [&str; 11]| cells.map(String::from).to_vec();
    let mut rows = vec![
        head(["", "GB/s", "ms a chunk", "", "", "", "CPU s", "pinned", "waits for", "", ""]),
        head(["", "median [min-max]", "p50", "p90", "p99", "max", "per GB", "MiB", "disk", "copy", "content"]),
    ];
    for run in &report.runs {
        let ms =
            |pick: fn(&Latency) -> f64| run.latency_ms.as_ref().map_or(String::new(), |l| format!("{:.2}", pick(l)));
        let share = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1}%", share * 100.0));
        let content = match run.verified {
            Some(true) => "verified",
            Some(false) => "DIFFERS",
            None => "unverified",
        };
        rows.push(vec![
            run.stage.name().into(),
            range(&run.gbps),
            ms(|l| l.p50),
            ms(|l| l.p90),
            ms(|l| l.p99),
            ms(|l| l.max),
            format!("{:.3}", run.cpu_s_per_gb),
            format!("{}", run.pinned_bytes >> 20),
            share(run.stalls.disk),
            share(run.stalls.copy),
            content.into(),
        ]);
    }
    rows
}

/// Cells in columns: the first and the last to the left, the others to the right.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let cell = |(column, text): (usize, &String)| match column {
        0 => format!("{text:<width$}", width = widths[0]),
        last if last + 1 == count => text.clone(),
        _ => format!("{text:>width$}", width = widths[column]),
    };
    let line =
        |row: &Vec<String>| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_string();
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stage: Stage, gbps: f64) -> Run {
        let sample = Sample { bytes: (gbps * 1e9) as u64, seconds: 1.0, ..Sample::default() };
        Run::of(stage, 4096, &[sample], None).unwrap()
    }

    #[test]
    fn the_slower_stage_is_the_limit() {
        let runs = |disk, h2d, path| {
            [run(Stage::DiskHost, disk), run(Stage::DiskRing, 1.0), run(Stage::Pinned, h2d), run(Stage::DiskGpu, path)]
        };
        let bound = Roofline::of(&runs(4.0, 20.0, 3.8)).unwrap();
        assert_eq!((bound.limit, bound.of), ("disk", Stage::DiskGpu));
        assert!((bound.fraction - 0.95).abs() < 1e-9);
        let bound = Roofline::of(&runs(14.0, 10.0, 9.0)).unwrap();
        assert_eq!(bound.limit, "h2d");
        assert!((bound.fraction - 0.9).abs() < 1e-9);
        let alone = Roofline::of(&[run(Stage::DiskHost, 4.0), run(Stage::DiskRing, 3.0)]).unwrap();
        assert_eq!((alone.limit, alone.of, alone.h2d_gbps), ("disk", Stage::DiskRing, None));
        assert!(Roofline::of(&[run(Stage::Pinned, 1.0)]).is_none());
    }

    #[test]
    fn figures_are_per_gb_and_medians() {
        let sample = |seconds: f64, cpu: f64| Sample {
            bytes: 2_000_000_000,
            seconds,
            cpu_seconds: cpu,
            waited_for_disk: Some(seconds / 2.0),
            latencies: vec![seconds],
            ..Sample::default()
        };
        let run =
            Run::of(Stage::DiskRing, 1, &[sample(1.0, 0.2), sample(2.0, 0.6), sample(4.0, 0.4)], Some(true)).unwrap();
        assert_eq!((run.gbps.median, run.gbps.min, run.gbps.max), (1.0, 0.5, 2.0));
        assert!((run.cpu_s_per_gb - 0.2).abs() < 1e-9);
        assert_eq!((run.stalls.disk, run.stalls.copy), (Some(0.5), None));
        assert_eq!(run.latency_ms.unwrap().max, 4000.0);
    }
}

//! How much of the drive's bandwidth the conveyor delivers: raw direct reads over chunk sizes and depths, and the conveyor
//! with a consumer that does nothing, taking turns on the same files.
//!
//! `cargo bench --bench disk -- FILE…` (large files, on the drive in question; without any, a small one is made).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use layerstream::Result;
use layerstream::checkpoint::{FileId, Span};
use layerstream::disk::{DiskOptions, ReaderKind, Source, measure};
use layerstream::plan::Tier;
use layerstream::stream::{Conveyor, TileRead};

const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(1500);
const TILE: u64 = 8 << 20;

fn main() -> Result<()> {
    let mut files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).map(PathBuf::from).collect();
    let made = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary file");
    if files.is_empty() {
        let noise: Vec<u8> = (0..64u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(made.path(), noise.repeat(8)).expect("room for 512 MiB");
        files.push(made.path().into());
    }
    let source = Source { files, ..Source::default() };

    let mut results: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (name, run) in cases() {
            let (speed, load) = run(&source)?;
            results.entry(name).or_default().push((speed / 1e9, load * 100.0));
        }
    }
    println!("{:34} {:>8} {:>8} {:>8} {:>7}", "case", "median", "min", "max", "cpu %");
    for (name, mut samples) in results {
        samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (median, load) = samples[samples.len() / 2];
        println!("{name:34} {median:8.3} {:8.3} {:8.3} {load:7.1}", samples[0].0, samples[samples.len() - 1].0);
    }
    Ok(())
}

/// Gives bytes per second, and how much of one core that took.
type Run = Box<dyn Fn(&Source) -> Result<(f64, f64)>>;

fn cases() -> Vec<(String, Run)> {
    let mut cases: Vec<(String, Run)> = Vec::new();
    for (mib, depth) in [(1, 16), (1, 64), (2, 16), (2, 32), (4, 8), (4, 16), (4, 32), (8, 8), (8, 16)] {
        let options = options(ReaderKind::Uring, Some((mib << 20, depth)));
        let raw = move |source: &Source| {
            let load = Load::start();
            Ok((measure(source, &options, TIME)?, load.share()))
        };
        cases.push((format!("raw uring {mib} MiB x {depth}"), Box::new(raw)));
    }
    for (kind, sizes) in [
        (ReaderKind::Uring, None),
        (ReaderKind::Uring, Some((4 << 20, 16))),
        (ReaderKind::Pread, Some((4 << 20, 16))),
        (ReaderKind::Buffered, Some((4 << 20, 16))),
    ] {
        let how = if sizes.is_some() { "4 MiB x 16" } else { "measured" };
        let run = move |source: &Source| conveyor(source, &options(kind, sizes));
        cases.push((format!("conveyor {kind} {how}"), Box::new(run)));
    }
    cases
}

fn options(reader: ReaderKind, sizes: Option<(usize, usize)>) -> DiskOptions {
    let (chunk_bytes, depth) = sizes.unzip();
    DiskOptions { reader: Some(reader), chunk_bytes, depth, ..DiskOptions::default() }
}

/// What a consumer gets who does nothing with the bytes.
fn conveyor(source: &Source, options: &DiskOptions) -> Result<(f64, f64)> {
    let mut conveyor = Conveyor::start(source, tiles(source), 256 << 20, options)?;
    drop(conveyor.next()?);
    let before = conveyor.stats().bytes_read;
    let (start, load) = (Instant::now(), Load::start());
    while start.elapsed() < TIME {
        drop(conveyor.next()?);
    }
    let bytes = conveyor.stats().bytes_read - before;
    Ok((bytes as f64 / start.elapsed().as_secs_f64(), load.share()))
}

/// The files from end to end, from an unaligned start as in real checkpoints.
fn tiles(source: &Source) -> Vec<TileRead> {
    let mut tiles = Vec::new();
    for (id, path) in source.files.iter().enumerate() {
        let len = std::fs::metadata(path).expect("is a file").len();
        for offset in (1000..len).step_by(TILE as usize) {
            let span = Span { file: FileId(id as u32), offset, len: TILE.min(len - offset) };
            tiles.push(TileRead { span, tier: Tier::Disk });
        }
    }
    tiles
}

/// Processor time since a moment.
struct Load {
    since: Instant,
    before: f64,
}

impl Load {
    fn start() -> Load {
        Load { since: Instant::now(), before: processor_seconds() }
    }

    fn share(&self) -> f64 {
        (processor_seconds() - self.before) / self.since.elapsed().as_secs_f64()
    }
}

/// User and system time of this process so far, in seconds.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    // Clock ticks are 1/100 s on every Linux that runs here.
    ticks as f64 / 100.0
}

//! `disk2gpu`: how fast bytes get from disk to memory, to the GPU, and all the way. The stages take turns, so that a drive
//! that gets slower meanwhile does so for all of them.

mod args;
mod fio;
#[path = "no_gpu.rs"]
mod gpu;
mod machine;
mod read;
mod report;
mod sample;
mod scratch;
mod stats;
mod sums;
mod sweep;
mod work;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::Advice;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use crate::disk::memory::HUGE_PAGE;
use crate::disk::mmap::cached_share;
use crate::disk::{DiskOptions, Geometry, ReaderKind, open_drives};
use crate::engine::StopFlag;
use crate::error::{Error, Result};

use super::output::{self, tell};
use super::{finish, interrupt, start_logging};
use args::{Cache, Cli, Verify};
use gpu::Gpu;
use read::How;
use report::{Config, FileFacts, Report, Roofline, Run, Stage};
use sample::Sample;
use stats::Spread;
use sweep::{Map, Sweep};
use work::Work;

/// The most bytes that are verified without being asked to.
const VERIFIED: u64 = 8 << 30;

/// Runs the measurement that the arguments of this process ask for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // What the conveyor has to say at each of its starts is in the report, once.
    let quiet = Targets::new().with_target("layerstream::disk", LevelFilter::WARN).with_default(LevelFilter::ERROR);
    start_logging(quiet);
    finish("disk2gpu", interrupt::install().and_then(|()| run(&cli)))
}

fn check(stop: &StopFlag) -> Result<()> {
    if stop.is_set() { Err(Error::Interrupted) } else { Ok(()) }
}

fn run(cli: &Cli) -> Result<()> {
    let stop = StopFlag::default();
    // The second Ctrl-C ends the program where it is; scratch files have no name that could be left behind.
    interrupt::on_next(interrupt::Reaction::Stop(stop.clone()));
    if let Some(path) = &cli.sweep {
        sweep::must_be_new(path)?;
    }
    let fio = if cli.fio { Some(fio::find()?) } else { None };
    let gpu = gpu::open(cli.device)?;
    let bar = Bar::new();
    let work = Work::find(cli, &stop, &mut |done, all| bar.bytes("writing the scratch file", done, all))?;
    let mut bench = Bench::new(cli, work, gpu, stop, bar)?;
    bench.fio = fio;
    let (report, caption) = match &cli.sweep {
        Some(_) => bench.sweep(cli)?,
        None => (bench.measure(cli)?, String::new()),
    };
    if let (Some(sweep), Some(path)) = (&report.sweep, &cli.sweep) {
        sweep::write(sweep, &caption, path)?;
    }
    bench.bar.finish();
    for warning in &report.warnings {
        tell(format!("warning: {warning}\n"));
    }
    if cli.json {
        output::json(&report)?;
    } else {
        output::print(&(report::table(&report) + &sweep_summary(&report, cli)))?;
    }
    let wrong: Vec<&str> =
        report.runs.iter().filter(|run| run.verified == Some(false)).map(|run| run.stage.name()).collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::Request(format!("what arrived is not what the files hold: {}", wrong.join(", ")))),
    }
}

fn sweep_summary(report: &Report, cli: &Cli) -> String {
    let (Some(sweep), Some(path)) = (&report.sweep, &cli.sweep) else { return String::new() };
    let best = |map: &Map| {
        let (chunk, depth, gbps) = map.best()?;
        let chunk = super::table::memory(sweep.chunks[chunk] as u64);
        Some(format!("{}: {gbps:.2} GB/s with {chunk} x {}\n", map.stage.name(), sweep.depths[depth]))
    };
    let lines: String = sweep.maps.iter().filter_map(best).collect();
    format!("{lines}The whole map: {}\n", path.display())
}

/// Everything that a measurement needs.
struct Bench {
    work: Work,
    how: How,
    /// Or why there is none.
    gpu: std::result::Result<Gpu, String>,
    cache: Cache,
    stop: StopFlag,
    bar: Bar,
    fio: Option<fio::Fio>,
    warnings: Vec<String>,
    /// The reader of the original.
    reader: ReaderKind,
}

impl Bench {
    fn new(cli: &Cli, work: Work, gpu: std::result::Result<Gpu, String>, stop: StopFlag, bar: Bar) -> Result<Bench> {
        let chunk = usize::try_from(cli.chunk).unwrap_or(usize::MAX);
        let mut disk = DiskOptions {
            reader: cli.reader,
            chunk_bytes: Some(chunk),
            depth: Some(cli.depth),
            threads: cli.threads,
            keep_cached: cli.cache == Cache::Warm,
        };
        disk.check()?;
        let drives = open_drives(&work.source, &Geometry::of(&work.source)?, &disk)?;
        let reader = drives[0].kind;
        if drives.iter().all(|drive| drive.kind == reader) {
            // Found out once: probing says so aloud each time.
            disk.reader = Some(reader);
        }
        let mut bench = Bench {
            how: How { disk, chunk, depth: cli.depth, ring: 0, sums: false },
            work,
            gpu,
            cache: cli.cache,
            stop,
            bar,
            fio: None,
            warnings: Vec::new(),
            reader,
        };
        if cli.sweep.is_none() {
            bench.how = bench.how_with(cli, cli.chunk, cli.depth)?;
        }
        if let Err(reason) = &bench.gpu {
            bench.warnings.push(format!("no GPU: {reason}; measuring disk to host only"));
        }
        Ok(bench)
    }

    /// How to read with this chunk and depth.
    ///
    /// # Errors
    /// Sizes that make no sense, or that there is no memory for.
    fn how_with(&self, cli: &Cli, chunk: u64, depth: usize) -> Result<How> {
        let asked = usize::try_from(chunk).unwrap_or(usize::MAX);
        // Drives that share a queue share its depth.
        let depth = depth.saturating_mul(self.work.striped.max(1));
        let disk = DiskOptions { chunk_bytes: Some(asked), depth: Some(depth), ..self.how.disk.clone() };
        disk.check()?;
        let chunk = asked.next_multiple_of(self.work.align);
        let in_flight = chunk.saturating_mul(depth).saturating_mul(self.work.queues());
        let ring = match cli.ring {
            Some(ring) => usize::try_from(ring).unwrap_or(usize::MAX),
            None => in_flight.saturating_mul(2),
        };
        if ring < chunk {
            return Err(Error::Request(format!("--ring {ring}: it does not hold one chunk of {chunk} bytes")));
        }
        // Of which the ring is at most as long as what passes through it.
        let needed = in_flight.max(ring.min(self.work.total() as usize)) as u64;
        let available = crate::memory::available()?;
        if needed > available {
            return Err(Error::Budget(format!(
                "{needed} bytes of memory are needed for reads of {chunk} bytes with {depth} in flight, and {available} \
                 are available: make --chunk, --depth or --ring smaller"
            )));
        }
        Ok(How { disk, chunk, depth, ring, sums: false })
    }

    /// One run of one stage.
    fn run(&self, stage: Stage, how: &How) -> Result<Sample> {
        check(&self.stop)?;
        if stage.reads() && !self.reader.is_direct() {
            self.prepare_cache()?;
        }
        match (stage, &self.gpu) {
            (Stage::DiskHost, _) => read::raw(&self.work, how, &self.stop),
            (Stage::DiskRing, _) => read::in_order(&self.work, how, &self.stop),
            (stage, Ok(gpu)) => gpu.run(stage, &self.work, how, &self.stop),
            (_, Err(_)) => unreachable!("stages with a GPU run where there is one"),
        }
    }

    /// Drops the files from the page cache, or reads them into it.
    fn prepare_cache(&self) -> Result<()> {
        for path in self.work.all_files() {
            let mut file = File::open(path).map_err(Error::io(path, "open"))?;
            match self.cache {
                // Advice only: what it leaves is told by `still_cached`.
                Cache::Cold => drop(rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)),
                Cache::Warm => warm(&mut file, path, &self.stop)?,
            }
        }
        Ok(())
    }

    /// The largest fraction of a file that is in the page cache although it should not be.
    fn still_cached(&self) -> Result<f64> {
        self.prepare_cache()?;
        let share = |path: &Path| File::open(path).and_then(|f| cached_share(&f)).map_err(Error::io(path, "look at"));
        self.work.all_files().map(share).try_fold(0.0, |most: f64, share| Ok(most.max(share?)))
    }

    fn stages(&self) -> Vec<Stage> {
        let mut stages = vec![Stage::DiskHost, Stage::DiskRing];
        if self.gpu.is_ok() {
            stages.extend([Stage::Pinned, Stage::Pageable, Stage::DiskGpu]);
        }
        stages
    }

    /// Every stage, in turns.
    fn measure(&mut self, cli: &Cli) -> Result<Report> {
        let (stages, repetitions) = (self.stages(), cli.repetitions.unwrap_or(5));
        let verify = match cli.verify {
            Verify::Auto => self.work.total() <= VERIFIED,
            Verify::Always => true,
            Verify::Never => false,
        };
        self.warn_of_little();
        let steps = stages.len() * (cli.warmup + repetitions + usize::from(verify));
        self.bar.steps(steps as u64);
        let mut expected = None;
        let mut verified: Vec<Option<bool>> = vec![None; stages.len()];
        if verify {
            self.bar.say("summing the files");
            let sums = self.work.sums(&self.stop)?;
            let how = How { sums: true, ..self.how.clone() };
            let pieces = self.work.pieces(how.chunk);
            for (stage, verified) in stages.iter().zip(&mut verified) {
                self.bar.say(&format!("verifying {}", stage.name()));
                let found = self.run(*stage, &how)?.sums.unwrap_or_default();
                *verified = Some(sums::join(&pieces, &found, sums.len()) == sums);
                self.bar.step();
            }
            expected = Some(sums);
        }
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); stages.len()];
        for round in 0..cli.warmup + repetitions {
            for (stage, samples) in stages.iter().zip(&mut samples) {
                let counts = round >= cli.warmup;
                let name = if counts { "measuring" } else { "warming up" };
                self.bar.say(&format!("{name} {}", stage.name()));
                let sample = self.run(*stage, &self.how)?;
                if counts {
                    samples.push(sample);
                }
                self.bar.step();
            }
            self.run_fio(round >= cli.warmup)?;
        }
        let each = stages.iter().zip(&samples).zip(&verified);
        let of = each.filter_map(|((&stage, samples), &verified)| Run::of(stage, self.how.chunk, samples, verified));
        let runs: Vec<Run> = of.collect();
        self.warn_of_runs(&runs);
        self.report(cli, repetitions, expected, runs, None)
    }

    fn run_fio(&mut self, counts: bool) -> Result<()> {
        let Some(fio) = self.fio.as_mut().filter(|_| counts) else { return Ok(()) };
        for run in &mut fio.runs {
            check(&self.stop)?;
            self.bar.say(&format!("measuring with fio, {}", run.iomem));
            run.run(&self.work, &fio::arguments(&self.work, self.reader, self.how.chunk, self.how.depth, run.iomem));
        }
        Ok(())
    }

    /// The stages from disk over all chunks and depths, in turns; also what to write under the picture's title.
    fn sweep(&mut self, cli: &Cli) -> Result<(Report, String)> {
        let repetitions = cli.repetitions.unwrap_or(3);
        let stages: Vec<Stage> =
            self.stages().into_iter().filter(|stage| matches!(stage, Stage::DiskHost | Stage::DiskGpu)).collect();
        let (chunks, depths) = (&cli.sweep_chunks, &cli.sweep_depths);
        let mut places = Vec::new();
        for (row, &chunk) in chunks.iter().enumerate() {
            for (column, &depth) in depths.iter().enumerate() {
                match self.how_with(cli, chunk, depth) {
                    Ok(how) => places.push((row, column, how)),
                    // Of a sweep the rest can still be measured.
                    Err(Error::Budget(reason)) => self.warnings.push(reason),
                    Err(e) => return Err(e),
                }
            }
        }
        if places.is_empty() {
            return Err(Error::Budget(self.warnings.pop().unwrap_or_default()));
        }
        self.bar.steps((places.len() * stages.len() * repetitions) as u64);
        let mut samples = vec![vec![vec![Vec::new(); depths.len()]; chunks.len()]; stages.len()];
        for _ in 0..repetitions {
            for (row, column, how) in &places {
                for (stage, samples) in stages.iter().zip(&mut samples) {
                    self.bar.say(&format!("{} x {}", super::table::memory(how.chunk as u64), how.depth));
                    let sample = self.run(*stage, how)?;
                    samples[*row][*column].push(sample.bytes as f64 / 1e9 / sample.seconds);
                    self.bar.step();
                }
            }
        }
        let median = |samples: &Vec<f64>| Spread::of(samples.iter().copied()).map(|spread| spread.median);
        let map = |(&stage, samples): (&Stage, &Vec<Vec<Vec<f64>>>)| Map {
            stage,
            gbps: samples.iter().map(|row| row.iter().map(median).collect()).collect(),
        };
        let sweep = Sweep {
            chunks: chunks.iter().map(|&chunk| chunk as usize).collect(),
            depths: depths.clone(),
            maps: stages.iter().zip(&samples).map(map).collect(),
        };
        // The fio command that the report names is that of the best place.
        let best = sweep.maps.first().and_then(Map::best);
        if let Some((.., how)) =
            places.into_iter().find(|(row, column, _)| best.is_some_and(|b| (b.0, b.1) == (*row, *column)))
        {
            self.how = how;
        }
        let report = self.report(cli, repetitions, None, Vec::new(), Some(sweep))?;
        let drive = report.devices.first();
        let drive = drive.map(|drive| [drive.name.clone(), drive.fs.clone()].into_iter().flatten().collect::<Vec<_>>());
        let caption = format!(
            "{}; {}, {}; {}; Linux {}; {}",
            drive.unwrap_or_default().join(", "),
            super::table::data(report.config.bytes),
            super::table::count(repetitions, "time"),
            self.reader,
            report.host.kernel,
            &report.date[..10]
        );
        Ok((report, caption))
    }

    fn report(
        &mut self,
        cli: &Cli,
        repetitions: usize,
        sums: Option<Vec<u32>>,
        runs: Vec<Run>,
        sweep: Option<Sweep>,
    ) -> Result<Report> {
        let devices = machine::Drive::of(&self.work.places(), |i| {
            self.work.source.files.get(i).cloned().unwrap_or_else(|| self.work.places()[i].clone())
        });
        for drive in devices.iter().filter(|drive| drive.is_memory()) {
            self.warnings.push(format!("{} is memory, not a drive", drive.path));
        }
        let file = |i: usize| FileFacts {
            path: self.work.label(i),
            bytes: self.work.bytes[i],
            crc32: sums.as_ref().map(|sums| format!("{:08x}", sums[i])),
        };
        let fio_arguments = fio::arguments(&self.work, self.reader, self.how.chunk, self.how.depth, fio::MEMORY[0]);
        let config = Config {
            files: (0..self.work.source.files.len()).map(file).collect(),
            replicas: self.work.source.replicas.len(),
            striped: self.work.striped > 0,
            scratch: self.work.is_scratch(),
            bytes: self.work.total(),
            available_bytes: self.work.available,
            reader: cli.reader.map(|reader| reader.to_string()),
            chunk_bytes: self.how.chunk,
            depth: cli.depth,
            threads: cli.threads,
            ring_bytes: self.how.ring,
            cache: self.cache,
            warmup: cli.warmup,
            repetitions,
            verify: sums.is_some(),
            fio_command: fio::command(&fio_arguments),
        };
        Ok(Report {
            schema: report::SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            git: machine::commit(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            host: machine::Host::look(),
            devices,
            gpu: self.gpu.as_ref().ok().map(Gpu::facts).transpose()?,
            config,
            roofline: Roofline::of(&runs),
            runs,
            sweep,
            fio: self.fio.take(),
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    /// What can be said before anything is measured.
    fn warn_of_little(&mut self) {
        let (total, in_flight) = (self.work.total(), (self.how.chunk * self.how.depth) as u64);
        if total < 8 * in_flight {
            self.warnings.push(format!(
                "{total} bytes are few beside the {in_flight} in flight: bandwidths of so short runs say little"
            ));
        }
        if self.how.ring < self.how.chunk * self.how.depth {
            let depth = self.how.ring / self.how.chunk;
            self.warnings.push(format!("the ring has room for {depth} chunks, so no more are in flight through it"));
        }
    }

    fn warn_of_runs(&mut self, runs: &[Run]) {
        if runs.iter().any(|run| run.stage.reads() && run.memory_bytes >= 2 * HUGE_PAGE && run.huge_bytes == 0) {
            let message = "reads went into 4 KiB pages, which can cost half of the bandwidth: allow 2 MiB pages with";
            self.warnings.push(format!("{message} `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`"));
        }
        if runs.iter().any(|run| run.readers.iter().any(|reader| reader == "uring") && run.pinned_bytes == 0) {
            let message = "the kernel did not register the buffers of io_uring (`ulimit -l`?)";
            self.warnings.push(format!("{message}: reads take more processor time"));
        }
        if !self.reader.is_direct() && self.cache == Cache::Cold {
            match self.still_cached() {
                Ok(share) if share > 0.01 => self.warnings.push(format!(
                    "{:.0} % of a file stays in the page cache: these figures are not cold; `echo 3 > \
                     /proc/sys/vm/drop_caches`, and nobody else may have the file open",
                    share * 100.0
                )),
                Ok(_) => {}
                Err(e) => self.warnings.push(format!("cannot tell whether the page cache is cold: {e}")),
            }
        }
    }
}

/// Reads a file into the page cache.
fn warm(file: &mut File, path: &Path, stop: &StopFlag) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).map_err(Error::io(path, "read"))? > 0 {
        check(stop)?;
    }
    Ok(())
}

/// What is being done, on a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::new(0);
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar(bar)
    }

    fn style(&self, template: &str) {
        self.0.set_style(ProgressStyle::with_template(template).expect("a valid template").progress_chars("##-"));
    }

    fn bytes(&self, what: &'static str, done: u64, all: u64) {
        if self.0.length() != Some(all) {
            self.style("{wide_bar} {msg}: {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
            self.0.set_message(what);
            self.0.set_length(all);
        }
        self.0.set_position(done);
    }

    fn steps(&self, steps: u64) {
        self.style("{wide_bar} {pos} of {len}: {msg}");
        self.0.set_position(0);
        self.0.set_length(steps);
    }

    fn say(&self, what: &str) {
        self.0.set_message(what.to_string());
    }

    fn step(&self) {
        self.0.inc(1);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

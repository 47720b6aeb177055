//! The workbench for research on kernels: `kernels list`, `check`, `bench`, `sweep`, `report`. See kernels/README.md.

mod gpu;
mod measure;
mod peers;
mod report;
mod sweep;
mod variant;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use crate::bench::{self, Bench, Goal, Peer, Shape};
use crate::check::{self, Check, Checker, Device};
use crate::host::{Dialect, HostDevice, Kernel, Schedule};
use crate::launch::gemm::Encoding;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

use gpu::GpuDevice;
use measure::{Meter, OURS, Row};
use variant::Variant;

/// Lists, checks and measures the CUDA kernels of layerstream.
#[derive(Parser)]
#[command(name = "kernels", version)]
struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// List the kernels, the checks and the benches.
    List,
    /// Check kernels against float64: on a GPU, or on this CPU where there is none.
    Check(CheckArguments),
    /// Measure one kind of kernel on a GPU.
    Bench(BenchArguments),
    /// Measure the shapes of Llama 8B, 70B and 405B and of Mixtral on a GPU.
    Sweep(SweepArguments),
    /// Show what each kernel takes on each target; fail if one spills or uses local memory.
    Report {
        /// Write the table there instead.
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}

#[derive(Args)]
struct CheckArguments {
    /// Only checks with this in their names, such as `norm`.
    name: Option<String>,
    /// Where to run them.
    #[arg(long, value_enum, default_value_t = Where::Auto)]
    device: Where,
    /// The GPU's number.
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// How many times on a GPU, each with other inputs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// A CUDA file whose kernels are checked in the place of ours with the same names (needs nvcc and a GPU).
    #[arg(long, value_name = "FILE.cu")]
    variant: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Where {
    /// On a GPU if there is one, else on the host.
    Auto,
    /// On this CPU, for every dialect, under every schedule.
    Host,
    Gpu,
}

#[derive(Args)]
struct MeasureArguments {
    /// The GPU's number.
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// Repetitions, of which the median counts.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct SweepArguments {
    /// Also time cuBLAS and flash attention, as PyTorch has them (needs python3 with torch).
    #[arg(long)]
    peers: bool,
    #[command(flatten)]
    measure: MeasureArguments,
}

#[derive(Args)]
struct BenchArguments {
    /// What to measure.
    #[arg(value_parser = PossibleValuesParser::new(bench::ALL.iter().map(|bench| bench.name)))]
    name: String,
    /// Rows of the weight.
    #[arg(long, default_value_t = 4096, value_parser = positive)]
    n: usize,
    /// Length of a row of the weight.
    #[arg(long, default_value_t = 4096, value_parser = positive)]
    k: usize,
    /// Rows of activations.
    #[arg(long, default_value_t = 1, value_parser = positive)]
    m: usize,
    /// How the weight is stored.
    #[arg(long, value_parser = encoding, default_value = "bf16", value_name = "f32|f16|bf16|int8|fp8|nf4")]
    encoding: Encoding,
    /// Positions in the KV cache, new ones included.
    #[arg(long, default_value_t = 4096, value_parser = positive)]
    context: usize,
    /// Query heads.
    #[arg(long, default_value_t = 32, value_parser = positive)]
    heads: usize,
    /// Key heads.
    #[arg(long, default_value_t = 8, value_parser = positive)]
    kv_heads: usize,
    /// Length of a head.
    #[arg(long, default_value_t = 128, value_parser = positive)]
    head_dim: usize,
    /// A CUDA file with the same entry points and arguments, to be checked and then measured beside ours (needs nvcc).
    #[arg(long, value_name = "FILE.cu")]
    variant: Option<PathBuf>,
    #[command(flatten)]
    measure: MeasureArguments,
}

/// Sizes that fit the kernels' 32-bit ones.
fn positive(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "a whole number is expected".to_string())?;
    if (1..=1 << 30).contains(&number) { Ok(number) } else { Err("1 to 2^30 are possible".into()) }
}

fn encoding(text: &str) -> Result<Encoding, String> {
    use Encoding::*;
    let all = [
        ("f32", F32),
        ("f16", F16),
        ("bf16", Bf16),
        ("int8", Int8),
        ("fp8", Fp8),
        ("nf4", Nf4),
        ("nf4d", Nf4d),
        ("lossless", Lossless),
        ("fp4", Fp4),
        ("int8z", Int8Zero),
        ("offset8", Offset8),
        ("offset4", Offset4),
        ("mxfp4", Mxfp4),
        ("q8_0", Q8_0),
        ("q4_0", Q4_0),
        ("q4_1", Q4_1),
        ("q5_0", Q5_0),
        ("q5_1", Q5_1),
        ("q4_k", Q4K),
        ("q5_k", Q5K),
        ("q6_k", Q6K),
    ];
    let found = all.iter().find(|(name, _)| *name == text).map(|&(_, encoding)| encoding);
    found.ok_or_else(|| format!("there are {}", all.map(|(name, _)| name).join(", ")))
}

/// Runs the command that the arguments of this process ask for.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Subcommands::List => list(),
        Subcommands::Check(arguments) => check(&arguments),
        Subcommands::Bench(arguments) => bench(&arguments),
        Subcommands::Sweep(arguments) => sweep(&arguments),
        Subcommands::Report { write } => report(write.as_deref()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("kernels: {message}");
            ExitCode::FAILURE
        }
    }
}

// --- list, report ----------------------------------------------------------------------------------------------------

fn list() -> Result<(), String> {
    println!("Kernels (the most threads a block may have, bytes of arguments):");
    let mut kernels: Vec<&Kernel> = Kernel::all().filter(|kernel| !kernel.name().starts_with("selftest_")).collect();
    kernels.sort_by_key(|kernel| kernel.name());
    kernels.dedup_by_key(|kernel| kernel.name());
    for kernel in kernels {
        println!("  {:<28} {:>5} {:>5}", kernel.name(), kernel.max_threads(), kernel.params_bytes());
    }
    println!("\nChecks (kernels check NAME):");
    check::ALL.iter().for_each(|(name, _)| println!("  {name}"));
    println!("\nBenches (kernels bench NAME):");
    bench::ALL.iter().for_each(|bench| println!("  {:<18} {}", bench.name, bench.about));
    Ok(())
}

/// What ptxas said of each file of kernels when this program was built.
#[cfg(feature = "device")]
fn ptxas() -> Result<Vec<(&'static str, &'static str)>, String> {
    Ok(crate::ptxas().collect())
}

#[cfg(not(feature = "device"))]
fn ptxas() -> Result<Vec<(&'static str, &'static str)>, String> {
    Err("this workbench was built without the kernels for GPUs; build it with --features workbench,device".into())
}

fn report(write: Option<&Path>) -> Result<(), String> {
    let (page, complaints) = report::page(ptxas()?.into_iter())?;
    match write {
        None => print!("{page}"),
        Some(path) => std::fs::write(path, page).map_err(|e| format!("cannot write {}: {e}", path.display()))?,
    }
    if complaints.is_empty() { Ok(()) } else { Err(format!("local memory is used\n{}", complaints.join("\n"))) }
}

// --- check -----------------------------------------------------------------------------------------------------------

fn check(arguments: &CheckArguments) -> Result<(), String> {
    let wanted = arguments.name.as_deref().unwrap_or_default();
    let checks: Vec<_> = check::ALL.iter().filter(|(name, _)| name.contains(wanted)).collect();
    if checks.is_empty() {
        let names: Vec<&str> = check::ALL.iter().map(|(name, _)| *name).collect();
        return Err(format!("no check has `{wanted}` in its name; there are {}", names.join(", ")));
    }
    let device = if arguments.device == Where::Host { Err("as asked".into()) } else { GpuDevice::open(arguments.gpu) };
    let variant = compile(arguments.variant.as_deref(), device.as_ref().ok())?;
    match (device, variant) {
        (Ok(device), None) => on_gpu(device, &checks, arguments.seeds),
        (Ok(device), Some(variant)) => on_gpu(with(&device, &variant)?, &checks, arguments.seeds),
        (Err(reason), Some(_)) => Err(format!("the variant compiles, but to check it takes a GPU: {reason}")),
        (Err(reason), None) if arguments.device == Where::Gpu => Err(format!("there is no GPU to check on: {reason}")),
        (Err(reason), None) => {
            eprintln!("Checking with the host build, on this CPU ({reason}).");
            on_host(&checks)
        }
    }
}

fn compile(variant: Option<&Path>, device: Option<&GpuDevice>) -> Result<Option<Variant>, String> {
    let Some(file) = variant else { return Ok(None) };
    let arch = device.map_or(Ok(90), |device| device.gpu.arch())?;
    let variant = variant::compile(file, arch)?;
    let ours: Vec<&str> = Kernel::all().map(Kernel::name).collect();
    variant.require(&ours, "our kernels, which `kernels list` shows")?;
    eprint!("{}, compiled for sm_{arch}:\n\n{}\n", variant.file, report::table(&variant.usages));
    report::complaints(&variant.usages).iter().for_each(|line| eprintln!("note: {line}"));
    Ok(Some(variant))
}

fn with(device: &GpuDevice, variant: &Variant) -> Result<GpuDevice, String> {
    // SAFETY: nvcc made it.
    unsafe { device.with_variant(&variant.file, &variant.image) }
}

/// Says how a check went, also to whoever called. On standard error, for standard output may be JSON.
fn announce(name: &str, on: &str, run: impl FnOnce() -> Result<(), String>) -> bool {
    let start = Instant::now();
    let outcome = run();
    let seconds = start.elapsed().as_secs_f64();
    match &outcome {
        Ok(()) => eprintln!("ok      {name}, {on} ({seconds:.1} s)"),
        Err(message) => eprintln!("FAILED  {name}, {on}: {message}"),
    }
    outcome.is_ok()
}

fn all_passed(passed: &[bool]) -> Result<(), String> {
    let failed = passed.iter().filter(|&&ok| !ok).count();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} failed", passed.len())) }
}

fn on_host(checks: &[&(&str, Checker)]) -> Result<(), String> {
    let mut passed = Vec::new();
    for (name, check) in checks {
        for dialect in Dialect::ALL {
            let on = format!("{dialect:?}, {} schedules", Schedule::all(1).count());
            passed.push(announce(name, &on, || {
                Schedule::all(1).enumerate().try_for_each(|(seed, schedule)| {
                    check(&mut Check::new(&mut HostDevice::new(dialect, schedule), seed as u64))
                })
            }));
        }
    }
    all_passed(&passed)
}

fn on_gpu(mut device: GpuDevice, checks: &[&(&str, Checker)], seeds: u64) -> Result<(), String> {
    let mut passed = Vec::new();
    let on = device.to_string();
    for (name, check) in checks {
        passed.push(announce(name, &on, || (0..seeds).try_for_each(|seed| check(&mut Check::new(&mut device, seed)))));
        device.clear();
        // A kernel that reads where nothing is takes the whole context with it.
        if let Err(e) = device.stream.synchronize() {
            return Err(format!("the GPU cannot be used after that, so the other checks were not run: {e}"));
        }
    }
    all_passed(&passed)
}

// --- bench, sweep ----------------------------------------------------------------------------------------------------

/// A device for what is measured and the meter for it, or why `command` can not be had.
fn with_meter(
    command: &str,
    device: Result<GpuDevice, String>,
    arguments: &MeasureArguments,
) -> Result<(GpuDevice, Meter), String> {
    let device = device.map_err(|reason| format!("{command} needs a GPU: {reason}"))?;
    let meter = Meter::new(device.another()?, arguments.repeat as usize)?;
    Ok((device, meter))
}

fn bench(arguments: &BenchArguments) -> Result<(), String> {
    let device = GpuDevice::open(arguments.measure.gpu);
    let variant = compile(arguments.variant.as_deref(), device.as_ref().ok())?;
    let (mut device, meter) = with_meter("bench", device, &arguments.measure)?;
    let bench = find(&arguments.name)?;
    let &BenchArguments { m, n, k, encoding, context, heads, kv_heads, head_dim, .. } = arguments;
    let shape = Shape { m, n, k, encoding, context, heads, kv_heads, head_dim };
    let mut theirs = variant.as_ref().map(|variant| with(&device, variant)).transpose()?;
    if let Some(theirs) = &theirs {
        let checks: Vec<_> = check::ALL.iter().filter(|(name, _)| name.contains(bench.name)).collect();
        on_gpu(theirs.another()?, &checks, 1).map_err(|e| format!("{}: {e}; nothing was measured", theirs))?;
    }
    let (rows, difference) = measure(&meter, bench, &shape, &mut device, variant.as_ref().zip(theirs.as_mut()))?;
    if arguments.measure.json {
        println!("{:#}", document(&meter, &rows, None)?);
        return Ok(());
    }
    print_card(&meter)?;
    println!("{}", Row::header());
    rows.iter().for_each(|row| println!("{}", row.line(&meter.peaks)));
    rows.iter().filter_map(|row| row.verdict(&meter.peaks)).for_each(|verdict| println!("{verdict}"));
    if let Some(nmse) = difference {
        println!("Mean square of the difference of the results, of that of ours: {nmse:.1e}");
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Bench, String> {
    bench::ALL.iter().find(|bench| bench.name == name).ok_or_else(|| format!("there is no bench `{name}`"))
}

/// Above this, results are not the same thing computed in another order.
const MOST_DIFFERENCE: f64 = 1e-4;

/// Measures a shape with our kernels and, on the same data, with somebody else's. Also returns by how much their result
/// differs from ours, as a fraction of the mean square of ours.
fn measure(
    meter: &Meter,
    bench: &Bench,
    shape: &Shape,
    device: &mut GpuDevice,
    variant: Option<(&Variant, &mut GpuDevice)>,
) -> Result<(Vec<Row>, Option<f64>), String> {
    device.clear();
    let case = (bench.prepare)(device, shape)?;
    let row = |whose: &str, times| Row {
        name: case.name.clone(),
        whose: whose.into(),
        times,
        bytes: case.bytes,
        flops: case.flops,
        goal: case.goal,
        peer: None,
    };
    let steps = device.resolve(&case.steps)?;
    // SAFETY: what `prepare` has allocated on `device`, which stays until it is cleared.
    let mut rows = vec![row(OURS, unsafe { meter.time(&steps)? })];
    let Some((variant, theirs)) = variant else { return Ok((rows, None)) };
    let kernels: Vec<&str> = case.steps.iter().map(|(launch, _)| launch.kernel).collect();
    variant.require(&kernels, &format!("what {} launches: {}", case.name, kernels.join(", ")))?;
    let ours = case.out.read(device);
    device.forget(case.out)?;
    let steps = theirs.resolve(&case.steps)?;
    // SAFETY: as above; the context is the same.
    rows.push(row(&variant.file, unsafe { meter.time(&steps)? }));
    let got = case.out.read(device);
    let difference = ours.iter().zip(&got).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let nmse = difference / ours.iter().map(|a| a * a).sum::<f64>();
    // Written so that NaN fails.
    if nmse <= MOST_DIFFERENCE {
        return Ok((rows, Some(nmse)));
    }
    Err(format!("{}: the results of {} differ from ours by {nmse:.1e} of their mean square", case.name, variant.file))
}

fn sweep(arguments: &SweepArguments) -> Result<(), String> {
    let SweepArguments { peers, measure: options } = arguments;
    let (mut device, meter) = with_meter("sweep", GpuDevice::open(options.gpu), options)?;
    if !options.json {
        print_card(&meter)?;
        println!("{}", Row::header());
    }
    let (mut rows, mut last) = (Vec::new(), String::new());
    for (name, what, shape) in sweep::all() {
        if what != last && !options.json {
            println!("{what}");
        }
        last = what;
        match measure(&meter, find(name)?, &shape, &mut device, None) {
            Ok((measured, _)) => {
                if !options.json {
                    measured.iter().for_each(|row| println!("{}", row.line(&meter.peaks)));
                }
                rows.extend(measured);
            }
            // Large matrices do not fit small cards; what else could go wrong ends the sweep with its own message.
            Err(message) if message.contains("CUDA_ERROR_OUT_OF_MEMORY") => {
                eprintln!("left out: {name} {shape:?}: {message}");
            }
            Err(message) => return Err(message),
        }
    }
    device.clear();
    // What was measured is shown, even when the peers cannot be.
    let peers = if *peers { add_peers(&mut rows, options).map(Some) } else { Ok(None) };
    let by = peers.clone().ok().flatten();
    if options.json {
        println!("{:#}", document(&meter, &rows, by.as_deref())?);
        return peers.map(|_| ());
    }
    println!("\nGoals{}:", by.map(|by| format!(" (peers: {by})")).unwrap_or_default());
    for row in &rows {
        let unknown = row.goal.map(|_| "not known without --peers".to_string());
        if let Some(verdict) = row.verdict(&meter.peaks).or(unknown) {
            println!("{:<44} {verdict}", row.name);
        }
    }
    let reached: Vec<bool> = rows.iter().filter_map(|row| row.reached(&meter.peaks)).collect();
    println!("{} of {} goals are reached.", reached.iter().filter(|&&reached| reached).count(), reached.len());
    peers.map(|_| ())
}

/// Times the peers of all rows that have one; returns who they are.
fn add_peers(rows: &mut [Row], options: &MeasureArguments) -> Result<String, String> {
    let mut with_peers: Vec<(&mut Row, Peer)> = Vec::new();
    for row in rows {
        if let Some(Goal::Peer(_, peer)) = row.goal {
            with_peers.push((row, peer));
        }
    }
    let problems: Vec<Peer> = with_peers.iter().map(|(_, peer)| *peer).collect();
    let timed = peers::time(&problems, options.gpu, options.repeat as usize);
    let (by, seconds) = timed.map_err(|e| format!("--peers: {e}"))?;
    with_peers.into_iter().zip(seconds).for_each(|((row, _), seconds)| row.peer = seconds);
    Ok(by)
}

fn print_card(meter: &Meter) -> Result<(), String> {
    let (gpu, peaks) = (meter.gpu(), &meter.peaks);
    println!(
        "{}: copies {:.0} GB/s, mma {:.1} TFLOP/s, a kernel that does nothing takes {:.1} us. L2 is flushed before each\n\
         repetition. GB = 10^9 bytes, that have to be moved, each once; the time of nothing is not subtracted.\n",
        gpu.name()?,
        peaks.copy / 1e9,
        peaks.mma / 1e12,
        peaks.empty * 1e6,
    );
    Ok(())
}

fn document(meter: &Meter, rows: &[Row], peers: Option<&str>) -> Result<Value, String> {
    let gpu = meter.gpu();
    let (major, minor) = gpu.driver_version()?;
    Ok(json!({
        "gpu": gpu.name()?, "arch": gpu.arch()?, "driver_cuda": format!("{major}.{minor}"),
        "multiprocessors": gpu.multiprocessors()?, "l2_bytes": gpu.l2_bytes()?,
        "peaks": meter.peaks.json(), "peers": peers,
        "results": rows.iter().map(|row| row.json(&meter.peaks)).collect::<Vec<_>>(),
    }))
}

//! `golden-check`: the golden cases on one device, at several budgets, for machines that have neither the sources nor cargo.
//! The check and its gates are those of the tests (tests/reference/gpu.rs). It needs a directory of cases as
//! tests/golden/models has them, and prints a line for each case as soon as it is done, or a JSON object in its place, so that
//! whoever ends it early has those before.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use layerstream::{Device, Error, Options, Outline, Result};
use serde_json::json;

use crate::gpu::{Budget, PLENTY, Problem, check};

/// Check golden cases on a device: logits and continuations against those of the reference, and the same bits at every budget.
#[derive(Parser)]
#[command(name = "golden-check", version)]
struct Arguments {
    /// Directory with a directory for each case
    #[arg(value_name = "CASES")]
    cases: PathBuf,
    /// Where to compute: cpu or cuda:N
    #[arg(long, default_value = "cuda:0")]
    device: Device,
    /// Print a JSON object for each case, and one with the counts at the end, each on a line
    #[arg(long)]
    json: bool,
}

/// All on the GPU; nearly nothing on either side, though tiles of single rows would take for ever; and some of the weights
/// in each place.
const BUDGETS: [Budget; 5] = [
    (None, None),
    (Some(100_000), Some(0)),
    (Some(150_000), Some(300_000)),
    (Some(200_000), Some(4 << 20)),
    (Some(300_000), Some(100_000)),
];

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
    let unreadable = |source| Error::Io { path: arguments.cases.clone(), doing: "read", source };
    let dir = std::fs::read_dir(&arguments.cases).map_err(unreadable)?;
    let mut cases: Vec<PathBuf> = dir.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    let mut counts = [0; 3];
    // Held to the end, so that the kernels are loaded once and not for each model.
    let mut held: Option<Outline> = None;
    for case in &cases {
        held = held.or_else(|| outline(case, arguments.device));
        let begin = Instant::now();
        let (index, mut result) = match check(case, arguments.device, &BUDGETS) {
            Ok(forms) => (0, json!({"forms": forms})),
            Err(Problem::Wrong(problem)) => (1, json!({"problem": problem})),
            Err(Problem::NoKernel(message)) => (2, json!({"not_computed": message})),
        };
        counts[index] += 1;
        let name = case.file_name().map(|name| name.to_string_lossy().into_owned());
        let verdict = ["right", "WRONG", "SKIPPED"][index];
        if !arguments.json {
            println!("{verdict:<8} {}  {result}", name.as_deref().unwrap_or_default());
            continue;
        }
        result["case"] = json!(name);
        result["verdict"] = json!(verdict);
        result["seconds"] = json!(begin.elapsed().as_secs_f64());
        println!("{result}");
    }
    let [right, wrong, skipped] = counts;
    if arguments.json {
        println!("{}", json!({"right": right, "wrong": wrong, "skipped": skipped}));
    } else {
        println!("{right} right, {wrong} wrong, {skipped} skipped for want of a kernel");
    }
    Ok(wrong == 0 && right > 0)
}

/// The GPU with its kernels, in what opened it; nothing where it, or the case, cannot be opened: the check tells why.
fn outline(case: &Path, device: Device) -> Option<Outline> {
    let options = Options { ram: Some(PLENTY), context: Some(192), device, ..Options::default() };
    Outline::new(case, &options).ok()
}

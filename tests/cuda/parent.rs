//! Starting processes with the simulated driver, and what they left behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use layerstream_cudasim::EXIT_MISUSE;
use serde_json::Value;

use crate::child::{JOBS, Job, Outcome, RESULTS};

/// In an environment: a directory to look for the driver in, instead of that with the simulated one.
pub const WITHOUT_DRIVER: &str = "PATH";

/// How a process ended.
#[derive(Debug)]
pub enum End {
    /// It did its jobs; with the simulated driver's report.
    Done(Vec<Outcome>, Value),
    /// The driver found something that a GPU would have left to luck.
    Misuse(String),
    /// Neither.
    Failed(String),
}

impl End {
    #[track_caller]
    pub fn done(self) -> (Vec<Outcome>, Value) {
        match self {
            End::Done(outcomes, report) => (outcomes, report),
            End::Misuse(what) => panic!("the driver was misused: {what}"),
            End::Failed(what) => panic!("{what}"),
        }
    }
}

/// The golden case of this name.
pub fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

pub fn model(name: &str) -> String {
    case(name).to_str().unwrap().into()
}

/// Does jobs in a process of its own, with this in its environment (`LAYERSTREAM_SIM_…` without the beginning, or else a
/// whole name).
pub fn run(jobs: &[Job], environment: &[(&str, &str)]) -> End {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let folder = tempfile::tempdir().unwrap();
    let (results, report) = (folder.path().join("results.json"), folder.path().join("report.json"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap())
        .env(JOBS, serde_json::to_string(jobs).unwrap())
        .env(RESULTS, &results)
        .env("LAYERSTREAM_SIM_REPORT", &report)
        // A small card, so that what is tested is not how long it takes to fill it.
        .env("LAYERSTREAM_SIM_VRAM", (512u64 << 20).to_string())
        .env("LAYERSTREAM_SIM_CONTEXT", (1 << 20).to_string())
        .env("RUST_BACKTRACE", "0");
    for (name, value) in environment {
        if *name == WITHOUT_DRIVER {
            command.env("LD_LIBRARY_PATH", value);
            continue;
        }
        match name.starts_with("LAYERSTREAM_") {
            true => command.env(name, value),
            false => command.env(format!("LAYERSTREAM_SIM_{name}"), value),
        };
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let output = finish(command, folder.path(), number);
    let (code, said) = match output {
        Ok(output) => output,
        Err(problem) => return End::Failed(problem),
    };
    match code {
        Some(0) => match std::fs::read_to_string(&results) {
            Ok(text) => {
                let report = std::fs::read_to_string(&report).unwrap_or("null".into());
                End::Done(serde_json::from_str(&text).unwrap(), serde_json::from_str(&report).unwrap())
            }
            Err(e) => End::Failed(format!("no results: {e}\n{said}")),
        },
        Some(EXIT_MISUSE) => End::Misuse(said),
        code => End::Failed(format!("ended with {code:?}\n{said}")),
    }
}

/// Runs to the end, or for a minute: nothing may hang.
fn finish(mut command: Command, folder: &Path, number: usize) -> Result<(Option<i32>, String), String> {
    let log = folder.join(format!("log{number}"));
    let file = std::fs::File::create(&log).unwrap();
    command.stdout(file.try_clone().unwrap()).stderr(file);
    let mut child = command.spawn().unwrap();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    for _ in 0..60_000 {
        if let Some(status) = child.try_wait().unwrap() {
            return Ok((status.code(), said()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    Err(format!("still running after two minutes\n{}", said()))
}

//! The GPU bundle's `run.sh`, in its short form: on the simulated driver every part that has its program passes and is in the
//! report with its figures; a part that fails does not keep others from running; and without a driver each says so.

#![cfg(all(feature = "cuda", feature = "cli"))]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A bundle as `make gpu-bundle` makes it, with a single golden case and without the workbench of the kernels, which belongs
/// to another package: the part that fails.
fn bundle(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bundle = dir.join("bundle");
    fs::create_dir_all(bundle.join("golden")).unwrap();
    let programs = [
        ("layerstream", env!("CARGO_BIN_EXE_layerstream")),
        ("disk2gpu", env!("CARGO_BIN_EXE_disk2gpu")),
        ("golden-check", env!("CARGO_BIN_EXE_golden-check")),
    ];
    for (name, program) in programs {
        symlink(program, bundle.join(name)).unwrap();
    }
    fs::copy(root.join("benches/gpu-bundle/run.sh"), bundle.join("run.sh")).unwrap();
    symlink(root.join("tests/golden/models/llama31_gqa"), bundle.join("golden/llama31_gqa")).unwrap();
    fs::write(bundle.join("VERSION"), "a test \"of\" it\n").unwrap();
    bundle
}

/// Runs it with nothing in the environment but this driver; the exit status and the report.
fn run(bundle: &Path, out: &Path, driver: Option<&Path>) -> (Option<i32>, Value) {
    let mut command = Command::new("bash");
    command
        .arg(bundle.join("run.sh"))
        .arg(out)
        .arg("--short")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/");
    if let Some(driver) = driver {
        command.env("LD_LIBRARY_PATH", driver);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = fs::read_to_string(out.join("report.json")).unwrap_or_else(|e| panic!("{e}\n{said}"));
    let report = serde_json::from_str(&report).unwrap_or_else(|e| panic!("{e}\n{report}"));
    let left = fs::read_dir(out).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(left, 0, "scratch files are left");
    (output.status.code(), report)
}

fn part<'a>(report: &'a Value, name: &str) -> &'a Value {
    let found = report["parts"].as_array().unwrap().iter().find(|part| part["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

const PARTS: [&str; 9] = [
    "kernels-check",
    "golden",
    "disk2gpu",
    "synth",
    "stream-from-disk",
    "stream-from-memory",
    "kernels-sweep",
    "memcheck",
    "racecheck",
];

#[test]
fn on_the_simulated_driver_every_part_but_the_broken_one_passes() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, out) = (bundle(dir.path()), dir.path().join("out"));
    let (status, report) = run(&bundle, &out, Some(&layerstream_cudasim::directory().unwrap()));
    assert_eq!(status, Some(1), "the workbench of the kernels is missing");
    let names: Vec<&str> = report["parts"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, PARTS);
    for name in ["golden", "disk2gpu", "synth", "stream-from-disk", "stream-from-memory"] {
        let part = part(&report, name);
        assert_eq!((&part["verdict"], &part["rc"]), (&"passed".into(), &0.into()), "{part:#}");
    }
    for name in ["kernels-check", "kernels-sweep"] {
        assert_eq!(part(&report, name)["verdict"], "failed");
    }
    assert_eq!(part(&report, "golden")["figures"]["right"], 1);
    assert_eq!(part(&report, "stream-from-disk")["figures"]["device"], "cuda:0");
    assert!(part(&report, "stream-from-disk")["output_tail"].as_str().unwrap().contains("disk wait"));
    assert!(part(&report, "disk2gpu")["figures"].is_object());
    assert_eq!(report["machine"]["layerstream"], "a test \"of\" it");
    let trace: Value = serde_json::from_str(&fs::read_to_string(out.join("trace-disk.json")).unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().iter().any(|event| event["cat"] == "copy"));
    let page = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(PARTS.iter().all(|name| page.contains(&format!("| {name} |"))), "{page}");
    // A report is never overwritten.
    let again = Command::new("bash").arg(bundle.join("run.sh")).arg(&out).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
}

#[test]
fn without_a_driver_every_part_that_needs_one_says_so() {
    // With a driver installed there is nothing to see.
    let libraries = Command::new("ldconfig").arg("-p").output();
    if libraries.is_ok_and(|found| String::from_utf8_lossy(&found.stdout).contains("libcuda.so")) {
        println!("SKIPPED: this machine has a driver");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (status, report) = run(&bundle(dir.path()), &dir.path().join("out"), None);
    assert_eq!(status, Some(1));
    assert_eq!(report["machine"]["gpu"], "unknown");
    for name in ["golden", "disk2gpu", "stream-from-disk", "stream-from-memory"] {
        let part = part(&report, name);
        assert_eq!(part["verdict"], "failed", "{part:#}");
        let said = format!("{}{}", part["output_tail"], part["figures"]);
        assert!(said.contains("there is no NVIDIA driver"), "{part:#}");
    }
    assert_eq!(part(&report, "synth")["verdict"], "passed");
}

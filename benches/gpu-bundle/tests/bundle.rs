//! The GPU bundle's `run.sh`, in its short form: on the simulated driver every part passes and is in the report with its
//! figures; a part that fails does not keep others from running; and without a driver each says so. And what golden-check does
//! for a driver that is slow to load kernels.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A bundle as `make gpu-bundle` makes it, with a single golden case, and with links to the program.
fn bundle(dir: &Path) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (bundle, programs) = (dir.join("bundle"), dir.join("programs"));
    fs::create_dir(&bundle).unwrap();
    fs::create_dir(&programs).unwrap();
    for name in ["layerstream", "disk2gpu", "golden-check", "kernels", "targets"] {
        symlink(env!("CARGO_BIN_EXE_gpu-bundle"), programs.join(name)).unwrap();
    }
    archive(&programs, ".", &bundle.join("programs.tar.gz"));
    archive(&here.join("../../tests/golden/models"), "llama31_gqa", &bundle.join("golden.tar.gz"));
    fs::copy(here.join("run.sh"), bundle.join("run.sh")).unwrap();
    fs::write(bundle.join("VERSION"), "a test \"of\" it\n").unwrap();
    bundle
}

fn archive(dir: &Path, what: &str, to: &Path) {
    let status = Command::new("tar").arg("--directory").arg(dir).arg("-czf").arg(to).arg(what).status();
    assert!(status.unwrap().success());
}

/// Something that answers as `nvidia-smi` does of the GPU that is asked for, in a directory that is returned.
fn nvidia_smi(dir: &Path) -> PathBuf {
    let (bin, script) = (dir.join("bin"), dir.join("bin/nvidia-smi"));
    fs::create_dir(&bin).unwrap();
    let text = r#"#!/bin/sh
case "$*" in
*gpu=uuid*) printf 'GPU-1234-5678\nGPU-abcd-ef01\n' ;;
*id=GPU-abcd-ef01*loop*) printf '321\n1234\n' && exec sleep 600 ;;
*id=GPU-abcd-ef01*memory.used*nounits*) echo 300 ;;
*id=GPU-abcd-ef01*driver_version*) echo 580.65.06 ;;
*id=GPU-abcd-ef01*) echo 'a card' ;;
'') echo '| NVIDIA-SMI 580.65.06   Driver Version: 580.65.06   CUDA Version: 13.0  |' ;;
*) echo "no such GPU: $*" && exit 6 ;;
esac
"#;
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    bin
}

/// Runs it with nothing in the environment but this driver and these programs; the exit status and the report.
fn run(bundle: &Path, out: &Path, driver: Option<&Path>, programs: &str) -> (Option<i32>, Value) {
    let mut command = Command::new("bash");
    command.arg(bundle.join("run.sh")).arg(out).arg("--short").env_clear().env("PATH", programs).current_dir("/");
    if let Some(driver) = driver {
        command.env("LD_LIBRARY_PATH", driver);
    }
    command.env("CUDA_VISIBLE_DEVICES", "GPU-abcd,GPU-1234");
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

const SYSTEM: &str = "/usr/bin:/bin";

const PARTS: [&str; 15] = [
    "kernels-check",
    "golden",
    "disk2gpu",
    "synth",
    "plan-disk",
    "stream-from-disk",
    "plan-memory",
    "stream-from-memory",
    "trace-from-disk",
    "trace-from-memory",
    "synth-experts",
    "stream-experts",
    "kernels-sweep",
    "memcheck",
    "racecheck",
];

/// Those that run in the short form, on a machine without compute-sanitizer.
const RUN: &[&str] = PARTS.split_at(12).0;

#[test]
fn on_the_simulated_driver_every_part_passes() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, out) = (bundle(dir.path()), dir.path().join("out"));
    let driver = layerstream_cudasim::directory().unwrap();
    let programs = format!("{}:{SYSTEM}", nvidia_smi(dir.path()).display());
    let (status, report) = run(&bundle, &out, Some(&driver), &programs);
    let names: Vec<&str> = report["parts"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, PARTS);
    for name in RUN {
        let part = part(&report, name);
        assert_eq!((&part["verdict"], &part["rc"]), (&"passed".into(), &0.into()), "{part:#}");
        let measured = if name.starts_with("stream") { Value::from(1234) } else { Value::Null };
        assert_eq!(part["gpu_memory_mib"], measured, "{part:#}");
    }
    assert_eq!(status, Some(0));
    assert_eq!(part(&report, "kernels-sweep")["verdict"], "skipped: the short form leaves it out");
    let figures = |name: &str| &part(&report, name)["figures"];
    assert_eq!((&figures("golden")[0]["case"], &figures("golden")[1]["right"]), (&"llama31_gqa".into(), &1.into()));
    assert!(figures("disk2gpu").is_object());
    assert!(figures("stream-experts")["experts"].is_object(), "{:#}", figures("stream-experts"));
    for name in ["disk", "memory"] {
        let plan = figures(&format!("plan-{name}"));
        assert!(plan["seconds_per_token"].is_number() && plan["copied_bytes"].is_number(), "{plan:#}");
        let streamed = figures(&format!("stream-from-{name}"));
        assert_eq!(streamed["device"], "cuda:0");
        assert!(streamed["steady_seconds_per_token"].as_f64().unwrap() > 0.0);
        // What measures is not itself measured.
        assert!(!part(&report, &format!("stream-from-{name}"))["output_tail"].as_str().unwrap().contains("disk wait"));
    }
    assert!(part(&report, "trace-from-disk")["output_tail"].as_str().unwrap().contains("disk wait"));
    assert_eq!(report["machine"]["layerstream"], "a test \"of\" it");
    assert_eq!(report["machine"]["gpu"], "a card");
    let target = |name: &str| {
        let found = report["targets"].as_array().unwrap().iter().find(|t| t["target"].as_str().unwrap().contains(name));
        found.unwrap_or_else(|| panic!("{name} in {:#}", report["targets"]))
    };
    assert!(target("both at once")["value"].is_number());
    assert_eq!(target("from memory, of copies")["verdict"], "not measured");
    for name in ["from disk, of what", "from memory, of what"] {
        assert!(target(name)["value"].is_number(), "{:#}", target(name));
    }
    for name in ["streaming from disk (MiB)", "streaming from memory (MiB)"] {
        assert_eq!((&target(name)["value"], &target(name)["verdict"]), (&934.0.into(), &"met".into()));
    }
    let trace: Value = serde_json::from_str(&fs::read_to_string(out.join("trace-disk.json")).unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().iter().any(|event| event["cat"] == "copy"));
    let page = fs::read_to_string(out.join("report.md")).unwrap();
    let first: Vec<&str> = page.lines().take(3).collect();
    assert_eq!(first[0], "# layerstream on a card");
    assert!(first[2].starts_with("Driver 580.65.06, CUDA 13.0, a card; "), "{page}");
    assert!(page.contains("Golden cases: 1 right, 0 wrong, 0 skipped, of 1."), "{page}");
    assert!(page.contains("| GPU memory in use, streaming from disk (MiB) | <= "), "{page}");
    assert!(PARTS.iter().all(|name| page.contains(&format!("| {name} |"))), "{page}");
    // A report is never overwritten.
    let again = Command::new("bash").arg(bundle.join("run.sh")).arg(&out).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
}

#[test]
fn a_part_that_fails_does_not_keep_others_from_running() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path());
    fs::remove_file(dir.path().join("programs/disk2gpu")).unwrap();
    archive(&dir.path().join("programs"), ".", &bundle.join("programs.tar.gz"));
    fs::write(bundle.join("golden.tar.gz"), "damaged").unwrap();
    let driver = layerstream_cudasim::directory().unwrap();
    let (status, report) = run(&bundle, &dir.path().join("out"), Some(&driver), SYSTEM);
    assert_eq!(status, Some(1));
    for name in RUN {
        // Without golden cases there is no configuration to make the first model of.
        let expected =
            if ["kernels-check", "synth-experts", "stream-experts"].contains(name) { "passed" } else { "failed" };
        assert_eq!(part(&report, name)["verdict"], expected, "{name}");
    }
    let targets = report["targets"].as_array().unwrap();
    assert!(targets.iter().all(|target| target["verdict"] == "not measured"), "{targets:#?}");
}

/// However many models each case opens; and what was found of a case is there before the next one begins. Without arithmetic
/// every case is wrong, which is soon found.
#[test]
fn golden_check_loads_the_kernels_once_and_tells_of_each_case_as_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llama31_gqa");
    let (cases, report, program) =
        (dir.path().join("cases"), dir.path().join("report.json"), dir.path().join("golden-check"));
    fs::create_dir(&cases).unwrap();
    for name in ["one", "two"] {
        symlink(&model, cases.join(name)).unwrap();
    }
    symlink(env!("CARGO_BIN_EXE_gpu-bundle"), &program).unwrap();
    let mut command = Command::new(program);
    command.arg(&cases).args(["--device", "cuda:0", "--json"]).env("LAYERSTREAM_SIM_ARITHMETIC", "0");
    command.env("LAYERSTREAM_SIM_REPORT", &report).env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let cases: Vec<_> = lines[..2].iter().map(|line| (line["case"].as_str(), line["verdict"].as_str())).collect();
    assert_eq!(cases, [(Some("one"), Some("WRONG")), (Some("two"), Some("WRONG"))], "{said}");
    assert_eq!((&lines[2]["right"], &lines[2]["wrong"], lines.len()), (&0.into(), &2.into(), 3));
    let report: Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    // One for each file of kernels.
    assert_eq!(report["modules"], 16, "{report:#}");
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
    let (status, report) = run(&bundle(dir.path()), &dir.path().join("out"), None, SYSTEM);
    assert_eq!(status, Some(1));
    assert_eq!(report["machine"]["gpu"], "unknown");
    assert!(report["targets"].as_array().is_some_and(|targets| targets.len() == 6), "{report:#}");
    for name in RUN.iter().filter(|name| !name.starts_with("synth")) {
        let part = part(&report, name);
        assert_eq!(part["verdict"], "failed", "{part:#}");
        let said = format!("{}{}", part["output_tail"], part["figures"]);
        assert!(said.contains("there is no NVIDIA driver"), "{part:#}");
    }
    assert_eq!(part(&report, "synth")["verdict"], "passed");
    assert_eq!(part(&report, "synth-experts")["verdict"], "passed");
}

#[test]
fn under_another_name_the_program_says_its_names() {
    let output = Command::new(env!("CARGO_BIN_EXE_gpu-bundle")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("layerstream, disk2gpu, golden-check, kernels"));
}

//! The stages that end on a GPU, on the simulated driver: it runs copies as late and in any order that is legal, and ends
//! a program that uses memory before it may, or forgets some. How fast it is means nothing.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use assert_cmd::Command;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{directory, entries, fails, file, json, text};

/// Small pieces in a small ring, so that every place is used often.
const SMALL: [&str; 8] = ["--chunk", "64KiB", "--depth", "3", "--repetitions", "2", "--warmup", "0"];

/// The command on a simulated GPU, with these of its variables.
fn simulated(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_disk2gpu"));
    command.env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap()).env_remove("RUST_LOG");
    for (name, value) in variables {
        command.env(format!("LAYERSTREAM_SIM_{name}"), value);
    }
    command
}

#[test]
fn what_arrives_on_the_gpu_is_what_the_files_hold() {
    let dir = directory();
    let path = file(dir.path(), "a", 3_000_011, 1);
    for seed in 0..12 {
        let seed = seed.to_string();
        for more in [&[][..], &["--ring", "64KiB"], &["--reader", "pread", "--ring", "192KiB"]] {
            let report = json(simulated(&[("SEED", &seed)]).args(SMALL).args(more).arg(&path));
            let runs = report["runs"].as_array().unwrap();
            let stages: Vec<&str> = runs.iter().map(|run| run["stage"].as_str().unwrap()).collect();
            assert_eq!(stages, ["disk-host", "disk-ring", "host-gpu-pinned", "host-gpu-pageable", "disk-gpu"]);
            assert!(runs.iter().all(|run| run["verified"] == true), "seed {seed} {more:?}: {report}");
            let whole = &runs[4];
            assert_eq!(
                (&whole["pinned_bytes"], &whole["latency_of"]),
                (&whole["memory_bytes"], &"read and copy".into())
            );
            assert_eq!(runs[3]["pinned_bytes"], 0);
        }
    }
}

#[test]
fn other_bytes_are_noticed_there_too() {
    let dir = directory();
    let (a, b) = (file(dir.path(), "a", 8 << 20, 1), file(dir.path(), "b", 8 << 20, 2));
    let args = ["--chunk", "16KiB", "--depth", "1", "--repetitions", "1", "--warmup", "0"];
    let output = fails(
        simulated(&[]).args(args).arg(&a).arg("--replica").arg(&b),
        1,
        &["not what the files hold", "disk -> GPU"],
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("DIFFERS"));
}

#[test]
fn the_report_names_the_gpu_and_the_limit() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    let report = json(simulated(&[("CC", "9.0"), ("DRIVER", "12080")]).args(SMALL).arg(&path));
    let gpu = &report["gpu"];
    assert_eq!((&gpu["driver"], &gpu["sm"]), (&"12.8".into(), &90.into()));
    assert_eq!((&gpu["memory_bytes"], gpu["pcie"]["address"].is_string()), (&(4u64 << 30).into(), true));
    assert!(!gpu["name"].as_str().unwrap().is_empty());
    let roofline = &report["roofline"];
    assert_eq!(roofline["of"], "disk-gpu");
    let slower = roofline["disk_gbps"].as_f64().unwrap().min(roofline["h2d_gbps"].as_f64().unwrap());
    let whole = report["runs"][4]["gbps"]["median"].as_f64().unwrap();
    assert!((roofline["fraction"].as_f64().unwrap() - whole / slower).abs() < 1e-9);
    assert!(!report["warnings"].to_string().contains("no GPU"));
    let said = text(simulated(&[]).args(SMALL).arg(&path));
    assert!(said.contains("disk -> GPU") && said.contains("GPU: ") && said.contains("The limit is"), "{said}");
}

#[test]
fn a_sweep_has_a_map_for_the_whole_way() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    let map = dir.path().join("map.svg");
    let args = ["--repetitions", "1", "--sweep-chunks", "64KiB,1MiB", "--sweep-depths", "1,4"];
    let report = json(simulated(&[]).args(args).arg(&path).arg("--sweep").arg(&map));
    let stages: Vec<&Value> = report["sweep"]["maps"].as_array().unwrap().iter().map(|map| &map["stage"]).collect();
    assert_eq!(stages, ["disk-host", "disk-gpu"]);
    let svg = fs::read_to_string(&map).unwrap();
    assert!(svg.contains("disk -&gt; host") && svg.contains("disk -&gt; GPU"));
}

#[test]
fn what_the_driver_refuses_is_one_clear_line() {
    for (fault, words) in [
        ("oom:1", "GPU memory"),
        ("oom:3", "GPU memory"),
        ("pin:1", "page-locking"),
        ("pin:2", "page-locking"),
        ("copy:1", ""),
        ("copy:40", ""),
        ("enqueue:9", ""),
        ("lost:30", ""),
    ] {
        let dir = directory();
        let mut command = simulated(&[("FAIL", fault)]);
        fails(command.args(SMALL).args(["--scratch", "2MiB", "--dir"]).arg(dir.path()), 1, &[words]);
        assert_eq!(entries(dir.path()), 0, "{fault}");
    }
}

#[test]
fn a_gpu_that_is_not_there() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    fails(simulated(&[]).args(["--device", "cuda:7"]).arg(&path), 1, &["--device cuda:7", "no GPU 7"]);
    let report = json(simulated(&[("DEVICES", "0")]).args(SMALL).arg(&path));
    assert!(report["gpu"].is_null() && report["warnings"].to_string().contains("no GPU"), "{report}");
    // One that is there and of no use is no reason not to measure the rest, unless it was asked for.
    for (variable, words) in [(("DRIVER", "11020"), "too old"), (("FAIL", "context"), "context")] {
        let report = json(simulated(&[variable]).args(SMALL).arg(&path));
        let warnings = report["warnings"].to_string();
        assert!(report["gpu"].is_null() && warnings.contains(words), "{report}");
        let stages: Vec<_> = report["runs"].as_array().unwrap().iter().map(|run| &run["stage"]).collect();
        assert_eq!(stages, ["disk-host", "disk-ring"]);
        fails(simulated(&[variable]).args(["--device", "cuda:0"]).arg(&path), 1, &["--device cuda:0", words]);
    }
    let report = json(simulated(&[("DEVICES", "2")]).args(SMALL).args(["--device", "cuda:1"]).arg(&path));
    assert!(report["gpu"].is_object());
}

#[test]
fn ctrl_c_in_mid_copy_leaves_nothing() {
    let dir = directory();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_disk2gpu"));
    command.env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap());
    command.args(["--scratch", "8MiB", "--repetitions", "1000000", "--chunk", "64KiB", "--dir"]).arg(dir.path());
    for wait in [300, 700, 1100] {
        let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", super::stderr(&output));
        assert_eq!(entries(dir.path()), 0);
    }
}

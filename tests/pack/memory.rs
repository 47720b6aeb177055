//! The memory that `--ram` allows, also where packing began with more.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::{fails, layerstream, pack, succeeds, synthetic, verify};

/// Packs, and watches the most memory that the process has.
fn peak_of_packing(model: &Path, out: &Path, args: &[&str]) -> u64 {
    let mut command = layerstream();
    command.arg("pack").arg(model).arg("--out").arg(out).args(args);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        // A process that has just ended has none.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(found.unwrap_or(0u64) << 10);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
fn what_goes_on_with_less_memory_keeps_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = synthetic(dir.path(), 3);
    let [once, again] = ["once", "again"].map(|name| dir.path().join(name));
    let much = ["--to", "int8", "--ram", "256MiB", "--threads", "16"];
    let steps = dir.path().join("steps");
    succeeds(&pack(&model, &once, &[&much[..], &["--steps-to", steps.to_str().unwrap()]].concat()));
    // The same as far as the file of tensors.
    let begun =
        fs::read_to_string(&steps).unwrap().lines().position(|step| step.ends_with(".model.safetensors.partial"));
    let aborted = pack(&model, &again, &[&much[..], &["--abort-at", &begun.unwrap().to_string()]].concat());
    assert_eq!(aborted.status.code(), None);
    fails(&pack(&model, &again, &["--to", "int8", "--ram", "4MiB"]), &["model.safetensors", "6.", "MiB", "--ram"]);
    let peak = peak_of_packing(&model, &again, &["--to", "int8", "--ram", "16MiB", "--threads", "16"]);
    println!("{peak} bytes");
    assert!((8 << 20..48 << 20).contains(&peak), "{peak} bytes");
    succeeds(&verify(&again));
    let [once, again] = [once, again].map(|dir| fs::read(dir.join("model.safetensors")).unwrap());
    assert!(once == again);
}

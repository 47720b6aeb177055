//! `disk2gpu` as its users meet it, on small files: what it prints, the JSON that docs/disk2gpu.md describes, what it leaves
//! behind (nothing), what it refuses. Nothing here depends on how fast anything is.

#[path = "disk2gpu/json.rs"]
mod json;
#[path = "disk2gpu/leaves.rs"]
mod leaves;
#[path = "disk2gpu/mistakes.rs"]
mod mistakes;
#[path = "disk2gpu/reads.rs"]
mod reads;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// The command without a GPU, in a quiet environment.
fn disk2gpu<I: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_disk2gpu"));
    command.args(["--device", "cpu"]).args(args).env_remove("RUST_LOG");
    command
}

/// A directory on the disk of the build, which the temporary directory often is not.
fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A file in which every place looks different.
fn file(dir: &Path, name: &str, len: usize, seed: u64) -> PathBuf {
    let mix = |i: u64| (i ^ seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31).wrapping_mul(0xBF58_476D);
    let path = dir.join(name);
    fs::write(&path, (0..len as u64).map(|i| (mix(i) >> 24) as u8).collect::<Vec<u8>>()).unwrap();
    path
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command that must succeed prints.
#[track_caller]
fn text(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The one JSON value on one line that a command that must succeed prints.
#[track_caller]
fn json(command: &mut Command) -> Value {
    let text = text(command.arg("--json"));
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// A command fails with this exit code and says all of `words` in an error of one line.
#[track_caller]
fn fails(command: &mut Command, code: i32, words: &[&str]) -> Output {
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    if code == 1 {
        let errors = said.lines().filter(|line| line.starts_with("disk2gpu: error: ")).count();
        assert_eq!(errors, 1, "{command:?}: {said}");
    }
    for word in words {
        assert!(said.contains(word), "{command:?}: `{word}` is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    output
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

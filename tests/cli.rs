//! The `layerstream` command as its users and their scripts meet it: what it prints where, its exit codes, and every
//! mistake that they can make.

#[path = "cli/answers.rs"]
mod answers;
#[path = "cli/chat.rs"]
mod chat;
#[path = "cli/eval.rs"]
mod eval;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/logits.rs"]
mod logits;
#[path = "cli/mistakes.rs"]
mod mistakes;
#[path = "cli/options.rs"]
mod options;
#[path = "cli/signals.rs"]
mod signals;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/text.rs"]
mod text;

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

/// The demo model.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// The command with these arguments, in a quiet environment.
fn layerstream<I: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    command.args(args).env_remove("RUST_LOG");
    command
}

/// A subcommand on the demo model.
fn on_demo(subcommand: &str, args: &[&str]) -> Command {
    let mut command = layerstream([subcommand]);
    command.arg(demo()).args(args);
    command
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
    let text = text(command);
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command fails with this exit code, prints nothing, and says all of `words` in an error of one line.
#[track_caller]
fn fails(command: &mut Command, code: i32, words: &[&str]) {
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{command:?}");
    if code == 1 {
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("layerstream: error: ")).collect();
        assert_eq!(errors.len(), 1, "{command:?}: {said}");
    }
    for word in words {
        assert!(said.contains(word), "{command:?}: `{word}` is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// A copy of the demo model that may be changed.
fn copy_of_demo() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo()).unwrap() {
        let from = entry.unwrap().path();
        let to = copy.path().join(from.file_name().unwrap());
        // The originals may be read-only, which a copy by `fs::copy` would be, too.
        std::fs::write(to, std::fs::read(from).unwrap()).unwrap();
    }
    copy
}

/// Changes a JSON file.
fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

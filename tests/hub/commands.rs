//! The commands with a model by name: `pull`, `list`, and any other.
#![cfg(feature = "cli")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::json;

use crate::server::{COMMIT, Server};
use crate::weights;

/// The program, with nothing of this machine's own Hub.
fn layerstream(home: &Path, server: &Server) -> Command {
    let mut command = Command::cargo_bin("layerstream").unwrap();
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"] {
        command.env_remove(name);
    }
    command.env_remove("HF_HUB_OFFLINE").env_remove("TRANSFORMERS_OFFLINE");
    command.env("HF_HOME", home).env("HF_ENDPOINT", server.endpoint());
    command
}

#[test]
fn pull_and_list() {
    let server = Server::new(&[("config.json", b"{}"), ("model.safetensors*", &weights(1000))]);
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = layerstream(home.path(), &server);
        command.args(args);
        command.assert()
    };
    run(&["list"]).success().stdout("");
    let dir = home.path().join("hub/models--org--model/snapshots").join(COMMIT);
    run(&["pull", "org/model"]).success().stdout(format!("{}\n", dir.display()));
    run(&["list"]).success().stdout("org/model  1.0 kB, 2 files\n");
    run(&["list", "--json"]).success().stdout(contains("\"complete\":true").and(contains(COMMIT)));
    run(&["pull", "org/model", "--revision", "v9"]).code(1).stderr(contains("no revision \"v9\""));
    run(&["pull", "./model"]).code(1).stderr(contains("org/name"));
    run(&["pull", "org/gone"]).code(1).stderr(contains("neither a path nor a repository"));
    run(&["plan", "org/gone"]).code(1).stderr(contains("neither a path nor a repository"));

    server.state().token = Some("hf_a".into());
    run(&["pull", "org/model"]).code(1).stderr(contains("gated or private"));
    run(&["pull", "org/model", "--hf-token", "hf_a"]).success();
    fs::write(home.path().join("token"), "hf_a\n").unwrap();
    run(&["pull", "org/model"]).success();
    let mut offline = layerstream(home.path(), &server);
    offline.env("HF_HUB_OFFLINE", "1").args(["pull", "org/gone"]);
    offline.assert().code(1).stderr(contains("HF_HUB_OFFLINE"));
}

/// The demo model by name: downloaded for the first command, found by the second.
#[test]
fn a_model_by_name_runs() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let names = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors*",
        "model-00002-of-00002.safetensors*",
    ];
    let read = |name: &&'static str| Some((*name, fs::read(demo.join(name.trim_end_matches('*'))).ok()?));
    let files: Vec<(&str, Vec<u8>)> = names.iter().filter_map(read).collect();
    if files.len() < names.len() {
        eprintln!("SKIPPED: the demo model is not in demo/");
        return;
    }
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    let server = Server::new(&files);
    let home = tempfile::tempdir().unwrap();
    let mut tokenize = layerstream(home.path(), &server);
    tokenize.args(["tokenize", "org/model"]).write_stdin("Hello").assert().success();
    assert!(server.requests("GET", "/cdn/").is_empty(), "words need no weights");
    for round in 0..2 {
        let mut generate = layerstream(home.path(), &server);
        generate.args(["generate", "org/model", "What is the capital of France?", "--chat", "--ram", "32MiB"]);
        generate.assert().success().stdout(contains("Paris"));
        let weights = server.requests("GET", "/cdn/").len();
        assert_eq!(weights, 2, "round {round}");
    }
}

/// Ctrl-C ends a download at once, and what has come is used by the next one.
#[test]
fn an_interrupted_pull_goes_on() {
    let server = Server::new(&[("config.json", b"{}"), ("model.safetensors*", &weights(500_000))]);
    server.state().slow = Some(Duration::from_millis(2));
    let home = tempfile::tempdir().unwrap();
    let mut pull = std::process::Command::new(assert_cmd::cargo::cargo_bin!("layerstream"));
    pull.args(["pull", "org/model"]).env("HF_HOME", home.path()).env("HF_ENDPOINT", server.endpoint());
    let mut running = pull.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE").spawn().unwrap();
    let blobs = home.path().join("hub/models--org--model/blobs");
    let begun = || {
        let sizes =
            fs::read_dir(&blobs).into_iter().flatten().flatten().filter_map(|entry| Some(entry.metadata().ok()?.len()));
        sizes.max() > Some(10_000)
    };
    while !begun() {
        assert!(running.try_wait().unwrap().is_none(), "it ended by itself");
        thread::sleep(Duration::from_millis(5));
    }
    let id = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(130));
    server.state().slow = None;
    layerstream(home.path(), &server).args(["pull", "org/model"]).assert().success();
    assert!(server.requests("GET", "/cdn/").pop().unwrap().headers.contains_key("range"));
}

/// A drive of its own, with as many pages as the files have bytes for, but fewer than the files take; then with enough.
const SMALL_DRIVE: &str = r#"
    program=$1 drive=$2
    mount -t tmpfs -o size=88k none "$drive" || exit 77
    "$program" pull org/model 2>&1 && exit 1
    mount -o remount,size=1m "$drive"
    "$program" pull org/model 2>&1
"#;

#[test]
fn a_full_drive_keeps_what_has_come() {
    let names: Vec<String> = (1..=20).map(|i| format!("model-{i:05}-of-00020.safetensors")).collect();
    let index =
        json!({"weight_map": names.iter().map(|name| (name.clone(), json!(name))).collect::<serde_json::Map<_, _>>()});
    let (index, shard) = (index.to_string(), super::weights(4097));
    let large: Vec<String> = names.iter().map(|name| format!("{name}*")).collect();
    let mut files: Vec<(&str, &[u8])> =
        vec![("config.json", b"{}"), ("model.safetensors.index.json", index.as_bytes())];
    // No two alike: the cache keeps equal files once.
    let shards: Vec<Vec<u8>> = (0..20u8).map(|i| [&[i], &shard[1..]].concat()).collect();
    files.extend(large.iter().zip(&shards).map(|(name, shard)| (name.as_str(), shard.as_slice())));
    let server = Server::new(&files);
    let drive = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", SMALL_DRIVE, "sh"]).arg(env!("CARGO_BIN_EXE_layerstream"));
    command
        .arg(drive.path())
        .env("HF_HUB_CACHE", drive.path())
        .env("HF_ENDPOINT", server.endpoint())
        .env("HOME", drive.path());
    let output = command.env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE").output();
    let text = output.as_ref().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    match &output {
        Ok(output) if output.status.success() => {}
        // `unshare` itself ends with 1 and says nothing on standard output.
        Ok(output) if output.status.code() != Some(77) && !text.is_empty() => panic!("{:?}: {text}", output.status),
        other => return println!("SKIPPED: no drive of its own can be mounted here: {other:?}"),
    }
    assert!(text.contains("the disk is full"), "{text}");
    // What had come was not asked for again.
    let asked = server.requests("GET", "/cdn/").len();
    assert!(asked < 2 * names.len(), "{asked} requests");
}

//! `--profile` and `--trace`: the timeline is JSON whose lanes do not overlap in themselves, its spans add up to the sums, the
//! sums to the time of the passes, and every byte that was read is in it. On the processor, and on the simulated driver.

#![cfg(feature = "cli")]

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::Value;

const MODEL: &str = "tests/golden/models/llama31_gqa";

fn layerstream(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

#[track_caller]
fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Spans of each lane by its name: begin, end, in nanoseconds, and the span.
fn lanes(trace: &Value) -> BTreeMap<String, Vec<(u64, u64, Value)>> {
    let events = trace["traceEvents"].as_array().unwrap();
    let named = events.iter().filter(|event| event["name"] == "thread_name");
    let names: BTreeMap<u64, &str> =
        named.map(|event| (event["tid"].as_u64().unwrap(), event["args"]["name"].as_str().unwrap())).collect();
    let mut lanes: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let ns = |key: &str| (event[key].as_f64().unwrap() * 1e3).round() as u64;
        let lane = names[&event["tid"].as_u64().unwrap()].to_string();
        lanes.entry(lane).or_default().push((ns("ts"), ns("ts") + ns("dur"), event.clone()));
    }
    lanes
}

/// For each lane, its spans: start, end and what they say.
type Lanes = BTreeMap<String, Vec<(u64, u64, Value)>>;

/// What holds of every trace. Returns its lanes.
#[track_caller]
fn check(text: &[u8]) -> (Value, Lanes) {
    let trace: Value = serde_json::from_slice(text).unwrap();
    let lanes = lanes(&trace);
    for (name, spans) in &lanes {
        let mut spans: Vec<_> = spans.iter().map(|(start, end, _)| (*start, *end)).collect();
        spans.sort_unstable();
        for pair in spans.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{name}: {pair:?} overlap");
        }
    }
    let about = &trace["otherData"];
    let number = |key: &str| about[key].as_f64().unwrap();
    let spent = |lane: &str, category: &str| {
        let spans = lanes.get(lane).into_iter().flatten().filter(|(.., span)| span["cat"] == category);
        spans.map(|(start, end, _)| end - start).sum::<u64>() as f64 / 1e9
    };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} and {b} in {about}");
    near(spent("compute", "compute"), number("compute_seconds"));
    near(spent("compute waits", "wait for disk"), number("disk_wait_seconds"));
    near(spent("compute waits", "wait for copy"), number("copy_wait_seconds"));
    let parts = ["compute_seconds", "disk_wait_seconds", "copy_wait_seconds", "host_seconds"];
    near(parts.iter().map(|part| number(part)).sum(), number("seconds"));
    let reads = lanes.iter().filter(|(name, _)| name.starts_with("disk")).flat_map(|(_, spans)| spans);
    let bytes: u64 = reads.map(|(.., span)| span["args"]["bytes"].as_u64().unwrap()).sum();
    assert!(bytes > 0);
    assert_eq!(bytes, about["disk_bytes"].as_u64().unwrap());
    (trace, lanes)
}

#[test]
fn on_the_processor() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let begin = Instant::now();
    let generate = ["generate", MODEL, "--ids", "1,2,3", "--max-new-tokens", "3", "--ignore-eos", "--device", "cpu"];
    let output = succeed(layerstream(&generate).args(["--profile", "--trace"]).arg(&file));
    let elapsed = begin.elapsed().as_secs_f64();
    let (trace, lanes) = check(&std::fs::read(&file).unwrap());
    let about = &trace["otherData"];
    assert_eq!(about["passes"], 3);
    assert!(about["seconds"].as_f64().unwrap() <= elapsed);
    let (first, last) = (lanes["compute"].first().unwrap().0, lanes["compute"].last().unwrap().1);
    assert!((last - first) as f64 / 1e9 <= elapsed);
    // Every step of every layer in every pass, with the layer it belongs to.
    let attends = lanes["compute"].iter().filter(|(.., span)| span["name"] == "attend");
    let layers: Vec<u64> = attends.map(|(.., span)| span["args"]["layer"].as_u64().unwrap()).collect();
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{MODEL}/config.json")).unwrap()).unwrap();
    let count = config["num_hidden_layers"].as_u64().unwrap();
    assert_eq!(layers, (0..3).flat_map(|_| 0..count).collect::<Vec<_>>());
    let profile = String::from_utf8(output.stderr).unwrap();
    for expected in ["multiply", "attend", "layer 0", "others", "disk wait", "limit", "3, "] {
        assert!(profile.contains(expected), "{expected} is not in:\n{profile}");
    }
    assert!(std::fs::read_dir(&dir).unwrap().count() == 1, "something was left beside the trace");
}

#[test]
fn of_logits_and_a_chat() {
    let dir = tempfile::tempdir().unwrap();
    let (file, logits) = (dir.path().join("trace.json"), dir.path().join("logits"));
    let mut command = layerstream(&["logits", MODEL, "--ids", "1,2,3", "--device", "cpu", "--trace"]);
    succeed(command.arg(&file).arg("--out").arg(&logits));
    check(&std::fs::read(&file).unwrap());
    let mut chat = layerstream(&["chat", "demo", "--ram", "32MiB", "--device", "cpu", "--profile"]);
    let questions = dir.path().join("questions");
    std::fs::write(&questions, "What is 27 + 58?\n").unwrap();
    let chat = chat.stdin(std::fs::File::open(&questions).unwrap());
    let profile = String::from_utf8(succeed(chat).stderr).unwrap();
    assert!(profile.contains("attend"), "{profile}");
}

#[test]
fn a_trace_that_cannot_be_written_is_told_before_any_work() {
    let mut command = layerstream(&["generate", MODEL, "--ids", "1", "--trace", "no/such/directory/trace.json"]);
    let output = command.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && message.contains("no/such/directory/trace.json"), "{message}");
    assert!(output.stdout.is_empty());
}

#[cfg(feature = "cuda")]
#[test]
fn on_the_simulated_driver() {
    let driver = layerstream_cudasim::directory().unwrap();
    // The budgets stream everything; the second also keys and values.
    for (seed, vram) in [("0", "32MiB"), ("3", "22MiB"), ("5", "32MiB")] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trace.json");
        let mut command = layerstream(&["generate", MODEL, "--ids", "1,2,3", "--max-new-tokens", "3", "--ignore-eos"]);
        command.args(["--device", "cuda:0", "--vram", vram, "--profile", "--trace"]).arg(&file);
        command.env("LD_LIBRARY_PATH", &driver).env("LAYERSTREAM_SIM_SEED", seed);
        command.env("LAYERSTREAM_SIM_VRAM", "67108864");
        let output = succeed(&mut command);
        let (trace, lanes) = check(&std::fs::read(&file).unwrap());
        assert_eq!(trace["otherData"]["passes"], 3);
        let multiplies = lanes["compute"].iter().filter(|(.., span)| !span["args"]["bytes"].is_null());
        let multiplied: u64 = multiplies.map(|(.., span)| span["args"]["bytes"].as_u64().unwrap()).sum();
        assert!(multiplied > 0);
        let sizes = lanes["copy"].iter().map(|(.., span)| span["args"]["bytes"].as_u64().unwrap_or(0));
        assert!(sizes.sum::<u64>() > 0);
        assert!(String::from_utf8(output.stderr).unwrap().contains("to the GPU"));
    }
}

/// Experts are seen in the same words wherever they are computed.
#[test]
fn of_a_mixture_of_experts() {
    const MIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models/mixtral");
    let profile = |device: &str, more: &dyn Fn(&mut Command)| {
        let mut command =
            layerstream(&["generate", MIXTURE, "--ids", "1,2,3", "--max-new-tokens", "3", "--ignore-eos"]);
        more(command.args(["--device", device, "--profile"]));
        String::from_utf8(succeed(&mut command).stderr).unwrap()
    };
    let has_experts = |text: &str| {
        let line = text.lines().find(|line| line.contains("from memory")).unwrap_or_else(|| panic!("{text}"));
        assert!(line.starts_with("experts") && line.ends_with("read"), "{line}");
    };
    // Every byte that was read of experts is in the timeline, under the step that asked for it.
    let traced = |device: &str, more: &dyn Fn(&mut Command)| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trace.json");
        let mut command =
            layerstream(&["generate", MIXTURE, "--ids", "1,2,3", "--max-new-tokens", "3", "--ignore-eos", "--json"]);
        more(command.args(["--device", device, "--trace"]).arg(&file));
        let said: Value = serde_json::from_slice(&succeed(&mut command).stdout).unwrap();
        let (_, lanes) = check(&std::fs::read(&file).unwrap());
        let reads = lanes.iter().filter(|(name, _)| name.starts_with("disk")).flat_map(|(_, spans)| spans);
        let of_experts = reads.filter(|(.., span)| span["name"] == "experts" && span["args"]["layer"].is_u64());
        let bytes: u64 = of_experts.map(|(.., span)| span["args"]["bytes"].as_u64().unwrap()).sum();
        let read = said["experts"]["bytes_read"].as_u64().unwrap();
        assert!(read > 0 && bytes == read, "{device}: {bytes} bytes of experts in the timeline, {read} were read");
    };
    has_experts(&profile("cpu", &|_| {}));
    traced("cpu", &|_| {});
    #[cfg(feature = "cuda")]
    {
        let simulated = |command: &mut Command| {
            command.env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap());
            command.env("LAYERSTREAM_SIM_VRAM", "268435456");
        };
        has_experts(&profile("cuda:0", &simulated));
        traced("cuda:0", &simulated);
    }
}

//! The recorder's arithmetic on spans that are made up: what a gap is put down to, that sums make up the whole, and that
//! the timeline is bounded.

use serde_json::json;

use super::*;

/// Two steps: one that fetches weights and one that does not.
fn recorder() -> Recorder {
    let recorder = Recorder::new(true);
    let label = |kind: &'static str, layer| Label { kind, name: format!("{kind} \"w\""), layer };
    let mut state = recorder.lock().unwrap();
    state.labels = vec![label("multiply", Some(0)), label("attend", Some(0)), label("multiply", None)];
    state.sums = vec![Sum::default(); 3];
    state.tiles = vec![0, 2];
    state.expert_tiles = vec![1];
    drop(state);
    recorder
}

#[test]
fn a_gap_is_put_down_to_the_copy_while_it_runs_and_else_to_the_disk() {
    let recorder = recorder();
    recorder.begin_pass(1000);
    recorder.tile_copied(0, 1200, 1500, 64);
    recorder.computed(0, 1500, 1800, 64, true);
    recorder.computed(1, 1850, 1900, 0, false);
    recorder.tile_copied(1, 1700, 1750, 32);
    recorder.computed(2, 1900, 2000, 32, true);
    recorder.end_pass(Some(2100));
    let report = recorder.report().unwrap();
    let ns = |seconds: f64| (seconds * 1e9).round() as u64;
    let [first, last] = [&report.layers[0], &report.layers[1]];
    assert_eq!((ns(first.disk_wait), ns(first.copy_wait), ns(first.compute), ns(first.idle)), (200, 300, 350, 50));
    assert_eq!((last.name.as_str(), ns(last.disk_wait), ns(last.copying)), ("others", 0, 50));
    assert_eq!((ns(report.seconds), ns(report.total.seconds())), (1100, 1100));
    assert_eq!((first.limit(), report.kinds.len(), report.passes), ("compute", 2, 1));
}

#[test]
fn a_pass_that_was_given_up_counts_up_to_its_last_step() {
    let recorder = recorder();
    recorder.begin_pass(0);
    recorder.computed(0, 100, 300, 8, true);
    recorder.end_pass(None);
    recorder.begin_pass(1000);
    recorder.computed(0, 1000, 1100, 8, true);
    recorder.end_pass(Some(1100));
    let report = recorder.report().unwrap();
    assert_eq!((report.passes, report.seconds, report.total.seconds()), (2, 400e-9, 400e-9));
}

#[test]
fn reads_that_overlap_are_shown_in_lanes_of_their_own() {
    let recorder = recorder();
    let (tile, other, expert) = (Whose::Tile(0), Whose::Tile(1), Whose::Expert(0));
    for offset in 0..3 {
        recorder.read_started(tile, 0, offset);
    }
    recorder.read_landed(tile, 0, 1, 10);
    // Runs that begin in the same block: whose each is decides.
    recorder.read_started(other, 0, 9);
    recorder.read_started(expert, 0, 9);
    recorder.read_landed(expert, 0, 9, 10);
    recorder.read_landed(other, 0, 9, 10);
    for offset in [0, 2] {
        recorder.read_landed(tile, 0, offset, 10);
    }
    // One that was never begun is not counted.
    recorder.read_landed(tile, 7, 7, 10);
    let report = recorder.report().unwrap();
    assert_eq!((report.disk.reads, report.disk.bytes), (5, 50));
    assert!(report.disk.in_flight() >= 1.0, "{:?}", report.disk);
    let state = recorder.lock().unwrap();
    let lanes: Vec<_> = state.timeline.iter().map(|span| (span.lane, span.step)).collect();
    let [first, second, third, fourth] = [0, 1, 2, 3].map(Lane::Disk);
    assert_eq!(lanes, [(second, 0), (fourth, 1), (second, 2), (first, 0), (third, 0)]);
}

#[test]
fn a_timeline_has_an_end_and_says_what_it_left_out() {
    let recorder = recorder();
    recorder.lock().unwrap().room = 3;
    recorder.begin_pass(0);
    for at in 0..5 {
        recorder.computed(0, at * 10, at * 10 + 10, 1, true);
    }
    let mut out = Vec::new();
    assert_eq!(recorder.write_trace(&json!({"model": "m"}), &mut out).unwrap(), 2);
    let trace: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((&trace["otherData"]["model"], &trace["otherData"]["spans_left_out"]), (&json!("m"), &json!(2)));
    let spans = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X");
    let spans: Vec<_> = spans.map(|span| (span["name"].as_str().unwrap(), span["ts"].as_f64().unwrap())).collect();
    assert_eq!(spans, [("multiply \"w\"", 0.0), ("multiply \"w\"", 0.01), ("multiply \"w\"", 0.02)]);
}

#[test]
fn off_is_off() {
    let recorder = Recorder::default();
    recorder.begin_pass(0);
    recorder.read_started(Whose::Tile(0), 0, 0);
    recorder.ran(0, 1);
    assert!(recorder.report().is_none() && recorder.now() == 0 && !recorder.is_on());
}

#[test]
fn layers_are_named_by_the_first_number_in_a_tensors_name() {
    assert_eq!(layer_of("model.layers.12.mlp.experts.3.up_proj.weight"), Some(12));
    assert_eq!(layer_of("transformer.h.0.ln_1.weight"), Some(0));
    assert_eq!(layer_of("lm_head.weight"), None);
}

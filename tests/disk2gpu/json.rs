//! The JSON is as docs/disk2gpu.md describes it: every field is described, and every field that is described is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json as value};

use super::{directory, disk2gpu, file, json};

/// The fields in the tables of the page.
fn described() -> BTreeSet<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/disk2gpu.md")).unwrap();
    let (_, fields) = page.split_once("## The JSON").unwrap();
    fields.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_string())).collect()
}

/// The paths of all values that hold no others.
fn leaves(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                leaves(value, &(if path.is_empty() { name.clone() } else { format!("{path}.{name}") }), into);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| leaves(value, &format!("{path}[]"), into)),
        _ => drop(into.insert(path.to_string())),
    }
}

#[test]
fn every_field_is_described_and_every_description_is_of_a_field() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    let measured = json(disk2gpu(["--repetitions", "1", "--depth", "2"]).arg(&path));
    let map = dir.path().join("map.svg");
    let args = ["--repetitions", "1", "--sweep-chunks", "64KiB,1MiB", "--sweep-depths", "1,2"];
    let swept = json(disk2gpu(args).arg(&path).arg("--sweep").arg(&map));
    let mut found = BTreeSet::new();
    leaves(&measured, "", &mut found);
    leaves(&swept, "", &mut found);
    let described = described();
    assert!(described.len() > 80, "{described:?}");
    for field in &found {
        let inside = |d: &String| d == field || d.starts_with(&format!("{field}."));
        assert!(described.iter().any(inside), "`{field}` is not described");
    }
    for field in &described {
        // What is null as a whole: the GPU and fio, which this run does without.
        let absent = ["gpu.", "fio."].iter().any(|prefix| field.starts_with(prefix));
        assert!(absent || found.contains(field), "`{field}` is described and not there");
    }
    assert_eq!(measured["schema"], "layerstream.disk2gpu/1");
    assert_eq!((&measured["gpu"], &measured["sweep"]), (&Value::Null, &Value::Null));
    assert_eq!(swept["runs"], value!([]));
    assert!(measured["warnings"].to_string().contains("no GPU"), "{}", measured["warnings"]);
}

#[test]
fn figures_fit_each_other() {
    let dir = directory();
    let path = file(dir.path(), "a", 6_000_000, 1);
    let report = json(disk2gpu(["--repetitions", "3", "--chunk", "256KiB", "--depth", "4"]).arg(&path));
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is a number"));
    for run in report["runs"].as_array().unwrap() {
        let (gbps, latency) = (&run["gbps"], &run["latency_ms"]);
        let speeds = [&gbps["min"], &gbps["median"], &gbps["max"]].map(number);
        let latencies = [&latency["p50"], &latency["p90"], &latency["p99"], &latency["max"]].map(number);
        assert!(speeds[0] > 0.0 && speeds.is_sorted(), "{speeds:?}");
        assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{latencies:?}");
        assert!(number(&run["cpu_s_per_gb"]) > 0.0 && number(&run["init_s"]) > 0.0);
        assert!(number(&run["huge_bytes"]) <= number(&run["memory_bytes"]));
    }
    let ring = &report["runs"][1]["stalls"];
    for share in [&ring["disk"], &ring["copy"]].map(number) {
        assert!((0.0..=1.01).contains(&share), "{ring}");
    }
    let medians = [0, 1].map(|i| number(&report["runs"][i]["gbps"]["median"]));
    assert!((number(&report["roofline"]["fraction"]) - medians[1] / medians[0]).abs() < 1e-9);
    assert_eq!((&report["roofline"]["limit"], &report["roofline"]["of"]), (&"disk".into(), &"disk-ring".into()));
}

#[test]
fn a_sweep_draws_every_place() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    let map = dir.path().join("map.svg");
    let args = ["--repetitions", "2", "--sweep-chunks", "64KiB,512KiB,1MiB", "--sweep-depths", "1,2"];
    let report = json(disk2gpu(args).arg(&path).arg("--sweep").arg(&map));
    let rows = report["sweep"]["maps"][0]["gbps"].as_array().unwrap();
    assert_eq!((rows.len(), rows[0].as_array().unwrap().len()), (3, 2));
    let svg = fs::read_to_string(&map).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    for row in rows {
        for gbps in row.as_array().unwrap() {
            assert!(svg.contains(&format!("\n{:.2}\n", gbps.as_f64().unwrap())), "{gbps} in {svg}");
        }
    }
    for label in ["64.0 KiB", "512.0 KiB", "1.0 MiB", "reads in flight", "size of a read", "GB/s"] {
        assert!(svg.contains(label), "{label}");
    }
    // Every tag that opens closes: plotters writes no others than these.
    let count = |tag: &str| svg.matches(tag).count();
    assert_eq!(count("<text "), count("</text>"));
    assert_eq!(count("<rect "), svg.lines().filter(|line| line.starts_with("<rect ") && line.ends_with("/>")).count());
}

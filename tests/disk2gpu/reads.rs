//! Every reader, in every arrangement of files, delivers the right bytes, and says what it did.

use std::fs;

use super::{directory, disk2gpu, fails, file, json, text};

/// Small pieces, so that small files have many of them.
const SMALL: [&str; 8] = ["--chunk", "64KiB", "--depth", "4", "--repetitions", "2", "--warmup", "0"];

#[test]
fn every_reader_delivers_what_the_file_holds() {
    let dir = directory();
    // Neither length is a multiple of anything.
    let path = file(dir.path(), "a", 5_000_011, 1);
    let crc = format!("{:08x}", crc32fast::hash(&fs::read(&path).unwrap()));
    for reader in ["uring", "pread", "mmap", "buffered"] {
        for cache in ["cold", "warm"] {
            let report = json(disk2gpu(SMALL).arg(&path).args(["--reader", reader, "--cache", cache]));
            assert_eq!(report["config"]["files"][0]["crc32"], crc.as_str(), "{reader}");
            let runs = report["runs"].as_array().unwrap();
            let stages: Vec<&str> = runs.iter().map(|run| run["stage"].as_str().unwrap()).collect();
            assert_eq!(stages, ["disk-host", "disk-ring"]);
            for run in runs {
                assert_eq!(run["readers"], serde_json::json!([reader]));
                assert_eq!(run["verified"], true, "{reader} {cache}");
                assert_eq!(run["bytes"], 5_000_011);
                assert_eq!(run["samples_gbps"].as_array().unwrap().len(), 2);
                assert_eq!(run["threads"], if reader == "uring" { 1 } else { 4 });
                assert_eq!(run["in_flight"], 4);
            }
        }
    }
}

#[test]
fn threads_share_the_depth_of_uring_and_are_that_of_the_others() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 2);
    for (reader, in_flight) in [("uring", 4), ("pread", 2)] {
        let report = json(disk2gpu(SMALL).arg(&path).args(["--reader", reader, "--threads", "2"]));
        for run in report["runs"].as_array().unwrap() {
            assert_eq!((&run["threads"], &run["verified"]), (&2.into(), &true.into()), "{reader}");
        }
        assert_eq!(report["runs"][0]["in_flight"], in_flight, "{reader}");
    }
}

#[test]
fn several_files_one_after_the_other_or_in_turns() {
    let dir = directory();
    let paths =
        [file(dir.path(), "a", 3_000_001, 1), file(dir.path(), "b", 70_000, 2), file(dir.path(), "c", 900_000, 3)];
    for stripe in [false, true] {
        let report = json(disk2gpu(SMALL).args(&paths).args(stripe.then_some("--stripe")));
        assert_eq!(report["config"]["striped"], stripe);
        assert_eq!(report["config"]["bytes"], 3_970_001);
        assert!(report["runs"].as_array().unwrap().iter().all(|run| run["verified"] == true));
    }
}

#[test]
fn a_checkpoint_is_its_files() {
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let report = json(disk2gpu(SMALL).arg(&demo));
    let files = report["config"]["files"].as_array().unwrap();
    assert!(files.iter().all(|file| file["path"].as_str().unwrap().ends_with(".safetensors")), "{files:?}");
    assert_eq!(report["config"]["bytes"], report["config"]["available_bytes"]);
}

#[test]
fn no_more_is_read_than_asked_for() {
    let dir = directory();
    let paths = [file(dir.path(), "a", 2_000_001, 1), file(dir.path(), "b", 2_000_000, 2)];
    let report = json(disk2gpu(SMALL).args(&paths).args(["--bytes", "3000000"]));
    let files = report["config"]["files"].as_array().unwrap();
    assert_eq!((&files[0]["bytes"], &files[1]["bytes"]), (&2_000_001.into(), &999_999.into()));
    assert_eq!(report["config"]["available_bytes"], 4_000_001);
    assert!(report["runs"].as_array().unwrap().iter().all(|run| run["verified"] == true));
    let said = text(disk2gpu(SMALL).args(&paths).args(["--bytes", "3000000"]));
    assert!(said.contains("the beginning of 4.0 MB"), "{said}");
}

#[test]
fn replicas_are_read_at_the_same_time() {
    let dir = directory();
    let (a, b) = (file(dir.path(), "a", 4_000_001, 1), file(dir.path(), "b", 4_000_001, 1));
    let report = json(disk2gpu(SMALL).arg(&a).arg("--replica").arg(&b));
    for run in report["runs"].as_array().unwrap() {
        assert_eq!((run["readers"].as_array().unwrap().len(), &run["verified"]), (2, &true.into()));
        assert_eq!((&run["threads"], &run["in_flight"]), (&2.into(), &8.into()));
    }
}

/// What differs is found: here a replica that is as long as the original and holds other bytes.
#[test]
fn other_bytes_are_noticed() {
    let dir = directory();
    let (a, b) = (file(dir.path(), "a", 32 << 20, 1), file(dir.path(), "b", 32 << 20, 2));
    let args = ["--chunk", "16KiB", "--depth", "1", "--repetitions", "1", "--warmup", "0"];
    let output = fails(disk2gpu(args).arg(&a).arg("--replica").arg(&b), 1, &["not what the files hold"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("DIFFERS"), "{said}");
}

#[test]
fn the_table_says_what_ran() {
    let dir = directory();
    let said =
        text(disk2gpu(["--scratch", "4MiB", "--repetitions", "1", "--reader", "pread", "--dir"]).arg(dir.path()));
    for words in [
        "a scratch file in",
        "GPU: none",
        "disk -> host",
        "disk -> ring",
        "16 threads",
        "by pread",
        "verified",
        "fio --name",
    ] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

#[test]
fn verification_can_be_left_out() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    let report = json(disk2gpu(SMALL).arg(&path).arg("--verify=never"));
    assert!(report["runs"].as_array().unwrap().iter().all(|run| run["verified"].is_null()));
    assert!(report["config"]["files"][0]["crc32"].is_null());
}

//! Drives that are full: what is asked for, what is said, and that the same command goes on when there is room.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{copy_of_demo, demo, pack, succeeds};

/// What a script prints that mounts a drive of its own, unless it cannot.
fn on_a_drive(script: &str, source: &Path, drive: &Path, number: u64) -> Option<String> {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(env!("CARGO_BIN_EXE_layerstream"));
    let output = command.arg(source).arg(drive).arg(number.to_string()).output();
    let text = output.as_ref().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    match &output {
        Ok(output) if output.status.success() => return Some(text),
        // `unshare` itself ends with 1 and says nothing on standard output.
        Ok(output) if output.status.code() != Some(77) && !text.is_empty() => panic!("{:?}: {text}", output.status),
        other => println!("SKIPPED: no drive of its own can be mounted here: {other:?}"),
    }
    None
}

/// A drive of its own, first with no room for the result, then with none for the last manifest, as only so many files can be
/// there, then with enough.
const SMALL_DRIVE: &str = r#"
    program=$1 model=$2 drive=$3 inodes=$4
    mount -t tmpfs -o size=1m none "$drive" || exit 77
    pack() { "$program" pack "$model" --to int8 --delete-original --out "$drive/out" 2>&1; }
    pack && exit 1
    mount -o remount,size=64m,nr_inodes=$inodes "$drive" || exit 77
    pack && exit 2
    "$program" verify "$drive/out" && exit 3
    mount -o remount,nr_inodes=1000 "$drive"
    pack && "$program" verify "$drive/out" 2>&1
"#;

#[test]
fn a_full_drive_is_an_error_that_says_what_to_do_and_nothing_is_lost() {
    let (source, drive) = (copy_of_demo(), tempfile::tempdir().unwrap());
    let finished = tempfile::tempdir().unwrap();
    succeeds(&pack(&demo(), finished.path(), &["--to", "int8"]));
    // With the drive's root, the directory and the lock, all but the manifest that replaces the one there is.
    let inodes = fs::read_dir(finished.path()).unwrap().count() + 3;
    let Some(text) = on_a_drive(SMALL_DRIVE, source.path(), drive.path(), inodes as u64) else { return };
    assert!(text.contains("will be written, but"), "{text}");
    assert!(text.contains("free some room and run the same command again: it goes on where it stopped"), "{text}");
    assert!(text.contains("all as they were written"), "{text}");
}

/// A drive with room for the result once, on which a run ends between the name of the first file and the manifest.
const UNRECORDED: &str = r#"
    program=$1 model=$2 drive=$3 bytes=$4
    mount -t tmpfs -o size=64m none "$drive" || exit 77
    pack() { "$program" pack "$model" --to int8 --out "$drive/out" "$@" 2>&1; }
    pack --steps-to "$drive/steps" || exit 1
    named=$(grep -n "^rename .*/model-00001" "$drive/steps" | cut -d: -f1)
    rm -r "$drive/out" "$drive/steps"
    pack --abort-at $((named + 1))
    ls "$drive"/out/model-00001* || exit 2
    mount -o remount,size=$bytes "$drive" || exit 3
    pack --delete-original && "$program" verify "$drive/out" 2>&1
"#;

#[test]
fn a_file_that_no_manifest_knows_takes_no_room_twice() {
    let (source, drive) = (copy_of_demo(), tempfile::tempdir().unwrap());
    let finished = tempfile::tempdir().unwrap();
    succeeds(&pack(&demo(), finished.path(), &["--to", "int8"]));
    let pages = |path: &Path| fs::metadata(path).unwrap().len().next_multiple_of(4096);
    let all: u64 = fs::read_dir(finished.path()).unwrap().map(|entry| pages(&entry.unwrap().path())).sum();
    // Twice more the manifest, and little else.
    let bytes = all + 2 * pages(&finished.path().join("layerstream-pack.json")) + (64 << 10);
    if let Some(text) = on_a_drive(UNRECORDED, source.path(), drive.path(), bytes) {
        assert!(text.contains("all as they were written"), "{text}");
    }
}

//! Manifests with wrong numbers: whatever is changed, nothing panics, no damage passes `verify`, and a packing that goes on
//! ends with a result that is right or with an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;

use super::manifest::{MANIFEST, Manifest};
use super::{Options, checksums, pack, verify};
use crate::checkpoint::Checkpoint;
use crate::encoding::Packed;
use crate::error::Result;

/// A small model with experts in one tensor, so with shapes of one, two and three dimensions.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/mixtral_fused")
}

/// Memory for runs of 8 KiB, so that tensors have several.
const OPTIONS: Options = Options {
    to: Packed::Int8 { block: 64 },
    head: false,
    delete_original: false,
    ram: 32 << 10,
    threads: 2,
    abort_at: None,
    steps_to: None,
};

struct Made {
    dir: tempfile::TempDir,
    manifest: Value,
    /// Where in it numbers are.
    numbers: Vec<String>,
}

/// The model, packed.
static MADE: LazyLock<Made> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    pack(&source(), dir.path(), &OPTIONS, &|_, _| ()).unwrap();
    let manifest: Value = serde_json::from_slice(&fs::read(dir.path().join(MANIFEST)).unwrap()).unwrap();
    let mut numbers = Vec::new();
    find_numbers(&manifest, String::new(), &mut numbers);
    assert!(numbers.len() > 100, "{}", numbers.len());
    Made { dir, manifest, numbers }
});

fn find_numbers(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at),
        Value::Array(all) => {
            all.iter().enumerate().for_each(|(i, value)| find_numbers(value, format!("{at}/{i}"), found))
        }
        Value::Object(all) => all.iter().for_each(|(key, value)| find_numbers(value, format!("{at}/{key}"), found)),
        _ => {}
    }
}

/// What becomes of a number.
fn changed(n: u64, how: u64) -> Value {
    let few = [
        0,
        1,
        2,
        4096,
        1 << 40,
        i64::MAX as u64,
        u64::MAX,
        n.wrapping_add(1),
        n.wrapping_sub(1),
        n.wrapping_mul(2),
        n / 2,
    ];
    match how {
        0..11 => few[how as usize].into(),
        11 => Value::from(-1),
        12 => Value::from(1.5),
        _ => (n ^ 1 << (how % 64)).into(),
    }
}

/// A manifest with other numbers; with the checksum of itself that it should have then, if that is wanted and it has one.
fn with_numbers(manifest: &Value, changes: &[(usize, u64)], true_sum: bool) -> (Vec<u8>, Vec<String>) {
    let (mut manifest, mut places) = (manifest.clone(), Vec::new());
    for (which, how) in changes {
        let place = &MADE.numbers[which % MADE.numbers.len()];
        let number = manifest.pointer_mut(place).expect("a number");
        let other = number.as_u64().map(|n| changed(n, *how)).filter(|other| other != number);
        if let Some(other) = other {
            *number = other;
            places.push(place.clone());
        }
    }
    let bytes = serde_json::to_vec_pretty(&manifest).unwrap();
    match serde_json::from_slice::<Manifest>(&bytes) {
        Ok(parsed) if true_sum => (parsed.whole(), places),
        _ => (bytes, places),
    }
}

fn verified(dir: &Path) -> Result<()> {
    verify(dir, &mut |_, _| ()).map(drop)
}

/// A directory with all files of another one but its manifest.
fn beside(manifest: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(MADE.dir.path()).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    fs::remove_file(dir.path().join(MANIFEST)).unwrap();
    fs::write(dir.path().join(MANIFEST), manifest).unwrap();
    dir
}

/// Whose wrong numbers need not show in the result, if the manifest's checksum is true: what is said of the source and of the
/// options, and how long a run is where a tensor has only one.
const NOT_OF_THE_RESULT: [&str; 6] = ["source_bytes", "source_offset", "run", "block", "kept", "transposed"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_damage_passes(changes in prop::collection::vec((any::<usize>(), 0u64..70), 1..4), true_sum: bool) {
        let (manifest, places) = with_numbers(&MADE.manifest, &changes, true_sum);
        let dir = beside(&manifest);
        let found = verified(dir.path());
        let told = |place: &String| !NOT_OF_THE_RESULT.iter().any(|name| place.ends_with(name));
        if places.iter().any(told) || (!places.is_empty() && !true_sum) {
            let error = found.expect_err(&format!("{places:?} were changed")).to_string();
            prop_assert!(error.len() < 4000 && error.contains(dir.path().to_str().unwrap()), "{error}");
        }
        // With `--check`; and where packing was finished, it does nothing.
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let _ = checksums(&checkpoint);
        let _ = pack(&source(), dir.path(), &OPTIONS, &|_, _| ());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_goes_on_ends_well_or_with_an_error(changes in prop::collection::vec((any::<usize>(), 0u64..70), 1..3)) {
        let mut begun = MADE.manifest.clone();
        begun["finished"] = false.into();
        for shard in begun["shards"].as_array_mut().unwrap() {
            shard["packed"] = false.into();
            shard.as_object_mut().unwrap().remove("source_whole");
            shard["tensors"].as_array_mut().unwrap().iter_mut().for_each(|tensor| tensor["sums"] = Value::Array(vec![]));
        }
        let dir = beside(&with_numbers(&begun, &changes, true).0);
        for shard in begun["shards"].as_array().unwrap() {
            fs::remove_file(dir.path().join(shard["file"].as_str().unwrap())).unwrap();
        }
        if pack(&source(), dir.path(), &OPTIONS, &|_, _| ()).is_ok() {
            verified(dir.path()).unwrap();
        }
    }
}

//! Another source than the one that packing began with: it is not mixed in, not taken for it, and above all not deleted.

use std::fs;
use std::path::Path;

use crate::{SHARDS, copy_of_demo, demo, fails, few, pack, succeeds, synthetic, verify};

/// Changes a bit of a file.
fn change(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn another_source_is_not_mixed_in() {
    let len = fs::metadata(demo().join(SHARDS[0])).unwrap().len() as usize;
    let (whole, steps) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    succeeds(&pack(&demo(), whole.path(), &few("nf4", &["--steps-to", steps.path().to_str().unwrap()])));
    let steps = fs::read_to_string(steps.path()).unwrap();
    let begun =
        SHARDS.map(|shard| steps.lines().position(|step| step.ends_with(&format!(".{shard}.partial"))).unwrap());
    // As far as the first file; as far as the second; to the end.
    for abort in [Some(begun[0] + 2), Some(begun[1] + 2), None] {
        let abort = abort.map(|at| at.to_string());
        for place in [100_000, len / 2, len - 1] {
            for delete in [&[][..], &["--delete-original"]] {
                let (source, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
                let abort: Vec<&str> = abort.iter().flat_map(|at| ["--abort-at", at]).collect();
                let begun = pack(source.path(), out.path(), &few("nf4", &abort));
                assert_eq!(begun.status.success(), abort.is_empty());
                assert!(out.path().join("layerstream-pack.json").exists());
                for shard in SHARDS {
                    change(&source.path().join(shard), place);
                    let words = [shard, "is not the file that", "begun with"];
                    fails(&pack(source.path(), out.path(), &few("nf4", delete)), &words);
                    change(&source.path().join(shard), place);
                }
                assert!(SHARDS.iter().all(|shard| source.path().join(shard).exists()));
                succeeds(&pack(source.path(), out.path(), &few("nf4", &[])));
            }
        }
    }
}

#[test]
fn another_model_is_not_taken_for_the_one_that_was_packed() {
    let (source, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
    succeeds(&pack(source.path(), out.path(), &["--to", "int8"]));
    succeeds(&pack(source.path(), out.path(), &["--to", "int8"]));
    // Other files, other configurations.
    let other = tempfile::tempdir().unwrap();
    let other = synthetic(other.path(), 1);
    fails(&pack(&other, out.path(), &["--to", "int8"]), &["is not the file that"]);
    fs::copy(source.path().join("config.json"), other.join("config.json")).unwrap();
    fails(&pack(&other, out.path(), &["--to", "int8"]), &["is not the file that"]);
    let config = source.path().join("config.json");
    fs::write(&config, fs::read_to_string(&config).unwrap() + " ").unwrap();
    fails(
        &pack(source.path(), out.path(), &["--to", "int8", "--delete-original"]),
        &["config.json", "is not the file"],
    );
    assert!(SHARDS.iter().all(|shard| source.path().join(shard).exists()));
}

#[test]
fn a_source_that_was_changed_anywhere_is_not_deleted() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = synthetic(dir.path(), 1);
    let shard = model.join("model.safetensors");
    succeeds(&pack(&model, out.path(), &["--to", "int8"]));
    // Between the pieces that are compared in every run.
    change(&shard, (1 << 20) + 100_000);
    succeeds(&pack(&model, out.path(), &["--to", "int8"]));
    let delete = &["--to", "int8", "--delete-original"];
    fails(&pack(&model, out.path(), delete), &["model.safetensors", "was changed after", "not deleted"]);
    change(&shard, (1 << 20) + 100_000);
    succeeds(&pack(&model, out.path(), delete));
    assert!(!shard.exists());
    succeeds(&verify(out.path()));
    succeeds(&pack(&model, out.path(), delete));
}

#[test]
fn what_an_older_version_packed_is_read_and_its_source_kept() {
    let (source, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
    succeeds(&pack(source.path(), out.path(), &["--to", "int8"]));
    // As version 2 had it: the sources' first MiB, and nothing of the rest.
    let path = out.path().join("layerstream-pack.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["version"] = 2.into();
    for (shard, name) in manifest["shards"].as_array_mut().unwrap().iter_mut().zip(SHARDS) {
        let start = &fs::read(source.path().join(name)).unwrap()[..1 << 20];
        shard["source_sum"] = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(start)).into();
        shard.as_object_mut().unwrap().remove("source_whole").unwrap();
    }
    manifest["sum"] = "".into();
    let sum = xxhash_rust::xxh3::xxh3_128(&serde_json::to_vec_pretty(&manifest).unwrap());
    manifest["sum"] = format!("{sum:032x}").into();
    fs::write(&path, serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
    succeeds(&verify(out.path()));
    succeeds(&pack(source.path(), out.path(), &["--to", "int8"]));
    let delete = pack(source.path(), out.path(), &["--to", "int8", "--delete-original"]);
    fails(&delete, &[SHARDS[0], "older version", "delete it yourself"]);
    assert!(SHARDS.iter().all(|shard| source.path().join(shard).exists()));
}

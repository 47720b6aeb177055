//! Sources in the cache of Hugging Face's tools, where files are links to blobs that other snapshots may have, too.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::{SHARDS, copy_of_demo, demo, fails, few, layerstream, nothing_is_lost, pack, succeeds, verify};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The demo model in a cache, as `org/demo`.
struct Cached {
    cache: TempDir,
}

impl Cached {
    fn new() -> Cached {
        let cached = Cached { cache: tempfile::tempdir().unwrap() };
        fs::create_dir_all(cached.folder().join("blobs")).unwrap();
        fs::create_dir_all(cached.folder().join("refs")).unwrap();
        fs::write(cached.folder().join("refs/main"), COMMIT).unwrap();
        cached.add(COMMIT);
        cached
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join("models--org--demo")
    }

    fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT)
    }

    fn blob(&self, file: &str) -> PathBuf {
        self.folder().join("blobs").join(format!("blob-of-{file}"))
    }

    /// A snapshot with all files.
    fn add(&self, commit: &str) {
        let snapshot = self.folder().join("snapshots").join(commit);
        fs::create_dir_all(&snapshot).unwrap();
        for entry in fs::read_dir(demo()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            fs::write(self.blob(&name), fs::read(demo().join(&name)).unwrap()).unwrap();
            symlink(format!("../../blobs/blob-of-{name}"), snapshot.join(name)).unwrap();
        }
    }

    /// Packs `org/demo`, which cannot be downloaded.
    fn pack(&self, out: &Path, args: &[&str]) -> Output {
        let mut command: Command = layerstream();
        command.env("HF_HUB_CACHE", self.cache.path()).env("HF_HUB_OFFLINE", "1").current_dir(self.cache.path());
        command.args(["pack", "org/demo", "--out"]).arg(out).args(args).output().unwrap()
    }
}

#[test]
fn killed_at_any_operation_a_repository_goes_on_by_its_name() {
    let (original, finished) = (copy_of_demo(), tempfile::tempdir().unwrap());
    succeeds(&pack(original.path(), finished.path(), &few("int8", &[])));
    let (mut killed, mut at) = (0, 0);
    loop {
        let (cached, out) = (Cached::new(), tempfile::tempdir().unwrap());
        let limit = at.to_string();
        let first = cached.pack(out.path(), &few("int8", &["--delete-original", "--abort-at", &limit]));
        nothing_is_lost(&cached.snapshot(), out.path(), original.path(), finished.path());
        killed += usize::from(!first.status.success());
        succeeds(&cached.pack(out.path(), &few("int8", &["--delete-original"])));
        nothing_is_lost(&cached.snapshot(), out.path(), original.path(), finished.path());
        succeeds(&verify(out.path()));
        for shard in SHARDS {
            assert!(!cached.blob(shard).exists() && !cached.snapshot().join(shard).is_symlink(), "{shard} at {at}");
        }
        assert!(cached.snapshot().join("config.json").exists());
        if first.status.success() {
            break;
        }
        at += 2;
    }
    assert!(killed > 40, "{killed} kills");
    // Whatever is in the way of a beginning, it is no reason to use what is not whole.
    let (cached, out) = (Cached::new(), tempfile::tempdir().unwrap());
    fs::remove_file(cached.blob(SHARDS[1])).unwrap();
    fails(&cached.pack(out.path(), &few("int8", &[])), &["org/demo", "HF_HUB_OFFLINE"]);
}

#[test]
fn blobs_of_other_snapshots_stay() {
    let (cached, out) = (Cached::new(), tempfile::tempdir().unwrap());
    cached.add("other");
    let other = cached.folder().join("snapshots/other");
    fs::remove_file(other.join(SHARDS[1])).unwrap();
    let told = succeeds(&cached.pack(out.path(), &few("int8", &["--delete-original"])));
    assert!(told.contains("of 1 file the Hub's cache keeps the blob"), "{told}");
    succeeds(&verify(out.path()));
    assert!(cached.blob(SHARDS[0]).exists() && other.join(SHARDS[0]).exists());
    assert!(!cached.blob(SHARDS[1]).exists());
    assert!(SHARDS.iter().all(|shard| !cached.snapshot().join(shard).is_symlink()));
}

//! What a loss of power leaves. A process that ends leaves all that it wrote to the operating system, synced or not, so the
//! order of operations is looked at instead: before a file of the source is deleted, all that replaces it was synced, each
//! thing before the name that makes it count.

use std::fs;
use std::path::Path;

use crate::{SHARDS, copy_of_demo, few, pack, succeeds};

/// The operations of a run, or of several.
struct Steps(Vec<String>);

impl Steps {
    /// The last time that something was done, of the first `before` operations.
    #[track_caller]
    fn last(&self, doing: &str, path: &Path, before: usize) -> usize {
        let step = format!("{doing} {}", path.display());
        let found = self.0[..before].iter().rposition(|each| *each == step);
        found.unwrap_or_else(|| panic!("no `{step}` in\n{}", self.0[..before].join("\n")))
    }

    /// Before operation `at`, the file was written, synced, named, and its directory synced: where it was begun.
    #[track_caller]
    fn safe(&self, dir: &Path, file: &str, at: usize) -> usize {
        let (path, partial) = (dir.join(file), dir.join(format!(".{file}.partial")));
        let names = self.last("sync", dir, at);
        let named = self.last("rename", &path, names);
        let synced = self.last("sync", &partial, named);
        assert!(self.last("write", &partial, named) < synced, "{file} was written after it was synced");
        self.last("create", &partial, synced)
    }
}

#[test]
fn nothing_is_deleted_before_all_that_replaces_it_is_synced() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path().canonicalize().unwrap();
    let (mut deleted, mut at) = (0, 0);
    loop {
        let (source, above) = (copy_of_demo(), work.join(at.to_string()));
        let (made, out) = (above.join("made"), above.join("made/out"));
        let [first, second] = ["first", "second"].map(|name| work.join(name));
        // Ended at some operation, and continued.
        let run = |to: &Path, more: &[&str]| {
            let args = [&["--delete-original", "--steps-to", to.to_str().unwrap()], more].concat();
            pack(source.path(), &out, &few("int8", &args))
        };
        let whole = run(&first, &["--abort-at", &at.to_string()]).status.success();
        succeeds(&run(&second, &[]));
        let text = [first, second].map(|file| fs::read_to_string(file).unwrap()).concat();
        let steps = Steps(text.lines().map(str::to_owned).collect());
        for shard in SHARDS {
            let delete = format!("delete {}", source.path().join(shard).display());
            let Some(delete) = steps.0.iter().position(|step| *step == delete) else { continue };
            let manifest = steps.safe(&out, "layerstream-pack.json", delete);
            steps.safe(&out, shard, manifest);
            let begun = steps.0.iter().position(|step| step.starts_with("create ")).unwrap();
            for parent in [&made, &above, &work] {
                assert!(steps.last("sync", parent, delete) > begun, "{}", parent.display());
            }
            deleted += 1;
        }
        if whole {
            break;
        }
        at += 3;
    }
    assert!(at > 60 && deleted > 40, "{deleted} files deleted in {at} operations");
}

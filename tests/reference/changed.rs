//! Golden cases with another configuration.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

/// The case, with these keys of its `config.json` in place of its own.
pub fn changed(case: &Path, changes: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(case).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "config.json" {
            symlink(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    let mut config: Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

//! The files of the project: what git tracks, or, outside a checkout (an unpacked release), all that is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lex;

/// One file.
pub struct File {
    /// From the root of the project, with forward slashes.
    pub path: String,
    pub bytes: u64,
    /// Its content, unless that is not text.
    pub text: Option<String>,
}

/// All files, by path.
pub struct Tree(Vec<File>);

impl Tree {
    /// The project that this test belongs to.
    pub fn open() -> Tree {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut paths = tracked(root).unwrap_or_else(|| walk(root));
        paths.sort();
        let files: Vec<File> = paths.into_iter().filter_map(|path| File::read(root, path)).collect();
        assert!(files.iter().any(|file| file.path == "Cargo.toml"), "no project in {}", root.display());
        Tree(files)
    }

    /// A tree of made-up text files, to try a rule on.
    pub fn planted(files: &[(&str, &str)]) -> Tree {
        let file = |(path, text): &(&str, &str)| File {
            path: path.to_string(),
            bytes: text.len() as u64,
            text: Some(text.to_string()),
        };
        Tree(files.iter().map(file).collect())
    }

    pub fn files(&self) -> &[File] {
        &self.0
    }

    /// Path and content of the text files.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|file| Some((file.path.as_str(), file.text.as_deref()?)))
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts().find(|(other, _)| *other == path).map(|(_, text)| text)
    }

    /// Path, content, and content without comments and literals, of the Rust files.
    pub fn rust(&self) -> impl Iterator<Item = (&str, &str, String)> {
        let rust = self.texts().filter(|(path, _)| path.ends_with(".rs"));
        rust.map(|(path, text)| (path, text, lex::code(text)))
    }
}

impl File {
    /// `None` if it was deleted and git does not know yet.
    fn read(root: &Path, path: String) -> Option<File> {
        let bytes = fs::read(root.join(&path)).ok()?;
        Some(File { path, bytes: bytes.len() as u64, text: String::from_utf8(bytes).ok() })
    }
}

/// What git tracks below `root`; `None` without git, or where `root` is no checkout of this project.
fn tracked(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().ok()?;
    let listed = String::from_utf8(output.stdout).ok()?;
    let paths: Vec<String> = listed.split_terminator('\0').map(str::to_owned).collect();
    paths.iter().any(|path| path == "Cargo.toml").then_some(paths)
}

/// Every file below `root`, but for what is built.
fn walk(root: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).expect("a directory that can be listed") {
            let entry = entry.expect("an entry that can be read");
            let path = dir.join(entry.file_name());
            let kind = entry.file_type().expect("a file has a type");
            let name = entry.file_name();
            if kind.is_dir() && name != "target" && name != ".git" {
                dirs.push(path);
            } else if kind.is_file() {
                paths.extend(path.to_str().map(str::to_owned));
            }
        }
    }
    paths
}

#[test]
fn git_and_the_walk_agree_on_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let walked = walk(root);
    assert!(walked.iter().any(|path| path == "src/lib.rs"));
    assert!(!walked.iter().any(|path| path.starts_with("target/")));
    for path in tracked(root).unwrap_or_default() {
        assert!(walked.contains(&path) || !root.join(&path).exists(), "the walk missed {path}");
    }
}

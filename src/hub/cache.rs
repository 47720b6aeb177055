//! The cache of Hugging Face's tools: for each repository `models--ORG--NAME`, with the files by their hash in `blobs/`,
//! the commits in `snapshots/` as links to them, and which commit a branch had in `refs/`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

use super::gguf;
use super::repo::{Repo, is_revision};

/// What of a repository has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The tokenizer and what is beside it, without weights.
    Text,
    /// Everything.
    Model,
}

/// One commit of a repository in the cache.
#[derive(Clone, Debug)]
pub struct Cached {
    pub repo: Repo,
    pub commit: String,
    /// The directory to be opened.
    pub path: PathBuf,
    pub files: usize,
    pub bytes: u64,
    /// Whether the model can be opened: its configuration and all its weights are there.
    pub complete: bool,
}

pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub fn new(root: &Path) -> Cache {
        Cache { root: root.to_path_buf() }
    }

    #[cfg(feature = "hub")]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a repository.
    pub fn folder(&self, repo: &Repo) -> PathBuf {
        self.root.join(folder_name(repo))
    }

    /// The lock that Hugging Face's tools hold while they write a file.
    #[cfg(feature = "hub")]
    pub fn lock(&self, repo: &Repo, etag: &str) -> PathBuf {
        self.root.join(".locks").join(folder_name(repo)).join(format!("{etag}.lock"))
    }

    /// The snapshot of a repository, if it has what is needed.
    pub fn find(&self, repo: &Repo, need: Need) -> Option<PathBuf> {
        self.snapshot(repo).filter(|dir| has(dir, need))
    }

    /// Where the snapshot of a repository is, if there is one.
    pub fn snapshot(&self, repo: &Repo) -> Option<PathBuf> {
        let folder = self.folder(repo);
        let commit = match fs::read_to_string(folder.join("refs").join(repo.revision())) {
            Ok(commit) => commit.trim().to_owned(),
            // A commit is its own name.
            Err(_) => repo.revision().to_owned(),
        };
        Some(folder.join("snapshots").join(Some(commit).filter(|commit| is_commit(commit))?))
    }

    pub fn list(&self) -> Result<Vec<Cached>> {
        let mut list = Vec::new();
        for folder in names(&self.root)? {
            let Some(repo) = folder.strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else { continue };
            let Some(repo) = Repo::parse(&repo) else { continue };
            let folder = self.root.join(folder);
            let refs = refs(&folder.join("refs"), "");
            for commit in names(&folder.join("snapshots"))? {
                let named = refs.iter().filter(|(_, of)| *of == commit).map(|(name, _)| name);
                let best = named.clone().find(|name| *name == "main").or_else(|| named.clone().next());
                let revision = match best {
                    Some(name) if name == "main" => None,
                    Some(name) => Some(name.clone()),
                    None => Some(commit.clone()),
                };
                let path = folder.join("snapshots").join(&commit);
                let (files, bytes) = size(&path);
                let complete = has(&path, Need::Model);
                list.push(Cached { repo: Repo { revision, ..repo.clone() }, commit, path, files, bytes, complete });
            }
        }
        Ok(list)
    }
}

/// The other links of a repository's snapshots to the blob that this one leads to; none of a link that is in no cache.
///
/// # Errors
/// Snapshots that cannot be listed.
pub(crate) fn other_links(link: &Path) -> Result<Vec<PathBuf>> {
    let blob = fs::canonicalize(link).map_err(Error::io(link, "open"))?;
    let blobs = blob.parent().filter(|dir| dir.ends_with("blobs"));
    let Some(folder) = blobs.and_then(Path::parent) else { return Ok(Vec::new()) };
    let is_itself = |other: &Path| {
        let dir = |path: &Path| {
            fs::canonicalize(path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."))).ok()
        };
        other.file_name() == link.file_name() && dir(other) == dir(link)
    };
    let mut found = links(&folder.join("snapshots"), &blob)?;
    found.retain(|other| !is_itself(other));
    Ok(found)
}

/// The links to a file in a directory and those in it.
fn links(dir: &Path, to: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in names(dir)? {
        let path = dir.join(name);
        if path.is_symlink() {
            found.extend(fs::canonicalize(&path).is_ok_and(|target| target == to).then_some(path));
        } else if path.is_dir() {
            found.extend(links(&path, to)?);
        }
    }
    Ok(found)
}

/// Whether a directory has what is needed. Links to nothing do not count.
fn has(dir: &Path, need: Need) -> bool {
    let there = |name: &str| dir.join(name).exists();
    match need {
        Need::Text => ["tokenizer.json", "tokenizer.model", "qwen.tiktoken"].into_iter().any(there) || has_gguf(dir),
        Need::Model => {
            let weights = ["model.safetensors", "pytorch_model.bin"];
            there("config.json") && weights.into_iter().any(|single| has_weights(dir, single)) || has_gguf(dir)
        }
    }
}

/// Whether there is one GGUF model, which has all in itself, with all of its parts.
fn has_gguf(dir: &Path) -> bool {
    let names = names(dir).unwrap_or_default();
    match gguf::models(&names)[..] {
        [model] => gguf::parts(model).iter().all(|part| dir.join(part).exists()),
        _ => false,
    }
}

/// Whether there is the file, or its index and every file that the index names.
fn has_weights(dir: &Path, single: &str) -> bool {
    match fs::read(dir.join(format!("{single}.index.json"))) {
        Ok(index) => indexed(&index).is_some_and(|files| files.iter().all(|file| dir.join(file).exists())),
        Err(_) => dir.join(single).exists(),
    }
}

/// The files that an index names, each once.
pub(super) fn indexed(index: &[u8]) -> Option<Vec<String>> {
    let index: Value = serde_json::from_slice(index).ok()?;
    let files = index.get("weight_map")?.as_object()?.values().map(|file| file.as_str().map(str::to_owned));
    let mut files: Vec<String> = files.collect::<Option<_>>()?;
    files.sort();
    files.dedup();
    Some(files)
}

/// Whether a text can be a commit, and so a directory's name.
pub(super) fn is_commit(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric())
}

fn folder_name(repo: &Repo) -> String {
    format!("models--{}", repo.id.replace('/', "--"))
}

/// What is in a directory, in order; nothing if it does not exist.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(dir, "list")(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(Error::io(dir, "list"))?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// The names of revisions and their commits; names may have slashes.
fn refs(dir: &Path, prefix: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in names(dir).unwrap_or_default() {
        let (path, name) = (dir.join(&name), format!("{prefix}{name}"));
        if !is_revision(&name) || name.split('/').count() > 8 {
            continue;
        }
        match fs::read_to_string(&path) {
            Ok(commit) => found.push((name, commit.trim().to_owned())),
            Err(_) => found.extend(refs(&path, &format!("{name}/"))),
        }
    }
    found
}

/// Files of a snapshot and their bytes, its directories' too.
fn size(dir: &Path) -> (usize, u64) {
    let mut sum = (0, 0);
    for name in names(dir).unwrap_or_default() {
        let path = dir.join(name);
        let (files, bytes) = match fs::metadata(&path) {
            Ok(found) if found.is_file() => (1, found.len()),
            // A link to a directory could lead back here.
            Ok(_) if !path.is_symlink() => size(&path),
            _ => (0, 0),
        };
        sum = (sum.0 + files, sum.1 + bytes);
    }
    sum
}

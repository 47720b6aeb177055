//! Models by name: a repository of the Hugging Face Hub (`org/name`, `org/name@revision`), found in the local cache or
//! downloaded into it. The cache has the layout of Hugging Face's own tools, so that each finds what the other brought.

mod cache;
#[cfg(feature = "hub")]
mod choose;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
pub(crate) mod gguf;
mod options;
mod progress;
mod repo;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

pub(crate) use cache::other_links;
pub use cache::{Cached, Need};
pub use options::HubOptions;
pub use progress::HubProgress;
pub use repo::Repo;

use cache::Cache;

/// The Hub and its cache on this machine.
#[derive(Clone, Debug)]
pub struct Hub {
    options: HubOptions,
    progress: HubProgress,
}

impl Hub {
    pub fn new(options: HubOptions) -> Hub {
        Hub { options, progress: HubProgress::default() }
    }

    /// How far a download is, for another thread to show, and the way to stop it.
    pub fn progress(&self) -> HubProgress {
        self.progress.clone()
    }

    /// The directory with the files of what a user names as a model: a path if there is something at it, or if it cannot
    /// be a repository's name; else the repository, from the cache or, if it is not there whole, downloaded.
    ///
    /// # Errors
    /// As [`pull`](Hub::pull).
    pub fn open(&self, model: &Path, need: Need) -> Result<PathBuf> {
        let Some(repo) = named(model) else { return Ok(model.to_path_buf()) };
        match Cache::new(&self.options.cache).find(&repo, need) {
            Some(dir) => Ok(dir),
            None => self.fetch(&repo, &[], need),
        }
    }

    /// The directory that the cache has for a repository that a user names as a model, whatever of it is there.
    pub fn snapshot(&self, model: &Path) -> Option<PathBuf> {
        Cache::new(&self.options.cache).snapshot(&named(model)?).filter(|dir| dir.is_dir())
    }

    /// Brings a repository's newest state into the cache: what is needed to run the model, or, if `files` are given, the
    /// weights that they name (`*` stands for any text) in place of the usual ones. Returns the directory.
    ///
    /// # Errors
    /// A repository that is missing or wants a token, no network, a disk that is too small or full, a server that
    /// breaks off again and again, files that are not what the Hub says: each says what to do. What has been
    /// downloaded stays, and the next call goes on from there.
    pub fn pull(&self, repo: &Repo, files: &[String]) -> Result<PathBuf> {
        self.fetch(repo, files, Need::Model)
    }

    /// What is in the cache.
    ///
    /// # Errors
    /// If it cannot be listed. A cache that does not exist is empty.
    pub fn list(&self) -> Result<Vec<Cached>> {
        Cache::new(&self.options.cache).list()
    }

    fn fetch(&self, repo: &Repo, files: &[String], need: Need) -> Result<PathBuf> {
        let cache = Cache::new(&self.options.cache);
        if self.options.offline {
            return match cache.find(repo, need).filter(|_| files.is_empty()) {
                Some(dir) => Ok(dir),
                None => Err(problem(
                    repo,
                    format!(
                        "not (or not whole) in the cache {}, and HF_HUB_OFFLINE forbids downloads: unset it, or give \
                         the path of a directory",
                        self.options.cache.display()
                    ),
                )),
            };
        }
        #[cfg(feature = "hub")]
        return download::pull(&self.options, &self.progress, &cache, repo, files, need);
        #[cfg(not(feature = "hub"))]
        Err(problem(
            repo,
            format!(
                "there is no such path, it is not in the cache {}, and this build cannot download (the feature `hub` is \
                 off)",
                self.options.cache.display()
            ),
        ))
    }
}

/// The repository that a user names as a model, if there is no such path.
fn named(model: &Path) -> Option<Repo> {
    model.to_str().filter(|_| model.symlink_metadata().is_err()).and_then(Repo::parse)
}

/// An error about a repository.
fn problem(repo: &Repo, problem: impl Into<String>) -> Error {
    Error::Hub { repo: repo.to_string(), problem: problem.into() }
}

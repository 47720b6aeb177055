//! The one error type. Every message names the file or tensor it is about, what was found, what was expected,
//! and, where there is something to do, what to do.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. The text of each variant is meant for the person in front of the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something about a file (opening, reading, writing, …).
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io { path: PathBuf, doing: &'static str, source: std::io::Error },

    /// A file of the checkpoint is damaged, incomplete, missing, or contradicts another.
    #[error("{}: {problem}", path.display())]
    Checkpoint { path: PathBuf, problem: String },

    /// One tensor of the checkpoint is missing, damaged, or not of the shape that the configuration says.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Tensor { path: PathBuf, tensor: String, problem: String },

    /// `config.json` or `generation_config.json` lacks something or says something impossible.
    #[error("{}: {problem}", path.display())]
    Config { path: PathBuf, problem: String },

    /// An architecture or an option that would change the result and is not implemented. Never approximated.
    #[error("{}: {what} is not supported", path.display())]
    Unsupported { path: PathBuf, what: String },

    /// The tokenizer or the chat template cannot be read, or refuses its input.
    #[error("{}: {problem}", path.display())]
    Text { path: PathBuf, problem: String },

    /// A repository of the Hugging Face Hub cannot be found, reached, or brought here whole.
    #[error("{repo}: {problem}")]
    Hub { repo: String, problem: String },

    /// A read of weights failed in the middle of a pass.
    #[error("{}: reading {len} bytes at offset {offset} failed: {source}", path.display())]
    Read { path: PathBuf, offset: u64, len: u64, source: std::io::Error },

    /// The GPU or its driver: not there, too old, out of memory, lost.
    #[error("{0}")]
    Device(String),

    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,

    /// The memory budget is too small; the message names the smallest that would do.
    #[error("{0}")]
    Budget(String),

    /// The caller asked for something that cannot be done (an id outside the vocabulary, a prompt longer than the
    /// context, …).
    #[error("{0}")]
    Request(String),
}

impl Error {
    /// Wraps an I/O error with the path and what was being done to it, to be used with `map_err`.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { path, doing, source }
    }
}

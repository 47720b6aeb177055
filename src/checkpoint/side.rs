//! Opening the small files of a model directory: regular files only, of a sane size, with errors that say what is
//! wrong in the caller's own terms.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::words::{checkpoint_error, json_problem};
use crate::error::{Error, Result};

/// The largest JSON file that is read, in bytes: several times the largest published tokenizer or index.
const MAX_JSON: u64 = 100_000_000;

/// Opens a regular file, following links, and gives its length in bytes. Anything else (a directory, a pipe that
/// would never answer) is refused before it is opened.
pub(super) fn open_file(path: &Path) -> Result<(File, u64)> {
    let metadata = fs::metadata(path).map_err(|e| describe_missing(path, e))?;
    if metadata.is_dir() {
        return Err(checkpoint_error(path, "is a directory where a file was expected"));
    }
    if !metadata.is_file() {
        return Err(checkpoint_error(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    Ok((file, metadata.len()))
}

/// A link to nothing is what an interrupted download leaves in the Hub's cache: worth its own words.
fn describe_missing(path: &Path, error: std::io::Error) -> Error {
    match fs::read_link(path) {
        Ok(target) if error.kind() == ErrorKind::NotFound => checkpoint_error(
            path,
            format!("is a link to {}, which does not exist: download the model again", target.display()),
        ),
        _ => Error::io(path, "open")(error),
    }
}

/// Reads a whole file of text, up to the size that any real one has.
pub(super) fn read_small(path: &Path) -> Result<Vec<u8>> {
    let (file, len) = open_file(path)?;
    if len > MAX_JSON {
        return Err(checkpoint_error(path, format!("has {len} bytes, more than the {MAX_JSON} that are ever read")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_JSON).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    Ok(bytes)
}

/// Reads a JSON file that lies beside the weights (`config.json`, `generation_config.json`, `tokenizer_config.json`).
/// As everywhere in Python, the last of two equal keys counts.
///
/// # Errors
///
/// [`Error::Io`] when it cannot be read; [`Error::Checkpoint`] when it is not a regular file, is larger than 100 MB,
/// or is not JSON (with line and column).
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = read_small(path)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(checkpoint_error(path, format!("is empty ({} bytes) where JSON was expected", bytes.len())));
    }
    serde_json::from_slice(&bytes)
        .map_err(|e| checkpoint_error(path, format!("is not valid JSON: {}", json_problem(&e))))
}

//! Operations on files that survive a loss of power, counted so that a test can end the process at any of them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, Result};

/// Counts operations, and ends the process at one of them.
pub struct Steps {
    left: Option<AtomicU64>,
}

impl Steps {
    pub fn new(abort_at: Option<u64>) -> Steps {
        Steps { left: abort_at.map(AtomicU64::new) }
    }

    /// Goes before every operation that changes a file or a directory.
    pub fn step(&self) {
        if self.left.as_ref().is_some_and(|left| left.fetch_sub(1, Ordering::SeqCst) == 0) {
            std::process::abort();
        }
    }
}

/// The checksum of some bytes: XXH3 of 128 bits, in hexadecimal. (It finds accidents, at the speed of memory; against
/// someone who wants to deceive, a signature of the manifest is what helps, as for any file.)
pub fn sum(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

/// The name of a file that is being written.
pub fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Adds what helps to what the operating system says.
pub fn cannot_write(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge => {
            let advice = "free some room and run the same command again: it goes on where it stopped";
            Error::Request(format!("{}: cannot write: {source}; {advice}", path.display()))
        }
        _ => Error::Io { path, doing: "write", source },
    }
}

/// Writes a whole file, so that there is always the old or the new one.
pub fn replace(path: &Path, bytes: &[u8], steps: &Steps) -> Result<()> {
    let partial = partial(path);
    steps.step();
    let mut file = File::create(&partial).map_err(cannot_write(&partial))?;
    let half = bytes.len() / 2;
    file.write_all(&bytes[..half]).map_err(cannot_write(&partial))?;
    steps.step();
    file.write_all(&bytes[half..]).map_err(cannot_write(&partial))?;
    steps.step();
    file.sync_all().map_err(cannot_write(&partial))?;
    put_in_place(path, steps)
}

/// Gives a file that was written and synced its name.
pub fn put_in_place(path: &Path, steps: &Steps) -> Result<()> {
    steps.step();
    fs::rename(partial(path), path).map_err(Error::io(path, "rename"))?;
    sync_directory_of(path, steps)
}

fn sync_directory_of(path: &Path, steps: &Steps) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    steps.step();
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io(dir, "sync"))
}

/// Deletes a file; of a link, what it leads to as well, as in the Hub's cache.
pub fn delete(path: &Path, steps: &Steps) -> Result<()> {
    if let Ok(target) = fs::canonicalize(path)
        && path.is_symlink()
    {
        steps.step();
        fs::remove_file(&target).map_err(Error::io(&target, "delete"))?;
    }
    steps.step();
    fs::remove_file(path).map_err(Error::io(path, "delete"))?;
    sync_directory_of(path, steps)
}

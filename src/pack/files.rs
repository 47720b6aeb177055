//! Operations on files that survive a loss of power, counted and written down so that a test can end the process at any of
//! them, and can tell what a loss of power would have left after each.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, Result};
use crate::hub;

/// Counts operations, writes them down if that is wanted, and ends the process at one of them.
pub struct Steps {
    left: Option<AtomicU64>,
    told: Option<File>,
}

impl Steps {
    /// `told` is the file that they are written to, a line each.
    pub fn new(abort_at: Option<u64>, told: Option<&Path>) -> Result<Steps> {
        let told = told.map(|path| File::create(path).map_err(cannot_write(path))).transpose()?;
        Ok(Steps { left: abort_at.map(AtomicU64::new), told })
    }

    /// Goes before every operation that changes a file or a directory, or makes sure of one.
    pub fn step(&self, doing: &str, path: &Path) {
        if self.left.as_ref().is_some_and(|left| left.fetch_sub(1, Ordering::SeqCst) == 0) {
            std::process::abort();
        }
        if let Some(mut told) = self.told.as_ref() {
            // One write, so that lines of several threads do not mix.
            let line = format!("{doing} {}\n", path.display());
            told.write_all(line.as_bytes()).expect("a test has room for what it asks for");
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
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            let advice = "free some room and run the same command again: it goes on where it stopped";
            Error::Request(format!("{}: cannot write: {source}; {advice}", path.display()))
        }
        _ => Error::Io { path, doing: "write", source },
    }
}

/// Writes a whole file, so that there is always the old or the new one.
pub fn replace(path: &Path, bytes: &[u8], steps: &Steps) -> Result<()> {
    let partial = partial(path);
    steps.step("create", &partial);
    let mut file = File::create(&partial).map_err(cannot_write(&partial))?;
    let half = bytes.len() / 2;
    steps.step("write", &partial);
    file.write_all(&bytes[..half]).map_err(cannot_write(&partial))?;
    steps.step("write", &partial);
    file.write_all(&bytes[half..]).map_err(cannot_write(&partial))?;
    steps.step("sync", &partial);
    file.sync_all().map_err(cannot_write(&partial))?;
    put_in_place(path, steps)
}

/// Gives a file that was written and synced its name.
pub fn put_in_place(path: &Path, steps: &Steps) -> Result<()> {
    steps.step("rename", path);
    fs::rename(partial(path), path).map_err(Error::io(path, "rename"))?;
    sync_directory_of(path, steps)
}

fn sync_directory_of(path: &Path, steps: &Steps) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    steps.step("sync", dir);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io(dir, "sync"))
}

/// Makes sure of the names in a directory, of its own, and of those of the directories above it, any of which may have been
/// made by a run that was interrupted before it was sure of them: of all on its file system.
pub fn sync_above(dir: &Path, steps: &Steps) -> Result<()> {
    let dir = fs::canonicalize(dir).map_err(Error::io(dir, "open"))?;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let here = device(&dir);
    for each in dir.ancestors().take_while(|each| device(each) == here) {
        steps.step("sync", each);
        match File::open(each) {
            Ok(names) => names.sync_all(),
            // Names can be made in a directory that may not be read: then it is synced with all there is.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                File::open(&dir).and_then(|dir| Ok(rustix::fs::syncfs(&dir)?))
            }
            Err(error) => Err(error),
        }
        .map_err(Error::io(each, "sync"))?;
    }
    Ok(())
}

/// Deletes a file that an interrupted run left. It is emptied first, since what a process had open in a ring the kernel closes,
/// and so frees, only some time after its end.
pub fn remove_left(path: &Path, steps: &Steps) -> Result<()> {
    if path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
        steps.step("write", path);
        File::create(path).map_err(Error::io(path, "empty"))?;
    }
    remove(path, steps)
}

fn remove(path: &Path, steps: &Steps) -> Result<()> {
    steps.step("delete", path);
    fs::remove_file(path).map_err(Error::io(path, "delete"))?;
    sync_directory_of(path, steps)
}

/// Deletes a file of the source; of a link, what it leads to as well, as in the Hub's cache, unless other snapshots there
/// have that, too: then it says so.
pub fn delete_original(path: &Path, steps: &Steps) -> Result<bool> {
    let mut shared = false;
    if path.is_symlink()
        && let Ok(target) = fs::canonicalize(path)
    {
        shared = !hub::other_links(path)?.is_empty();
        if !shared {
            steps.step("delete", &target);
            fs::remove_file(&target).map_err(Error::io(&target, "delete"))?;
        }
    }
    remove(path, steps)?;
    Ok(shared)
}

//! One packing at a time into a directory: two would write each other's files anew, and delete the source for them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::cannot_write;
use crate::error::{Error, Result};

const LOCK: &str = ".layerstream-pack.lock";

/// Held until it is dropped, or until the process ends, however it does.
pub struct Lock {
    /// Closed, it lets others in.
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of a directory.
    ///
    /// # Errors
    /// That another process has it; a file system that has no locks.
    pub fn take(out: &Path) -> Result<Lock> {
        let path = out.join(LOCK);
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(cannot_write(&path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let advice = "wait until it has ended, then run the same command again if anything is left to do";
                    return Err(Error::Request(format!(
                        "{}: another packing is running there: {advice}",
                        out.display()
                    )));
                }
                Err(TryLockError::Error(source)) => return Err(Error::Io { path, doing: "lock", source }),
            }
            // Whoever had it removed it, perhaps after it was opened here: then it keeps nobody out any more.
            let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
            let (ours, there) = (file.metadata().map(id), fs::metadata(&path).map(id));
            if let (Ok(ours), Ok(there)) = (ours, there)
                && ours == there
            {
                return Ok(Lock { _file: file, path });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // What stays is in nobody's way.
        let _ = fs::remove_file(&self.path);
    }
}

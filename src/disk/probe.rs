//! Finding the reader that works on a drive, by really reading with it: containers forbid `io_uring`, some file systems
//! refuse direct reads, and some accept the flag and fail the first read.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::memory::{HUGE_PAGE, Mapping};
use super::mmap::MmapReader;
use super::pread::PreadReader;
use super::uring::UringReader;
use super::{DiskOptions, Files, Geometry, Read, Reader, ReaderKind, Source};
use crate::error::{Error, Result};

/// One drive with the files on it, open, and the kind of reader that is known to work there.
#[derive(Clone, Debug)]
pub(crate) struct Drive {
    pub kind: ReaderKind,
    pub files: Arc<Files>,
    /// [`DiskOptions::threads`].
    threads: Option<usize>,
    /// [`DiskOptions::keep_cached`].
    keep_cached: bool,
}

impl Drive {
    /// How many threads, each with its own reader of which depth, give `depth` reads in flight.
    pub(crate) fn threads(&self, depth: usize) -> (usize, usize) {
        self.kind.threads(depth, self.threads)
    }

    /// Makes a reader, on the thread that is to use it. `buffer` is registered with the kernel where that is possible.
    pub(crate) fn reader(&self, depth: usize, buffer: Option<&Arc<Mapping>>) -> io::Result<Box<dyn Reader>> {
        let files = Arc::clone(&self.files);
        Ok(match self.kind {
            ReaderKind::Uring => Box::new(UringReader::new(files, depth, buffer)?),
            ReaderKind::Pread => Box::new(PreadReader::new(files, false)),
            ReaderKind::Buffered => Box::new(PreadReader::new(files, !self.keep_cached)),
            ReaderKind::Mmap => Box::new(MmapReader::new(files)?),
        })
    }

    /// Reads the first bytes of the largest file.
    fn try_reading(&self) -> Result<()> {
        let Some((file, &len)) = self.files.lens().iter().enumerate().max_by_key(|&(_, len)| len) else {
            return Ok(());
        };
        let region = Mapping::map(HUGE_PAGE, false)?;
        let expected = len.min(region.len() as u64) as usize;
        let failed =
            |source| Error::Read { path: self.files.path(file).into(), offset: 0, len: expected as u64, source };
        let mut reader = self.reader(1, None).map_err(failed)?;
        reader.submit(Read { token: 0, file, offset: 0, region, filled: 0, attempts: 0 });
        let mut landed = Vec::new();
        reader.wait(&mut landed).map_err(failed)?;
        for read in landed {
            if read.result.map_err(failed)? == 0 && expected > 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }
}

/// Opens the drives of a source (the original, then the replicas), each with the best reader that works there.
///
/// # Errors
/// [`Error::Request`] if the reader that `options` ask for cannot run, with the reason; what buffered reads fail with, if
/// nothing else works either.
pub(crate) fn open_drives(source: &Source, geometry: &Geometry, options: &DiskOptions) -> Result<Vec<Drive>> {
    std::iter::once(&source.files).chain(&source.replicas).map(|files| open_drive(files, geometry, options)).collect()
}

fn open_drive(paths: &[PathBuf], geometry: &Geometry, options: &DiskOptions) -> Result<Drive> {
    let attempt = |kind: ReaderKind| {
        let files = Arc::new(Files::open(paths, geometry, kind.is_direct())?);
        let drive = Drive { kind, files, threads: options.threads, keep_cached: options.keep_cached };
        drive.try_reading()?;
        Ok(drive)
    };
    if let Some(kind) = options.reader {
        return attempt(kind).map_err(|e: Error| Error::Request(format!("reader `{kind}` cannot run: {e}")));
    }
    let mut reasons = String::new();
    for kind in [ReaderKind::Uring, ReaderKind::Pread] {
        match attempt(kind) {
            Ok(drive) => return Ok(announce(drive, &reasons)),
            Err(e) => write!(reasons, "; {kind}: {e}").expect("writing to a string"),
        }
    }
    Ok(announce(attempt(ReaderKind::Buffered)?, &reasons))
}

/// Says which reader runs, and aloud if it is not the best one.
fn announce(drive: Drive, reasons: &str) -> Drive {
    if reasons.is_empty() {
        tracing::debug!(reader = %drive.kind, "reader");
    } else {
        tracing::warn!("reading with `{}`, which is slower than it could be{reasons}", drive.kind);
    }
    drive
}

//! Reading one file at any place, by several threads: past the page cache where the drive allows it, so that what is read
//! back comes from the drive, and so that no model is larger than the memory.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{FileId, Span};
use crate::disk::align::enclose;
use crate::disk::memory::{Mapping, Region};
use crate::disk::{DiskOptions, Files, Geometry, Source, open_drives};
use crate::error::{Error, Result};

pub struct Reading {
    path: PathBuf,
    files: Arc<Files>,
}

impl Reading {
    pub fn open(path: &Path) -> Result<Reading> {
        let source = Source { files: vec![path.into()], ..Source::default() };
        let mut drives = open_drives(&source, &Geometry::of(&source)?, &DiskOptions::default())?;
        let drive = drives.pop().expect("a source has a drive");
        Ok(Reading { path: path.into(), files: drive.files })
    }

    /// Memory for each of several threads, each for runs of up to `most` bytes.
    pub fn regions(&self, threads: usize, most: u64) -> Result<Vec<Region>> {
        let each = (most as usize).next_multiple_of(self.files.align) + self.files.align;
        let mut all = Mapping::map(each * threads, false)?;
        Ok((0..threads).map(|_| all.split_to(each)).collect())
    }

    /// The `len` bytes at `offset`.
    pub fn read<'r>(&self, offset: u64, len: u64, region: &'r mut Region) -> Result<&'r [u8]> {
        let run = enclose(Span { file: FileId(0), offset, len }, self.files.align);
        let end = run.skip + len as usize;
        let failed = |source| Error::Read { path: self.path.clone(), offset, len, source };
        let mut filled = 0;
        while filled < end {
            match self.files.handle(0).read_at(&mut region[filled..run.len], run.offset + filled as u64) {
                Ok(0) => return Err(failed(ErrorKind::UnexpectedEof.into())),
                Ok(more) => filled += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(&region[run.skip..end])
    }
}

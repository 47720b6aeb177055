//! The files of one drive, opened once, and what the file system says about them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, FileType, OFlags, StatxFlags};

use super::Source;
use super::align::MIN_ALIGN;
use crate::error::{Error, Result};

/// Lengths and alignment of the files of a source.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    /// Bytes of each file.
    pub lens: Vec<u64>,
    /// Offsets, lengths and addresses of direct reads are multiples of this; at least 4096.
    pub align: usize,
}

impl Geometry {
    /// Asks the file system about every file, without opening any, and checks that replicas are as long as the originals.
    pub(crate) fn of(source: &Source) -> Result<Geometry> {
        let mut align = MIN_ALIGN;
        let mut lens = Vec::with_capacity(source.files.len());
        for path in &source.files {
            let (len, file_align) = length_and_alignment(path)?;
            lens.push(len);
            align = align.max(file_align);
        }
        for replica in &source.replicas {
            if replica.len() != lens.len() {
                let (found, expected) = (replica.len(), lens.len());
                return Err(Error::Request(format!("a replica has {found} files where the checkpoint has {expected}")));
            }
            for ((path, original), &expected) in replica.iter().zip(&source.files).zip(&lens) {
                let (len, file_align) = length_and_alignment(path)?;
                if len != expected {
                    let original = original.display();
                    let problem = format!("is {len} bytes long, but {original}, which it should equal, is {expected}");
                    return Err(Error::Checkpoint { path: path.clone(), problem });
                }
                align = align.max(file_align);
            }
        }
        Ok(Geometry { lens, align })
    }
}

fn length_and_alignment(path: &Path) -> Result<(u64, usize)> {
    let wanted = StatxFlags::SIZE | StatxFlags::TYPE | StatxFlags::DIOALIGN;
    match rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), wanted) {
        Ok(stat) => {
            if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
                return Err(Error::Checkpoint { path: path.into(), problem: "is not a regular file".into() });
            }
            // Both are zero where the kernel is too old to tell, or refuses direct reads of this file.
            let align = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align) as usize;
            Ok((stat.stx_size, align.max(1).next_power_of_two()))
        }
        // Some sandboxes have no statx.
        Err(rustix::io::Errno::NOSYS) => {
            let len = std::fs::metadata(path).map_err(Error::io(path, "look up"))?.len();
            Ok((len, MIN_ALIGN))
        }
        Err(e) => Err(Error::io(path, "look up")(e.into())),
    }
}

/// The files of one drive, open for reading.
#[derive(Debug)]
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    handles: Vec<File>,
    /// Bytes of each file when it was opened.
    lens: Vec<u64>,
    pub(crate) align: usize,
}

impl Files {
    /// Opens `paths`, past the page cache if `direct`, else with advice that suits long sequential reads.
    pub(crate) fn open(paths: &[PathBuf], geometry: &Geometry, direct: bool) -> Result<Files> {
        let open = |path: &PathBuf| {
            let mut options = OpenOptions::new();
            options.read(true);
            if direct {
                options.custom_flags(OFlags::DIRECT.bits() as i32);
            }
            let file =
                options.open(path).map_err(Error::io(path, if direct { "open for direct reads" } else { "open" }))?;
            if !direct {
                // Advice only: where it is refused, reads are as right as before.
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
            }
            Ok(file)
        };
        let handles = paths.iter().map(open).collect::<Result<_>>()?;
        Ok(Files { paths: paths.to_vec(), handles, lens: geometry.lens.clone(), align: geometry.align })
    }

    pub(crate) fn path(&self, file: usize) -> &Path {
        &self.paths[file]
    }

    pub(crate) fn handle(&self, file: usize) -> &File {
        &self.handles[file]
    }

    pub(crate) fn handles(&self) -> &[File] {
        &self.handles
    }

    /// Bytes of each file when it was opened.
    pub(crate) fn lens(&self) -> &[u64] {
        &self.lens
    }

    /// Bytes that a read of `len` at `offset` brings when it is complete: fewer than `len` only at the end of the file.
    pub(crate) fn available(&self, file: usize, offset: u64, len: usize) -> usize {
        self.lens[file].saturating_sub(offset).min(len as u64) as usize
    }
}

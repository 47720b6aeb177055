//! Drives: opening the files of a checkpoint for direct reads, finding the reader that works there, and measuring it.
//!
//! A [`Reader`] starts reads into memory regions and returns them when they have landed. Three implement it: [`uring`]
//! keeps many reads in flight from one thread, [`pread`] does one blocking read at a time and runs on many threads, with
//! or without the page cache, and [`mmap`] copies out of mapped files, for comparison. [`probe`] finds by really reading
//! which of the first two a drive allows.

pub(crate) mod align;
mod check;
mod files;
pub(crate) mod gather;
mod measure;
pub(crate) mod memory;
pub(crate) mod mmap;
mod pread;
mod probe;
mod uring;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};

pub(crate) use check::Checker;
pub use check::{CheckedRun, Checksums};
pub(crate) use files::{Files, Geometry};
pub use measure::measure;
pub(crate) use measure::tune;
pub(crate) use probe::{Drive, open_drives};

use memory::Region;

/// Bytes of one disk read unless measured or told otherwise.
pub(crate) const DEFAULT_CHUNK: usize = 4 << 20;
/// Reads in flight per drive unless measured or told otherwise.
pub(crate) const DEFAULT_DEPTH: usize = 16;

/// How bytes get from a drive into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReaderKind {
    /// `io_uring` with `O_DIRECT`: one thread per drive, many reads in flight.
    Uring,
    /// `pread` with `O_DIRECT`: one thread per read in flight.
    Pread,
    /// `pread` through the page cache, for file systems that refuse direct reads.
    Buffered,
    /// Copies out of a mapping of the file, to measure what programs get that map their weights. Not chosen by itself and
    /// not to be had by name: where a mapped file is cut while in use, the kernel ends the process (SIGBUS).
    Mmap,
}

impl ReaderKind {
    /// Whether reads go past the page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, ReaderKind::Uring | ReaderKind::Pread)
    }

    /// How many threads, each with its own reader of which depth, give `depth` reads in flight, or nearly so where
    /// someone `asked` for a number of threads.
    pub(crate) fn threads(self, depth: usize, asked: Option<usize>) -> (usize, usize) {
        match self {
            ReaderKind::Uring => {
                let threads = asked.unwrap_or(1).min(depth);
                (threads, depth.div_ceil(threads))
            }
            ReaderKind::Pread | ReaderKind::Buffered | ReaderKind::Mmap => (asked.unwrap_or(depth), 1),
        }
    }
}

impl fmt::Display for ReaderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReaderKind::Uring => "uring",
            ReaderKind::Pread => "pread",
            ReaderKind::Buffered => "buffered",
            ReaderKind::Mmap => "mmap",
        })
    }
}

impl FromStr for ReaderKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "uring" => Ok(ReaderKind::Uring),
            "pread" => Ok(ReaderKind::Pread),
            "buffered" => Ok(ReaderKind::Buffered),
            _ => Err(Error::Request(format!("reader `{name}` does not exist: use uring, pread or buffered"))),
        }
    }
}

/// How to read. What is `None` is found out: the reader by probing, chunk and depth by a short measurement where the
/// files are large enough for it to matter.
#[derive(Clone, Debug, Default)]
pub struct DiskOptions {
    /// Only this reader; an error where it cannot run.
    pub reader: Option<ReaderKind>,
    /// Bytes of one disk read.
    pub chunk_bytes: Option<usize>,
    /// Reads in flight per drive.
    pub depth: Option<usize>,
    /// Threads that read from each drive: by default one for `uring`, which share the depth if there are more, and `depth`
    /// for readers that block, whose depth it is.
    pub threads: Option<usize>,
    /// Leave in the page cache what reads through it put there, for files that are read again soon.
    pub keep_cached: bool,
}

impl DiskOptions {
    /// Refuses sizes that cannot work, before anything is opened.
    pub(crate) fn check(&self) -> Result<()> {
        let most = 1 << 30;
        if let Some(chunk) = self.chunk_bytes.filter(|&chunk| !(align::MIN_ALIGN..=most).contains(&chunk)) {
            let least = align::MIN_ALIGN;
            return Err(Error::Request(format!("a chunk of {chunk} bytes: it must be {least} to {most} bytes")));
        }
        if let Some(depth) = self.depth.filter(|depth| !(1..=1024).contains(depth)) {
            return Err(Error::Request(format!("a queue depth of {depth}: it must be 1 to 1024 reads")));
        }
        if let Some(threads) = self.threads.filter(|threads| !(1..=1024).contains(threads)) {
            return Err(Error::Request(format!("{threads} threads for each drive: there must be 1 to 1024")));
        }
        Ok(())
    }
}

/// The files that hold the weights, and copies of them on other drives.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Indexed by [`FileId`](crate::checkpoint::FileId).
    pub files: Vec<PathBuf>,
    /// Each the same files, in the same order, on another drive; read in parallel with the first.
    pub replicas: Vec<Vec<PathBuf>>,
    /// What their bytes must be; tiles are compared with it when they are given out.
    pub checksums: Option<Arc<Checksums>>,
}

/// One aligned read on its way: `region` is to hold the file's bytes from `offset`, of which `filled` are there.
#[derive(Debug)]
pub(crate) struct Read {
    /// The caller's name for this read.
    pub token: u64,
    /// Index of the file.
    pub file: usize,
    /// In the file; a multiple of the alignment.
    pub offset: u64,
    /// Where the bytes go; address and length are multiples of the alignment.
    pub region: Region,
    /// Bytes that earlier attempts brought, a multiple of the alignment.
    pub filled: usize,
    /// Attempts in a row that brought nothing.
    pub attempts: u32,
}

/// A read that came back, with the bytes that this attempt added, which may be fewer than asked for.
#[derive(Debug)]
pub(crate) struct Landed {
    pub read: Read,
    pub result: io::Result<usize>,
}

/// Moves bytes from one drive into memory. Retrying, and judging short reads, is up to the caller.
pub(crate) trait Reader {
    /// The most reads that may be in flight.
    fn depth(&self) -> usize;

    /// Starts a read; never called with `depth` reads in flight.
    fn submit(&mut self, read: Read);

    /// Waits until at least one read has landed, and appends those that have. Called only with a read in flight.
    /// An error means that the reader itself is broken; its reads are then lost.
    fn wait(&mut self, landed: &mut Vec<Landed>) -> io::Result<()>;

    /// Whether buffers are registered with the kernel.
    fn registered(&self) -> bool {
        false
    }
}

//! The blocking reader: one `pread` at a time, direct or through the page cache. Depth comes from running many of them.

use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::Advice;

use super::{Files, Landed, Read, Reader};

pub(crate) struct PreadReader {
    files: Arc<Files>,
    /// Whether the page cache is told to forget what was read, the next pass being too far away.
    forget: bool,
    pending: Option<Read>,
}

impl PreadReader {
    pub(crate) fn new(files: Arc<Files>, forget: bool) -> PreadReader {
        PreadReader { files, forget, pending: None }
    }
}

impl Reader for PreadReader {
    fn depth(&self) -> usize {
        1
    }

    fn submit(&mut self, read: Read) {
        assert!(self.pending.is_none(), "more reads than the reader has depth");
        self.pending = Some(read);
    }

    fn wait(&mut self, landed: &mut Vec<Landed>) -> io::Result<()> {
        let mut read = self.pending.take().expect("a read is in flight");
        let file = self.files.handle(read.file);
        let offset = read.offset + read.filled as u64;
        let result = file.read_at(&mut read.region[read.filled..], offset);
        if self.forget {
            // Advice only: where it is refused, the bytes are as right as before.
            let len = NonZeroU64::new(read.region.len() as u64 - read.filled as u64);
            let _ = rustix::fs::fadvise(file, offset, len, Advice::DontNeed);
        }
        landed.push(Landed { read, result });
        Ok(())
    }
}

//! The bytes of one file, made and written block by block: while one block is written past the page cache, the other
//! threads make the next. Buffered writes of as much were measured at a fifth of the speed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;

use super::noise::{Noise, Region};
use crate::error::{Error, Result};

/// Bytes written at once; two such blocks are held.
const BLOCK: usize = 16 << 20;
/// Bytes that `O_DIRECT` wants memory, offset and length to be multiples of, on every file system in use.
const ALIGNMENT: usize = 4096;

/// What a file is to hold: a header, whose length is a multiple of the size of an element, and `data` bytes of noise.
pub(super) struct Content<'a> {
    pub header: Vec<u8>,
    pub regions: Vec<Region>,
    pub noise: &'a Noise,
    pub data: u64,
}

impl Content<'_> {
    fn len(&self) -> u64 {
        self.header.len() as u64 + self.data
    }

    /// Writes all of it to an empty file and waits until the device has it. `written` is told of bytes as they go.
    pub(super) fn write(&self, file: &File, path: &Path, written: &mut dyn FnMut(u64)) -> Result<()> {
        // A file system that refuses is written to through the page cache.
        let _ = fcntl_setfl(file, OFlags::DIRECT);
        let (mut block, mut next) = (Block::new(), Block::new());
        let mut start = 0;
        self.make(start, &mut block);
        while start < self.len() {
            let end = start + block.len as u64;
            let (_, result) = rayon::join(|| self.make(end, &mut next), || write_block(file, start, block.padded()));
            result.map_err(Error::io(path, "write"))?;
            written(end - start);
            std::mem::swap(&mut block, &mut next);
            start = end;
        }
        file.set_len(self.len()).map_err(Error::io(path, "cut to length"))?;
        file.sync_all().map_err(Error::io(path, "flush"))
    }

    /// Makes the block that starts at byte `start` of the file: the last one is shorter, the one after it empty.
    fn make(&self, start: u64, block: &mut Block) {
        block.len = (self.len() - start).min(BLOCK as u64) as usize;
        let header = self.header.get(start as usize..).unwrap_or_default();
        let out = block.bytes();
        let (head, rest) = out.split_at_mut(header.len().min(out.len()));
        head.copy_from_slice(&header[..head.len()]);
        if !rest.is_empty() {
            let data_start = start + head.len() as u64 - self.header.len() as u64;
            self.noise.fill(&self.regions, data_start, rest);
        }
    }
}

/// Some file systems take the flag and refuse the write: then without the flag.
fn write_block(file: &File, start: u64, bytes: &[u8]) -> io::Result<()> {
    match file.write_all_at(bytes, start) {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => {
            fcntl_setfl(file, OFlags::empty())?;
            file.write_all_at(bytes, start)
        }
        result => result,
    }
}

/// Memory for one block, aligned for `O_DIRECT`.
struct Block {
    memory: Vec<u8>,
    /// Bytes before the first aligned one.
    skip: usize,
    /// Bytes in use.
    len: usize,
}

impl Block {
    fn new() -> Block {
        let memory = vec![0; BLOCK + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        Block { memory, skip, len: 0 }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.skip..self.skip + self.len]
    }

    /// The bytes and what is needed to fill the last aligned unit; cut off again when the file is complete.
    fn padded(&self) -> &[u8] {
        &self.memory[self.skip..self.skip + self.len.next_multiple_of(ALIGNMENT)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;

    #[test]
    fn a_file_is_its_header_and_the_noise_whatever_the_blocks() {
        let noise = Noise::new(Dtype::Bf16).unwrap();
        for (header, data) in
            [(8, 0), (8, 2), (4096, 4096), (24, BLOCK - 24), (24, BLOCK - 22), (BLOCK + 8, BLOCK + 10)]
        {
            let regions = vec![Region::new(3, "x.weight", 0, data as u64)];
            let content = Content { header: vec![7; header], regions, noise: &noise, data: data as u64 };
            let mut expected = vec![7; header + data];
            noise.fill(&content.regions, 0, &mut expected[header..]);

            let temporary = tempfile::NamedTempFile::new().unwrap();
            let mut told = 0;
            content.write(temporary.as_file(), temporary.path(), &mut |bytes| told += bytes).unwrap();
            assert_eq!(told, (header + data) as u64);
            assert!(std::fs::read(temporary.path()).unwrap() == expected, "header {header}, data {data}");
        }
    }
}

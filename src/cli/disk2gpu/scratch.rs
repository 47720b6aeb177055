//! Files of random bytes to measure on. They have no name in their directory, so they overwrite nothing and vanish when
//! the program ends, even when it is killed; readers open them through `/proc`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_setfl, fstatvfs};
use rustix::io::Errno;

use crate::disk::memory::Mapping;
use crate::engine::StopFlag;
use crate::error::{Error, Result};

use super::sums::crc_of;

/// Bytes written at once.
const BLOCK: usize = 8 << 20;
/// What is left free on the drive.
const SPARE: u64 = 64 << 20;

/// A file of random bytes without a name.
pub struct Scratch {
    file: File,
    dir: PathBuf,
    seed: u64,
}

impl Scratch {
    /// Makes a file of `len` bytes, rounded up to 4 KiB, in `dir`, and waits until the drive has it. `written` is told of
    /// bytes as they go.
    ///
    /// # Errors
    /// No such directory, no right to write there, no room for the file, or [`Error::Interrupted`].
    pub fn make(dir: &Path, len: u64, seed: u64, stop: &StopFlag, written: &mut dyn FnMut(u64)) -> Result<Scratch> {
        let file = tempfile::tempfile_in(dir).map_err(Error::io(dir, "make a scratch file in"))?;
        let stats = fstatvfs(&file).map_err(|e| Error::io(dir, "ask for the free space of")(e.into()))?;
        let free = stats.f_bavail.saturating_mul(stats.f_frsize);
        let len = len.checked_next_multiple_of(4096).unwrap_or(u64::MAX);
        if free < len.saturating_add(SPARE) {
            let message = "bytes are free, too few for a scratch file of";
            return Err(Error::Request(format!(
                "{}: {free} {message} {len} bytes and {SPARE} to spare: make it smaller with --scratch, or name \
                 another drive with --dir",
                dir.display()
            )));
        }
        let scratch = Scratch { file, dir: dir.into(), seed };
        scratch.write(len, stop, written)?;
        Ok(scratch)
    }

    fn write(&self, len: u64, stop: &StopFlag, written: &mut dyn FnMut(u64)) -> Result<()> {
        // A file system that refuses is written to through the page cache.
        let _ = fcntl_setfl(&self.file, OFlags::DIRECT);
        let mut block = Mapping::map(BLOCK, false)?;
        let failed = || Error::io(&self.dir, "write a scratch file in");
        for at in (0..len).step_by(BLOCK) {
            super::check(stop)?;
            let block = &mut block[..BLOCK.min((len - at) as usize)];
            noise(self.seed, at, block);
            match self.file.write_all_at(block, at) {
                Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => {
                    fcntl_setfl(&self.file, OFlags::empty()).map_err(|e| failed()(e.into()))?;
                    self.file.write_all_at(block, at).map_err(failed())?;
                }
                result => result.map_err(failed())?,
            }
            written(block.len() as u64);
        }
        self.file.sync_all().map_err(failed())
    }

    /// A path that opens it in this process and its children, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// What to call it.
    pub fn label(&self) -> String {
        format!("a scratch file in {}", self.dir.display())
    }

    /// The directory that it is in, without being found there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CRC-32 of its first `len` bytes as they were made, not as the drive has them.
    pub fn crc(&self, len: u64, stop: &StopFlag) -> Result<u32> {
        crc_of(len, stop, |at, into| {
            // Blocks begin where those that were written begin: the noise is one sequence.
            noise(self.seed, at, into);
            Ok(())
        })
    }
}

/// Bytes that do not compress: from a multiple of 8 on, the sequence of splitmix64 (Steele, Lea and Flood, 2014) that
/// `seed` starts.
fn noise(seed: u64, at: u64, into: &mut [u8]) {
    let first = at / 8;
    for (i, word) in into.chunks_mut(8).enumerate() {
        let mut z = seed.wrapping_add((first + i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..word.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_its_sum_says_and_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut told = 0;
        let stop = StopFlag::default();
        let len = (BLOCK + 12_345) as u64;
        let scratch = Scratch::make(dir.path(), len, 3, &stop, &mut |bytes| told += bytes).unwrap();
        let bytes = std::fs::read(scratch.path()).unwrap();
        assert_eq!((bytes.len() as u64, told), (len.next_multiple_of(4096), len.next_multiple_of(4096)));
        assert_eq!(scratch.crc(len, &stop).unwrap(), crc32fast::hash(&bytes[..len as usize]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn noise_is_one_sequence_whatever_the_blocks() {
        let mut whole = vec![0; 1000];
        noise(9, 0, &mut whole);
        let mut parts = vec![0; 1000];
        let (front, back) = parts.split_at_mut(504);
        noise(9, 0, front);
        noise(9, 504, back);
        assert_eq!(whole, parts);
        let distinct: std::collections::HashSet<u8> = whole.into_iter().collect();
        assert!(distinct.len() > 200);
    }
}

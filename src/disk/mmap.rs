//! The mapped reader: copies out of a mapping of the file, page fault by page fault, as programs get their bytes that map
//! their weights. It is there to be measured beside the others. Depth comes from running many of them.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags};

use super::{Files, Landed, Read, Reader};

/// A whole file, mapped for reading.
struct Mapped {
    base: *mut c_void,
    len: usize,
}

impl Mapped {
    fn new(file: &File, len: u64) -> io::Result<Mapped> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        if len == 0 {
            return Ok(Mapped { base: std::ptr::null_mut(), len });
        }
        // SAFETY: a fresh mapping at an address that the kernel chooses touches no other memory.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        Ok(Mapped { base, len })
    }

    /// Copies the bytes from `offset` into `into`, as many as the file has: their number.
    fn copy(&self, offset: u64, into: &mut [u8]) -> usize {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len);
        let len = into.len().min(self.len - at);
        if len > 0 {
            // SAFETY: `at + len` is inside the mapping, and `into` is memory of our own. Others may write to the file
            // meanwhile: then it is undefined which bytes are copied, which is so for any read. Where the file has been
            // cut, the kernel ends the process.
            unsafe { std::ptr::copy_nonoverlapping(self.base.cast::<u8>().add(at), into.as_mut_ptr(), len) };
        }
        len
    }

    /// How many of its pages are in the page cache, and how many there are.
    #[cfg(feature = "cli")]
    fn cached_pages(&self) -> io::Result<(usize, usize)> {
        let mut pages = vec![0u8; self.len.div_ceil(rustix::param::page_size())];
        // SAFETY: the range is that of the mapping, and there is a byte for each of its pages.
        if self.len > 0 && unsafe { libc::mincore(self.base, self.len, pages.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((pages.iter().filter(|&&page| page & 1 == 1).count(), pages.len()))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `new`, unmapped once; nothing borrows from it.
            let _ = unsafe { rustix::mm::munmap(self.base, self.len) };
        }
    }
}

/// The fraction of a file that is in the page cache at this moment.
#[cfg(feature = "cli")]
pub(crate) fn cached_share(file: &File) -> io::Result<f64> {
    let (cached, all) = Mapped::new(file, file.metadata()?.len())?.cached_pages()?;
    Ok(cached as f64 / all.max(1) as f64)
}

pub(crate) struct MmapReader {
    files: Vec<Mapped>,
    pending: Option<Read>,
}

impl MmapReader {
    pub(crate) fn new(files: Arc<Files>) -> io::Result<MmapReader> {
        let mapped = files.handles().iter().zip(files.lens()).map(|(file, &len)| Mapped::new(file, len));
        Ok(MmapReader { files: mapped.collect::<io::Result<_>>()?, pending: None })
    }
}

impl Reader for MmapReader {
    fn depth(&self) -> usize {
        1
    }

    fn submit(&mut self, read: Read) {
        assert!(self.pending.is_none(), "more reads than the reader has depth");
        self.pending = Some(read);
    }

    fn wait(&mut self, landed: &mut Vec<Landed>) -> io::Result<()> {
        let mut read = self.pending.take().expect("a read is in flight");
        let offset = read.offset + read.filled as u64;
        let result = Ok(self.files[read.file].copy(offset, &mut read.region[read.filled..]));
        landed.push(Landed { read, result });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::{HUGE_PAGE, Mapping};
    use crate::disk::{Geometry, Source};

    #[test]
    fn bytes_come_out_up_to_the_end_and_not_beyond() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..10_001u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let paths = vec![file.path().to_path_buf()];
        let geometry = Geometry::of(&Source { files: paths.clone(), ..Source::default() }).unwrap();
        let mut reader = MmapReader::new(Arc::new(Files::open(&paths, &geometry, false).unwrap())).unwrap();
        for (offset, expected) in [(0, 10_001), (4096, 5905), (8192, 1809), (12_288, 0)] {
            let region = Mapping::map(HUGE_PAGE, false).unwrap();
            reader.submit(Read { token: 7, file: 0, offset, region, filled: 0, attempts: 0 });
            let mut landed = Vec::new();
            reader.wait(&mut landed).unwrap();
            let Landed { read, result } = landed.remove(0);
            assert_eq!(result.unwrap(), expected);
            assert!(read.region[..expected] == bytes[(offset as usize).min(bytes.len())..][..expected]);
        }
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_file_that_was_just_written_is_in_the_cache() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(cached_share(file.as_file()).unwrap(), 0.0);
        std::fs::write(file.path(), vec![1; 1 << 20]).unwrap();
        assert_eq!(cached_share(file.as_file()).unwrap(), 1.0);
    }
}

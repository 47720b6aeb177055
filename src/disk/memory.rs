//! Memory that drives write into: anonymous mappings on 2 MiB pages, handed out as [`Region`]s that own their bytes.
//!
//! The size of the pages decides the bandwidth: one disk request spans few segments when its buffer lies on 2 MiB
//! pages, and hundreds on 4 KiB pages. A region is the only handle to its bytes and travels with a read into the kernel
//! and back, so a buffer cannot be reused, or unmapped, while a drive may still write to it.

use std::ffi::c_void;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::error::{Error, Result};

/// Bytes of a huge page; every mapping starts on such a boundary and is a multiple of it long.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// One anonymous mapping between two guard areas. Its bytes are reached through regions only.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The whole reservation, guards included: what `munmap` takes.
    reserved: NonNull<c_void>,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address range; nothing is read or written through it but by the one region that owns the bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, rounded up to 2 MiB, asks for huge pages, and returns all of it as one zeroed region.
    /// With `prefault` every page is there when this returns; else pages come as drives first write to them.
    pub(crate) fn map(len: usize, prefault: bool) -> Result<Region> {
        let len = len.next_multiple_of(HUGE_PAGE);
        let refuse = |e: rustix::io::Errno| {
            Error::Budget(format!("the system does not give {len} bytes of memory for streamed weights: {e}"))
        };
        // Guards on both sides keep the kernel from merging this mapping with a neighbour's, so that smaps tells
        // about this mapping alone.
        let reserve = len + 2 * HUGE_PAGE;
        // SAFETY: a fresh anonymous reservation at an address that the kernel chooses touches no other memory.
        let reserved =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserve, ProtFlags::empty(), MapFlags::PRIVATE) };
        let reserved = NonNull::new(reserved.map_err(refuse)?).expect("mmap never returns null");
        // Between 1 byte and one huge page in: never zero, so there is always a guard in front; what is left is the rear one.
        let skip = HUGE_PAGE - reserved.addr().get() % HUGE_PAGE;
        // SAFETY: skip + len < reserve, so the address is inside the reservation.
        let base = unsafe { reserved.byte_add(skip) };
        let mapping = Mapping { reserved, base: base.cast(), len };
        // SAFETY: the range lies inside the reservation, which nobody else knows of yet.
        unsafe {
            rustix::mm::mprotect(base.as_ptr(), len, MprotectFlags::READ | MprotectFlags::WRITE).map_err(refuse)?;
            // A kernel without transparent huge pages refuses; small pages are slower but right.
            let _ = rustix::mm::madvise(base.as_ptr(), len, Advice::LinuxHugepage);
        }
        if prefault {
            mapping.populate().map_err(refuse)?;
        }
        Ok(Region { mapping: Arc::new(mapping), start: 0, len })
    }

    fn populate(&self) -> rustix::io::Result<()> {
        // SAFETY: the range is this mapping's own, and populating leaves its bytes as they are.
        match unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) } {
            // Kernels before 5.14 do not know the advice.
            Err(rustix::io::Errno::INVAL) => {
                for at in (0..self.len).step_by(4096) {
                    // SAFETY: inside the mapping, and no region has been handed out yet.
                    unsafe { self.base.add(at).write_volatile(0) };
                }
                Ok(())
            }
            other => other,
        }
    }

    /// First address and length.
    pub(crate) fn range(&self) -> (*mut u8, usize) {
        (self.base.as_ptr(), self.len)
    }

    /// Bytes of this mapping that lie on huge pages at this moment (`AnonHugePages`); zero where the kernel does not tell.
    pub(crate) fn huge_bytes(&self) -> usize {
        File::open("/proc/self/smaps").map_or(0, |smaps| anon_huge_pages(BufReader::new(smaps), self.base.addr().get()))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: every region holds an `Arc` of its mapping, so none is left, and no read into one is in flight.
        let _ = unsafe { rustix::mm::munmap(self.reserved.as_ptr(), self.len + 2 * HUGE_PAGE) };
    }
}

/// `AnonHugePages`, in bytes, of the mapping that starts at `address`.
fn anon_huge_pages(smaps: impl BufRead, address: usize) -> usize {
    let start = format!("{address:x}-");
    let kilobytes =
        smaps.lines().map_while(std::io::Result::ok).skip_while(|line| !line.starts_with(&start)).find_map(|line| {
            line.strip_prefix("AnonHugePages:")?.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()
        });
    kilobytes.unwrap_or(0) * 1024
}

/// A run of bytes in a [`Mapping`], owned: no other region overlaps it.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Region {
    /// All of a mapping again, once every region of it is gone; `None` if one is left, or anyone else holds the mapping.
    pub(crate) fn whole(mapping: Arc<Mapping>) -> Option<Region> {
        let mapping = Arc::into_inner(mapping)?;
        let len = mapping.len;
        Some(Region { mapping: Arc::new(mapping), start: 0, len })
    }

    /// Bytes from the start of the mapping.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// One past the last byte, from the start of the mapping.
    pub(crate) fn end(&self) -> usize {
        self.start + self.len
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Splits off and returns the first `len` bytes; `self` keeps the rest.
    pub(crate) fn split_to(&mut self, len: usize) -> Region {
        assert!(len <= self.len, "split beyond the end of a region");
        let front = Region { mapping: Arc::clone(&self.mapping), start: self.start, len };
        self.start += len;
        self.len -= len;
        front
    }

    /// Undoes [`Region::split_to`]: the region that covers `self` and then `next`, which must begin where `self` ends.
    pub(crate) fn join(mut self, next: Region) -> Region {
        assert!(
            Arc::ptr_eq(&self.mapping, &next.mapping) && self.end() == next.start,
            "joined regions are not neighbours"
        );
        self.len += next.len;
        self
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the mapping, which lives as long as `self`; zeroed when mapped, so initialised; no other region
        // overlaps it, and while a drive writes to it the region itself is inside the reader, out of reach.
        unsafe { std::slice::from_raw_parts(self.mapping.base.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base.as_ptr().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_is_aligned_rounded_and_zeroed() {
        for prefault in [false, true] {
            let region = Mapping::map(3 << 20, prefault).unwrap();
            assert_eq!(region.len(), 4 << 20);
            assert_eq!(region.as_ptr().addr() % HUGE_PAGE, 0);
            assert!(region.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn regions_split_and_join_without_overlap() {
        let mut rest = Mapping::map(HUGE_PAGE, false).unwrap();
        let mut a = rest.split_to(4096);
        let mut b = rest.split_to(8192);
        a.fill(1);
        b.fill(2);
        let ab = a.join(b);
        assert_eq!((ab.start(), ab.end(), rest.start()), (0, 12288, 12288));
        assert!(ab[..4096].iter().all(|&byte| byte == 1) && ab[4096..].iter().all(|&byte| byte == 2));
        assert_eq!(rest[0], 0);
    }

    #[test]
    fn mapping_is_whole_again_when_its_regions_are_gone() {
        let mut rest = Mapping::map(HUGE_PAGE, false).unwrap();
        let front = rest.split_to(4096);
        let mapping = Arc::clone(rest.mapping());
        drop(rest);
        assert!(Region::whole(mapping).is_none(), "a region is left");
        let mapping = Arc::clone(front.mapping());
        drop(front);
        assert_eq!(Region::whole(mapping).unwrap().len(), HUGE_PAGE);
    }

    #[test]
    #[should_panic(expected = "not neighbours")]
    fn regions_out_of_order_do_not_join() {
        let mut rest = Mapping::map(HUGE_PAGE, false).unwrap();
        let a = rest.split_to(4096);
        let _ = rest.join(a);
    }

    #[test]
    fn huge_bytes_are_those_of_the_mapping_asked_about() {
        let smaps = "7f0000000000-7f0000200000 ---p 00000000 00:00 0\nAnonHugePages:  4096 kB\n\
                     7f0000200000-7f0000600000 rw-p 00000000 00:00 0\nRss: 9 kB\nAnonHugePages:      2048 kB\n";
        assert_eq!(anon_huge_pages(smaps.as_bytes(), 0x7f00_0020_0000), 2 << 20);
        assert_eq!(anon_huge_pages(smaps.as_bytes(), 0x1000), 0);
    }

    #[test]
    fn absurd_length_is_refused() {
        assert!(matches!(Mapping::map(1 << 60, true), Err(Error::Budget(_))));
    }
}

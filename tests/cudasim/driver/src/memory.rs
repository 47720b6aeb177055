//! Memory of the cards, and host memory that is page-locked: what is alive, what happened to it, and how much there is.
//!
//! Device memory is host memory at the same addresses, so that kernels can run. It is mapped for each allocation alone,
//! between pages that cannot be touched; its bytes begin as NaN (in every format that kernels know), without taking host
//! memory before they are written. Freed memory becomes inaccessible and its addresses are not used again for a while.

use std::collections::{BTreeMap, VecDeque};
use std::ptr::null_mut;

use crate::history::History;

const PAGE: u64 = 4096;
/// The byte that nobody wrote: NaN as float32, float16, bfloat16 and fp8; -1 as an id.
pub const POISON: u8 = 0xff;
/// A driver hands out memory by pages of this size; what is smaller than half of one shares one with others.
const DEVICE_PAGE: u64 = 2 << 20;
const SMALL: u64 = DEVICE_PAGE / 2;
/// Fresh memory shows the pages of a file of this size over and over until they are written.
const POISONED_FILE: u64 = 4 << 20;
/// How many freed allocations keep their addresses, so that a late access to them is seen as that.
const QUARANTINE: usize = 512;

/// One allocation of device memory.
pub struct Allocation {
    pub device: usize,
    pub start: u64,
    pub len: u64,
    pub history: History,
}

/// Page-locked host memory.
pub struct Pinned {
    pub start: u64,
    pub len: u64,
    /// Allocated by the driver, not registered.
    pub allocated: bool,
    pub history: History,
}

/// How much of a card's memory is given out.
#[derive(Clone, Copy, Default)]
struct Given {
    large: u64,
    small: u64,
}

#[derive(Default)]
pub struct Memory {
    allocations: BTreeMap<u64, Allocation>,
    pinned: BTreeMap<u64, Pinned>,
    /// Start and length of what was freed last.
    freed: VecDeque<(u64, u64)>,
    given: BTreeMap<usize, Given>,
    poisoned_file: Option<i32>,
}

/// What lies at an address.
pub fn ranges_overlap(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
    a < b + b_len && b < a + a_len
}

fn pages(len: u64) -> u64 {
    len.next_multiple_of(PAGE)
}

impl Memory {
    // --- of cards ----------------------------------------------------------------------------------------------------

    /// Bytes of a card's memory that are given out, as a driver counts them.
    pub fn used(&self, device: usize) -> u64 {
        let given = self.given.get(&device).copied().unwrap_or_default();
        given.large + given.small.next_multiple_of(DEVICE_PAGE)
    }

    /// New memory, unless that would make `used` larger than `limit`, or the host has no room for it.
    pub fn allocate(&mut self, device: usize, len: u64, limit: u64) -> Option<u64> {
        let before = self.given.get(&device).copied().unwrap_or_default();
        self.charge(device, len, true);
        let start = if self.used(device) <= limit { self.map(len) } else { None };
        let Some(start) = start else {
            self.given.insert(device, before);
            return None;
        };
        self.allocations.insert(start, Allocation { device, start, len, history: History::default() });
        Some(start)
    }

    fn charge(&mut self, device: usize, len: u64, more: bool) {
        let given = self.given.entry(device).or_default();
        let (sum, bytes) = if len > SMALL {
            (&mut given.large, len.next_multiple_of(DEVICE_PAGE))
        } else {
            (&mut given.small, len.next_multiple_of(512))
        };
        *sum = if more { *sum + bytes } else { *sum - bytes };
    }

    /// Poisoned pages between two that cannot be touched.
    fn map(&mut self, len: u64) -> Option<u64> {
        let file = self.poisoned_file()?;
        let len = pages(len);
        let nowhere = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address that the system chooses.
        let base = unsafe { libc::mmap(null_mut(), (len + 2 * PAGE) as usize, libc::PROT_NONE, nowhere, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let start = base as u64 + PAGE;
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(POISONED_FILE);
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: replaces pages of the mapping above, which nobody knows yet.
            let mapped = unsafe { libc::mmap((start + at) as *mut _, piece as usize, access, flags, file, 0) };
            if mapped == libc::MAP_FAILED {
                // SAFETY: the mapping above, whole.
                unsafe { libc::munmap(base, (len + 2 * PAGE) as usize) };
                return None;
            }
            at += piece;
        }
        Some(start)
    }

    fn poisoned_file(&mut self) -> Option<i32> {
        if self.poisoned_file.is_none() {
            // SAFETY: a new file without a name; the string is a C string.
            let file = unsafe { libc::memfd_create(c"poison".as_ptr(), libc::MFD_CLOEXEC) };
            let poison = vec![POISON; POISONED_FILE as usize];
            // SAFETY: writes from a buffer of this length.
            let written = unsafe { libc::write(file, poison.as_ptr().cast(), poison.len()) };
            self.poisoned_file = (written == POISONED_FILE as isize).then_some(file);
        }
        self.poisoned_file
    }

    /// The allocation that has all of [address, address + len), or what is wrong with that.
    pub fn device(&mut self, address: u64, len: u64) -> Result<&mut Allocation, String> {
        let found = self.allocations.range(..=address).next_back().map(|(_, found)| (found.start, found.len));
        let Some((start, size)) = found.filter(|(start, size)| address < start + size) else {
            let freed = self.freed.iter().find(|(start, size)| ranges_overlap(*start, *size, address, len.max(1)));
            return Err(match freed {
                Some((start, size)) => format!("lies in {size} bytes at {start:#x}, which were freed"),
                None => "lies in no allocation of device memory".into(),
            });
        };
        let room = start + size - address;
        if len > room {
            return Err(format!("ends {} bytes beyond the allocation of {size} bytes at {start:#x}", len - room));
        }
        Ok(self.allocations.get_mut(&start).expect("just found"))
    }

    pub fn allocation(&self, start: u64) -> Option<&Allocation> {
        self.allocations.get(&start)
    }

    pub fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.values()
    }

    /// Whether this memory existed once.
    pub fn was_freed(&self, start: u64) -> bool {
        self.freed.iter().any(|&(at, _)| at == start)
    }

    /// Frees an allocation by its start.
    ///
    /// # Errors
    /// Something had been written behind its end.
    pub fn free(&mut self, start: u64) -> Result<(), String> {
        let Allocation { device, len, .. } = self.allocations.remove(&start).expect("an allocation that was looked up");
        self.charge(device, len, false);
        // SAFETY: the rest of the last page, which belongs to the mapping.
        let rest = unsafe { std::slice::from_raw_parts((start + len) as *const u8, (pages(len) - len) as usize) };
        let beyond = rest.iter().position(|&byte| byte != POISON);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: replaces pages of the mapping that `map` made.
        unsafe { libc::mmap(start as *mut _, pages(len) as usize, libc::PROT_NONE, flags, -1, 0) };
        self.freed.push_back((start, len));
        if self.freed.len() > QUARANTINE {
            let (start, len) = self.freed.pop_front().expect("there are many");
            // SAFETY: what `map` made, with the pages around it; no operation uses it any more.
            unsafe { libc::munmap((start - PAGE) as *mut _, (pages(len) + 2 * PAGE) as usize) };
        }
        match beyond {
            Some(at) => Err(format!("a kernel wrote {at} bytes beyond the end of {len} bytes at {start:#x}")),
            None => Ok(()),
        }
    }

    // --- of the host -------------------------------------------------------------------------------------------------

    /// The page-locked region that has all of [address, address + len).
    pub fn pinned(&mut self, address: u64, len: u64) -> Option<&mut Pinned> {
        let (_, found) = self.pinned.range_mut(..=address).next_back()?;
        (address + len <= found.start + found.len && address < found.start + found.len).then_some(found)
    }

    pub fn pinned_overlaps(&self, address: u64, len: u64) -> bool {
        self.pinned.values().any(|region| ranges_overlap(region.start, region.len, address, len))
    }

    pub fn pinned_region(&self, start: u64) -> Option<&Pinned> {
        self.pinned.get(&start)
    }

    pub fn pinned_regions(&self) -> impl Iterator<Item = &Pinned> {
        self.pinned.values()
    }

    pub fn pinned_bytes(&self) -> u64 {
        self.pinned.values().map(|region| region.len).sum()
    }

    pub fn pin(&mut self, start: u64, len: u64, allocated: bool) {
        self.pinned.insert(start, Pinned { start, len, allocated, history: History::default() });
    }

    pub fn unpin(&mut self, start: u64) {
        self.pinned.remove(&start);
    }

    /// Every past there is.
    pub fn histories(&mut self) -> impl Iterator<Item = &mut History> {
        let device = self.allocations.values_mut().map(|allocation| &mut allocation.history);
        device.chain(self.pinned.values_mut().map(|region| &mut region.history))
    }
}

/// New host memory that nobody has written.
pub fn map_host(len: u64) -> Option<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, at an address that the system chooses.
    let base = unsafe { libc::mmap(null_mut(), pages(len) as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping just made.
    unsafe { std::ptr::write_bytes(base.cast::<u8>(), POISON, len as usize) };
    Some(base as u64)
}

/// Gives back what `map_host` gave.
pub fn unmap_host(start: u64, len: u64) {
    // SAFETY: a mapping of `map_host`; the program has freed it.
    unsafe { libc::munmap(start as *mut _, pages(len) as usize) };
}

/// Whether all of a range of host memory is mapped.
pub fn is_mapped(start: u64, len: u64) -> bool {
    let (first, end) = (start / PAGE * PAGE, pages(start + len));
    let mut residency = vec![0u8; ((end - first) / PAGE) as usize];
    // SAFETY: asks about addresses, mapped or not; one byte of answer a page.
    unsafe { libc::mincore(first as *mut _, (end - first) as usize, residency.as_mut_ptr().cast()) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_memory_is_poisoned_and_counted() {
        let mut memory = Memory::default();
        let start = memory.allocate(0, (4 << 20) + 100, 10 << 20).unwrap();
        assert_eq!(memory.used(0), 6 << 20);
        // SAFETY: just allocated.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, (4 << 20) + 100) };
        assert!(bytes.iter().step_by(1000).all(|&byte| byte == POISON));
        bytes.fill(1);
        let other = memory.allocate(0, 100, 10 << 20).unwrap();
        assert_eq!(memory.used(0), 8 << 20);
        assert!(memory.allocate(0, 2 << 20, 9 << 20).is_none());
        assert_eq!(memory.used(0), 8 << 20);
        // SAFETY: as above: nothing shows through from one allocation to another.
        assert_eq!(unsafe { *(other as *const u8) }, POISON);

        assert!(memory.device(start + 100, 4 << 20).is_ok());
        assert!(memory.device(start + 101, 4 << 20).err().unwrap().contains("ends 1 bytes beyond"));
        memory.free(start).unwrap();
        assert_eq!(memory.used(0), 2 << 20);
        assert!(memory.device(start, 1).err().unwrap().contains("freed"));
        assert!(memory.device(7, 1).err().unwrap().contains("no allocation"));
        // SAFETY: the page has room behind the 100 bytes.
        unsafe { *((other + 105) as *mut u8) = 0 };
        assert!(memory.free(other).unwrap_err().contains("5 bytes beyond"));
    }

    #[test]
    fn pinned_ranges_are_found_whole() {
        let mut memory = Memory::default();
        memory.pin(4096, 100, false);
        assert!(memory.pinned(4100, 96).is_some());
        assert!(memory.pinned(4100, 97).is_none());
        assert!(memory.pinned(4000, 10).is_none());
        assert!(memory.pinned_overlaps(4000, 97) && !memory.pinned_overlaps(4000, 96));
        let host = map_host(5000).unwrap();
        assert!(is_mapped(host, 5000));
        unmap_host(host, 5000);
        assert!(!is_mapped(host, 5000));
    }
}

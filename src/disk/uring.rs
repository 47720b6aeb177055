//! The `io_uring` reader: one thread keeps many reads of one drive in flight.
//!
//! The ring is made by the thread that uses it (`SINGLE_ISSUER`), which runs completion work only when it waits
//! (`DEFER_TASKRUN`). Files and buffers are registered where the kernel lets us, which saves processor time per read. No
//! kernel-side polling thread (it would take a core from the arithmetic), no polled completions (few drives have them).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::memory::{Mapping, Region};
use super::{Files, Landed, Read, Reader};

/// The most bytes that one registered buffer may have; larger mappings are registered in pieces.
const MAX_REGISTERED: usize = 1 << 30;

pub(crate) struct UringReader {
    ring: IoUring,
    files: Arc<Files>,
    fixed_files: bool,
    /// The mapping whose bytes are registered, in pieces of [`MAX_REGISTERED`].
    registered: Option<Arc<Mapping>>,
    /// Reads in flight, by the number that the kernel gives back.
    slots: Vec<Option<Read>>,
    free: Vec<usize>,
}

impl UringReader {
    /// Must be called on the thread that is to use the reader. Registers `buffer` if the kernel lets it.
    pub(crate) fn new(files: Arc<Files>, depth: usize, buffer: Option<&Arc<Mapping>>) -> io::Result<UringReader> {
        let ring = build(depth as u32)?;
        let descriptors: Vec<_> = files.handles().iter().map(|file| file.as_raw_fd()).collect();
        let fixed_files = ring.submitter().register_files(&descriptors).is_ok();
        let registered = buffer.filter(|mapping| register(&ring, mapping)).cloned();
        let (slots, free) = ((0..depth).map(|_| None).collect(), (0..depth).collect());
        Ok(UringReader { ring, files, fixed_files, registered, slots, free })
    }

    /// The number of the registered buffer that holds all of `region`.
    fn registered_piece(&self, region: &Region) -> Option<u16> {
        let mapping = self.registered.as_ref()?;
        let piece = region.start() / MAX_REGISTERED;
        let whole = Arc::ptr_eq(mapping, region.mapping()) && (region.end() - 1) / MAX_REGISTERED == piece;
        whole.then_some(piece as u16)
    }

    fn entry(&self, read: &mut Read) -> io_uring::squeue::Entry {
        let piece = self.registered_piece(&read.region);
        let offset = read.offset + read.filled as u64;
        let rest = &mut read.region[read.filled..];
        let (address, len) = (rest.as_mut_ptr(), rest.len() as u32);
        macro_rules! read_from {
            ($fd:expr) => {
                match piece {
                    Some(piece) => opcode::ReadFixed::new($fd, address, len, piece).offset(offset).build(),
                    None => opcode::Read::new($fd, address, len).offset(offset).build(),
                }
            };
        }
        if self.fixed_files {
            read_from!(types::Fixed(read.file as u32))
        } else {
            read_from!(types::Fd(self.files.handle(read.file).as_raw_fd()))
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Reader for UringReader {
    fn depth(&self) -> usize {
        self.slots.len()
    }

    fn submit(&mut self, mut read: Read) {
        let slot = self.free.pop().expect("no more reads than the reader has depth");
        let entry = self.entry(&mut read).user_data(slot as u64);
        self.slots[slot] = Some(read);
        // SAFETY: the entry points into the read's region, which stays in its slot, and so mapped and untouched, until
        // the completion with this number arrives; the files stay open because `self.files` holds them.
        unsafe { self.ring.submission().push(&entry).expect("the queue has an entry for every slot") };
    }

    fn wait(&mut self, landed: &mut Vec<Landed>) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1).map_err(|e| (Errno::from_io_error(&e), e)) {
                Ok(_) | Err((Some(Errno::INTR), _)) => {}
                // The kernel is short of something that completions give back.
                Err((Some(Errno::BUSY | Errno::AGAIN), _)) => std::thread::sleep(Duration::from_micros(100)),
                Err((_, e)) => return Err(e),
            }
            let before = landed.len();
            for completion in self.ring.completion() {
                let slot = completion.user_data() as usize;
                let read = self.slots[slot].take().expect("a completion for a read in flight");
                self.free.push(slot);
                let result = match completion.result() {
                    bytes @ 0.. => Ok(bytes as usize),
                    error => Err(io::Error::from_raw_os_error(-error)),
                };
                landed.push(Landed { read, result });
            }
            if landed.len() > before {
                return Ok(());
            }
        }
    }

    fn registered(&self) -> bool {
        self.registered.is_some()
    }
}

impl Drop for UringReader {
    /// Waits for the reads in flight: their memory may not be reused before they have landed.
    fn drop(&mut self) {
        let mut landed = Vec::new();
        while self.in_flight() > 0 {
            if self.wait(&mut landed).is_err() {
                // The kernel no longer tells when it is done with these regions, so they are never given back.
                self.slots.drain(..).flatten().for_each(std::mem::forget);
                return;
            }
        }
    }
}

/// Makes a ring with the best flags that this kernel knows: it refuses unknown ones with `EINVAL`.
fn build(entries: u32) -> io::Result<IoUring> {
    let unknown = |e: &io::Error| Errno::from_io_error(e) == Some(Errno::INVAL);
    let mut builder = IoUring::builder();
    builder.setup_coop_taskrun().setup_single_issuer().setup_defer_taskrun();
    match builder.build(entries) {
        Err(e) if unknown(&e) => {}
        built => return built,
    }
    match IoUring::builder().setup_coop_taskrun().build(entries) {
        Err(e) if unknown(&e) => IoUring::builder().build(entries),
        built => built,
    }
}

/// Registers all of `mapping` in pieces; false where the kernel refuses (memlock limit, old kernel, sandbox).
fn register(ring: &IoUring, mapping: &Mapping) -> bool {
    let (base, len) = mapping.range();
    let piece = |start: usize| libc::iovec {
        iov_base: base.wrapping_add(start).cast(),
        iov_len: MAX_REGISTERED.min(len - start),
    };
    let pieces: Vec<_> = (0..len).step_by(MAX_REGISTERED).map(piece).collect();
    // SAFETY: the pieces lie in the mapping, which the reader keeps for as long as the ring; registering only pins pages,
    // and only reads that own a region of them will write there.
    !pieces.is_empty() && unsafe { ring.submitter().register_buffers(&pieces) }.is_ok()
}

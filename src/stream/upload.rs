//! Copies from streamed memory to a GPU that go on while the host does: each holds on to what it copies until it is done.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

use layerstream_kernels::driver::{self, Event, Gpu, Memory, Pinned, Stream};

use super::Tile;
use crate::disk::memory::{Mapping, Region};

/// Bytes that lie in a [`Mapping`], stay where they are when their owner is moved, and that nobody else can change.
///
/// # Safety
/// All of that.
pub(crate) unsafe trait Settled: Deref<Target = [u8]> {}

// SAFETY: a region is the only handle to its bytes, which lie in its mapping.
unsafe impl Settled for Region {}
// SAFETY: a tile owns a region.
unsafe impl Settled for Tile {}

/// Page-locks memory, and queues copies of what lies in it to memory of a GPU, in order.
pub(crate) struct Uploads(Arc<Parts>);

/// Freed in this order, when the last upload is done.
struct Parts {
    stream: Stream,
    memory: Memory,
    locked: Vec<Pinned>,
    /// Stays mapped as long as it is locked.
    _mappings: Vec<Arc<Mapping>>,
}

impl Uploads {
    /// Takes `len` bytes of the GPU's memory and page-locks the mappings.
    pub(crate) fn new(gpu: &Gpu, len: usize, mappings: &[Arc<Mapping>]) -> driver::Result<Uploads> {
        let lock = |mapping: &Arc<Mapping>| {
            let (address, len) = mapping.range();
            // SAFETY: the mapping is kept beside the registration, which is dropped before it.
            unsafe { Pinned::register(gpu, address, len) }
        };
        Ok(Uploads(Arc::new(Parts {
            stream: Stream::new(gpu)?,
            memory: Memory::new(gpu, len)?,
            locked: mappings.iter().map(lock).collect::<driver::Result<_>>()?,
            _mappings: mappings.to_vec(),
        })))
    }

    /// Bytes that are page-locked.
    pub(crate) fn locked_bytes(&self) -> usize {
        self.0.locked.iter().map(Pinned::len).sum()
    }

    /// Queues a copy of `bytes` to offset `at` of the GPU's memory, between two events.
    ///
    /// # Panics
    /// If `bytes` do not lie in the memory that is page-locked, or there is no room for them.
    pub(crate) fn start<B: Settled>(&self, at: usize, bytes: B, events: [Event; 2]) -> driver::Result<Upload<B>> {
        let parts = &self.0;
        let (address, len) = (bytes.as_ptr(), bytes.len());
        let end = at.checked_add(len);
        assert!(end.is_some_and(|end| end <= parts.memory.len()), "{len} bytes at {at} of {}", parts.memory.len());
        let first = address as u64;
        let inside = |pin: &Pinned| pin.address() <= first && first + len as u64 <= pin.address() + pin.len() as u64;
        assert!(parts.locked.iter().any(inside), "bytes that are not page-locked");
        parts.stream.record(&events[0])?;
        let upload = Upload { bytes: ManuallyDrop::new(bytes), events: Some(events), parts: Arc::clone(parts) };
        // SAFETY: checked to be page-locked, and in the GPU's memory. Until the copy has happened, `upload` keeps the bytes,
        // which nobody can change, and what both sides lie in: should it be forgotten, so are they. Other copies to the same
        // place are ordered by the stream, and nothing else writes there.
        unsafe { parts.stream.upload(parts.memory.address() + at as u64, address, len) }?;
        parts.stream.record(&upload.events.as_ref().expect("just put there")[1])?;
        Ok(upload)
    }

    /// What the GPU has at offset `at`: for places whose copies have been waited for.
    pub(crate) fn fetch(&self, at: usize, len: usize) -> driver::Result<Vec<u8>> {
        self.0.memory.download(at, len)
    }
}

/// A copy that was queued.
pub(crate) struct Upload<B: Settled> {
    bytes: ManuallyDrop<B>,
    /// Before and after the copy; `None` when it has been waited for.
    events: Option<[Event; 2]>,
    parts: Arc<Parts>,
}

impl<B: Settled> Upload<B> {
    /// Whether it is done.
    pub(crate) fn happened(&self) -> driver::Result<bool> {
        self.events.as_ref().map_or(Ok(true), |[_, end]| end.happened())
    }

    /// Waits until it is done; gives back the bytes, and the events for another copy.
    pub(crate) fn wait(mut self) -> driver::Result<(B, [Event; 2])> {
        let events = self.events.as_ref().expect("there until it is waited for");
        events[1].synchronize()?;
        let events = self.events.take().expect("as above");
        // SAFETY: taken once: without events, `drop` leaves it alone.
        let bytes = unsafe { ManuallyDrop::take(&mut self.bytes) };
        Ok((bytes, events))
    }
}

impl<B: Settled> Drop for Upload<B> {
    /// Waits. Where that fails nobody knows whether the copy is done, so its bytes are never given back.
    fn drop(&mut self) {
        if self.events.is_some() && self.parts.stream.synchronize().is_ok() {
            // SAFETY: `wait` has not taken it, or there would be no events.
            unsafe { ManuallyDrop::drop(&mut self.bytes) };
        }
    }
}

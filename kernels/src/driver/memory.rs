//! Memory: of a GPU, and of the host, page-locked so that the GPU copies from and to it by itself.

use std::ffi::c_void;

use super::sys::{self, Status, code};
use super::{Gpu, Result, planted};

/// Memory of a GPU, freed on drop: no launch may use it then.
pub struct Memory {
    /// Outlives the memory.
    gpu: Gpu,
    address: sys::Address,
    len: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.len > 0 {
            self.gpu.for_drop();
            // SAFETY: allocated by `new`, freed once.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

impl Memory {
    /// `len` bytes, uninitialised, aligned to 256. None for 0.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Memory> {
        let mut address = 0;
        if len > 0 {
            // SAFETY: writes one address.
            unsafe { sys::cuMemAlloc_v2(&raw mut address, len) }.context(|| {
                let free = gpu.memory().map_or(0, |(free, _)| free);
                format!("allocating {len} bytes of GPU memory, of which {free} are free")
            })?;
        }
        Ok(Memory { gpu: gpu.clone(), address, len })
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn range(&self, at: usize, len: usize) -> sys::Address {
        let end = at.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "{len} bytes at {at} of GPU memory of {}", self.len);
        self.address + at as u64
    }

    /// Copies `bytes` to offset `at`, and waits.
    pub fn upload(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: both ranges are valid for the length.
        unsafe { sys::cuMemcpyHtoD_v2(self.range(at, bytes.len()), bytes.as_ptr().cast(), bytes.len()) }
            .then(wait_for_default_stream)
            .context(|| format!("copying {} bytes to the GPU", bytes.len()))
    }

    /// `len` bytes from offset `at`. Does not wait for any [`Stream`].
    pub fn download(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        if len > 0 {
            // SAFETY: both ranges are valid for the length.
            unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), self.range(at, len), len) }
                .context(|| format!("copying {len} bytes from the GPU"))?;
        }
        Ok(bytes)
    }

    /// Copies the `len` bytes at `from` to `to`, and waits. The two must not overlap.
    pub fn copy_within(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        assert!(from + len <= to || to + len <= from, "{len} bytes from {from} to {to} overlap");
        // SAFETY: both ranges are valid for the length, and apart.
        unsafe { sys::cuMemcpyDtoD_v2(self.range(to, len), self.range(from, len), len) }
            .then(wait_for_default_stream)
            .context(|| format!("copying {len} bytes on the GPU"))
    }
}

/// What copies "synchronously" may still be on its way to its place when the driver returns, and a [`Stream`] would not
/// wait for it.
fn wait_for_default_stream() -> Status {
    if planted("DefaultStreamNotWaited") {
        return code::SUCCESS;
    }
    // SAFETY: the default stream always exists.
    unsafe { sys::cuStreamSynchronize(sys::DEFAULT_STREAM) }
}

impl Status {
    /// What comes of another call after a successful one.
    fn then(self, call: impl FnOnce() -> Status) -> Status {
        if self == code::SUCCESS { call() } else { self }
    }
}

/// Host memory of somebody else, page-locked, so that [`Stream`](super::Stream)s copy from and to it without the host's
/// help; no longer so on drop.
pub struct Pinned {
    /// Outlives the registration.
    gpu: Gpu,
    address: *mut c_void,
    len: usize,
}

// SAFETY: an address that is only ever given to the driver, which lets any thread undo a registration.
unsafe impl Send for Pinned {}
// SAFETY: nothing can be done through a shared reference but to read two numbers.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Page-locks the `len` bytes at `address`, whose pages should be there already: that takes half the time.
    ///
    /// # Errors
    /// As for memory when the system does not let so much be locked; and of memory that is locked already.
    ///
    /// # Safety
    /// The bytes stay mapped for as long as the value lives.
    pub unsafe fn register(gpu: &Gpu, address: *mut u8, len: usize) -> Result<Pinned> {
        let address = address.cast::<c_void>();
        if len > 0 {
            // SAFETY: the caller's promise. No flags: for this context, and neither mapped nor write-combined.
            unsafe { sys::cuMemHostRegister_v2(address, len, 0) }
                .context(|| format!("page-locking {len} bytes of memory"))?;
        }
        Ok(Pinned { gpu: gpu.clone(), address, len })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address as u64
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.len > 0 {
            self.gpu.for_drop();
            // SAFETY: registered by `register`, unregistered once.
            let _ = unsafe { sys::cuMemHostUnregister(self.address) };
        }
    }
}

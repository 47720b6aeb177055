//! Streams and events: the order in which a GPU works, and waiting for a point in it.

use std::ffi::c_void;

use super::sys::{self, code};
use super::{Function, Gpu, Result};
use crate::launch::Launch;

/// The most bytes that the parameters of a kernel may have here; the largest struct of params.h has less than half.
const MAX_PARAMS: usize = 512;

/// A queue of work.
pub struct Stream {
    /// Outlives the stream.
    gpu: Gpu,
    stream: sys::Stream,
}

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what is behind the handle.
unsafe impl Sync for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        self.gpu.for_drop();
        // SAFETY: created by `new`, destroyed once; what is queued still runs.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}

impl Stream {
    /// A stream that does not wait for the default stream, nor that for it.
    pub fn new(gpu: &Gpu) -> Result<Stream> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuStreamCreate(&raw mut stream, sys::STREAM_NON_BLOCKING) }
            .context(|| "making a stream".into())?;
        Ok(Stream { gpu: gpu.clone(), stream })
    }

    /// Queues a kernel. `params` are copied before this returns.
    ///
    /// # Errors
    /// A shape that the GPU or the kernel does not allow; and whatever went wrong in earlier work.
    ///
    /// # Safety
    /// `params` is the parameter struct of this very kernel, and its pointers are valid for what the kernel does with them
    /// until it has ended.
    pub unsafe fn launch(&self, function: &Function, launch: &Launch, params: &[u8]) -> Result<()> {
        // At an address that is aligned for any struct.
        let mut aligned = [0u128; MAX_PARAMS / size_of::<u128>()];
        assert!(params.len() <= MAX_PARAMS, "{} bytes of parameters for {}", params.len(), launch.kernel);
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: `aligned` has room for `params`; one pointer for the one parameter; the rest is the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(params.as_ptr(), aligned.as_mut_ptr().cast(), params.len());
            let mut pointers: [*mut c_void; 1] = [aligned.as_mut_ptr().cast()];
            let (function, none) = (function.function, std::ptr::null_mut());
            let params = pointers.as_mut_ptr();
            sys::cuLaunchKernel(function, gx, gy, gz, bx, by, bz, launch.shared, self.stream, params, none)
        }
        .context(|| format!("launching {} with grid {:?}, block {:?}", launch.kernel, launch.grid, launch.block))
    }

    /// Queues a copy of `len` bytes from host memory to the GPU.
    ///
    /// # Safety
    /// `from` is page-locked ([`Pinned`](super::Pinned)); until the copy has happened its bytes stay as they are, and nothing
    /// unordered uses the bytes at `to`, an address in [`Memory`](super::Memory) with room for them.
    pub unsafe fn upload(&self, to: u64, from: *const u8, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), len, self.stream) }
            .context(|| format!("copying {len} bytes to the GPU"))
    }

    /// Queues a copy of `len` bytes from the GPU to host memory.
    ///
    /// # Safety
    /// As for [`upload`](Stream::upload), the other way round.
    pub unsafe fn download(&self, to: *mut u8, from: u64, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, len, self.stream) }
            .context(|| format!("copying {len} bytes from the GPU"))
    }

    /// Queues a copy of `len` bytes from one place on the GPU to another.
    ///
    /// # Safety
    /// Both are addresses in [`Memory`](super::Memory) with so many bytes, which do not overlap; until the copy has happened
    /// nothing unordered writes to either, or reads those at `to`.
    pub unsafe fn copy(&self, to: u64, from: u64, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len, self.stream) }
            .context(|| format!("copying {len} bytes on the GPU"))
    }

    /// Makes all that is queued here later wait until `event` has happened, as it was last recorded. Does not wait itself.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both exist.
        unsafe { sys::cuStreamWaitEvent(self.stream, event.event, 0) }.context(|| "making a stream wait".into())
    }

    /// Queues `event`: it happens when all that was queued before has ended.
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both exist.
        unsafe { sys::cuEventRecord(event.event, self.stream) }.context(|| "recording an event".into())
    }

    /// Waits, on the CPU, for all that is queued.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream exists.
        unsafe { sys::cuStreamSynchronize(self.stream) }.context(|| "running kernels".into())
    }
}

/// A point in a stream.
pub struct Event {
    /// Outlives the event.
    gpu: Gpu,
    event: sys::Event,
}

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks what is behind the handle.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        self.gpu.for_drop();
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}

impl Event {
    /// An event that keeps the time at which it happened.
    pub fn new(gpu: &Gpu) -> Result<Event> {
        Event::with(gpu, 0)
    }

    /// An event without a time, which costs less. Whoever waits for it on the CPU sleeps.
    pub fn untimed(gpu: &Gpu) -> Result<Event> {
        Event::with(gpu, sys::EVENT_DISABLE_TIMING | sys::EVENT_BLOCKING_SYNC)
    }

    fn with(gpu: &Gpu, flags: u32) -> Result<Event> {
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuEventCreate(&raw mut event, flags) }.context(|| "making an event".into())?;
        Ok(Event { gpu: gpu.clone(), event })
    }

    /// Whether it has happened, as it was last recorded; one that was never recorded has. Also fails for whatever went
    /// wrong in earlier work.
    pub fn happened(&self) -> Result<bool> {
        // SAFETY: the event exists.
        match unsafe { sys::cuEventQuery(self.event) } {
            code::NOT_READY => Ok(false),
            other => other.context(|| "asking for an event".into()).map(|()| true),
        }
    }

    /// Waits, on the CPU, until it has happened. Also fails for whatever went wrong in earlier work.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the event exists.
        unsafe { sys::cuEventSynchronize(self.event) }.context(|| "waiting for the GPU".into())
    }

    /// Seconds from `start` to this event, both of which have happened: an error if not.
    pub fn seconds_since(&self, start: &Event) -> Result<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: both exist; writes one number.
        unsafe { sys::cuEventElapsedTime(&raw mut milliseconds, start.event, self.event) }
            .context(|| "reading the time between two events".into())?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

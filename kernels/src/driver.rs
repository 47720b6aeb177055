//! The CUDA driver API, as little of it as launching kernels takes: a GPU, modules, memory, streams, events. Over cudarc's
//! bindings, which open libcuda when the first of them is called; nothing here is called before [`Gpu::open`] has found it
//! to be there, so a program with this module starts on machines without a driver.
//!
//! Everything holds on to its [`Gpu`], whose context outlives it. Values belong to the thread that opened the GPU.

use std::ffi::{CString, c_void};
use std::fmt;
use std::rc::Rc;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute};

use crate::launch::Launch;

/// A call of the driver that failed, and what it was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<Error> for String {
    fn from(error: Error) -> String {
        error.0
    }
}

/// Says what was tried.
trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, result::DriverError> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| {
            let name = e.error_name().ok().and_then(|s| s.to_str().ok()).unwrap_or("an unknown error");
            let text = e.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("no description");
            Error(format!("{}: {text} ({name})", what()))
        })
    }
}

// --- the GPU ---------------------------------------------------------------------------------------------------------

/// A GPU and its primary context, which is current on the thread that opened it.
#[derive(Clone)]
pub struct Gpu(Rc<Primary>);

struct Primary {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: retained by `open`, released once. A failure leaves nothing to be done.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

impl Gpu {
    /// The GPU of this number, counted from 0 as `CUDA_VISIBLE_DEVICES` leaves them.
    ///
    /// # Errors
    /// No driver, no GPU, none of this number, or a context that cannot be made, as when its memory is full.
    pub fn open(number: u32) -> Result<Gpu> {
        // SAFETY: opening libcuda runs its initialisers, which any program may.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error("there is no NVIDIA driver (libcuda.so.1 was not found)".into()));
        }
        result::init().context(|| "the NVIDIA driver does not start".into())?;
        let count = result::device::get_count().context(|| "counting GPUs".into())?;
        if count <= number as i32 {
            return Err(Error(format!("there is no GPU {number}: the driver shows {count}")));
        }
        let device = result::device::get(number as i32).context(|| format!("finding GPU {number}"))?;
        // SAFETY: a device that the driver has just named; the context is released by `Primary`, after its last user.
        unsafe {
            let context =
                result::primary_ctx::retain(device).context(|| format!("making a context on GPU {number}"))?;
            let primary = Rc::new(Primary { device, context });
            result::ctx::set_current(primary.context).context(|| format!("using GPU {number}"))?;
            Ok(Gpu(primary))
        }
    }

    /// The name that the maker gives it.
    pub fn name(&self) -> Result<String> {
        result::device::get_name(self.0.device).context(|| "asking for the GPU's name".into())
    }

    fn attribute(&self, attribute: CUdevice_attribute) -> Result<usize> {
        // SAFETY: the device exists as long as the context.
        let value = unsafe { result::device::get_attribute(self.0.device, attribute) };
        value.context(|| format!("asking for {attribute:?}")).map(|value| value.max(0) as usize)
    }

    /// Its generation as kernels are compiled for it: 80 for compute capability 8.0.
    pub fn arch(&self) -> Result<u32> {
        let major = self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok((major * 10 + minor) as u32)
    }

    pub fn multiprocessors(&self) -> Result<usize> {
        self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// Bytes of L2 cache.
    pub fn l2_bytes(&self) -> Result<usize> {
        self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
    }

    /// Bytes of dynamic and static shared memory that a block may have at most.
    fn shared_bytes(&self) -> Result<usize> {
        self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }

    /// Bytes of memory that are free, and all of them.
    pub fn memory(&self) -> Result<(usize, usize)> {
        result::mem_get_info().context(|| "asking for free GPU memory".into())
    }

    /// The CUDA version that the driver has, such as (13, 0).
    pub fn driver_version(&self) -> Result<(u32, u32)> {
        let mut version = 0;
        // SAFETY: writes one int.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .context(|| "asking for the driver's version".into())?;
        Ok((version as u32 / 1000, version as u32 % 1000 / 10))
    }
}

// --- kernels ---------------------------------------------------------------------------------------------------------

/// Kernels in the memory of a GPU.
#[derive(Clone)]
pub struct Module(Rc<Loaded>);

struct Loaded {
    gpu: Gpu,
    module: sys::CUmodule,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: loaded by `load`, unloaded once.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

impl Module {
    /// Loads a fatbin; `name` is for messages.
    ///
    /// # Errors
    /// Nothing in it for this GPU, a driver older than what it was compiled for, or no memory.
    ///
    /// # Safety
    /// `image` is a whole fatbin or cubin: the driver believes the lengths in it.
    pub unsafe fn load(gpu: &Gpu, name: &str, image: &[u8]) -> Result<Module> {
        // SAFETY: the caller's promise.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.context(|| {
            let (major, minor) = gpu.driver_version().unwrap_or_default();
            let arch = gpu.arch().unwrap_or_default();
            format!("the kernels of {name} do not load on this sm_{arch} with a driver for CUDA {major}.{minor}")
        })?;
        Ok(Module(Rc::new(Loaded { gpu: gpu.clone(), module })))
    }

    /// The kernel of this name, if the module has it, allowed all the dynamic shared memory that the GPU has for it.
    pub fn function(&self, name: &str) -> Result<Option<Function>> {
        let Ok(c_name) = CString::new(name) else { return Ok(None) };
        // SAFETY: the module is loaded.
        let function = match unsafe { result::module::get_function(self.0.module, c_name) } {
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) => return Ok(None),
            other => other.context(|| format!("finding the kernel {name}"))?,
        };
        let static_bytes = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let dynamic_limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function was found in a module that `Function` keeps.
        unsafe {
            let used = result::function::get_function_attribute(function, static_bytes)
                .context(|| format!("asking for the shared memory of {name}"))?;
            let rest = self.0.gpu.shared_bytes()? as i32 - used;
            result::function::set_function_attribute(function, dynamic_limit, rest)
                .context(|| format!("allowing {name} {rest} bytes of shared memory"))?;
        }
        Ok(Some(Function { _module: self.clone(), function }))
    }
}

/// A kernel.
#[derive(Clone)]
pub struct Function {
    /// Keeps the code where it is.
    _module: Module,
    function: sys::CUfunction,
}

// --- memory ----------------------------------------------------------------------------------------------------------

/// Memory of a GPU, freed on drop: no launch may use it then.
pub struct Memory {
    /// Outlives the memory.
    _gpu: Gpu,
    address: sys::CUdeviceptr,
    len: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated by `new`, freed once.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Memory {
    /// `len` bytes, uninitialised, aligned to 256. None for 0.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Memory> {
        let address = match len {
            0 => 0,
            // SAFETY: the context is current.
            _ => unsafe { result::malloc_sync(len) }.context(|| {
                let free = gpu.memory().map_or(0, |(free, _)| free);
                format!("allocating {len} bytes of GPU memory, of which {free} are free")
            })?,
        };
        Ok(Memory { _gpu: gpu.clone(), address, len })
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

    fn range(&self, at: usize, len: usize) -> sys::CUdeviceptr {
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
        unsafe { result::memcpy_htod_sync(self.range(at, bytes.len()), bytes) }
            .and_then(|()| wait_for_default_stream())
            .context(|| format!("copying {} bytes to the GPU", bytes.len()))
    }

    /// `len` bytes from offset `at`. Does not wait for any [`Stream`].
    pub fn download(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        if len > 0 {
            // SAFETY: both ranges are valid for the length.
            unsafe { result::memcpy_dtoh_sync(&mut bytes, self.range(at, len)) }
                .context(|| format!("copying {len} bytes from the GPU"))?;
        }
        Ok(bytes)
    }

    /// Copies the `len` bytes at `from` to `to`, and waits. The two must not overlap.
    pub fn copy_within(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        assert!(from + len <= to || to + len <= from, "{len} bytes from {from} to {to} overlap");
        // SAFETY: both ranges are valid for the length, and apart.
        unsafe { result::memcpy_dtod_sync(self.range(to, len), self.range(from, len), len) }
            .and_then(|()| wait_for_default_stream())
            .context(|| format!("copying {len} bytes on the GPU"))
    }
}

/// What copies "synchronously" may still be on its way to its place when the driver returns, and a [`Stream`] would not
/// wait for it.
fn wait_for_default_stream() -> std::result::Result<(), result::DriverError> {
    // SAFETY: the default stream always exists.
    unsafe { result::stream::synchronize(result::stream::null()) }
}

// --- streams and events ----------------------------------------------------------------------------------------------

/// A queue of work.
pub struct Stream {
    /// Outlives the stream.
    _gpu: Gpu,
    stream: sys::CUstream,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once; what is queued still runs.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

impl Stream {
    /// A stream that does not wait for the default stream, nor that for it.
    pub fn new(gpu: &Gpu) -> Result<Stream> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Stream { _gpu: gpu.clone(), stream: stream.context(|| "making a stream".into())? })
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
        let mut aligned = vec![0u128; params.len().div_ceil(16).max(1)];
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: `aligned` has room for `params`; one pointer for the one parameter; the rest is the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(params.as_ptr(), aligned.as_mut_ptr().cast(), params.len());
            let mut pointers: [*mut c_void; 1] = [aligned.as_mut_ptr().cast()];
            let shape = ((gx, gy, gz), (bx, by, bz));
            result::launch_kernel(function.function, shape.0, shape.1, launch.shared, self.stream, &mut pointers)
        }
        .context(|| format!("launching {} with grid {:?}, block {:?}", launch.kernel, launch.grid, launch.block))
    }

    /// Queues `event`: it happens when all that was queued before has ended.
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both exist.
        unsafe { result::event::record(event.event, self.stream) }.context(|| "recording an event".into())
    }

    /// Waits, on the CPU, for all that is queued.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream exists.
        unsafe { result::stream::synchronize(self.stream) }.context(|| "running kernels".into())
    }
}

/// A point in a stream, with the time at which it was reached.
pub struct Event {
    /// Outlives the event.
    _gpu: Gpu,
    event: sys::CUevent,
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}

impl Event {
    pub fn new(gpu: &Gpu) -> Result<Event> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        Ok(Event { _gpu: gpu.clone(), event: event.context(|| "making an event".into())? })
    }

    /// Seconds from `start` to this event, both of which have happened: an error if not.
    pub fn seconds_since(&self, start: &Event) -> Result<f64> {
        // SAFETY: both exist.
        let milliseconds = unsafe { result::event::elapsed(start.event, self.event) };
        Ok(f64::from(milliseconds.context(|| "reading the time between two events".into())?) / 1e3)
    }
}

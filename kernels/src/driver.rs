//! The CUDA driver API, as little of it as launching kernels takes: a GPU, modules, memory, streams, events. Over cudarc's
//! bindings, which open libcuda when the first of them is called; nothing here is called before [`Gpu::open`] has found it
//! to be there, so a program with this module starts on machines without a driver.
//!
//! Everything holds on to its [`Gpu`], whose context outlives it. Values may move to another thread; that thread calls
//! [`Gpu::make_current`] before it uses them. Nothing here waits for a whole device.

mod memory;
mod nvml;
mod stream;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute};

pub use memory::{Memory, Pinned};
pub use stream::{Event, Stream};

/// What went wrong, as far as it decides what a person can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No libcuda, or one that finds no device to drive.
    NoDriver,
    /// A driver older than what the kernels were compiled for, or than this program's calls.
    DriverTooOld,
    /// No GPU of the number asked for.
    NoDevice,
    /// A GPU for which there are no kernels.
    GpuTooOld,
    /// The device's memory is full, or the system does not let so much of its own be page-locked.
    OutOfMemory,
    /// The device, or what ran on it, is beyond repair for this process.
    Lost,
    Other,
}

/// A call of the driver that failed, and what it was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for String {
    fn from(error: Error) -> String {
        error.message
    }
}

/// What a status of the driver means to a person.
fn kind(status: sys::CUresult) -> ErrorKind {
    use sys::CUresult::*;
    match status {
        CUDA_ERROR_STUB_LIBRARY | CUDA_ERROR_NOT_INITIALIZED => ErrorKind::NoDriver,
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => ErrorKind::DriverTooOld,
        CUDA_ERROR_NO_DEVICE | CUDA_ERROR_INVALID_DEVICE => ErrorKind::NoDevice,
        CUDA_ERROR_NO_BINARY_FOR_GPU => ErrorKind::GpuTooOld,
        CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUDA_ERROR_DEINITIALIZED
        | CUDA_ERROR_SYSTEM_NOT_READY
        | CUDA_ERROR_UNKNOWN => ErrorKind::Lost,
        _ => ErrorKind::Other,
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
            Error::new(kind(e.0), format!("{}: {text} ({name})", what()))
        })
    }
}

// --- the GPU ---------------------------------------------------------------------------------------------------------

/// The oldest CUDA version whose calls are made here, as `cuDriverGetVersion` counts; cudarc binds that of 11.4.
const OLDEST_DRIVER: i32 = 11040;

/// A GPU and its primary context, which is current on the thread that opened it.
#[derive(Clone)]
pub struct Gpu(Arc<Primary>);

struct Primary {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Whether this process had the context already.
    had_context: bool,
    /// Bytes of the GPU's memory that were in use before the context was made, if that is known.
    used_before: Option<u64>,
}

// SAFETY: a device number and a handle that the driver lets any thread use.
unsafe impl Send for Primary {}
// SAFETY: as above; the driver locks what is behind the handle.
unsafe impl Sync for Primary {}

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
            return Err(Error::new(ErrorKind::NoDriver, "there is no NVIDIA driver (libcuda.so.1 was not found)"));
        }
        result::init().context(|| "the NVIDIA driver does not start".into())?;
        let (major, minor) = driver_version()?;
        if ((major * 1000 + minor * 10) as i32) < OLDEST_DRIVER {
            let problem = format!("the NVIDIA driver is too old: it has CUDA {major}.{minor}, at least 11.4 is needed");
            return Err(Error::new(ErrorKind::DriverTooOld, problem));
        }
        let count = result::device::get_count().context(|| "counting GPUs".into())?;
        if count <= number as i32 {
            return Err(Error::new(ErrorKind::NoDevice, format!("there is no GPU {number}: the driver shows {count}")));
        }
        let device = result::device::get(number as i32).context(|| format!("finding GPU {number}"))?;
        let had_context = has_context(device);
        let used_before = if had_context { None } else { used_bytes(device) };
        // SAFETY: a device that the driver has just named; the context is released by `Primary`, after its last user.
        unsafe {
            let context =
                result::primary_ctx::retain(device).context(|| format!("making a context on GPU {number}"))?;
            let primary = Arc::new(Primary { device, context, had_context, used_before });
            result::ctx::set_current(primary.context).context(|| format!("using GPU {number}"))?;
            Ok(Gpu(primary))
        }
    }

    /// Makes its context the one that calls from this thread go to.
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the context is retained until `Primary` is dropped.
        unsafe { result::ctx::set_current(self.0.context) }.context(|| "using the GPU from another thread".into())
    }

    /// The same where there is nobody to tell of a failure: before something is freed, whose own failure tells as much.
    fn for_drop(&self) {
        let _ = self.make_current();
    }

    /// The name that the maker gives it.
    pub fn name(&self) -> Result<String> {
        result::device::get_name(self.0.device).context(|| "asking for the GPU's name".into())
    }

    fn attribute(&self, attribute: CUdevice_attribute) -> Result<usize> {
        attribute_of(self.0.device, attribute)
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

    /// Bytes of its memory that are in use because of this process, to be asked before anything is allocated: those of the
    /// context, and of the modules loaded so far. Where this process has had the context for other work already, it is what the
    /// first who asked was told.
    ///
    /// What was in use before the context was made is known from NVML. Where that is missing, other programs' memory cannot
    /// be told from ours and is counted, so that the answer is too much, never too little; NVML counts what others take or
    /// free in that moment as well.
    pub fn context_bytes(&self) -> Result<u64> {
        static MEASURED: Mutex<BTreeMap<sys::CUdevice, u64>> = Mutex::new(BTreeMap::new());
        let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
        let Primary { device, had_context, used_before, .. } = *self.0;
        if let Some(bytes) = measured.get(&device).filter(|_| had_context) {
            return Ok(*bytes);
        }
        let (free, total) = self.memory()?;
        let all = (total - free) as u64;
        let ours = used_before.zip(used_bytes(device)).and_then(|(before, now)| now.checked_sub(before));
        // Others may have freed more meanwhile than we have taken; that tells nothing.
        let bytes = ours.filter(|bytes| *bytes > 0).map_or(all, |bytes| bytes.min(all));
        measured.insert(device, bytes);
        Ok(bytes)
    }

    /// Its address on the PCI bus as `/sys/bus/pci/devices` writes it, such as `0000:c1:00.0`.
    pub fn pci_address(&self) -> Result<String> {
        pci_address(self.0.device)
    }

    /// The CUDA version that the driver has, such as (13, 0).
    pub fn driver_version(&self) -> Result<(u32, u32)> {
        driver_version()
    }
}

fn attribute_of(device: sys::CUdevice, attribute: CUdevice_attribute) -> Result<usize> {
    // SAFETY: the driver has named the device, and writes one int.
    let value = unsafe { result::device::get_attribute(device, attribute) };
    value.context(|| format!("asking for {attribute:?}")).map(|value| value.max(0) as usize)
}

fn pci_address(device: sys::CUdevice) -> Result<String> {
    let domain = attribute_of(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?;
    let bus = attribute_of(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?;
    let device = attribute_of(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?;
    Ok(format!("{domain:04x}:{bus:02x}:{device:02x}.0"))
}

/// Bytes of the memory of a device that are in use, by whomever, if that can be known.
fn used_bytes(device: sys::CUdevice) -> Option<u64> {
    nvml::used_bytes(&pci_address(device).ok()?)
}

/// Whether this process has the device's primary context already. What cannot be known counts as yes.
fn has_context(device: sys::CUdevice) -> bool {
    let (mut flags, mut active) = (0, 1);
    // SAFETY: writes two ints.
    let asked = unsafe { sys::cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) };
    asked.result().is_err() || active != 0
}

fn driver_version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().context(|| "asking for the driver's version".into())?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

// --- kernels ---------------------------------------------------------------------------------------------------------

/// Kernels in the memory of a GPU.
#[derive(Clone)]
pub struct Module(Arc<Loaded>);

struct Loaded {
    gpu: Gpu,
    module: sys::CUmodule,
}

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Loaded {}
// SAFETY: as above; a loaded module does not change.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.gpu.for_drop();
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
        Ok(Module(Arc::new(Loaded { gpu: gpu.clone(), module })))
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

// SAFETY: a handle that the driver lets any thread use, of a module that stays loaded.
unsafe impl Send for Function {}
// SAFETY: as above; a function does not change.
unsafe impl Sync for Function {}

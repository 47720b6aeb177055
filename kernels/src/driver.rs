//! The CUDA driver API, as little of it as launching kernels takes: a GPU, modules, memory, streams, events. libcuda is
//! opened by [`Gpu::open`] (`sys.rs`), so a program with this module starts on machines without a driver.
//!
//! Everything holds on to its [`Gpu`], whose context outlives it. Values may move to another thread; that thread calls
//! [`Gpu::make_current`] before it uses them. Nothing here waits for a whole device.

mod memory;
mod nvml;
mod stream;
#[allow(non_snake_case, clippy::too_many_arguments, reason = "the names and arguments of cuda.h")]
mod sys;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int};
use std::fmt;
use std::ptr::null_mut;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use sys::{Missing, Status, attribute, code};

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
fn kind(status: Status) -> ErrorKind {
    match status {
        code::STUB_LIBRARY | code::NOT_INITIALIZED => ErrorKind::NoDriver,
        code::CALL_REQUIRES_NEWER_DRIVER
        | code::UNSUPPORTED_PTX_VERSION
        | code::SYSTEM_DRIVER_MISMATCH
        | code::COMPAT_NOT_SUPPORTED_ON_DEVICE => ErrorKind::DriverTooOld,
        code::NO_DEVICE | code::INVALID_DEVICE => ErrorKind::NoDevice,
        code::NO_BINARY_FOR_GPU => ErrorKind::GpuTooOld,
        code::OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        code::ILLEGAL_ADDRESS
        | code::LAUNCH_FAILED
        | code::LAUNCH_TIMEOUT
        | code::HARDWARE_STACK_ERROR
        | code::ILLEGAL_INSTRUCTION
        | code::MISALIGNED_ADDRESS
        | code::INVALID_ADDRESS_SPACE
        | code::INVALID_PC
        | code::ECC_UNCORRECTABLE
        | code::NVLINK_UNCORRECTABLE
        | code::CONTAINED
        | code::TENSOR_MEMORY_LEAK
        | code::CONTEXT_IS_DESTROYED
        | code::DEINITIALIZED
        | code::SYSTEM_NOT_READY
        | code::UNKNOWN => ErrorKind::Lost,
        _ => ErrorKind::Other,
    }
}

/// What the driver calls a status; one that it does not know itself goes by its number.
fn describe(status: Status) -> String {
    let ask = |call: unsafe fn(Status, *mut *const std::ffi::c_char) -> Status| {
        let mut text = std::ptr::null();
        // SAFETY: writes one pointer, to a text that is never freed.
        unsafe {
            let known = call(status, &raw mut text) == code::SUCCESS && !text.is_null();
            known.then(|| CStr::from_ptr(text).to_string_lossy())
        }
    };
    match (ask(sys::cuGetErrorString), ask(sys::cuGetErrorName)) {
        (Some(text), Some(name)) => format!("{text} ({name})"),
        _ => format!("status {}, which the driver does not describe", status.0),
    }
}

impl Status {
    /// Says what was tried.
    fn context(self, what: impl FnOnce() -> String) -> Result<()> {
        match self {
            code::SUCCESS => Ok(()),
            status => Err(Error::new(kind(status), format!("{}: {}", what(), describe(status)))),
        }
    }
}

/// Whether tests have planted the fault of this name, to see that it is noticed: `LAYERSTREAM_TRAP` has their names, separated
/// by commas. Never in builds without debug assertions.
pub fn planted(fault: &str) -> bool {
    static PLANTED: LazyLock<String> = LazyLock::new(|| std::env::var("LAYERSTREAM_TRAP").unwrap_or_default());
    cfg!(debug_assertions) && PLANTED.split(',').any(|name| name == fault)
}

// --- the GPU ---------------------------------------------------------------------------------------------------------

/// The oldest CUDA version whose calls are made here, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: i32 = 11040;

/// A GPU and its primary context, which is current on the thread that opened it.
#[derive(Clone)]
pub struct Gpu(Arc<Primary>);

struct Primary {
    device: sys::Device,
    context: sys::Context,
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
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl Gpu {
    /// The GPU of this number, counted from 0 as `CUDA_VISIBLE_DEVICES` leaves them.
    ///
    /// # Errors
    /// No driver, no GPU, none of this number, or a context that cannot be made, as when its memory is full.
    pub fn open(number: u32) -> Result<Gpu> {
        sys::load().map_err(|missing| match missing {
            Missing::Library => {
                Error::new(ErrorKind::NoDriver, "there is no NVIDIA driver (libcuda.so.1 was not found)")
            }
            Missing::Function(name) => {
                let problem = format!("the NVIDIA driver is too old: it has no {name}, at least CUDA 11.4 is needed");
                Error::new(ErrorKind::DriverTooOld, problem)
            }
        })?;
        // SAFETY: no flags.
        unsafe { sys::cuInit(0) }.context(|| "the NVIDIA driver does not start".into())?;
        let (major, minor) = driver_version()?;
        if ((major * 1000 + minor * 10) as i32) < OLDEST_DRIVER {
            let problem = format!("the NVIDIA driver is too old: it has CUDA {major}.{minor}, at least 11.4 is needed");
            return Err(Error::new(ErrorKind::DriverTooOld, problem));
        }
        let (mut count, mut device, mut context) = (0, 0, null_mut());
        // SAFETY: writes one int.
        unsafe { sys::cuDeviceGetCount(&raw mut count) }.context(|| "counting GPUs".into())?;
        if count <= number as i32 {
            return Err(Error::new(ErrorKind::NoDevice, format!("there is no GPU {number}: the driver shows {count}")));
        }
        // SAFETY: as above.
        unsafe { sys::cuDeviceGet(&raw mut device, number as i32) }.context(|| format!("finding GPU {number}"))?;
        let had_context = has_context(device);
        let used_before = if had_context { None } else { used_bytes(device) };
        // SAFETY: a device that the driver has just named; the context is released by `Primary`, after its last user.
        unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) }
            .context(|| format!("making a context on GPU {number}"))?;
        let gpu = Gpu(Arc::new(Primary { device, context, had_context, used_before }));
        gpu.current().context(|| format!("using GPU {number}"))?;
        Ok(gpu)
    }

    fn current(&self) -> Status {
        // SAFETY: the context is retained until `Primary` is dropped.
        unsafe { sys::cuCtxSetCurrent(self.0.context) }
    }

    /// Makes its context the one that calls from this thread go to.
    pub fn make_current(&self) -> Result<()> {
        self.current().context(|| "using the GPU from another thread".into())
    }

    /// The same where there is nobody to tell of a failure: before something is freed, whose own failure tells as much.
    fn for_drop(&self) {
        let _ = self.make_current();
    }

    /// The name that the maker gives it.
    pub fn name(&self) -> Result<String> {
        let mut name = [0u8; 128];
        // SAFETY: room for as many bytes as it says, which end with a zero.
        unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int - 1, self.0.device) }
            .context(|| "asking for the GPU's name".into())?;
        let name = CStr::from_bytes_until_nul(&name).expect("the last byte is left alone");
        Ok(name.to_string_lossy().into())
    }

    fn attribute(&self, attribute: c_int) -> Result<usize> {
        attribute_of(self.0.device, attribute)
    }

    /// Its generation as kernels are compiled for it: 80 for compute capability 8.0.
    pub fn arch(&self) -> Result<u32> {
        let major = self.attribute(attribute::COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(attribute::COMPUTE_CAPABILITY_MINOR)?;
        Ok((major * 10 + minor) as u32)
    }

    pub fn multiprocessors(&self) -> Result<usize> {
        self.attribute(attribute::MULTIPROCESSOR_COUNT)
    }

    /// Bytes of L2 cache.
    pub fn l2_bytes(&self) -> Result<usize> {
        self.attribute(attribute::L2_CACHE_SIZE)
    }

    /// Bytes of dynamic and static shared memory that a block may have at most.
    fn shared_bytes(&self) -> Result<usize> {
        self.attribute(attribute::MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }

    /// Bytes of memory that are free, and all of them.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) }
            .context(|| "asking for free GPU memory".into())?;
        Ok((free, total))
    }

    /// Bytes of its memory that are in use because of this process, to be asked before anything is allocated: those of the
    /// context, and of the modules loaded so far. Where this process has had the context for other work already, it is what the
    /// first who asked was told.
    ///
    /// What was in use before the context was made is known from NVML. Where that is missing, other programs' memory cannot
    /// be told from ours and is counted, so that the answer is too much, never too little; NVML counts what others take or
    /// free in that moment as well.
    pub fn context_bytes(&self) -> Result<u64> {
        static MEASURED: Mutex<BTreeMap<sys::Device, u64>> = Mutex::new(BTreeMap::new());
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

    /// Bytes of its memory that are in use more than before this process came, with all that the driver has taken since: for
    /// streams, events and the page tables of page-locked memory, too. `None` without NVML, and where this process had the
    /// context already. What others have taken or freed meanwhile is counted as well.
    pub fn bytes_since_opened(&self) -> Option<u64> {
        used_bytes(self.0.device)?.checked_sub(self.0.used_before?)
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

fn attribute_of(device: sys::Device, attribute: c_int) -> Result<usize> {
    let mut value = 0;
    // SAFETY: the driver has named the device, and writes one int.
    unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) }
        .context(|| format!("asking for attribute {attribute} of the GPU"))?;
    Ok(value.max(0) as usize)
}

fn pci_address(device: sys::Device) -> Result<String> {
    let domain = attribute_of(device, attribute::PCI_DOMAIN_ID)?;
    let bus = attribute_of(device, attribute::PCI_BUS_ID)?;
    let device = attribute_of(device, attribute::PCI_DEVICE_ID)?;
    Ok(format!("{domain:04x}:{bus:02x}:{device:02x}.0"))
}

/// Bytes of the memory of a device that are in use, by whomever, if that can be known.
fn used_bytes(device: sys::Device) -> Option<u64> {
    nvml::used_bytes(&pci_address(device).ok()?)
}

/// Whether this process has the device's primary context already. What cannot be known counts as yes.
fn has_context(device: sys::Device) -> bool {
    let (mut flags, mut active) = (0, 1);
    // SAFETY: writes two ints.
    let asked = unsafe { sys::cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) };
    asked != code::SUCCESS || active != 0
}

fn driver_version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.context(|| "asking for the driver's version".into())?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

// --- kernels ---------------------------------------------------------------------------------------------------------

/// Kernels in the memory of a GPU.
#[derive(Clone)]
pub struct Module(Arc<Loaded>);

struct Loaded {
    gpu: Gpu,
    module: sys::Module,
}

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Loaded {}
// SAFETY: as above; a loaded module does not change.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.gpu.for_drop();
        // SAFETY: loaded by `load`, unloaded once.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// The version of CUDA whose nvcc compiled the kernels of this build, if it has any.
#[cfg(feature = "device")]
const TOOLKIT: Option<(u32, u32)> = crate::TOOLKIT;
#[cfg(not(feature = "device"))]
const TOOLKIT: Option<(u32, u32)> = None;

/// What a driver would have to be, if being older than the compiler is why it refuses kernels. It may say that it cannot read
/// the file (whose compression came with CUDA 12.4), that it has no code for the GPU, or that PTX is too new for it.
fn newer_driver(status: Status, driver: (u32, u32)) -> Option<String> {
    let refused = matches!(status, code::INVALID_IMAGE | code::NO_BINARY_FOR_GPU | code::UNSUPPORTED_PTX_VERSION);
    let (major, minor) = TOOLKIT.filter(|toolkit| refused && driver < *toolkit)?;
    // A driver runs machine code of every minor version of its own major version, not PTX.
    // Source: "CUDA Compatibility", <https://docs.nvidia.com/deploy/cuda-compatibility/>.
    Some(match major {
        _ if driver.0 == major => format!("at least CUDA {major}.{minor} is needed"),
        13 => "at least CUDA 13.0 is needed, which is driver 580 or newer".into(),
        _ => format!("at least CUDA {major}.0 is needed"),
    })
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
        let mut module = null_mut();
        // SAFETY: the caller's promise.
        let status = unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) };
        let (major, minor) = gpu.driver_version().unwrap_or_default();
        if let Some(needed) = newer_driver(status, (major, minor)) {
            let (problem, has) = (describe(status), format!("it has CUDA {major}.{minor}"));
            let problem =
                format!("the NVIDIA driver is too old for the kernels of {name} ({problem}): {has}, {needed}");
            return Err(Error::new(ErrorKind::DriverTooOld, problem));
        }
        status.context(|| {
            let arch = gpu.arch().unwrap_or_default();
            format!("the kernels of {name} do not load on this sm_{arch} with a driver for CUDA {major}.{minor}")
        })?;
        Ok(Module(Arc::new(Loaded { gpu: gpu.clone(), module })))
    }

    /// The kernel of this name, if the module has it, allowed all the dynamic shared memory that the GPU has for it.
    pub fn function(&self, name: &str) -> Result<Option<Function>> {
        let Ok(c_name) = CString::new(name) else { return Ok(None) };
        let (mut function, mut used) = (null_mut(), 0);
        // SAFETY: the module is loaded, and the name ends.
        match unsafe { sys::cuModuleGetFunction(&raw mut function, self.0.module, c_name.as_ptr()) } {
            code::NOT_FOUND => return Ok(None),
            other => other.context(|| format!("finding the kernel {name}"))?,
        }
        let (static_bytes, dynamic_limit) =
            (attribute::FUNCTION_SHARED_SIZE_BYTES, attribute::FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES);
        // SAFETY: the function was found in a module that `Function` keeps; writes one int.
        unsafe {
            sys::cuFuncGetAttribute(&raw mut used, static_bytes, function)
                .context(|| format!("asking for the shared memory of {name}"))?;
            let rest = self.0.gpu.shared_bytes()? as i32 - used;
            sys::cuFuncSetAttribute(function, dynamic_limit, rest)
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
    function: sys::Function,
}

// SAFETY: a handle that the driver lets any thread use, of a module that stays loaded.
unsafe impl Send for Function {}
// SAFETY: as above; a function does not change.
unsafe impl Sync for Function {}

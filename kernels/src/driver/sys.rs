//! The functions of libcuda that are called here, under the names and types of cuda.h, found when a GPU is first opened.
//!
//! They are declared here, not taken from bindings, for what they return. `CUresult` is an enum in C, to which every version
//! of CUDA adds codes; a Rust enum must not hold one that it does not know, and a driver newer than its bindings returns
//! just those when something is badly wrong, as when a fault was contained or a key changed under a running program. Here it
//! is a number, and what it is called is asked of the driver that returned it. All names are older than CUDA 11.4 and are
//! still exported by the drivers of CUDA 13.
//!
//! Source: the CUDA driver API reference, <https://docs.nvidia.com/cuda/cuda-driver-api/>.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// What a call returned (`CUresult`): one of [`code`], or any other number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Status(pub c_int);

/// Those that are told apart, under their names in cuda.h.
pub mod code {
    use super::Status;

    pub const SUCCESS: Status = Status(0);
    pub const OUT_OF_MEMORY: Status = Status(2);
    pub const NOT_INITIALIZED: Status = Status(3);
    pub const DEINITIALIZED: Status = Status(4);
    pub const STUB_LIBRARY: Status = Status(34);
    pub const CALL_REQUIRES_NEWER_DRIVER: Status = Status(36);
    pub const NO_DEVICE: Status = Status(100);
    pub const INVALID_DEVICE: Status = Status(101);
    pub const INVALID_IMAGE: Status = Status(200);
    pub const NO_BINARY_FOR_GPU: Status = Status(209);
    pub const ECC_UNCORRECTABLE: Status = Status(214);
    pub const NVLINK_UNCORRECTABLE: Status = Status(220);
    pub const UNSUPPORTED_PTX_VERSION: Status = Status(222);
    pub const CONTAINED: Status = Status(226);
    pub const NOT_FOUND: Status = Status(500);
    pub const NOT_READY: Status = Status(600);
    pub const ILLEGAL_ADDRESS: Status = Status(700);
    pub const LAUNCH_TIMEOUT: Status = Status(702);
    pub const CONTEXT_IS_DESTROYED: Status = Status(709);
    pub const HARDWARE_STACK_ERROR: Status = Status(714);
    pub const ILLEGAL_INSTRUCTION: Status = Status(715);
    pub const MISALIGNED_ADDRESS: Status = Status(716);
    pub const INVALID_ADDRESS_SPACE: Status = Status(717);
    pub const INVALID_PC: Status = Status(718);
    pub const LAUNCH_FAILED: Status = Status(719);
    pub const TENSOR_MEMORY_LEAK: Status = Status(721);
    pub const SYSTEM_NOT_READY: Status = Status(802);
    pub const SYSTEM_DRIVER_MISMATCH: Status = Status(803);
    pub const COMPAT_NOT_SUPPORTED_ON_DEVICE: Status = Status(804);
    pub const UNKNOWN: Status = Status(999);
}

/// `CUdevice_attribute`, as far as it is asked for.
pub mod attribute {
    use std::ffi::c_int;

    pub const MULTIPROCESSOR_COUNT: c_int = 16;
    pub const PCI_BUS_ID: c_int = 33;
    pub const PCI_DEVICE_ID: c_int = 34;
    pub const L2_CACHE_SIZE: c_int = 38;
    pub const PCI_DOMAIN_ID: c_int = 50;
    pub const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
    pub const COMPUTE_CAPABILITY_MINOR: c_int = 76;
    pub const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_int = 97;
    /// `CUfunction_attribute`.
    pub const FUNCTION_SHARED_SIZE_BYTES: c_int = 1;
    pub const FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
}

/// Flags of streams and events.
pub const STREAM_NON_BLOCKING: c_uint = 1;
pub const EVENT_BLOCKING_SYNC: c_uint = 1;
pub const EVENT_DISABLE_TIMING: c_uint = 2;

pub type Device = c_int;
pub type Context = *mut c_void;
pub type Module = *mut c_void;
pub type Function = *mut c_void;
pub type Stream = *mut c_void;
pub type Event = *mut c_void;
/// An address on a GPU.
pub type Address = u64;

/// The default stream.
pub const DEFAULT_STREAM: Stream = std::ptr::null_mut();

/// Why nothing can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Library,
    /// The library is there, and has no function of this name.
    Function(&'static str),
}

/// Opens libcuda if that has not been done, and finds all functions.
pub fn load() -> Result<(), Missing> {
    static_library().as_ref().map(|_| ()).map_err(|missing| *missing)
}

fn static_library() -> &'static Result<Library, Missing> {
    static LIBRARY: OnceLock<Result<Library, Missing>> = OnceLock::new();
    LIBRARY.get_or_init(Library::open)
}

/// The library for a call, which nobody makes before [`load`] has succeeded.
fn library() -> &'static Library {
    static_library().as_ref().expect("a GPU is opened before anything is asked of it")
}

fn open() -> Result<*mut c_void, Missing> {
    // SAFETY: opening a library of the driver runs its initialisers, which any program may; it is never closed.
    let open = |name: &CStr| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    let found = [c"libcuda.so.1", c"libcuda.so"].into_iter().map(open).find(|handle| !handle.is_null());
    found.ok_or(Missing::Library)
}

/// `name` ends with a zero.
fn find(library: *mut c_void, name: &'static str) -> Result<*mut c_void, Missing> {
    let c_name = CStr::from_bytes_with_nul(name.as_bytes()).expect("the macro adds the zero");
    // SAFETY: a library that was opened, and a string that ends.
    let found = unsafe { libc::dlsym(library, c_name.as_ptr()) };
    if found.is_null() { Err(Missing::Function(name.trim_end_matches('\0'))) } else { Ok(found) }
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// libcuda, which is never closed.
        struct Library {
            // SAFETY: every caller promises what cuda.h asks for.
            $($name: unsafe extern "C" fn($($kind),*) -> Status,)*
        }

        impl Library {
            fn open() -> Result<Library, Missing> {
                let library = open()?;
                $(
                    let found = find(library, concat!(stringify!($name), "\0"))?;
                    // SAFETY: under this name, cuda.h has a function of this type.
                    let $name = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> Status>(found) };
                )*
                Ok(Library { $($name),* })
            }
        }

        $(
            /// The function of this name in cuda.h.
            ///
            /// # Safety
            /// What its reference asks for.
            pub unsafe fn $name($($argument: $kind),*) -> Status {
                // SAFETY: the caller's promise.
                unsafe { (library().$name)($($argument),*) }
            }
        )*
    };
}

functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuGetErrorName(status: Status, text: *mut *const c_char);
    cuGetErrorString(status: Status, text: *mut *const c_char);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut Device, number: c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: Device);
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: Device);
    cuDevicePrimaryCtxRetain(context: *mut Context, device: Device);
    cuDevicePrimaryCtxRelease_v2(device: Device);
    cuDevicePrimaryCtxGetState(device: Device, flags: *mut c_uint, active: *mut c_int);
    cuCtxSetCurrent(context: Context);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(address: *mut Address, len: usize);
    cuMemFree_v2(address: Address);
    cuMemcpyHtoD_v2(to: Address, from: *const c_void, len: usize);
    cuMemcpyDtoH_v2(to: *mut c_void, from: Address, len: usize);
    cuMemcpyDtoD_v2(to: Address, from: Address, len: usize);
    cuMemcpyHtoDAsync_v2(to: Address, from: *const c_void, len: usize, stream: Stream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: Address, len: usize, stream: Stream);
    cuMemHostRegister_v2(address: *mut c_void, len: usize, flags: c_uint);
    cuMemHostUnregister(address: *mut c_void);
    cuStreamCreate(stream: *mut Stream, flags: c_uint);
    cuStreamDestroy_v2(stream: Stream);
    cuStreamSynchronize(stream: Stream);
    cuStreamWaitEvent(stream: Stream, event: Event, flags: c_uint);
    cuEventCreate(event: *mut Event, flags: c_uint);
    cuEventDestroy_v2(event: Event);
    cuEventRecord(event: Event, stream: Stream);
    cuEventQuery(event: Event);
    cuEventSynchronize(event: Event);
    cuEventElapsedTime(milliseconds: *mut f32, start: Event, end: Event);
    cuModuleLoadData(module: *mut Module, image: *const c_void);
    cuModuleUnload(module: Module);
    cuModuleGetFunction(function: *mut Function, module: Module, name: *const c_char);
    cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: Function);
    cuFuncSetAttribute(function: Function, attribute: c_int, value: c_int);
    cuLaunchKernel(function: Function, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: Stream, params: *mut *mut c_void, extra: *mut *mut c_void);
}

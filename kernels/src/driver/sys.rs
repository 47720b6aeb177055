//! The functions of libcuda that are called here, under the names and types of cuda.h, found when a GPU is first opened.
//!
//! cudarc finds and opens the library, and has the codes and attributes; the functions' types are written out for what they
//! return. `CUresult` is an enum in C, to which every version of CUDA adds codes; cudarc's is a Rust enum, which must not hold
//! one that it does not know, and a driver newer than its bindings returns just those when something is badly wrong, as when
//! a fault was contained or a key changed under a running program. Here it is a number, and what it is called is asked of the
//! driver that returned it. All functions are older than CUDA 11.4 and are still exported by the drivers of CUDA 13.
//!
//! Source: the CUDA driver API reference, <https://docs.nvidia.com/cuda/cuda-driver-api/>.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys as bindings;

/// What a call returned (`CUresult`): one of [`code`], or any other number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Status(pub c_int);

/// Those that are told apart.
pub mod code {
    use std::ffi::c_int;

    use super::Status;
    use super::bindings::CUresult::*;

    pub const SUCCESS: Status = Status(CUDA_SUCCESS as c_int);
    pub const OUT_OF_MEMORY: Status = Status(CUDA_ERROR_OUT_OF_MEMORY as c_int);
    pub const NOT_INITIALIZED: Status = Status(CUDA_ERROR_NOT_INITIALIZED as c_int);
    pub const DEINITIALIZED: Status = Status(CUDA_ERROR_DEINITIALIZED as c_int);
    pub const STUB_LIBRARY: Status = Status(CUDA_ERROR_STUB_LIBRARY as c_int);
    pub const CALL_REQUIRES_NEWER_DRIVER: Status = Status(CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER as c_int);
    pub const NO_DEVICE: Status = Status(CUDA_ERROR_NO_DEVICE as c_int);
    pub const INVALID_DEVICE: Status = Status(CUDA_ERROR_INVALID_DEVICE as c_int);
    pub const INVALID_IMAGE: Status = Status(CUDA_ERROR_INVALID_IMAGE as c_int);
    pub const NO_BINARY_FOR_GPU: Status = Status(CUDA_ERROR_NO_BINARY_FOR_GPU as c_int);
    pub const ECC_UNCORRECTABLE: Status = Status(CUDA_ERROR_ECC_UNCORRECTABLE as c_int);
    pub const NVLINK_UNCORRECTABLE: Status = Status(CUDA_ERROR_NVLINK_UNCORRECTABLE as c_int);
    pub const UNSUPPORTED_PTX_VERSION: Status = Status(CUDA_ERROR_UNSUPPORTED_PTX_VERSION as c_int);
    pub const CONTAINED: Status = Status(CUDA_ERROR_CONTAINED as c_int);
    pub const NOT_FOUND: Status = Status(CUDA_ERROR_NOT_FOUND as c_int);
    pub const NOT_READY: Status = Status(CUDA_ERROR_NOT_READY as c_int);
    pub const ILLEGAL_ADDRESS: Status = Status(CUDA_ERROR_ILLEGAL_ADDRESS as c_int);
    pub const LAUNCH_TIMEOUT: Status = Status(CUDA_ERROR_LAUNCH_TIMEOUT as c_int);
    pub const CONTEXT_IS_DESTROYED: Status = Status(CUDA_ERROR_CONTEXT_IS_DESTROYED as c_int);
    pub const HARDWARE_STACK_ERROR: Status = Status(CUDA_ERROR_HARDWARE_STACK_ERROR as c_int);
    pub const ILLEGAL_INSTRUCTION: Status = Status(CUDA_ERROR_ILLEGAL_INSTRUCTION as c_int);
    pub const MISALIGNED_ADDRESS: Status = Status(CUDA_ERROR_MISALIGNED_ADDRESS as c_int);
    pub const INVALID_ADDRESS_SPACE: Status = Status(CUDA_ERROR_INVALID_ADDRESS_SPACE as c_int);
    pub const INVALID_PC: Status = Status(CUDA_ERROR_INVALID_PC as c_int);
    pub const LAUNCH_FAILED: Status = Status(CUDA_ERROR_LAUNCH_FAILED as c_int);
    pub const TENSOR_MEMORY_LEAK: Status = Status(CUDA_ERROR_TENSOR_MEMORY_LEAK as c_int);
    pub const SYSTEM_NOT_READY: Status = Status(CUDA_ERROR_SYSTEM_NOT_READY as c_int);
    pub const SYSTEM_DRIVER_MISMATCH: Status = Status(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH as c_int);
    pub const COMPAT_NOT_SUPPORTED_ON_DEVICE: Status = Status(CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE as c_int);
    pub const UNKNOWN: Status = Status(CUDA_ERROR_UNKNOWN as c_int);
}

/// `CUdevice_attribute`, as far as it is asked for, and `CUfunction_attribute`.
pub mod attribute {
    use std::ffi::c_int;

    use super::bindings::{CUdevice_attribute as Of, CUfunction_attribute as OfFunction};

    pub const MULTIPROCESSOR_COUNT: c_int = Of::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as c_int;
    pub const PCI_BUS_ID: c_int = Of::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID as c_int;
    pub const PCI_DEVICE_ID: c_int = Of::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID as c_int;
    pub const L2_CACHE_SIZE: c_int = Of::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE as c_int;
    pub const PCI_DOMAIN_ID: c_int = Of::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID as c_int;
    pub const COMPUTE_CAPABILITY_MAJOR: c_int = Of::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as c_int;
    pub const COMPUTE_CAPABILITY_MINOR: c_int = Of::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as c_int;
    pub const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_int =
        Of::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as c_int;
    pub const FUNCTION_SHARED_SIZE_BYTES: c_int = OfFunction::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as c_int;
    pub const FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int =
        OfFunction::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as c_int;
}

/// Flags of streams and events.
pub const STREAM_NON_BLOCKING: c_uint = bindings::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
pub const EVENT_BLOCKING_SYNC: c_uint = bindings::CUevent_flags::CU_EVENT_BLOCKING_SYNC as c_uint;
pub const EVENT_DISABLE_TIMING: c_uint = bindings::CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;

pub use bindings::{
    CUcontext as Context, CUdevice as Device, CUdeviceptr as Address, CUevent as Event, CUfunction as Function,
    CUmodule as Module, CUstream as Stream,
};

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

macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// libcuda, which is never closed.
        struct Library {
            // SAFETY: every caller promises what cuda.h asks for.
            $($name: unsafe extern "C" fn($($kind),*) -> Status,)*
        }

        impl Library {
            fn open() -> Result<Library, Missing> {
                // SAFETY: opening a library of the driver runs its initialisers, which any program may; it is never closed.
                let library = unsafe { bindings::is_culib_present().then(|| bindings::culib()).ok_or(Missing::Library)? };
                $(
                    // SAFETY: under this name, cuda.h has a function of this type.
                    let found = unsafe { library.get::<unsafe extern "C" fn($($kind),*) -> Status>(stringify!($name).as_bytes()) };
                    let $name = *found.map_err(|_| Missing::Function(stringify!($name)))?;
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
    cuMemcpyDtoDAsync_v2(to: Address, from: Address, len: usize, stream: Stream);
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

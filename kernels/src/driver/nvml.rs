//! How much of a GPU's memory is in use by everybody, asked of NVML, the management library that NVIDIA's drivers bring
//! along (`nvidia-smi` is made of it). The driver API answers that only inside of a context, which takes memory itself; NVML
//! also before there is one. It may be missing, as in some containers: then nothing is known.
//!
//! Source: the NVML API reference, <https://docs.nvidia.com/deploy/nvml-api/>.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

/// `nvmlReturn_t` of success.
const SUCCESS: c_int = 0;

/// `nvmlMemory_t`.
#[repr(C)]
#[derive(Default)]
struct MemoryInfo {
    total: u64,
    free: u64,
    used: u64,
}

// SAFETY: takes nothing and may be called from any thread.
type Init = unsafe extern "C" fn() -> c_int;
// SAFETY: the caller passes a string that ends, and a place for a handle.
type HandleByPciBusId = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
// SAFETY: the caller passes a handle that the library gave, and a place for the struct.
type GetMemoryInfo = unsafe extern "C" fn(*mut c_void, *mut MemoryInfo) -> c_int;

/// The library, started and never stopped.
struct Nvml {
    handle_by_pci_bus_id: HandleByPciBusId,
    get_memory_info: GetMemoryInfo,
}

impl Nvml {
    fn open() -> Option<Nvml> {
        // SAFETY: opening a library of the driver runs its initialisers, which any program may; it is never closed. The
        // functions have the types that nvml.h gives them under these names.
        unsafe {
            let library = libc::dlopen(c"libnvidia-ml.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            if library.is_null() {
                return None;
            }
            let find = |name: &CStr| Some(libc::dlsym(library, name.as_ptr())).filter(|found| !found.is_null());
            let init = std::mem::transmute::<*mut c_void, Init>(find(c"nvmlInit_v2")?);
            let handle = find(c"nvmlDeviceGetHandleByPciBusId_v2")?;
            let memory = find(c"nvmlDeviceGetMemoryInfo")?;
            (init() == SUCCESS).then_some(Nvml {
                handle_by_pci_bus_id: std::mem::transmute::<*mut c_void, HandleByPciBusId>(handle),
                get_memory_info: std::mem::transmute::<*mut c_void, GetMemoryInfo>(memory),
            })
        }
    }

    fn used_bytes(&self, pci_address: &str) -> Option<u64> {
        let address = CString::new(pci_address).ok()?;
        let (mut device, mut info) = (null_mut(), MemoryInfo::default());
        // SAFETY: a string that ends, places for a handle and for the struct, and the handle that came back.
        unsafe {
            let found = (self.handle_by_pci_bus_id)(address.as_ptr(), &raw mut device) == SUCCESS
                && (self.get_memory_info)(device, &raw mut info) == SUCCESS;
            found.then_some(info.used)
        }
    }
}

/// Bytes of the memory of the GPU at this address on the PCI bus (such as `0000:c1:00.0`) that are in use, by whomever;
/// `None` where that cannot be known.
pub fn used_bytes(pci_address: &str) -> Option<u64> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    NVML.get_or_init(Nvml::open).as_ref()?.used_bytes(pci_address)
}

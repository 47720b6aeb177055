//! Modules, functions and launches. Every module has every kernel of the host build.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use layerstream_kernels::host::Kernel;
use layerstream_kernels::launch::Launch;

use super::copies::may_enqueue;
use super::{Result, put, with_context};
use crate::code;
use crate::config::Fault;
use crate::sim::{Function, Module, Sim, Work};

/// How a fatbin begins, and a cubin.
const FATBIN: [u8; 4] = [0x50, 0xed, 0x55, 0xba];
const ELF: [u8; 4] = *b"\x7fELF";

/// The oldest driver that modules are for, as it says its version.
const OLDEST_DRIVER: c_int = 11_040;

/// What a function may have of dynamic shared memory before it is allowed more.
const SHARED: c_int = 48 << 10;

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(out: *mut usize, image: *const c_void) -> c_int {
    with_context("cuModuleLoadData", |sim, device| {
        if image.is_null() || out.is_null() {
            return Err(code::INVALID_VALUE);
        }
        sim.counts.modules += 1;
        // SAFETY: the caller's promise: a whole image, which is longer than this.
        let begins = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
        if begins != FATBIN && begins != ELF {
            return Err(code::INVALID_IMAGE);
        }
        if sim.fails(Fault::Image(sim.counts.modules)) {
            return Err(code::INVALID_IMAGE);
        }
        if sim.config.driver < OLDEST_DRIVER || sim.fails(Fault::Ptx(sim.counts.modules)) {
            return Err(code::UNSUPPORTED_PTX_VERSION);
        }
        if sim.dialect().is_none() || sim.fails(Fault::Module(sim.counts.modules)) {
            return Err(code::NO_BINARY_FOR_GPU);
        }
        let handle = sim.handle();
        sim.modules.insert(handle, Module { device, used: BTreeMap::new() });
        sim.report.modules += 1;
        // SAFETY: the caller's promise.
        unsafe { put(out, handle) }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: usize) -> c_int {
    with_context("cuModuleUnload", |sim, _| {
        let Some(known) = sim.modules.get(&module) else {
            sim.misuse(&format!("{module:#x} is no module, or was unloaded"))
        };
        if let Some((&slot, number)) = known.used.iter().find(|(slot, number)| sim.host.get(**slot) < **number) {
            let stream = sim.stream_name(slot);
            sim.misuse(&format!("a module is unloaded, and nobody has waited for operation {number} of {stream}"));
        }
        sim.modules.remove(&module);
        sim.functions.retain(|_, function| function.module != module);
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(out: *mut usize, module: usize, name: *const c_char) -> c_int {
    with_context("cuModuleGetFunction", |sim, _| {
        if !sim.modules.contains_key(&module) {
            sim.misuse(&format!("{module:#x} is no module, or was unloaded"));
        }
        if name.is_null() || out.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: the caller's promise: a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| code::NOT_FOUND)?;
        let dialect = sim.dialect().ok_or(code::NOT_FOUND)?;
        let kernel = Kernel::find(name, dialect).ok_or(code::NOT_FOUND)?;
        let known = sim.functions.iter().find(|(_, f)| f.module == module && f.kernel.name() == name);
        let handle = match known {
            Some((&handle, _)) => handle,
            None => {
                let handle = sim.handle();
                sim.functions.insert(handle, Function { module, kernel, max_dynamic_shared: SHARED });
                handle
            }
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, handle) }
    })
}

fn known(sim: &mut Sim, function: usize) -> &mut Function {
    if !sim.functions.contains_key(&function) {
        sim.misuse(&format!("{function:#x} is no kernel, or its module was unloaded"));
    }
    sim.functions.get_mut(&function).expect("just found")
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: usize) -> c_int {
    with_context("cuFuncGetAttribute", |sim, _| {
        let cc = sim.config.cc as c_int;
        let function = known(sim, function);
        // By their numbers in the header.
        let found = match attribute {
            0 => function.kernel.max_threads(),
            // Static shared memory, which the host build counts when a kernel runs; constant and local memory.
            1..=3 => 0,
            4 => 64, // registers
            5 | 6 => cc,
            8 => function.max_dynamic_shared,
            _ => return Err(code::INVALID_VALUE),
        };
        // SAFETY: the caller's promise.
        unsafe { put(value, found) }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> c_int {
    with_context("cuFuncSetAttribute", |sim, _| {
        let most = super::device::shared_optin(sim.config.cc);
        let function = known(sim, function);
        match attribute {
            8 if (0..=most).contains(&value) => function.max_dynamic_shared = value,
            9 => {} // how L1 and shared memory divide: a hint
            _ => return Err(code::INVALID_VALUE),
        }
        Ok(())
    })
}

/// Whether a card can launch this at all.
fn check_shape(launch: &Launch, kernel: &Kernel, allowed_shared: c_int) -> Result<()> {
    let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
    let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
    let grid_fits = [gx, gy, gz].iter().all(|&n| n > 0) && gx <= i32::MAX as u32 && gy.max(gz) <= 65_535;
    let block_fits = threads > 0 && bx.max(by) <= 1024 && bz <= 64 && threads <= 1024;
    if !grid_fits || !block_fits || launch.shared > allowed_shared as u32 {
        return Err(code::INVALID_VALUE);
    }
    if threads > kernel.max_threads() as u64 {
        return Err(code::LAUNCH_OUT_OF_RESOURCES);
    }
    Ok(())
}

/// # Safety
/// As the driver API says.
#[allow(clippy::too_many_arguments)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: usize,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int {
    with_context("cuLaunchKernel", |sim, device| {
        may_enqueue(sim)?;
        let slot = sim.slot(stream, device);
        let &mut Function { module, kernel, max_dynamic_shared } = known(sim, function);
        if sim.modules.get(&module).is_some_and(|module| module.device != device) {
            return Err(code::INVALID_HANDLE);
        }
        if !extra.is_null() || params.is_null() {
            return Err(code::NOT_SUPPORTED);
        }
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let launch = Launch { kernel: kernel.name(), grid, block, shared };
        check_shape(&launch, kernel, max_dynamic_shared)?;
        // SAFETY: the caller's promise: a pointer to the kernel's one parameter, whose size the kernel knows.
        let bytes = unsafe {
            let first = params.read();
            if first.is_null() {
                return Err(code::INVALID_VALUE);
            }
            std::slice::from_raw_parts(first.cast::<u8>(), kernel.params_bytes()).to_vec()
        };
        let number = sim.streams[slot].queued + 1;
        if let Some(module) = sim.modules.get_mut(&module) {
            module.used.insert(slot, number);
        }
        sim.enqueue(slot, None, Work::Launch { kernel, launch, params: bytes }, format!("`{}`", launch.kernel));
        Ok(())
    })
}

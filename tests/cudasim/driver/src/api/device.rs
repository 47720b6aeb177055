//! Cards and their primary contexts, and what the driver says of itself.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::{CURRENT, Result, bare, lock, put, with_context};
use crate::code;
use crate::config::Fault;
use crate::sim::Sim;

/// Contexts are told apart by these addresses, at which nothing lies.
const CONTEXTS: usize = 0xc0_0000;
const NAME: &[u8] = b"Simulated GPU\0";

fn device(sim: &Sim, number: c_int) -> Result<usize> {
    usize::try_from(number).ok().filter(|&n| n < sim.devices.len()).ok_or(code::INVALID_DEVICE)
}

extern "C" fn at_exit() {
    lock().exit();
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> c_int {
    let mut sim = lock();
    if flags != 0 {
        return code::INVALID_VALUE.0;
    }
    if sim.devices.is_empty() {
        return code::NO_DEVICE.0;
    }
    if !sim.initialised {
        sim.initialised = true;
        // SAFETY: a function that lives as long as the process: the library is never unloaded.
        unsafe { libc::atexit(at_exit) };
    }
    code::SUCCESS
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller's promise. Works before cuInit.
    super::answer(unsafe { put(version, lock().config.driver) })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: c_int, text: *mut *const c_char) -> c_int {
    let name = code::describe(error).map(|(name, _)| name.as_ptr());
    // SAFETY: the caller's promise.
    super::answer(name.ok_or(code::INVALID_VALUE).and_then(|name| unsafe { put(text, name) }))
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: c_int, text: *mut *const c_char) -> c_int {
    let found = code::describe(error).map(|(_, text)| text.as_ptr());
    // SAFETY: the caller's promise.
    super::answer(found.ok_or(code::INVALID_VALUE).and_then(|found| unsafe { put(text, found) }))
}

// --- cards -----------------------------------------------------------------------------------------------------------

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    bare("cuDeviceGetCount", |sim| unsafe { put(count, sim.devices.len() as c_int) })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(out: *mut c_int, number: c_int) -> c_int {
    // SAFETY: the caller's promise.
    bare("cuDeviceGet", |sim| unsafe { put(out, device(sim, number)? as c_int) })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, number: c_int) -> c_int {
    bare("cuDeviceGetName", |sim| {
        device(sim, number)?;
        // SAFETY: the caller's promise: there is room for `len` bytes.
        unsafe { text(name, len, NAME) }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(name: *mut c_char, len: c_int, number: c_int) -> c_int {
    bare("cuDeviceGetPCIBusId", |sim| {
        let bus = device(sim, number)? + 1;
        // SAFETY: the caller's promise: there is room for `len` bytes.
        unsafe { text(name, len, format!("0000:{bus:02X}:00.0\0").as_bytes()) }
    })
}

/// # Safety
/// `to` has room for `len` bytes.
unsafe fn text(to: *mut c_char, len: c_int, what: &[u8]) -> Result<()> {
    if to.is_null() || len < what.len() as c_int {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(what.as_ptr(), to.cast(), what.len()) };
    Ok(())
}

fn uuid(number: usize) -> [u8; 16] {
    let mut uuid = *b"simulated GPU  \0";
    uuid[15] = number as u8;
    uuid
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(out: *mut [u8; 16], number: c_int) -> c_int {
    // SAFETY: the caller's promise.
    bare("cuDeviceGetUuid", |sim| unsafe { put(out, uuid(device(sim, number)?)) })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(out: *mut [u8; 16], number: c_int) -> c_int {
    // SAFETY: the caller's promise.
    bare("cuDeviceGetUuid_v2", |sim| unsafe { put(out, uuid(device(sim, number)?)) })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, number: c_int) -> c_int {
    bare("cuDeviceTotalMem_v2", |sim| {
        device(sim, number)?;
        // SAFETY: the caller's promise.
        unsafe { put(bytes, sim.config.vram as usize) }
    })
}

/// Bytes of shared memory of a block at most.
pub fn shared_optin(cc: u32) -> c_int {
    match cc {
        ..80 => 64 << 10,
        80..90 | 120.. => 99 << 10,
        _ => 227 << 10,
    }
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, number: c_int) -> c_int {
    bare("cuDeviceGetAttribute", |sim| {
        let device = device(sim, number)?;
        let cc = sim.config.cc;
        // By their numbers in the header.
        let found = match attribute {
            1 => 1024,                 // threads of a block
            2 | 3 => 1024,             // and of its sides x, y
            4 => 64,                   // z
            5 => c_int::MAX,           // a grid's sides
            6 | 7 => 65_535,           // y, z
            8 => 48 << 10,             // shared memory of a block
            9 => 64 << 10,             // constant memory
            10 => 32,                  // warp
            12 | 82 => 64 << 10,       // registers of a block, a multiprocessor
            13 => 1_500_000,           // clock, kHz
            16 => 4,                   // multiprocessors
            17 | 18 => 0,              // no timeout, not integrated
            19 | 31 | 41 | 99 => 1,    // maps host memory, runs kernels side by side, one address space, registers
            20 | 32 | 35 | 50 => 0,    // compute mode, ECC, TCC, PCI domain
            33 => device as c_int + 1, // PCI bus
            34 => 0,                   // PCI device
            36 => 7_000_000,           // memory clock, kHz
            37 => 256,                 // memory bus, bits
            38 => 4 << 20,             // L2
            39 => 1536,                // threads of a multiprocessor
            40 => 2,                   // copy engines
            75 => (cc / 10) as c_int,
            76 => (cc % 10) as c_int,
            81 => shared_optin(cc) + (1 << 10), // shared memory of a multiprocessor
            83 | 88 | 89 | 91 | 115 => 0,       // managed, pageable and coherent memory, memory pools
            97 => shared_optin(cc),
            106 => 16, // blocks of a multiprocessor
            _ => return Err(code::INVALID_VALUE),
        };
        // SAFETY: the caller's promise.
        unsafe { put(value, found) }
    })
}

// --- contexts --------------------------------------------------------------------------------------------------------

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, number: c_int) -> c_int {
    bare("cuDevicePrimaryCtxRetain", |sim| {
        let device = device(sim, number)?;
        if let Some(code) = sim.devices[device].broken {
            return Err(code);
        }
        let config = &sim.config;
        if sim.devices[device].retained == 0 {
            if sim.fails(Fault::Context) || config.taken + config.context > config.vram {
                return Err(code::OUT_OF_MEMORY);
            }
            sim.note_peak(device);
        }
        sim.devices[device].retained += 1;
        // SAFETY: the caller's promise.
        unsafe { put(context, (CONTEXTS + 16 * device) as *mut c_void) }
    })
}

fn release(sim: &mut Sim, device: usize) -> Result<()> {
    if sim.devices[device].broken.is_none() {
        sim.drain(device)?;
        let leaks = sim.leaks(device);
        if !leaks.is_empty() {
            sim.misuse(&format!("the context is destroyed with what was made in it: {}", leaks.join(", ")));
        }
    }
    Ok(())
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(number: c_int) -> c_int {
    bare("cuDevicePrimaryCtxRelease_v2", |sim| {
        let device = device(sim, number)?;
        match sim.devices[device].retained {
            0 => return Err(code::INVALID_CONTEXT),
            1 => release(sim, device)?,
            _ => {}
        }
        sim.devices[device].retained -= 1;
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxSetFlags_v2(number: c_int, flags: c_uint) -> c_int {
    bare("cuDevicePrimaryCtxSetFlags_v2", |sim| {
        let device = device(sim, number)?;
        sim.devices[device].flags = flags;
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(number: c_int, flags: *mut c_uint, active: *mut c_int) -> c_int {
    bare("cuDevicePrimaryCtxGetState", |sim| {
        let known = &sim.devices[device(sim, number)?];
        // SAFETY: the caller's promise.
        unsafe {
            put(flags, known.flags)?;
            put(active, c_int::from(known.retained > 0))
        }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    bare("cuCtxSetCurrent", |sim| {
        let number = (context as usize).wrapping_sub(CONTEXTS) / 16;
        if context.is_null() {
            CURRENT.set(0);
        } else if number < sim.devices.len() {
            sim.context_of(number)?;
            CURRENT.set(number + 1);
        } else {
            return Err(code::INVALID_CONTEXT);
        }
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> c_int {
    let current = CURRENT.get().checked_sub(1).map_or(0, |device| CONTEXTS + 16 * device);
    // SAFETY: the caller's promise.
    bare("cuCtxGetCurrent", |_| unsafe { put(context, current as *mut c_void) })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(out: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    with_context("cuCtxGetDevice", |_, device| unsafe { put(out, device as c_int) })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> c_int {
    with_context("cuCtxSynchronize", |sim, device| {
        for slot in 0..sim.streams.len() {
            if sim.streams[slot].device == device {
                sim.wait_for_stream(slot)?;
            }
        }
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> c_int {
    with_context("cuCtxGetStreamPriorityRange", |_, _| {
        for (to, value) in [(least, 0), (greatest, -5)] {
            if !to.is_null() {
                // SAFETY: the caller's promise.
                unsafe { to.write(value) };
            }
        }
        Ok(())
    })
}

//! As much of NVML as it takes to ask how much of a card's memory is in use: the same library under another name.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::{Result, answer, lock, put};
use crate::code;
use crate::sim::Sim;

/// As `nvmlMemory_t`.
#[repr(C)]
pub struct MemoryInfo {
    total: u64,
    free: u64,
    used: u64,
}

/// Handles are these, plus the number of the card.
const HANDLES: usize = 0x6e76_6d00;

/// A call that takes neither a context nor that the driver was initialised.
fn call(work: impl FnOnce(&mut Sim) -> Result<()>) -> c_int {
    let mut sim = lock();
    // Any code but success says that there is nothing to be had.
    answer(if sim.config.nvml { work(&mut sim) } else { Err(code::NOT_INITIALIZED) })
}

/// # Safety
/// As NVML says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlInit_v2() -> c_int {
    call(|_| Ok(()))
}

/// # Safety
/// As NVML says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(address: *const c_char, out: *mut *mut c_void) -> c_int {
    call(|sim| {
        // SAFETY: the caller's promise.
        let address = unsafe { CStr::from_ptr(address) }.to_str().unwrap_or_default().to_lowercase();
        let device = (0..sim.devices.len()).find(|device| address == format!("0000:{:02x}:00.0", device + 1));
        // SAFETY: the caller's promise.
        unsafe { put(out, (HANDLES + device.ok_or(code::INVALID_VALUE)?) as *mut c_void) }
    })
}

/// # Safety
/// As NVML says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(handle: *mut c_void, out: *mut MemoryInfo) -> c_int {
    call(|sim| {
        let device = (handle as usize).wrapping_sub(HANDLES);
        let context = sim.devices.get(device).ok_or(code::INVALID_VALUE)?.retained > 0;
        let ours = if context { sim.config.context + sim.used(device) } else { 0 };
        let (total, used) = (sim.config.vram, sim.config.taken + ours);
        // SAFETY: the caller's promise.
        unsafe { put(out, MemoryInfo { total, free: total.saturating_sub(used), used }) }
    })
}

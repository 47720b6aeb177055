//! Memory of cards, and host memory that is page-locked.

use std::ffi::{c_int, c_uint, c_void};

use super::{Result, put, with_context};
use crate::code;
use crate::config::Fault;
use crate::memory::{is_mapped, map_host, unmap_host};
use crate::sim::Sim;

/// Bytes of the card that this program may have, and of those that are left.
fn room(sim: &Sim, device: usize) -> (u64, u64) {
    let config = &sim.config;
    let limit = config.vram.saturating_sub(config.taken + config.context);
    (limit, limit.saturating_sub(sim.used(device)))
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    with_context("cuMemGetInfo_v2", |sim, device| {
        let (_, left) = room(sim, device);
        // SAFETY: the caller's promise.
        unsafe {
            put(free, left as usize)?;
            put(total, sim.config.vram as usize)
        }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(out: *mut u64, len: usize) -> c_int {
    with_context("cuMemAlloc_v2", |sim, device| {
        if len == 0 || out.is_null() {
            return Err(code::INVALID_VALUE);
        }
        sim.counts.allocations += 1;
        if sim.fails(Fault::Allocation(sim.counts.allocations)) {
            return Err(code::OUT_OF_MEMORY);
        }
        let (limit, _) = room(sim, device);
        let start = sim.memory.allocate(device, len as u64, limit).ok_or(code::OUT_OF_MEMORY)?;
        sim.report.allocations += 1;
        sim.note_peak(device);
        // SAFETY: the caller's promise.
        unsafe { put(out, start) }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    with_context("cuMemFree_v2", |sim, device| {
        if address == 0 {
            return Ok(());
        }
        match sim.memory.allocation(address) {
            None if sim.memory.was_freed(address) => {
                sim.misuse(&format!("device memory at {address:#x} is freed twice"))
            }
            None => sim.misuse(&format!("{address:#x} is not where an allocation of device memory begins")),
            Some(found) if found.device != device => sim.misuse("memory of another context is freed"),
            Some(_) => {}
        }
        sim.drain(device)?;
        let found = sim.memory.allocation(address).expect("looked up above");
        if let Some(user) = found.history.pending(&sim.host) {
            sim.misuse(&format!(
                "{} bytes of device memory at {address:#x} are freed, and nobody has waited for {user}",
                found.len
            ));
        }
        if let Err(problem) = sim.memory.free(address) {
            sim.misuse(&problem);
        }
        Ok(())
    })
}

// --- page-locked host memory -----------------------------------------------------------------------------------------

fn pin(sim: &mut Sim) -> Result<()> {
    sim.counts.pins += 1;
    if sim.fails(Fault::Pin(sim.counts.pins)) { Err(code::OUT_OF_MEMORY) } else { Ok(()) }
}

fn pinned(sim: &mut Sim, device: usize, start: u64, len: u64, allocated: bool) {
    sim.memory.pin(start, len, allocated);
    sim.note_peak(device);
    sim.report.peak_pinned = sim.report.peak_pinned.max(sim.memory.pinned_bytes());
}

/// A region that the host may take back: nothing that uses it can still be under way.
fn unpin(sim: &mut Sim, address: u64, allocated: bool) -> Result<u64> {
    let Some(len) = sim.memory.pinned_region(address).filter(|r| r.allocated == allocated).map(|r| r.len) else {
        return Err(if allocated { code::INVALID_VALUE } else { code::HOST_MEMORY_NOT_REGISTERED });
    };
    if !is_mapped(address, len) {
        sim.misuse(&format!("{len} bytes of host memory at {address:#x} were unmapped while they were page-locked"));
    }
    for device in 0..sim.devices.len() {
        sim.drain(device)?;
    }
    let region = sim.memory.pinned_region(address).expect("looked up above");
    if let Some(user) = region.history.pending(&sim.host) {
        let what = if allocated { "freed" } else { "unregistered" };
        sim.misuse(&format!(
            "{len} bytes of page-locked memory at {address:#x} are {what}, and nobody has waited for {user}"
        ));
    }
    sim.memory.unpin(address);
    Ok(len)
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(address: *mut c_void, len: usize, flags: c_uint) -> c_int {
    with_context("cuMemHostRegister_v2", |sim, device| {
        let (start, len) = (address as u64, len as u64);
        if start == 0 || len == 0 || flags > 15 || !is_mapped(start, len) {
            return Err(code::INVALID_VALUE);
        }
        if sim.memory.pinned_overlaps(start, len) {
            return Err(code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        pin(sim)?;
        pinned(sim, device, start, len, false);
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostUnregister(address: *mut c_void) -> c_int {
    with_context("cuMemHostUnregister", |sim, _| unpin(sim, address as u64, false).map(|_| ()))
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(out: *mut *mut c_void, len: usize, _flags: c_uint) -> c_int {
    with_context("cuMemHostAlloc", |sim, device| {
        if len == 0 || out.is_null() {
            return Err(code::INVALID_VALUE);
        }
        pin(sim)?;
        let start = map_host(len as u64).ok_or(code::OUT_OF_MEMORY)?;
        pinned(sim, device, start, len as u64, true);
        // SAFETY: the caller's promise.
        unsafe { put(out, start as *mut c_void) }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(out: *mut *mut c_void, len: usize) -> c_int {
    // SAFETY: the same promise.
    unsafe { cuMemHostAlloc(out, len, 0) }
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: *mut c_void) -> c_int {
    with_context("cuMemFreeHost", |sim, _| {
        let len = unpin(sim, address as u64, true)?;
        unmap_host(address as u64, len);
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttribute(data: *mut c_void, attribute: c_int, address: u64) -> c_int {
    with_context("cuPointerGetAttribute", |sim, _| {
        let on_device = sim.memory.device(address, 1).is_ok();
        if !on_device && sim.memory.pinned(address, 1).is_none() {
            return Err(code::INVALID_VALUE);
        }
        match attribute {
            // SAFETY: the caller's promise: room for what this attribute is. Which kind of memory.
            2 => unsafe { put(data.cast::<c_uint>(), if on_device { 2 } else { 1 }) },
            _ => Err(code::NOT_SUPPORTED),
        }
    })
}

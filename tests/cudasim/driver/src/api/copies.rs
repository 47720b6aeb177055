//! Copies and fills, those that wait and those that do not.

use std::ffi::{c_int, c_uchar, c_void};

use super::{Result, with_context};
use crate::code;
use crate::config::Fault;
use crate::fingerprint::fingerprint_at;
use crate::sim::{Place, Sim, Work};

/// Counts what is queued, one of which may be refused.
pub fn may_enqueue(sim: &mut Sim) -> Result<()> {
    sim.counts.enqueued += 1;
    match sim.counts.enqueued {
        n if sim.fails(Fault::Enqueue(n)) => Err(code::OUT_OF_MEMORY),
        n if sim.fails(Fault::Strange(n)) => Err(code::STRANGE),
        _ => Ok(()),
    }
}

/// Bytes of this card's memory, all of them alive.
fn device_range(sim: &mut Sim, address: u64, len: u64) -> Place {
    let problem = match sim.memory.device(address, len) {
        Ok(_) => return Place::Device(address),
        Err(problem) => problem,
    };
    sim.misuse(&format!("[{address:#x}, {:#x}) {problem}", address.wrapping_add(len)))
}

/// Bytes that are page-locked, as asynchronous copies need them.
fn pinned_range(sim: &mut Sim, address: u64, len: u64) -> Place {
    if sim.memory.pinned(address, len).is_none() {
        let end = address.wrapping_add(len);
        sim.misuse(&format!("an asynchronous copy with host memory that is not page-locked, [{address:#x}, {end:#x})"));
    }
    Place::Pinned(address)
}

/// Host memory of a call that waits.
fn host_range(sim: &mut Sim, address: u64, len: u64) -> Place {
    match sim.memory.pinned(address, len) {
        Some(_) => Place::Pinned(address),
        None => Place::Pageable(address),
    }
}

fn say(place: Place) -> String {
    match place {
        Place::Device(address) => format!("device {address:#x}"),
        Place::Pinned(address) | Place::Pageable(address) => format!("host {address:#x}"),
    }
}

fn queue(sim: &mut Sim, slot: usize, to: Place, from: Place, len: u64) {
    let mut print = None;
    if let Place::Pinned(address) = from {
        // Where a copy to the host is queued too, it may be what brings the bytes.
        if sim.downloads == 0 {
            // SAFETY: a page-locked range that was just looked up, or one that the caller vouches for.
            print = Some(unsafe { fingerprint_at(address, len) });
        }
    }
    if let Place::Pinned(address) = to {
        sim.poison_target(address, len);
        sim.downloads += 1;
    }
    let what = format!("the copy of {len} bytes from {} to {}", say(from), say(to));
    sim.enqueue(slot, None, Work::Copy { to, from, len, print }, what);
}

/// A copy that the host waits for, in the default stream.
fn waiting(sim: &mut Sim, device: usize, to: Place, from: Place, len: u64) -> Result<()> {
    queue(sim, device, to, from, len);
    sim.wait_for_stream(device)
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) -> c_int {
    with_context("cuMemcpyHtoD_v2", |sim, device| {
        if len == 0 {
            return Ok(());
        }
        may_enqueue(sim)?;
        let target = device_range(sim, to, len as u64);
        let source = host_range(sim, from as u64, len as u64);
        if matches!(source, Place::Pinned(_)) {
            return waiting(sim, device, target, source, len as u64);
        }
        // Of pageable memory, the driver has a copy when it returns; the card may still be without.
        sim.wait_for_stream(device)?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), len) }.to_vec();
        let what = format!("the copy of {len} pageable bytes to {}", say(target));
        sim.enqueue(device, None, Work::Staged { to, bytes }, what);
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) -> c_int {
    with_context("cuMemcpyDtoH_v2", |sim, device| {
        if len == 0 {
            return Ok(());
        }
        may_enqueue(sim)?;
        let source = device_range(sim, from, len as u64);
        let target = host_range(sim, to as u64, len as u64);
        waiting(sim, device, target, source, len as u64)
    })
}

fn within(name: &'static str, to: u64, from: u64, len: usize, stream: Option<usize>) -> c_int {
    with_context(name, |sim, device| {
        if len == 0 {
            return Ok(());
        }
        may_enqueue(sim)?;
        let slot = stream.map_or(device, |stream| sim.slot(stream, device));
        let (target, source) = (device_range(sim, to, len as u64), device_range(sim, from, len as u64));
        queue(sim, slot, target, source, len as u64);
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) -> c_int {
    within("cuMemcpyDtoD_v2", to, from, len, None)
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) -> c_int {
    within("cuMemcpyDtoDAsync_v2", to, from, len, Some(stream))
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: usize) -> c_int {
    with_context("cuMemcpyHtoDAsync_v2", |sim, device| {
        if len == 0 {
            return Ok(());
        }
        may_enqueue(sim)?;
        let slot = sim.slot(stream, device);
        let target = device_range(sim, to, len as u64);
        let source = pinned_range(sim, from as u64, len as u64);
        queue(sim, slot, target, source, len as u64);
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: usize) -> c_int {
    with_context("cuMemcpyDtoHAsync_v2", |sim, device| {
        if len == 0 {
            return Ok(());
        }
        may_enqueue(sim)?;
        let slot = sim.slot(stream, device);
        let source = device_range(sim, from, len as u64);
        let target = pinned_range(sim, to as u64, len as u64);
        queue(sim, slot, target, source, len as u64);
        Ok(())
    })
}

fn fill(name: &'static str, to: u64, value: u8, len: usize, stream: Option<usize>) -> c_int {
    with_context(name, |sim, device| {
        if len == 0 {
            return Ok(());
        }
        may_enqueue(sim)?;
        let slot = stream.map_or(device, |stream| sim.slot(stream, device));
        device_range(sim, to, len as u64);
        let what = format!("the fill of {len} bytes at {to:#x}");
        sim.enqueue(slot, None, Work::Fill { to, value, len: len as u64 }, what);
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8_v2(to: u64, value: c_uchar, len: usize) -> c_int {
    fill("cuMemsetD8_v2", to, value, len, None)
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, len: usize, stream: usize) -> c_int {
    fill("cuMemsetD8Async", to, value, len, Some(stream))
}

//! Streams, which are queues of operations, and events, which are points in them.

use std::ffi::{c_int, c_uint};

use super::copies::may_enqueue;
use super::{Result, put, with_context};
use crate::clock::Clock;
use crate::code;
use crate::sim::{Event, Sim, Work};

const NON_BLOCKING: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;

fn create(name: &'static str, out: *mut usize, flags: c_uint) -> c_int {
    with_context(name, |sim, device| {
        if flags > NON_BLOCKING || out.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let handle = sim.new_stream(device, flags & NON_BLOCKING == 0);
        // SAFETY: the promise of who called the exported function.
        unsafe { put(out, handle) }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(out: *mut usize, flags: c_uint) -> c_int {
    create("cuStreamCreate", out, flags)
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(out: *mut usize, flags: c_uint, _priority: c_int) -> c_int {
    create("cuStreamCreateWithPriority", out, flags)
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: usize) -> c_int {
    with_context("cuStreamDestroy_v2", |sim, device| {
        if stream <= 1 {
            return Err(code::INVALID_HANDLE);
        }
        // What is queued still runs.
        let slot = sim.slot(stream, device);
        sim.streams[slot].destroyed = true;
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: usize) -> c_int {
    with_context("cuStreamSynchronize", |sim, device| {
        let slot = sim.slot(stream, device);
        if slot == device {
            // The default stream is where the others that are not `NON_BLOCKING` are waited for too.
            sim.enqueue(slot, None, Work::Wait, "the wait for the default stream".into());
        }
        sim.wait_for_stream(slot)
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: usize) -> c_int {
    with_context("cuStreamQuery", |sim, device| {
        let slot = sim.slot(stream, device);
        if !sim.ask(slot, sim.streams[slot].queued)? {
            return Err(code::NOT_READY);
        }
        sim.wait_for_stream(slot)
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> c_int {
    with_context("cuStreamWaitEvent", |sim, device| {
        may_enqueue(sim)?;
        let slot = sim.slot(stream, device);
        let known = known(sim, event);
        // What was never recorded has happened already.
        if let Some(recorded) = known.recorded {
            let past = known.clock.clone();
            sim.enqueue(slot, Some((recorded, past)), Work::Wait, "the wait for an event".into());
        }
        Ok(())
    })
}

// --- events ----------------------------------------------------------------------------------------------------------

fn known(sim: &mut Sim, event: usize) -> &mut Event {
    if !sim.events.contains_key(&event) {
        sim.misuse(&format!("{event:#x} is no event, or was destroyed"));
    }
    sim.events.get_mut(&event).expect("just found")
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(out: *mut usize, flags: c_uint) -> c_int {
    with_context("cuEventCreate", |sim, device| {
        if flags > 3 || out.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let timed = flags & DISABLE_TIMING == 0;
        let event = Event { device, timed, recorded: None, clock: Clock::default(), generation: 0, reached: None };
        let handle = sim.handle();
        sim.events.insert(handle, event);
        // SAFETY: the caller's promise.
        unsafe { put(out, handle) }
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: usize) -> c_int {
    with_context("cuEventDestroy_v2", |sim, _| {
        known(sim, event);
        sim.events.remove(&event);
        Ok(())
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: usize, stream: usize) -> c_int {
    with_context("cuEventRecord", |sim, device| {
        may_enqueue(sim)?;
        let slot = sim.slot(stream, device);
        let known_event = known(sim, event);
        if known_event.device != device {
            return Err(code::INVALID_HANDLE);
        }
        known_event.generation += 1;
        known_event.reached = None;
        let generation = known_event.generation;
        // The place of this record is set before anything runs: a seed may run it at once.
        known_event.recorded = Some((slot, 0));
        let number = sim.streams[slot].queued + 1;
        sim.enqueue(slot, None, Work::Record { event, generation }, "the record of an event".into());
        let past = sim.streams[slot].tail.clone();
        let known_event = known(sim, event);
        known_event.recorded = Some((slot, number));
        known_event.clock = past;
        Ok(())
    })
}

fn wait(sim: &mut Sim, event: usize) -> Result<()> {
    let Some((slot, number)) = known(sim, event).recorded else { return Ok(()) };
    sim.run_to(slot, number)?;
    let past = known(sim, event).clock.clone();
    sim.host.join(&past);
    Ok(())
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: usize) -> c_int {
    with_context("cuEventSynchronize", |sim, _| {
        if let Some((slot, number)) = known(sim, event).recorded {
            let past = known(sim, event).clock.clone();
            sim.note_idle_wait(slot, number, &past);
        }
        wait(sim, event)
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: usize) -> c_int {
    with_context("cuEventQuery", |sim, _| {
        if let Some((slot, number)) = known(sim, event).recorded
            && !sim.ask(slot, number)?
        {
            return Err(code::NOT_READY);
        }
        wait(sim, event)
    })
}

/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) -> c_int {
    with_context("cuEventElapsedTime", |sim, _| {
        let mut times = [0; 2];
        for (time, event) in times.iter_mut().zip([start, end]) {
            let event = known(sim, event);
            if event.recorded.is_none() || !event.timed {
                return Err(code::INVALID_HANDLE);
            }
            *time = event.reached.ok_or(code::NOT_READY)?;
        }
        let nanoseconds = times[1] as f64 - times[0] as f64;
        // SAFETY: the caller's promise.
        unsafe { put(milliseconds, (nanoseconds / 1e6) as f32) }
    })
}

/// The name that bindings of CUDA 13 have.
///
/// # Safety
/// As the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}

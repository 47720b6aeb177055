//! What the library exports: the functions of the CUDA driver API, under their names in the header (`_v2` where it has
//! them). They turn handles and pointers into what [`Sim`] knows, and say no as a driver would.
//!
//! All of them take pointers from a C caller, who vouches for them as the driver API demands.

use std::cell::Cell;
use std::ffi::c_int;
use std::sync::{LazyLock, Mutex, MutexGuard};

use crate::code::{self, Code};
use crate::config::{Config, PREFIX};
use crate::sim::Sim;

mod copies;
mod device;
mod memory;
mod module;
mod nvml;
mod stream;

type Result<T> = std::result::Result<T, Code>;

static SIM: LazyLock<Mutex<Sim>> =
    LazyLock::new(|| match Config::read(|name| std::env::var(format!("{PREFIX}{name}")).ok()).and_then(Sim::new) {
        Ok(sim) => Mutex::new(sim),
        Err(message) => {
            eprintln!("cudasim: {message}");
            std::process::exit(2)
        }
    });

thread_local! {
    /// The device whose context is current on this thread, plus one.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

fn lock() -> MutexGuard<'static, Sim> {
    SIM.lock().expect("no call panics")
}

fn answer(result: Result<()>) -> c_int {
    result.map_or_else(|Code(code)| code, |()| code::SUCCESS)
}

/// A call that takes no context.
fn bare(name: &'static str, call: impl FnOnce(&mut Sim) -> Result<()>) -> c_int {
    let mut sim = lock();
    sim.call = name;
    answer(if sim.initialised { call(&mut sim) } else { Err(code::NOT_INITIALIZED) })
}

/// A call that works with the current context, whose device it is given.
fn with_context(name: &'static str, call: impl FnOnce(&mut Sim, usize) -> Result<()>) -> c_int {
    bare(name, |sim| {
        let device = CURRENT.get().checked_sub(1).ok_or(code::INVALID_CONTEXT)?;
        sim.context_of(device)?;
        call(sim, device)
    })
}

/// Stores a result where the caller wants it.
///
/// # Safety
/// `to` is null or valid for a write.
unsafe fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

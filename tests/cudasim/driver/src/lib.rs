//! A CUDA driver that runs on a CPU: `libcuda.so.1` for tests of programs that use the driver API, on machines without a
//! GPU, and stricter than one. README.md in the folder above says what it plays and what it does not.
//!
//! From the bottom up: `clock` (what is ordered), `history` (who touched which bytes), `memory`, `access` (what kernels
//! touch), `sim` (streams and the scheduler), `run` (what operations do), `api` (what is exported).

mod access;
mod api;
mod clock;
mod code;
mod config;
mod history;
mod memory;
mod random;
mod report;
mod run;
mod sim;
mod verify;

/// How a process ends that misused the driver.
const EXIT_MISUSE: i32 = 86;

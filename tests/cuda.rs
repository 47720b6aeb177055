//! The CUDA backend on the simulated driver (tests/cudasim): all of it but the GPU. Golden cases within the gates of 16-bit
//! arithmetic, the same bits at every budget and in every order that the driver allows, budgets that hold by the driver's own
//! count, every error a message, and faults planted in the backend that must all be noticed.
//!
//! The driver is chosen when a process starts, and misuse ends the process. So each test starts this program again, with
//! the simulated driver in its path, to do some jobs and write down what came of them (`child`).

#![cfg(all(feature = "cuda", feature = "cli"))]

#[path = "cuda/bits.rs"]
mod bits;
#[path = "cuda/budgets.rs"]
mod budgets;
#[path = "cuda/child.rs"]
mod child;
#[path = "cuda/errors.rs"]
mod errors;
#[path = "reference/expected.rs"]
mod expected;
#[path = "cuda/experts.rs"]
mod experts;
#[allow(dead_code, reason = "what can be wrong about a form is tried on the processor")]
#[path = "quantized/forms.rs"]
mod forms;
#[path = "cuda/golden.rs"]
mod golden;
#[path = "reference/gpu.rs"]
mod gpu;
#[path = "quantized/model.rs"]
mod model;
#[path = "cuda/packed.rs"]
mod packed;
#[path = "cuda/parent.rs"]
mod parent;
#[path = "cuda/quantized.rs"]
mod quantized;
#[path = "cuda/traps.rs"]
mod traps;
#[path = "cuda/turned.rs"]
mod turned;

/// Not a test of its own: what the others start.
#[test]
fn child() {
    child::main();
}

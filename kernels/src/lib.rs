//! The CUDA kernels of layerstream. Their sources lie beside this package's `Cargo.toml`; README.md there explains the
//! dialect they are written in. Here is what Rust needs to launch them, and what it takes to trust them:
//!
//! * [`params`]: the argument structs of all kernels, generated from `params.h`;
//! * [`launch`]: which kernel, grid and shared memory an operation takes;
//! * `FATBINS` (feature `device`): the kernels for every GPU generation, compiled by nvcc;
//! * `host` (feature `host`): the same kernels on a CPU, one thread at a time, under adversarial schedules;
//! * `check` (feature `host`): every kernel against float64, on anything that can launch kernels.

#[cfg(feature = "host")]
pub mod check;
#[cfg(feature = "host")]
pub mod host;
pub mod launch;

/// The arguments of every kernel, as `kernels/params.h` defines them.
#[allow(non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all, missing_docs)]
pub mod params {
    include!(concat!(env!("OUT_DIR"), "/params.rs"));
}

#[cfg(feature = "device")]
include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

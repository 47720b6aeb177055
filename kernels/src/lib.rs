//! The CUDA kernels of layerstream. Their sources lie beside this package's `Cargo.toml`; README.md there explains the
//! dialect they are written in. Here is what Rust needs to launch them, and what it takes to trust them:
//!
//! * [`params`]: the argument structs of all kernels, generated from `params.h`;
//! * [`launch`]: which kernel, grid and shared memory an operation takes;
//! * `fatbins` (feature `device`): the kernels for every GPU generation, compiled by nvcc;
//! * `host` (feature `host`): the same kernels on a CPU, one thread at a time, under adversarial schedules;
//! * `check` (feature `host`): every kernel against float64, on anything that can launch kernels;
//! * `bench` (feature `host`): what there is to measure of each kernel, for the same devices;
//! * `driver` (feature `driver`): the part of the CUDA driver API that launching them takes;
//! * [`nvcc`]: how they are compiled;
//! * `workbench` (feature `workbench`): the command `kernels`, which lists, checks and measures them.

#[cfg(feature = "host")]
pub mod bench;
#[cfg(feature = "host")]
pub mod check;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "host")]
pub mod host;
pub mod launch;
pub mod nvcc;
#[cfg(feature = "workbench")]
pub mod workbench;

/// The arguments of every kernel, as `kernels/params.h` defines them.
#[allow(non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all, missing_docs)]
pub mod params {
    include!(concat!(env!("OUT_DIR"), "/params.rs"));
}

/// Bytes at an address that any loader accepts.
#[cfg(feature = "device")]
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

#[cfg(feature = "device")]
static TABLE: &[(&str, &Aligned<[u8]>, &str)] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The kernels compiled by nvcc: for each file of kernels, its name without `.cu` and its fatbin (machine code for every
/// supported GPU generation, PTX of the oldest for later ones), to be given to `cuModuleLoadData`.
#[cfg(feature = "device")]
pub fn fatbins() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    TABLE.iter().map(|(name, bytes, _)| (*name, &bytes.0))
}

/// The version of CUDA whose nvcc compiled them, such as (13, 0); `None` if it did not say.
#[cfg(feature = "device")]
pub const TOOLKIT: Option<(u32, u32)> = include!(concat!(env!("OUT_DIR"), "/toolkit.rs"));

/// What ptxas says that the kernels of each file take on each target (`-Xptxas -v`).
#[cfg(feature = "device")]
pub fn ptxas() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.iter().map(|(name, _, said)| (*name, *said))
}

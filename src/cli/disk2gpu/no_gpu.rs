//! In the place of `gpu.rs` in a build without the feature `cuda`: there is no GPU.

use crate::engine::StopFlag;
use crate::error::{Error, Result};

use super::args::Device;
use super::read::How;
use super::report::{GpuFacts, Stage};
use super::sample::Sample;
use super::work::Work;

/// There is none.
pub enum Gpu {}

/// Why there is none; an error where one was asked for.
pub fn open(device: Device) -> Result<std::result::Result<Gpu, String>> {
    let reason = "this build has no GPU part (feature `cuda`)";
    match device {
        Device::Cuda(n) => Err(Error::Request(format!("--device cuda:{n}: {reason}"))),
        Device::Cpu => Ok(Err("--device cpu".into())),
        Device::Auto => Ok(Err(reason.into())),
    }
}

impl Gpu {
    pub fn facts(&self) -> Result<GpuFacts> {
        match *self {}
    }

    pub fn run(&self, _: Stage, _: &Work, _: &How, _: &StopFlag) -> Result<Sample> {
        match *self {}
    }
}

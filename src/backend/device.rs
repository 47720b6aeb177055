//! What computes: the caller's wish, and what became of it.

use std::fmt;
use std::str::FromStr;
#[cfg(feature = "cuda")]
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::plan::{GpuRequest, Plan};
use crate::program::Program;

#[cfg(feature = "cuda")]
use super::cuda;

/// What shall compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The first GPU if there is one that can, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this number, counted from 0 as `CUDA_VISIBLE_DEVICES` leaves them.
    Cuda(u32),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Device> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => match text.strip_prefix("cuda:").and_then(|number| number.parse().ok()) {
                Some(number) => Ok(Device::Cuda(number)),
                None => Err(Error::Request(format!("device `{text}` does not exist: use auto, cpu, or cuda:0"))),
            },
        }
    }
}

/// What does compute. `Display` names it as [`Device`] is written.
#[derive(Clone)]
pub enum Processor {
    Cpu {
        /// Why no GPU, where one would have been taken.
        because: Option<String>,
    },
    #[cfg(feature = "cuda")]
    Cuda { number: u32, card: Arc<cuda::Card> },
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Processor::Cpu { .. } => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Processor::Cuda { number, .. } => write!(f, "cuda:{number}"),
        }
    }
}

impl Processor {
    /// Opens what `device` names, for this program.
    ///
    /// # Errors
    /// [`Error::Device`] for a GPU that is named and cannot be used, saying why.
    pub fn choose(device: Device, program: &Program) -> Result<Processor> {
        match device {
            Device::Cpu => Ok(Processor::Cpu { because: None }),
            Device::Cuda(number) => Processor::open(number, program),
            Device::Auto => match Processor::open(0, program) {
                Err(Error::Device(because)) => Ok(Processor::Cpu { because: Some(because) }),
                other => other,
            },
        }
    }

    #[cfg(feature = "cuda")]
    fn open(number: u32, program: &Program) -> Result<Processor> {
        let card = Arc::new(cuda::Card::open(number)?);
        match cuda::unsupported(program) {
            None => Ok(Processor::Cuda { number, card }),
            Some(what) => {
                let advice = "compute on the processor (--device cpu)";
                Err(Error::Device(format!("{what}, as this model has them, cannot be computed on a GPU yet; {advice}")))
            }
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn open(_: u32, _: &Program) -> Result<Processor> {
        Err(Error::Device("this build has no kernels for GPUs (feature `cuda`)".into()))
    }

    /// What a plan has to know of a GPU, with a budget of `vram` bytes of its memory; by default nine tenths of what is
    /// free.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub fn gpu(&self, vram: Option<u64>) -> Option<GpuRequest> {
        match self {
            Processor::Cpu { .. } => None,
            #[cfg(feature = "cuda")]
            Processor::Cuda { card, .. } => {
                let context = card.context_bytes();
                Some(GpuRequest { vram: vram.unwrap_or(context + card.free_bytes() / 10 * 9), context })
            }
        }
    }

    /// Bytes of the GPU's memory that this process has taken so far, by the driver's count, if that can be known: all that
    /// came into use since the GPU was opened, by others too. `None` for the processor.
    pub fn vram_taken(&self) -> Option<u64> {
        match self {
            Processor::Cpu { .. } => None,
            #[cfg(feature = "cuda")]
            Processor::Cuda { card, .. } => card.gpu.bytes_since_opened(),
        }
    }

    /// How fast the GPU that this plan was made for is fed and reads its own memory, in bytes per second; `None` for the
    /// processor.
    ///
    /// # Errors
    /// As [`cuda::measure`].
    #[cfg(feature = "cuda")]
    pub fn measure(&self, plan: &Plan, time: std::time::Duration) -> Result<Option<(f64, f64)>> {
        match self {
            Processor::Cpu { .. } => Ok(None),
            Processor::Cuda { card, .. } => {
                cuda::measure(card, plan, time).map(|speeds| Some((speeds.copy, speeds.read)))
            }
        }
    }

    /// Nothing, in a build without GPUs.
    #[cfg(not(feature = "cuda"))]
    pub fn measure(&self, _: &Plan, _: std::time::Duration) -> Result<Option<(f64, f64)>> {
        Ok(None)
    }

    /// For people: the GPU's name, or why there is none.
    pub fn describe(&self) -> String {
        match self {
            Processor::Cpu { because: None } => "cpu".into(),
            Processor::Cpu { because: Some(because) } => format!("cpu ({because})"),
            #[cfg(feature = "cuda")]
            Processor::Cuda { card, .. } => card.name().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in
            [("auto", Device::Auto), ("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))]
        {
            assert_eq!(text.parse::<Device>().unwrap(), device);
        }
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}

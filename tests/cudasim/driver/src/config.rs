//! What the environment says about the card and about what shall go wrong: the one place that reads it.
//!
//! | variable `LAYERSTREAM_SIM_…` | meaning | without it |
//! | --- | --- | --- |
//! | `SEED` | which legal order things happen in; 0 runs as late as is legal, and nothing that nobody waits for | 0 |
//! | `VRAM` | bytes of memory of each card | 4 GiB |
//! | `CONTEXT` | bytes that a context takes | a sixteenth of the memory, at most 256 MiB |
//! | `TAKEN` | bytes that other programs have | 0 |
//! | `TABLES` | one byte of the card goes to page tables for so many of page-locked memory; 0: none does | 512: entries of 8 bytes for pages of 4 KiB |
//! | `DEVICES` | number of cards | 1 |
//! | `CC` | compute capability, such as `7.5` | `8.0` |
//! | `DRIVER` | what `cuDriverGetVersion` says | 13000 |
//! | `NVML` | `0`: the management library is of no use | 1 |
//! | `ARITHMETIC` | `0`: kernels do not run, but for those that make ids; their outputs are zero | 1 |
//! | `VERIFY` | `1`: each launch is held to the table of what its kernel reads and writes (slow) | 0 |
//! | `FAIL` | faults, separated by commas: see [`Fault`] | none |
//! | `REPORT` | a file for the report, written at exit | none |
//! | `TRACE` | a file that gets a line for each matrix product, in order: see `trace.rs` | none |

use std::path::PathBuf;

/// Something that shall go wrong. Written as `name:N`, where N counts from 1; `context` has no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `oom`: the N-th allocation of device memory finds none.
    Allocation(u64),
    /// `pin`: the N-th registration or allocation of page-locked memory fails.
    Pin(u64),
    /// `enqueue`: the N-th call that queues something is refused for want of memory. What was queued before goes on.
    Enqueue(u64),
    /// `strange`: the same, for a reason that no header has a name for yet.
    Strange(u64),
    /// `copy`: the N-th asynchronous copy fails as it runs; whoever waits next hears of it, and so does every later call.
    Copy(u64),
    /// `kernel`: likewise the N-th launch.
    Kernel(u64),
    /// `lost`: the card disappears before the N-th operation.
    Lost(u64),
    /// `module`: the N-th module has no code for this card.
    Module(u64),
    /// `image`: the N-th module is nothing that this driver can read.
    Image(u64),
    /// `ptx`: the N-th module has nothing but PTX that is too new for this driver.
    Ptx(u64),
    /// `context`: no context can be made, for others have the memory.
    Context,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    pub vram: u64,
    pub context: u64,
    pub taken: u64,
    pub tables: u64,
    pub devices: usize,
    /// 80 for 8.0.
    pub cc: u32,
    pub driver: i32,
    pub nvml: bool,
    pub arithmetic: bool,
    pub verify: bool,
    pub faults: Vec<Fault>,
    pub report: Option<PathBuf>,
    pub trace: Option<PathBuf>,
}

impl Config {
    /// # Errors
    /// A message about the first variable that cannot be understood.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Config, String> {
        let number = |name: &str, otherwise: u64| match variable(name) {
            None => Ok(otherwise),
            Some(text) => text.trim().parse().map_err(|_| format!("{PREFIX}{name}={text}: a number is expected")),
        };
        let switch = |name: &str, otherwise: bool| match variable(name).as_deref() {
            None => Ok(otherwise),
            Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(text) => Err(format!("{PREFIX}{name}={text}: 0 or 1 is expected")),
        };
        let vram = number("VRAM", 4 << 30)?;
        let cc = variable("CC").unwrap_or("8.0".into());
        let parts = cc.split_once('.').and_then(|(a, b)| Some(a.parse::<u32>().ok()? * 10 + b.parse::<u32>().ok()?));
        let faults = variable("FAIL").unwrap_or_default();
        let faults = faults.split(',').map(str::trim).filter(|text| !text.is_empty());
        Ok(Config {
            seed: number("SEED", 0)?,
            vram,
            context: number("CONTEXT", (vram / 16).min(256 << 20))?,
            taken: number("TAKEN", 0)?,
            tables: number("TABLES", 512)?,
            devices: number("DEVICES", 1)? as usize,
            cc: parts.ok_or_else(|| format!("{PREFIX}CC={cc}: something like 8.0 is expected"))?,
            driver: number("DRIVER", 13_000)? as i32,
            nvml: switch("NVML", true)?,
            arithmetic: switch("ARITHMETIC", true)?,
            verify: switch("VERIFY", false)?,
            faults: faults.map(fault).collect::<Result<_, _>>()?,
            report: variable("REPORT").map(PathBuf::from),
            trace: variable("TRACE").map(PathBuf::from),
        })
    }
}

/// What all variables begin with.
pub const PREFIX: &str = "LAYERSTREAM_SIM_";

fn fault(text: &str) -> Result<Fault, String> {
    let known = "oom:N, pin:N, enqueue:N, strange:N, copy:N, kernel:N, lost:N, module:N, image:N, ptx:N or context";
    let wrong = || format!("{PREFIX}FAIL: `{text}` is not one of {known}");
    if text == "context" {
        return Ok(Fault::Context);
    }
    let (name, n) = text.split_once(':').ok_or_else(wrong)?;
    let n = n.parse().ok().filter(|&n| n > 0).ok_or_else(wrong)?;
    Ok(match name {
        "oom" => Fault::Allocation(n),
        "pin" => Fault::Pin(n),
        "enqueue" => Fault::Enqueue(n),
        "strange" => Fault::Strange(n),
        "copy" => Fault::Copy(n),
        "kernel" => Fault::Kernel(n),
        "lost" => Fault::Lost(n),
        "module" => Fault::Module(n),
        "image" => Fault::Image(n),
        "ptx" => Fault::Ptx(n),
        _ => return Err(wrong()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn variables_are_understood_or_named() {
        let config = read(&[("VRAM", "1048576"), ("CC", "9.0"), ("FAIL", "oom:3, context")]).unwrap();
        assert_eq!((config.vram, config.context, config.cc), (1 << 20, 1 << 16, 90));
        assert_eq!(config.faults, [Fault::Allocation(3), Fault::Context]);
        for wrong in [("SEED", "x"), ("CC", "80"), ("ARITHMETIC", "no"), ("FAIL", "oom"), ("FAIL", "copy:0")] {
            let message = read(&[wrong]).unwrap_err();
            assert!(message.contains(wrong.0), "{message}");
        }
    }
}

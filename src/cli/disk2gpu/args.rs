//! The arguments of `disk2gpu`, each defined once.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::cli::values::{positive, size};
use crate::disk::ReaderKind;

/// Measure how fast bytes get from disk to memory, from memory to the GPU, and from disk to the GPU when both go on at
/// once.
#[derive(Parser)]
#[command(name = "disk2gpu", version, max_term_width = 100)]
#[command(after_help = "\
A GB is 10^9 bytes, a GiB 2^30. Files that are given are only read. A scratch file has no name in its
directory, so it overwrites nothing, and it is gone when the program ends, however that happens.

Rows of the table (README and docs/disk2gpu.md say more):
  disk -> host    the drive alone: reads in any order, bytes dropped as they land
  disk -> ring    in order through layerstream's own ring of memory, by a consumer that does nothing
  host -> GPU     copies alone, from page-locked and from ordinary memory
  disk -> GPU     through the ring to the GPU, reads and copies at once
Without a GPU the first two are measured.

Examples:
  disk2gpu --scratch 8GiB --dir /mnt/nvme
  disk2gpu ./Llama-3.1-8B --chunk 8MiB --depth 8 --json > result.json
  disk2gpu model.safetensors --reader mmap --cache warm
  disk2gpu --scratch 4GiB --sweep sweep.svg
  disk2gpu a.safetensors --replica /mnt/other/a.safetensors     (two drives)")]
pub struct Cli {
    /// Files to read, or directories with a checkpoint
    #[arg(value_name = "PATH", required_unless_present = "scratch", conflicts_with = "scratch")]
    pub paths: Vec<PathBuf>,
    /// Measure on a file of random bytes of this size, made for it and removed at the end
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub scratch: Option<u64>,
    /// Where to make it; several directories, one on each drive, get a file each
    #[arg(long, value_name = "DIR", requires = "scratch", default_value = ".")]
    pub dir: Vec<PathBuf>,
    /// The same files in a directory on another drive (or another copy of a single file), read in parallel; may be given
    /// several times
    #[arg(long, value_name = "PATH", conflicts_with = "scratch")]
    pub replica: Vec<PathBuf>,
    /// Take turns between the files; on by itself where they lie on several drives
    #[arg(long)]
    pub stripe: bool,
    /// The most bytes to read in a repetition, from the first file on [default: 4GiB, all of a scratch file; for a sweep
    /// 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub bytes: Option<u64>,

    /// How to read: uring, pread, mmap or buffered [default: the first of uring, pread, buffered that works]
    #[arg(long, value_name = "READER", value_parser = reader, help_heading = "Reading")]
    pub reader: Option<ReaderKind>,
    /// Size of one read, and of one copy
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = size, help_heading = "Reading")]
    pub chunk: u64,
    /// Reads in flight for each drive
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive, help_heading = "Reading")]
    pub depth: usize,
    /// Threads that read from each drive [default: 1 for uring; else one for each read in flight]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Reading")]
    pub threads: Option<usize>,
    /// Memory that the chunks flow through in order [default: twice what is in flight]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Reading")]
    pub ring: Option<u64>,
    /// Whether mmap and buffered find the files in the page cache; direct reads (uring, pread) are always cold
    #[arg(long, value_name = "STATE", default_value = "cold", help_heading = "Reading")]
    pub cache: Cache,

    /// Rounds before those that count
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Measuring")]
    pub warmup: usize,
    /// Rounds that count; the stages take turns in each [default: 5; for a sweep 3]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Measuring")]
    pub repetitions: Option<usize>,
    /// Compare the CRC-32 of what arrives with that of the files, in a round of its own that does not count; auto: if there
    /// are at most 8 GiB
    #[arg(long, value_name = "WHEN", default_value = "auto", default_missing_value = "always", num_args = 0..=1,
        require_equals = true, help_heading = "Measuring")]
    pub verify: Verify,
    /// The GPU: auto (the first one, if there is any), cpu (none) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device, help_heading = "Measuring")]
    pub device: Device,
    /// Measure with fio, too, if it is installed, on huge and on ordinary pages
    #[arg(long, help_heading = "Measuring")]
    pub fio: bool,

    /// Instead of the table: bandwidth over chunk sizes and depths, drawn into FILE, which must not be there yet
    #[arg(long, value_name = "FILE.svg", help_heading = "Sweep", conflicts_with_all = ["fio", "verify"])]
    pub sweep: Option<PathBuf>,
    /// Chunk sizes to try
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', value_parser = size, requires = "sweep",
        default_value = "256KiB,1MiB,2MiB,4MiB,8MiB,16MiB", help_heading = "Sweep")]
    pub sweep_chunks: Vec<u64>,
    /// Depths to try
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = positive, requires = "sweep",
        default_value = "1,4,8,16,32,64", help_heading = "Sweep")]
    pub sweep_depths: Vec<usize>,

    /// Print one JSON object (docs/disk2gpu.md describes it) instead of the table
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Whether reads that go through the page cache find the files there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Dropped from the cache before each run
    Cold,
    /// Read before each run
    Warm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    Auto,
    Always,
    Never,
}

/// Which GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first, if there is one.
    Auto,
    /// None.
    Cpu,
    /// This one, or an error.
    Cuda(u32),
}

fn reader(text: &str) -> Result<ReaderKind, String> {
    match text {
        "mmap" => Ok(ReaderKind::Mmap),
        other => other.parse().map_err(|_| "expected uring, pread, mmap or buffered".into()),
    }
}

fn device(text: &str) -> Result<Device, String> {
    let cuda = |text: &str| text.strip_prefix("cuda:")?.parse().ok();
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        other => cuda(other).map(Device::Cuda).ok_or_else(|| "expected auto, cpu or cuda:N, N from 0".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn devices() {
        assert_eq!(device("cuda:3"), Ok(Device::Cuda(3)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(device(wrong).is_err(), "{wrong}");
        }
    }
}

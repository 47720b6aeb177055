//! How much memory there is, and how much this process has taken: `/proc` and the control group's limit.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Bytes that this process could still take without swapping: what the kernel calls available, or what the limit of its
/// control group leaves, whichever is less.
pub fn available() -> Result<u64> {
    let path = Path::new("/proc/meminfo");
    let text = fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let free = field(&text, "MemAvailable:").ok_or_else(|| Error::Io {
        path: path.into(),
        doing: "find MemAvailable in",
        source: std::io::ErrorKind::InvalidData.into(),
    })?;
    Ok(free.min(cgroup_left().unwrap_or(u64::MAX)))
}

/// The most resident memory that this process ever had, in bytes.
pub fn peak_resident() -> u64 {
    status("VmHWM:")
}

/// The resident memory of this process now, in bytes.
pub fn resident() -> u64 {
    status("VmRSS:")
}

fn status(name: &str) -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|text| field(&text, name)).unwrap_or(0)
}

/// A line such as `VmHWM:   1234 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What the nearest limit of this process' control group (version 2) and its parents leaves; none without a limit.
fn cgroup_left() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_string();
    let root = Path::new("/sys/fs/cgroup");
    let groups = Path::new(&own).ancestors().map(|group| root.join(group)).collect::<Vec<PathBuf>>();
    groups.iter().filter_map(|group| left_in(group)).min()
}

fn left_in(group: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes() {
        let text = "MemTotal:       24684092 kB\nMemAvailable:   12 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(12 * 1024));
        assert_eq!(field(text, "SwapFree:"), None);
    }

    #[test]
    fn this_process_has_memory_and_there_is_some_left() {
        assert!(available().unwrap() > 1 << 20);
        assert!(peak_resident() >= resident() && resident() > 1 << 20);
    }
}

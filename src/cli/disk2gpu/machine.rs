//! What a reader of the figures needs to know of the machine: processor, memory, drives. What cannot be found out is
//! absent, never guessed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, StatxFlags, major, minor};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

/// The computer.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    pub kernel: String,
    pub cpu: Option<String>,
    pub cores: usize,
    pub numa_nodes: usize,
    pub mem_bytes: Option<u64>,
    /// Transparent huge pages: always, madvise or never.
    pub thp: Option<String>,
    /// The most memory that may be locked; absent where there is no limit.
    pub memlock_bytes: Option<u64>,
}

impl Host {
    pub fn look() -> Host {
        let nodes = fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
        let is_node = |name: &str| name.strip_prefix("node").is_some_and(|n| n.parse::<u32>().is_ok());
        let thp = text("/sys/kernel/mm/transparent_hugepage/enabled");
        Host {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            numa_nodes: nodes.filter(|entry| is_node(&entry.file_name().to_string_lossy())).count().max(1),
            mem_bytes: field("/proc/meminfo", "MemTotal")
                .and_then(|value| Some(value.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)),
            thp: thp.and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_string())),
            memlock_bytes: getrlimit(Resource::Memlock).current,
        }
    }
}

/// A drive, as far as the system tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drive {
    /// A place on it.
    pub path: String,
    /// The file system.
    pub fs: Option<String>,
    /// The block device of that name; absent for file systems without one, or with several.
    pub name: Option<String>,
    pub model: Option<String>,
    /// Bytes of a sector.
    pub logical_block: Option<u64>,
    /// The most pieces of memory that one request may fill.
    pub max_segments: Option<u64>,
    /// The most bytes of one request.
    pub max_request_bytes: Option<u64>,
    pub rotational: Option<bool>,
    pub numa_node: Option<u32>,
    /// Bytes that offsets and lengths of direct reads must be multiples of; absent where they are refused, or the kernel
    /// does not tell (before 6.1).
    pub dio_align: Option<u64>,
}

impl Drive {
    /// The drives of `places`, each once.
    pub fn of(places: &[PathBuf], sample: impl Fn(usize) -> PathBuf) -> Vec<Drive> {
        let mut seen = Vec::new();
        let mut drives = Vec::new();
        for (i, place) in places.iter().enumerate() {
            let Ok(found) = fs::metadata(place) else { continue };
            if !seen.contains(&found.dev()) {
                seen.push(found.dev());
                drives.push(Drive::look(place, &sample(i), found.dev()));
            }
        }
        drives
    }

    /// `file` is one whose direct reads are asked about.
    fn look(place: &Path, file: &Path, device: u64) -> Drive {
        let mount = mount_of(place);
        let block = block_device(device, mount.as_ref().map(|mount| mount.source.as_str()));
        let number = |name: &str| text(block.as_ref()?.join(name)).and_then(|text| text.parse::<i64>().ok());
        let positive = |name: &str| number(name).and_then(|n| u64::try_from(n).ok());
        let statx = rustix::fs::statx(rustix::fs::CWD, file, AtFlags::empty(), StatxFlags::DIOALIGN);
        let dio_align = statx.ok().map(|stat| u64::from(stat.stx_dio_offset_align)).filter(|&align| align > 0);
        Drive {
            path: place.display().to_string(),
            fs: mount.map(|mount| mount.kind),
            name: block.as_ref().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())),
            model: block.as_ref().and_then(|path| text(path.join("device/model"))),
            logical_block: positive("queue/logical_block_size"),
            max_segments: positive("queue/max_segments"),
            max_request_bytes: positive("queue/max_sectors_kb").map(|kib| kib * 1024),
            rotational: number("queue/rotational").map(|n| n == 1),
            numa_node: positive("device/numa_node").or(positive("device/device/numa_node")).map(|n| n as u32),
            dio_align,
        }
    }

    /// Whether it is no drive at all, but memory.
    pub fn is_memory(&self) -> bool {
        matches!(self.fs.as_deref(), Some("tmpfs" | "ramfs"))
    }
}

struct Mount {
    kind: String,
    source: String,
}

/// The mount that a path lies under, of those with the longest mount point the last.
fn mount_of(place: &Path) -> Option<Mount> {
    let place = fs::canonicalize(place).ok()?;
    mount_in(&fs::read_to_string("/proc/self/mountinfo").ok()?, &place)
}

fn mount_in(mounts: &str, place: &Path) -> Option<Mount> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        // Spaces are written as \040.
        let point = PathBuf::from(left.split(' ').nth(4)?.replace("\\040", " "));
        let mut right = right.split(' ');
        let (kind, source) = (right.next()?.to_string(), right.next()?.to_string());
        place.starts_with(&point).then_some((point.components().count(), Mount { kind, source }))
    };
    mounts.lines().filter_map(parse).max_by_key(|(depth, _)| *depth).map(|(_, mount)| mount)
}

/// The directory in `/sys` of the whole drive: by its number, or, where a file system has numbers of its own, by what is
/// mounted.
fn block_device(device: u64, source: Option<&str>) -> Option<PathBuf> {
    let by_number = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    let by_name = || {
        let device = fs::canonicalize(source.filter(|source| source.starts_with("/dev/"))?).ok()?;
        fs::canonicalize(Path::new("/sys/class/block").join(device.file_name()?)).ok()
    };
    let found = by_number.ok().or_else(by_name)?;
    // A partition lies in the directory of its drive.
    let whole = if found.join("partition").exists() { found.parent()?.to_path_buf() } else { found };
    whole.join("queue").is_dir().then_some(whole)
}

/// The commit that this program was built from: as whoever built it said (`LAYERSTREAM_COMMIT`), else that of the work tree
/// that the program lies in, if it lies in one; with `-dirty` if that had changes.
pub fn commit() -> Option<String> {
    commit_of(option_env!("LAYERSTREAM_COMMIT"), std::env::current_exe().ok()?.parent()?)
}

/// A program that was told when it was built may lie in anybody's work tree, even if what it was told is nothing.
fn commit_of(told: Option<&str>, directory: &Path) -> Option<String> {
    let described = || {
        let mut git = Command::new("git");
        let output = git.arg("-C").arg(directory).args(["describe", "--always", "--dirty", "--exclude=*"]);
        let output = output.output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let commit = told.map_or_else(described, |told| Some(told.into()))?;
    Some(commit.trim().to_string()).filter(|commit| !commit.is_empty())
}

pub fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

/// What follows `key` and a colon.
fn field(path: &str, key: &str) -> Option<String> {
    let text = text(path)?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      2 1 0:40 / /mnt/a\\040b rw shared:1 - btrfs /dev/nvme0n1p2 rw\n\
                      3 1 0:41 / /mnt rw - tmpfs tmpfs rw";
        let mount = |place: &str| mount_in(mounts, Path::new(place)).map(|mount| (mount.kind, mount.source)).unwrap();
        assert_eq!(mount("/mnt/a b/c"), ("btrfs".into(), "/dev/nvme0n1p2".into()));
        assert_eq!(mount("/mnt/x").0, "tmpfs");
        assert_eq!(mount("/mntx").0, "ext4");
    }

    #[test]
    fn a_program_that_was_told_its_commit_does_not_ask_where_it_lies() {
        let repository = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let name = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"];
            let output = Command::new("git").arg("-C").arg(repository.path()).args(name).args(arguments).output();
            assert!(output.unwrap().status.success(), "git {arguments:?}");
        };
        assert_eq!(commit_of(None, repository.path()), None);
        git(&["init", "--quiet"]);
        git(&["commit", "--quiet", "--allow-empty", "--message=x"]);
        assert!(commit_of(None, repository.path()).is_some_and(|commit| commit.len() >= 7));
        assert_eq!(commit_of(Some("abc1234-dirty\n"), repository.path()).as_deref(), Some("abc1234-dirty"));
        assert_eq!(commit_of(Some(""), repository.path()), None);
    }

    #[test]
    fn this_machine_has_a_processor_and_a_place_for_files() {
        let host = Host::look();
        assert!(!host.kernel.is_empty() && host.cores > 0 && host.mem_bytes.is_some());
        let here = std::env::current_dir().unwrap();
        let drives = Drive::of(&[here.clone(), here.clone()], |_| here.join("Cargo.toml"));
        assert_eq!(drives.len(), 1);
        assert!(drives[0].fs.is_some());
    }
}

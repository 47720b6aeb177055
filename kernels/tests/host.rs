//! The host build itself: kernels of kernels/host/selftest.cu that are right pass under every schedule, and each fault
//! they can be given is noticed. What a kernel's tests can catch rests on this.

use layerstream_kernels::check::Device;
use layerstream_kernels::host::{Copies, Dialect, HostDevice, Kernel, Order, Schedule};
use layerstream_kernels::launch::Launch;

/// `SelftestParams` of selftest.cu.
#[repr(C)]
struct Params {
    x: u64,
    out: u64,
    tiles: i32,
    fault: i32,
}

impl Params {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.x.to_ne_bytes(), self.out.to_ne_bytes()].concat();
        bytes.extend([self.tiles.to_ne_bytes(), self.fault.to_ne_bytes()].concat());
        bytes
    }
}

const TILES: usize = 5;

/// One launch of the pipeline; whether its result is the right one.
fn pipeline(dialect: Dialect, schedule: Schedule, fault: i32) -> Result<bool, String> {
    let x = |tile: usize, row: usize, k: usize| ((tile * 31 + row * 7 + k * 3) % 9) as f32 - 4.0;
    let weight = |k: usize, n: usize| ((k * 3 + n * 5) % 7) as f32 - 3.0;
    let mut device = HostDevice::new(dialect, schedule);
    let mut bytes = Vec::new();
    for i in 0..TILES * 64 * 64 {
        let v = x(i / 4096, i / 64 % 64, i % 64);
        bytes.extend(((v.to_bits() >> 16) as u16).to_le_bytes());
    }
    let x_address = device.alloc(&bytes);
    let out = device.alloc(&[0xff; 64 * 8 * 4]);
    let launch = Launch { shared: 2 * 64 * 128, ..Launch::linear("selftest_pipeline", 1, 128) };
    device.launch(&launch, &Params { x: x_address, out, tiles: TILES as i32, fault }.bytes())?;
    let got = device.read(out, 64 * 8 * 4);
    Ok(got.chunks_exact(4).enumerate().all(|(i, b)| {
        let (row, n) = (i / 8, i % 8);
        let sum: f32 = (0..TILES * 64).map(|j| x(j / 64, row, j % 64) * weight(j % 64, n)).sum();
        f32::from_le_bytes([b[0], b[1], b[2], b[3]]) == sum
    }))
}

#[test]
fn a_right_pipeline_passes_under_every_schedule() {
    for dialect in [Dialect::Sm80, Dialect::Sm90] {
        for schedule in (1..4).flat_map(Schedule::all) {
            assert_eq!(pipeline(dialect, schedule, 0), Ok(true), "{dialect:?} {schedule:?}");
        }
    }
}

#[test]
fn every_missing_wait_and_barrier_shows_under_some_schedule() {
    let faults = ["no wait", "no barrier after it", "none before reuse", "wait for too few", "none in the reduction"];
    for (i, fault) in faults.iter().enumerate() {
        let shown: Vec<Schedule> =
            Schedule::all(1).filter(|&schedule| pipeline(Dialect::Sm80, schedule, i as i32 + 1) != Ok(true)).collect();
        assert!(!shown.is_empty(), "{fault}: no schedule shows it");
    }
}

#[test]
fn copies_that_land_early_and_late_show_different_faults() {
    let shows = |fault, copies| {
        Schedule::all(1).filter(|s| s.copies == copies).any(|s| pipeline(Dialect::Sm80, s, fault) != Ok(true))
    };
    assert!(shows(1, Copies::LandAtWait), "a copy that is never waited for");
    assert!(
        !shows(1, Copies::LandAtIssue),
        "landing at issue hides a missing wait: the other half of the tests is needed"
    );
    assert!(shows(3, Copies::LandAtIssue), "a stage that is overwritten while it is read");
}

/// One launch of the kernel that misuses the machine, with 64 threads and an output of `len` floats.
fn misuse(fault: i32, len: usize) -> Result<(), String> {
    let schedule = Schedule { order: Order::Forward, seed: 1, copies: Copies::LandAtWait };
    let mut device = HostDevice::new(Dialect::Sm80, schedule);
    let out = device.alloc(&vec![0; len * 4]);
    let launch = Launch { shared: 64, ..Launch::linear("selftest_misuse", 1, 64) };
    device.launch(&launch, &Params { x: 0, out, tiles: len as i32, fault }.bytes())
}

#[test]
fn every_misuse_is_reported() {
    assert_eq!(misuse(0, 64), Ok(()));
    let faults = [
        (100, "touches memory outside of every buffer"),
        (101, "beyond the end of a buffer of 252 bytes"),
        (102, "before a buffer"),
        (103, "0 bytes after the end of dynamic shared memory"),
        (104, "0 bytes after the end of a static array"),
        (105, "bytes of static shared memory, 49152 are allowed"),
        (106, "waits at the barrier of line"),
        (107, "deadlock"),
        (108, "at different collectives"),
        (109, "shuffles from lane 20, which takes no part"),
        (110, "is not in its own mask"),
        (111, "is not a multiple of 16"),
        (112, "is not a multiple of 16"),
        (113, "the shared address of something that is not shared"),
        (114, "copies it began are in flight"),
        (115, "touches memory outside of every buffer"),
        (116, "touches memory outside of every buffer, at address (nil)"),
    ];
    for (fault, expected) in faults {
        let message = misuse(fault, 63).expect_err(expected);
        assert!(message.contains(expected), "fault {fault}: expected `{expected}`, got `{message}`");
        assert!(message.contains("selftest_misuse"), "names the kernel: {message}");
    }
    assert_eq!(misuse(0, 64), Ok(()), "a launch after failures is as good as the first");
}

#[test]
fn launches_beyond_what_a_kernel_or_target_allows_are_refused() {
    let schedule = Schedule { order: Order::Forward, seed: 1, copies: Copies::LandAtWait };
    let launch = |dialect, launch: &Launch| {
        HostDevice::new(dialect, schedule).launch(launch, &Params { x: 0, out: 0, tiles: 0, fault: 0 }.bytes())
    };
    let whole = Launch { shared: 64, ..Launch::linear("selftest_misuse", 1, 64) };
    assert_eq!(launch(Dialect::Sm75, &whole), Ok(()));
    let refused = [
        (Dialect::Sm80, Launch { block: [65, 1, 1], ..whole }, "at most 64"),
        (Dialect::Sm80, Launch { grid: [0, 1, 1], ..whole }, "empty grid"),
        (Dialect::Sm75, Launch { shared: 64 * 1024 + 1, ..whole }, "this target has 65536"),
        (Dialect::Sm80, Launch { shared: 100 * 1024, ..whole }, "this target has 101376"),
        (Dialect::Sm80, Launch { kernel: "nobody", ..whole }, "there is no kernel `nobody`"),
    ];
    for (dialect, shape, expected) in refused {
        let message = launch(dialect, &shape).expect_err(expected);
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(launch(Dialect::Sm90, &Launch { shared: 200 * 1024, ..whole }), Ok(()));
}

#[test]
fn every_kernel_exists_in_every_dialect_and_has_one_name() {
    let mut names: Vec<&str> = Kernel::all().map(Kernel::name).collect();
    names.sort_unstable();
    for group in names.chunk_by(|a, b| a == b) {
        let dialects = Dialect::ALL.iter().filter(|&&d| Kernel::find(group[0], d).is_some()).count();
        assert_eq!((group.len(), dialects), (3, 3), "{}: once in each dialect", group[0]);
    }
}

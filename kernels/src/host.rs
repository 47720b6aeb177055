//! The kernels on a CPU: the registry of the host build, launches under a chosen schedule, and memory that notices
//! accesses outside of it. `kernels/host/shim.h` says how threads, barriers and tensor cores are played.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;

use crate::check::Device;
use crate::launch::Launch;

/// The value of `__CUDA_ARCH__` that a kernel was compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dialect {
    /// No bfloat16 tensor cores, no `cp.async`.
    Sm75 = 750,
    Sm80 = 800,
    Sm90 = 900,
}

impl Dialect {
    pub const ALL: [Dialect; 3] = [Dialect::Sm75, Dialect::Sm80, Dialect::Sm90];
}

/// Which thread goes on when several could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// All threads in turn, each until it waits.
    Forward,
    Reverse,
    /// As `Forward`, in a new random order every round.
    Shuffled,
    /// The first warp as far as it can go, then the second, …
    WarpAhead,
    /// The last warp first, its last lane first.
    WarpAheadReverse,
    /// A random warp for a random while.
    RandomBursts,
}

/// When the bytes of a `cp.async` arrive: at the two ends of what hardware may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Copies {
    /// Only when waited for; until then their destination is poisoned.
    LandAtWait = 0,
    /// At once, over whatever is still being read.
    LandAtIssue = 1,
}

/// One way for a launch to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Schedule {
    pub order: Order,
    pub seed: u32,
    pub copies: Copies,
}

impl Schedule {
    /// The schedules that the tests use: every order, each with copies that land early and late.
    pub fn all(seed: u32) -> impl Iterator<Item = Schedule> {
        use Order::*;
        let orders = [Forward, Reverse, Shuffled, WarpAhead, WarpAheadReverse, RandomBursts];
        let copies = [Copies::LandAtIssue, Copies::LandAtWait];
        orders.into_iter().flat_map(move |order| copies.map(|copies| Schedule { order, seed, copies }))
    }
}

/// A kernel of the host build, as `struct Kernel` of shim.h lays it out.
#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    arch: i32,
    max_threads: i32,
    params_bytes: usize,
    run: *const c_void,
}

// SAFETY: points to constants of the program only.
unsafe impl Sync for Kernel {}

unsafe extern "C" {
    fn kernels_host_count() -> usize;
    fn kernels_host_kernel(index: usize) -> *const Kernel;
    fn kernels_host_launch(
        kernel: *const Kernel,
        grid: *const u32,
        block: *const u32,
        shared: usize,
        params: *const c_void,
        schedule: *const Schedule,
    ) -> *const c_char;
}

impl Kernel {
    /// Every kernel of the host build, once for each dialect.
    pub fn all() -> impl Iterator<Item = &'static Kernel> {
        // SAFETY: the registry is complete before main and does not change afterwards.
        (0..unsafe { kernels_host_count() }).map(|i| unsafe { &*kernels_host_kernel(i) })
    }

    pub fn find(name: &str, dialect: Dialect) -> Option<&'static Kernel> {
        Kernel::all().find(|kernel| kernel.name() == name && kernel.arch == dialect as i32)
    }

    pub fn name(&self) -> &'static str {
        // SAFETY: a string literal of the kernel's file.
        unsafe { CStr::from_ptr(self.name) }.to_str().expect("kernel names are ASCII")
    }

    /// The most threads that a block may have.
    pub fn max_threads(&self) -> i32 {
        self.max_threads
    }

    /// Bytes of the kernel's one parameter.
    pub fn params_bytes(&self) -> usize {
        self.params_bytes
    }

    /// Runs all blocks of a launch, one after the other, on this thread.
    ///
    /// # Errors
    /// What a GPU would call undefined or refuse: see shim.h. Memory may have been written by then.
    ///
    /// # Safety
    /// `params` holds the kernel's parameter struct, and its pointers are valid for what the kernel does with them.
    /// (Accesses that hit no mapping at all are reported as errors.)
    pub unsafe fn launch(&self, launch: &Launch, params: &[u8], schedule: &Schedule) -> Result<(), String> {
        if params.len() != self.params_bytes {
            return Err(format!(
                "{}: {} bytes of parameters, expected {}",
                self.name(),
                params.len(),
                self.params_bytes
            ));
        }
        // The struct is copied to a place that is aligned for it, as a driver would do.
        let mut aligned = vec![0u128; params.len().div_ceil(16)];
        // SAFETY: `aligned` has at least as many bytes; the caller vouches for what the pointers in it refer to.
        let message = unsafe {
            std::ptr::copy_nonoverlapping(params.as_ptr(), aligned.as_mut_ptr().cast(), params.len());
            let (grid, block) = (launch.grid.as_ptr(), launch.block.as_ptr());
            kernels_host_launch(self, grid, block, launch.shared as usize, aligned.as_ptr().cast(), schedule)
        };
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: valid until this thread launches again.
        Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
    }
}

/// The CPU as a [`Device`]: one dialect, one schedule.
pub struct HostDevice {
    pub dialect: Dialect,
    pub schedule: Schedule,
    allocations: Vec<Fenced>,
}

impl HostDevice {
    pub fn new(dialect: Dialect, schedule: Schedule) -> HostDevice {
        HostDevice { dialect, schedule, allocations: Vec::new() }
    }

    fn allocation(&self, address: u64) -> &Fenced {
        self.allocations.iter().find(|a| a.address() == address).expect("an address that alloc has returned")
    }
}

impl fmt::Display for HostDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Schedule { order, seed, copies } = self.schedule;
        write!(f, "host {:?}, {order:?} (seed {seed}), copies {copies:?}", self.dialect)
    }
}

impl Device for HostDevice {
    fn alloc(&mut self, bytes: &[u8]) -> u64 {
        self.allocations.push(Fenced::new(bytes));
        self.allocations.last().expect("just pushed").address()
    }

    fn read(&mut self, address: u64, len: usize) -> Vec<u8> {
        self.allocation(address).bytes()[..len].to_vec()
    }

    fn launch(&mut self, launch: &Launch, params: &[u8]) -> Result<(), String> {
        let kernel = Kernel::find(launch.kernel, self.dialect);
        let kernel = kernel.ok_or_else(|| format!("there is no kernel `{}`", launch.kernel))?;
        // SAFETY: the pointers in `params` come from `alloc`, whose memory lives as long as `self`; accesses beyond it run
        // into fences.
        unsafe { kernel.launch(launch, params, &self.schedule) }?;
        for allocation in &self.allocations {
            allocation.check(launch.kernel)?;
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.allocations.clear();
    }
}

/// Bytes of NaN that are kept before an allocation, and checked.
const GUARD: usize = 4096;
const PAGE: usize = 4096;
const POISON: u8 = 0xff;

/// Memory that starts on a 16-byte boundary, ends (but for that) at an inaccessible page, and has guard bytes before it.
struct Fenced {
    base: *mut u8,
    mapped: usize,
    /// Of the data, from `base`.
    start: usize,
    len: usize,
}

impl Fenced {
    fn new(bytes: &[u8]) -> Fenced {
        let room = (GUARD + bytes.len().next_multiple_of(16)).next_multiple_of(PAGE);
        let mapped = room + PAGE;
        // SAFETY: a fresh anonymous mapping; its last page is then made inaccessible.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED, "cannot map {mapped} bytes");
            assert_eq!(libc::mprotect(base.byte_add(room), PAGE, libc::PROT_NONE), 0);
            base.cast::<u8>()
        };
        let start = room - bytes.len().next_multiple_of(16);
        // SAFETY: `room` bytes from `base` are writable, and nobody else has them.
        unsafe {
            std::ptr::write_bytes(base, POISON, room);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), base.add(start), bytes.len());
        }
        Fenced { base, mapped, start, len: bytes.len() }
    }

    fn address(&self) -> u64 {
        self.base as u64 + self.start as u64
    }

    fn slice(&self, start: usize, end: usize) -> &[u8] {
        debug_assert!(end <= self.mapped - PAGE);
        // SAFETY: inside the readable part of the mapping; kernels write to it only during `launch`.
        unsafe { std::slice::from_raw_parts(self.base.add(start), end - start) }
    }

    fn bytes(&self) -> &[u8] {
        self.slice(self.start, self.start + self.len)
    }

    fn check(&self, kernel: &str) -> Result<(), String> {
        let before = self.slice(0, self.start).iter().rev().position(|&b| b != POISON);
        let after = self.slice(self.start + self.len, self.mapped - PAGE).iter().position(|&b| b != POISON);
        let len = self.len;
        match (before, after) {
            (None, None) => Ok(()),
            (Some(at), _) => Err(format!("{kernel} wrote {} bytes before a buffer of {len} bytes", at + 1)),
            (_, Some(at)) => Err(format!("{kernel} wrote {at} bytes beyond the end of a buffer of {len} bytes")),
        }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no reference outlives `self`.
        unsafe { libc::munmap(self.base.cast(), self.mapped) };
    }
}

//! What happens when an operation runs: the check of every byte that it touches, the bytes themselves, the time it takes.

use layerstream_kernels::host::Kernel;
use layerstream_kernels::launch::Launch;

use crate::access::{self, Range};
use crate::code::{self, Code};
use crate::config::Fault;
use crate::history::Conflict;
use crate::memory::{POISON, ranges_overlap};
use crate::sim::{Op, Place, Sim, Work};
use crate::verify;

/// Which of a card's engines copies.
const TO_DEVICE: usize = 0;
const TO_HOST: usize = 1;
const WITHIN: usize = 2;

/// A summary of host bytes that is much faster to make than a copy: a few of each page, and the last ones.
///
/// # Safety
/// The bytes can be read. Somebody may be writing them, which is what this finds.
pub unsafe fn fingerprint(address: u64, len: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    // SAFETY: the caller's promise; callers stay within `len`.
    let word = |at: u64| unsafe { ((address + at) as *const u64).read_unaligned() };
    let mut add = |word: u64| hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    if len < 8 {
        // SAFETY: as above.
        (0..len).for_each(|at| add(unsafe { *((address + at) as *const u8) }.into()));
    } else {
        (0..len - 7).step_by(4096).for_each(|at| add(word(at)));
        add(word(len - 8));
    }
    hash
}

/// How two operations go together, for a message.
fn describe(conflict: &Conflict, me: &str, write: bool) -> String {
    let (start, end) = (conflict.start, conflict.end);
    let verb = |write| if write { "writes" } else { "reads" };
    format!(
        "nothing orders two operations: {me} {} [{start:#x}, {end:#x}), which {} {}",
        verb(write),
        conflict.other,
        verb(conflict.other_writes)
    )
}

impl Sim {
    /// Runs the first operation of a stream, which waits for nothing any more.
    pub fn perform(&mut self, slot: usize) -> Result<(), Code> {
        let device = self.streams[slot].device;
        if let Some(code) = self.devices[device].broken {
            return Err(code);
        }
        self.counts.operations += 1;
        if self.fails(Fault::Lost(self.counts.operations)) {
            return Err(self.break_down(device, code::UNKNOWN));
        }
        let op = self.streams[slot].queue.pop_front().expect("somebody looked");
        let began = self.streams[slot].finished.max(op.queued_at);
        let ended = match &op.work {
            Work::Copy { to, from, len, print } => {
                self.counts.copies += 1;
                if self.fails(Fault::Copy(self.counts.copies)) {
                    return Err(self.break_down(device, code::ECC_UNCORRECTABLE));
                }
                self.copy(&op, *to, *from, *len, *print);
                let engine = match (to, from) {
                    (Place::Device(_), Place::Device(_)) => WITHIN,
                    (Place::Device(_), _) => TO_DEVICE,
                    _ => TO_HOST,
                };
                let free = &mut self.devices[device].engines[engine];
                // 25 GB/s, and 5 µs to begin with.
                *free = began.max(*free) + 5_000 + len / 25;
                *free
            }
            Work::Staged { to, bytes } => {
                let range = Range { start: *to, end: to + bytes.len() as u64, write: true };
                self.check_device(&op, &[range]);
                // SAFETY: the range is in a live allocation, which nothing else refers to.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), *to as *mut u8, bytes.len()) };
                self.report.host_to_device.count += 1;
                self.report.host_to_device.bytes += bytes.len() as u64;
                began + 5_000 + bytes.len() as u64 / 10
            }
            Work::Fill { to, value, len } => {
                self.check_device(&op, &[Range { start: *to, end: to + len, write: true }]);
                // SAFETY: as above.
                unsafe { std::ptr::write_bytes(*to as *mut u8, *value, *len as usize) };
                began + 2_000 + len / 500
            }
            Work::Launch { kernel, launch, params } => {
                self.counts.kernels += 1;
                if self.fails(Fault::Kernel(self.counts.kernels)) {
                    return Err(self.break_down(device, code::LAUNCH_FAILED));
                }
                began + self.launch(&op, kernel, launch, params)
            }
            Work::Record { event, generation } => {
                if let Some(event) = self.events.get_mut(event).filter(|event| event.generation == *generation) {
                    event.reached = Some(began);
                }
                began
            }
            Work::Wait => {
                let waited = op.waits().map(|other| self.streams[other].finished).max();
                began.max(waited.unwrap_or(0))
            }
        };
        self.report.operations += 1;
        let stream = &mut self.streams[slot];
        stream.finished = ended;
        stream.done = op.access.number;
        Ok(())
    }

    // --- checks ------------------------------------------------------------------------------------------------------

    /// Notes that an operation touches device memory, which must be there, and touched in order.
    fn check_device(&mut self, op: &Op, ranges: &[Range]) {
        for &Range { start, end, write } in ranges {
            let device = self.streams[op.access.stream].device;
            let problem = match self.memory.device(start, end - start) {
                Err(problem) => format!("{}: [{start:#x}, {end:#x}) {problem}", op.access.label),
                Ok(found) if found.device != device => format!("{} uses memory of another card", op.access.label),
                Ok(found) => match found.history.access(start, end, write, &op.access, &op.clock) {
                    Ok(()) if !found.history.is_crowded() => continue,
                    Ok(()) => {
                        self.forget();
                        continue;
                    }
                    Err(conflict) => describe(&conflict, &op.access.label, write),
                },
            };
            self.misuse(&problem);
        }
    }

    fn check_place(&mut self, op: &Op, place: Place, len: u64, write: bool) {
        let (start, end) = (place.address(), place.address() + len);
        match place {
            Place::Device(_) => self.check_device(op, &[Range { start, end, write }]),
            Place::Pageable(_) => {}
            Place::Pinned(_) => {
                let problem = match self.memory.pinned(start, len) {
                    None => format!("{}: [{start:#x}, {end:#x}) is no longer page-locked", op.access.label),
                    Some(region) => match region.history.access(start, end, write, &op.access, &op.clock) {
                        Ok(()) if !region.history.is_crowded() => return,
                        Ok(()) => return self.forget(),
                        Err(conflict) => describe(&conflict, &op.access.label, write),
                    },
                };
                self.misuse(&problem);
            }
        }
    }

    fn forget(&mut self) {
        let floor = self.floor();
        self.memory.histories().for_each(|history| history.forget(&floor));
    }

    // --- bytes -------------------------------------------------------------------------------------------------------

    fn copy(&mut self, op: &Op, to: Place, from: Place, len: u64, print: Option<u64>) {
        self.check_place(op, from, len, false);
        self.check_place(op, to, len, true);
        let (target, source) = (to.address(), from.address());
        // SAFETY: a live page-locked range, or one that the caller of a waiting call vouches for.
        if print.is_some_and(|before| before != unsafe { fingerprint(source, len) }) {
            self.misuse(&format!("the host changed bytes that {} was still to read", op.access.label));
        }
        // SAFETY: both ranges were found to be alive, or belong to the caller of a waiting call; they may overlap.
        unsafe { std::ptr::copy(source as *const u8, target as *mut u8, len as usize) };
        let report = &mut self.report;
        let copies = match (to, from) {
            (Place::Device(_), Place::Device(_)) => &mut report.device_to_device,
            (Place::Device(_), _) => &mut report.host_to_device,
            _ => &mut report.device_to_host,
        };
        copies.count += 1;
        copies.bytes += len;
        self.downloads -= usize::from(matches!(to, Place::Pinned(_)));
    }

    /// What the host sees in the target of a copy from the card before that copy has run: nothing that it could use. Not
    /// where operations that are queued still need what is there.
    pub fn poison_target(&self, target: u64, len: u64) {
        let uses = |op: &Op| match &op.work {
            Work::Copy { to, from, len: other, .. } => [to, from]
                .iter()
                .any(|place| matches!(place, Place::Pinned(at) if ranges_overlap(*at, *other, target, len))),
            _ => false,
        };
        if !self.streams.iter().flat_map(|stream| &stream.queue).any(uses) {
            // SAFETY: a page-locked range that was just looked up; the program waits before it reads it.
            unsafe { std::ptr::write_bytes(target as *mut u8, POISON, len as usize) };
        }
    }

    // --- kernels -----------------------------------------------------------------------------------------------------

    /// Runs a kernel. Returns how long it took, in nanoseconds of the simulated card.
    fn launch(&mut self, op: &Op, kernel: &'static Kernel, launch: &Launch, params: &[u8]) -> u64 {
        let ranges = match access::ranges(launch, params, &mut self.memory) {
            Ok(ranges) => ranges,
            Err(problem) => self.misuse(&format!("{}: {problem}", op.access.label)),
        };
        self.check_device(op, &ranges);
        self.report.launched(launch.kernel);
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        if self.config.arithmetic || access::makes_ids(launch.kernel) {
            let run = || {
                // SAFETY: the struct belongs to the kernel, and its ranges are in live allocations; a kernel that goes
                // beyond them meets pages that cannot be touched, which the host build reports.
                unsafe { kernel.launch(launch, params, &self.schedule) }
            };
            let outcome = if self.config.verify {
                let device = self.streams[op.access.stream].device;
                let all = self.memory.allocations().filter(|a| a.device == device).map(|a| (a.start, a.len));
                verify::held_to(&ranges, &all.collect::<Vec<_>>(), run)
            } else {
                run()
            };
            if let Err(problem) = outcome {
                self.misuse(&format!("{}: {problem}", op.access.label));
            }
        } else {
            for range in ranges.iter().filter(|range| range.write) {
                // SAFETY: in a live allocation, which nothing else refers to.
                unsafe { std::ptr::write_bytes(range.start as *mut u8, 0, (range.end - range.start) as usize) };
            }
        }
        3_000 + bytes / 300
    }
}

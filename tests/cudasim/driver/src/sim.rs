//! The driver's state, and its scheduler: cards, contexts, streams as queues, events, and who may run next.
//!
//! Queueing something runs nothing (a seed may choose to). Work runs when somebody has to wait for it, and then only what
//! that takes, in stream order and behind the events that were waited for: everything else stays undone as long as is
//! legal, so that what nobody waited for is seen to be missing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use layerstream_kernels::host::{Dialect, Kernel, Schedule};
use layerstream_kernels::launch::Launch;

use crate::clock::Clock;
use crate::code::{self, Code};
use crate::config::{Config, Fault};
use crate::history::{Access, Label};
use crate::memory::{Memory, is_mapped};
use crate::random::Random;
use crate::report::Report;
use crate::trace::Trace;

/// One end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Device(u64),
    /// Host memory that is page-locked.
    Pinned(u64),
    /// Host memory of a call that waits for its copy.
    Pageable(u64),
}

impl Place {
    pub fn address(self) -> u64 {
        let (Place::Device(address) | Place::Pinned(address) | Place::Pageable(address)) = self;
        address
    }
}

/// What an operation does when its time comes.
pub enum Work {
    Copy {
        to: Place,
        from: Place,
        len: u64,
        /// Of the host's bytes as they were when the copy was queued; none where an earlier operation may change them.
        print: Option<u64>,
    },
    /// A copy whose bytes the driver took when it was queued.
    Staged {
        to: u64,
        bytes: Vec<u8>,
    },
    Fill {
        to: u64,
        value: u8,
        len: u64,
    },
    Launch {
        kernel: &'static Kernel,
        launch: Launch,
        params: Vec<u8>,
    },
    Record {
        event: usize,
        generation: u64,
    },
    Wait,
}

/// One operation of a stream.
pub struct Op {
    pub access: Access,
    /// What has ended before it begins, itself included.
    pub clock: Clock,
    /// What else must have run: streams and numbers.
    waits: Vec<(usize, u64)>,
    pub work: Work,
    pub queued_at: u64,
}

pub struct Stream {
    /// Null for the default stream.
    pub handle: usize,
    pub device: usize,
    /// Waits for the default stream, which waits for it.
    blocking: bool,
    pub destroyed: bool,
    pub queue: VecDeque<Op>,
    pub queued: u64,
    pub done: u64,
    /// The clock of the last operation.
    pub tail: Clock,
    /// When the last operation that ran ended, in nanoseconds of the simulated card.
    pub finished: u64,
    /// How often somebody asked and was told to come back.
    asked: u32,
    /// Kernels were queued here.
    launched: bool,
}

pub struct Event {
    pub device: usize,
    pub timed: bool,
    /// Stream and number of the last record.
    pub recorded: Option<(usize, u64)>,
    pub clock: Clock,
    pub generation: u64,
    /// When the last record was reached.
    pub reached: Option<u64>,
}

pub struct Module {
    pub device: usize,
    /// Stream and number of the last launch of each stream.
    pub used: BTreeMap<usize, u64>,
}

pub struct Function {
    pub module: usize,
    pub kernel: &'static Kernel,
    pub max_dynamic_shared: i32,
}

#[derive(Default)]
pub struct Device {
    pub retained: u32,
    pub flags: u32,
    /// What every call returns from now on.
    pub broken: Option<Code>,
    /// When the engines that copy to the card, from it and within it have nothing more to do.
    pub engines: [u64; 3],
}

/// How many there were of what can be made to fail.
#[derive(Default)]
pub struct Counts {
    pub allocations: u64,
    pub pins: u64,
    pub enqueued: u64,
    pub copies: u64,
    pub kernels: u64,
    pub operations: u64,
    pub modules: u64,
}

/// When work runs that nobody waits for yet.
enum Mood {
    Never,
    /// With each call, one ready operation in this many times.
    OneIn(usize),
    Always,
}

pub struct Sim {
    pub config: Config,
    pub initialised: bool,
    /// The call that runs, for messages.
    pub call: &'static str,
    pub devices: Vec<Device>,
    /// By their places in clocks; the first ones are the default streams of the cards.
    pub streams: Vec<Stream>,
    pub events: BTreeMap<usize, Event>,
    pub modules: BTreeMap<usize, Module>,
    pub functions: BTreeMap<usize, Function>,
    pub memory: Memory,
    /// What the host knows to have ended.
    pub host: Clock,
    pub counts: Counts,
    pub report: Report,
    pub trace: Option<Trace>,
    pub schedule: Schedule,
    /// Copies from cards to the host that are queued.
    pub downloads: usize,
    mood: Mood,
    random: Random,
    next_handle: usize,
    began: Instant,
}

impl Sim {
    pub fn new(config: Config) -> Result<Sim, String> {
        let seed = config.seed;
        let schedules: Vec<Schedule> = Schedule::all(seed as u32).collect();
        // Without a seed: threads in turn, copies that land late.
        let schedule = schedules[if seed == 0 { 1 } else { seed as usize % schedules.len() }];
        let default_stream = |device| Stream::new(0, device, true, Clock::default());
        Ok(Sim {
            trace: config.trace.as_deref().map(Trace::create).transpose()?,
            mood: match seed % 4 {
                0 => Mood::Never,
                1 => Mood::Always,
                2 => Mood::OneIn(2),
                _ => Mood::OneIn(8),
            },
            devices: (0..config.devices).map(|_| Device::default()).collect(),
            streams: (0..config.devices).map(default_stream).collect(),
            random: Random::new(seed),
            config,
            schedule,
            initialised: false,
            call: "",
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            memory: Memory::default(),
            host: Clock::default(),
            counts: Counts::default(),
            report: Report::default(),
            downloads: 0,
            // Far from zero and from addresses, so that one taken for the other is nobody's.
            next_handle: 0x51_0000,
            began: Instant::now(),
        })
    }

    pub fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    pub fn dialect(&self) -> Option<Dialect> {
        match self.config.cc {
            ..75 => None,
            75..80 => Some(Dialect::Sm75),
            // The consumer cards of generation 12 share their source with generation 8.
            80..90 | 120.. => Some(Dialect::Sm80),
            90..120 => Some(Dialect::Sm90),
        }
    }

    /// A handle that was never given out before, so that late uses of what is gone are seen.
    pub fn handle(&mut self) -> usize {
        self.next_handle += 16;
        self.next_handle
    }

    /// Bytes of a card that this program has beside the context: its allocations, and the page tables of what is page-locked.
    pub fn used(&self, device: usize) -> u64 {
        let tables = self.memory.pinned_bytes().checked_div(self.config.tables);
        self.memory.used(device) + tables.unwrap_or(0)
    }

    /// Notes how much of a card this program has now.
    pub fn note_peak(&mut self, device: usize) {
        let used = self.used(device) + self.config.context;
        let peak = self.report.peak_vram.entry(device).or_default();
        *peak = (*peak).max(used);
    }

    pub fn fails(&self, fault: Fault) -> bool {
        self.config.faults.contains(&fault)
    }

    /// Ends the program: it did what a GPU would leave to luck.
    pub fn misuse(&self, message: &str) -> ! {
        let call = if self.call.is_empty() { String::new() } else { format!(" ({})", self.call) };
        eprintln!("cudasim: misuse of the driver{call}: {message} [seed {}]", self.config.seed);
        self.write_report(Some(message));
        // SAFETY: ends the process without running anything of the program, which is wrong already.
        unsafe { libc::_exit(crate::EXIT_MISUSE) }
    }

    fn write_report(&self, misuse: Option<&str>) {
        if let Some(path) = &self.config.report {
            self.report.write(path, misuse);
        }
    }

    // --- streams -----------------------------------------------------------------------------------------------------

    pub fn stream_name(&self, slot: usize) -> String {
        if slot < self.devices.len() { "the default stream".into() } else { format!("stream {slot}") }
    }

    pub fn new_stream(&mut self, device: usize, blocking: bool) -> usize {
        let handle = self.handle();
        let mut stream = Stream::new(handle, device, blocking, self.host.clone());
        // A destroyed stream's place is free when all that ran there is known to have ended: numbers go on from there.
        let free = (self.devices.len()..self.streams.len()).find(|&slot| {
            let old = &self.streams[slot];
            old.destroyed && old.done == old.queued && self.host.get(slot) >= old.queued
        });
        match free {
            Some(slot) => {
                (stream.queued, stream.done) = (self.streams[slot].queued, self.streams[slot].queued);
                stream.finished = self.streams[slot].finished;
                self.streams[slot] = stream;
            }
            None => self.streams.push(stream),
        }
        handle
    }

    /// Counts a wait of the host for kernels while copies of another stream, which these do not need, are still to happen.
    pub fn note_idle_wait(&mut self, slot: usize, number: u64, past: &Clock) {
        let Stream { device, done, launched, .. } = self.streams[slot];
        let unneeded = |(other, stream): (usize, &Stream)| {
            let copies = stream.queue.iter().filter(|op| matches!(op.work, Work::Copy { .. }));
            let copies = copies.filter(|op| op.access.number > past.get(other)).count();
            stream.device == device && !stream.launched && copies > 0
        };
        if launched && done < number && self.streams.iter().enumerate().any(unneeded) {
            self.report.idle_waits += 1;
        }
    }

    /// The stream of a handle; null is the default stream of the card.
    pub fn slot(&self, handle: usize, device: usize) -> usize {
        // 1 is the name of the default stream in the header.
        if handle <= 1 {
            return device;
        }
        match self.streams.iter().position(|stream| stream.handle == handle && !stream.destroyed) {
            Some(slot) if self.streams[slot].device == device => slot,
            Some(_) => self.misuse("a stream of another context is used"),
            None => self.misuse(&format!("{handle:#x} is no stream, or was destroyed")),
        }
    }

    /// Queues an operation; `also` is what it waits for beside its stream, and how that looks from there.
    pub fn enqueue(&mut self, slot: usize, also: Option<((usize, u64), Clock)>, work: Work, what: String) {
        let mut clock = std::mem::take(&mut self.streams[slot].tail);
        clock.join(&self.host);
        let mut waits = Vec::new();
        if let Some((wait, past)) = also {
            waits.push(wait);
            clock.join(&past);
        }
        let device = self.streams[slot].device;
        let implied = |(other, stream): &(usize, &Stream)| {
            let default =
                if slot == device { stream.blocking } else { *other == device && self.streams[slot].blocking };
            *other != slot && stream.device == device && default
        };
        for (other, stream) in self.streams.iter().enumerate().filter(implied) {
            waits.push((other, stream.queued));
            clock.join(&stream.tail);
        }
        let number = self.streams[slot].queued + 1;
        clock.set(slot, number);
        let label: Label = format!("{what} (operation {number} of {})", self.stream_name(slot)).into();
        let queued_at = self.now();
        let stream = &mut self.streams[slot];
        stream.launched |= matches!(work, Work::Launch { .. });
        stream.tail = clock.clone();
        stream.queued = number;
        stream.queue.push_back(Op { access: Access { stream: slot, number, label }, clock, waits, work, queued_at });
        self.wander();
    }

    // --- the scheduler -----------------------------------------------------------------------------------------------

    /// What the first operation of a stream still waits for.
    fn unmet(&self, slot: usize) -> Option<(usize, u64)> {
        let head = self.streams[slot].queue.front()?;
        head.waits.iter().copied().find(|&(other, number)| self.streams[other].done < number)
    }

    /// Runs what it takes until `number` operations of a stream have run.
    pub fn run_to(&mut self, slot: usize, number: u64) -> Result<(), Code> {
        let mut goals = vec![(slot, number)];
        while let Some(&(slot, number)) = goals.last() {
            if self.streams[slot].done >= number {
                goals.pop();
            } else if let Some(goal) = self.unmet(slot) {
                goals.push(goal);
            } else {
                self.perform(slot)?;
            }
        }
        Ok(())
    }

    /// Runs everything that is queued on a card, and still the host does not know about it.
    pub fn drain(&mut self, device: usize) -> Result<(), Code> {
        for slot in 0..self.streams.len() {
            if self.streams[slot].device == device {
                self.run_to(slot, self.streams[slot].queued)?;
            }
        }
        Ok(())
    }

    /// Perhaps runs something that nobody waits for yet. What fails then is found by the next call.
    fn wander(&mut self) {
        loop {
            match self.mood {
                Mood::Never => return,
                Mood::OneIn(times) if self.random.below(times) > 0 => return,
                _ => {}
            }
            let ready = |&slot: &usize| !self.streams[slot].queue.is_empty() && self.unmet(slot).is_none();
            let ready: Vec<usize> = (0..self.streams.len()).filter(ready).collect();
            if ready.is_empty() {
                return;
            }
            let slot = ready[self.random.below(ready.len())];
            if self.perform(slot).is_err() {
                return;
            }
        }
    }

    /// Whether so many operations of a stream have run, for somebody who asks without waiting. Who asks again and again
    /// is told yes in the end.
    pub fn ask(&mut self, slot: usize, number: u64) -> Result<bool, Code> {
        if self.streams[slot].done >= number {
            return Ok(true);
        }
        self.streams[slot].asked += 1;
        let enough = match self.config.seed {
            0 => self.streams[slot].asked > 1,
            _ => self.streams[slot].asked > 20 || self.random.below(3) == 0,
        };
        if !enough {
            self.wander();
            return Ok(false);
        }
        self.streams[slot].asked = 0;
        self.run_to(slot, number)?;
        Ok(true)
    }

    /// The host waits for a stream.
    pub fn wait_for_stream(&mut self, slot: usize) -> Result<(), Code> {
        self.run_to(slot, self.streams[slot].queued)?;
        let tail = self.streams[slot].tail.clone();
        self.host.join(&tail);
        Ok(())
    }

    /// What the host and everything that is queued know: the past of all that can still come.
    pub fn floor(&self) -> Clock {
        let mut floor = self.host.clone();
        for op in self.streams.iter().filter_map(|stream| stream.queue.front()) {
            floor.meet(&op.clock);
        }
        floor
    }

    /// The card fails for good.
    pub fn break_down(&mut self, device: usize, code: Code) -> Code {
        *self.devices[device].broken.get_or_insert(code)
    }

    // --- the end -----------------------------------------------------------------------------------------------------

    /// What a card still has that its program should have given back.
    pub fn leaks(&self, device: usize) -> Vec<String> {
        let mut leaks = Vec::new();
        let mut add = |count: usize, what: String| {
            if count > 0 {
                leaks.push(format!("{count} {what}"));
            }
        };
        let allocations: Vec<_> = self.memory.allocations().filter(|a| a.device == device).collect();
        let bytes: u64 = allocations.iter().map(|a| a.len).sum();
        add(allocations.len(), format!("allocations of device memory ({bytes} bytes)"));
        let streams = self.streams[self.devices.len()..].iter();
        add(streams.filter(|s| s.device == device && !s.destroyed).count(), "streams".into());
        add(self.events.values().filter(|e| e.device == device).count(), "events".into());
        add(self.modules.values().filter(|m| m.device == device).count(), "modules".into());
        let bytes = self.memory.pinned_bytes();
        add(self.memory.pinned_regions().count(), format!("page-locked regions of host memory ({bytes} bytes)"));
        leaks
    }

    /// The last thing that happens in a process.
    pub fn exit(&mut self) {
        self.call = "at exit";
        for device in 0..self.devices.len() {
            if self.devices[device].broken.is_some() {
                continue;
            }
            // What nobody waited for was still to happen. Host memory that was not given back may be gone by now.
            if self.memory.pinned_regions().all(|region| is_mapped(region.start, region.len)) {
                let _ = self.drain(device);
            }
            let leaks = self.leaks(device);
            if !leaks.is_empty() {
                self.misuse(&format!("left behind: {}", leaks.join(", ")));
            }
        }
        self.write_report(None);
    }

    pub fn context_of(&self, device: usize) -> Result<(), Code> {
        let known = &self.devices[device];
        if known.retained == 0 {
            return Err(code::CONTEXT_IS_DESTROYED);
        }
        known.broken.map_or(Ok(()), Err)
    }
}

impl Stream {
    fn new(handle: usize, device: usize, blocking: bool, tail: Clock) -> Stream {
        let queue = VecDeque::new();
        let (queued, done, finished, asked) = (0, 0, 0, 0);
        let (destroyed, launched) = (false, false);
        Stream { handle, device, blocking, destroyed, queue, queued, done, tail, finished, asked, launched }
    }
}

impl Op {
    /// The streams that it waits for, beside its own.
    pub fn waits(&self) -> impl Iterator<Item = usize> {
        self.waits.iter().map(|&(other, _)| other)
    }
}

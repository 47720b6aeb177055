//! One run of one stage: what it took, and what it ran with.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::disk::memory::HUGE_PAGE;
use crate::disk::{Landed, Read, Reader, ReaderKind};

use super::stats::processor_time;

/// What a run took. Getting ready (memory, threads, registration) is apart, and in nothing else.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub bytes: u64,
    pub seconds: f64,
    /// User and system time of all threads of this process.
    pub cpu_seconds: f64,
    pub init_seconds: f64,
    /// Seconds that each chunk took, in no order.
    pub latencies: Vec<f64>,
    /// Seconds that the consumer waited for the disk.
    pub waited_for_disk: Option<f64>,
    /// Seconds that nothing was being read because the ring was full: a mean over threads.
    pub waited_for_copy: Option<f64>,
    /// Of copies alone: whether what arrived was what was sent, if that was asked for.
    pub intact: Option<bool>,
    /// CRC-32 of each piece, if it was asked for.
    pub sums: Option<Vec<u32>>,
    pub facts: Facts,
}

/// What really ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Of each queue: the original's, the replicas'.
    pub readers: Vec<ReaderKind>,
    /// Threads that read, in all.
    pub threads: usize,
    /// The most reads in flight, in all.
    pub in_flight: usize,
    /// Bytes of host memory that reads or copies go through.
    pub memory: usize,
    /// Those on 2 MiB pages.
    pub huge: usize,
    /// Those registered with the kernel for `io_uring`.
    pub registered: usize,
    /// Those page-locked for the GPU.
    pub locked: usize,
}

/// The pages that memory lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Pages {
    #[serde(rename = "2MiB")]
    Huge,
    #[serde(rename = "4KiB")]
    Small,
    #[serde(rename = "mixed")]
    Mixed,
}

impl Facts {
    pub fn pages(&self) -> Pages {
        match self.huge {
            0 => Pages::Small,
            huge if huge >= self.memory / HUGE_PAGE * HUGE_PAGE => Pages::Huge,
            _ => Pages::Mixed,
        }
    }

    /// Bytes that nobody else can have meanwhile: locked for the GPU, or else pinned by the kernel.
    pub fn pinned(&self) -> usize {
        self.locked.max(self.registered)
    }
}

/// Real time and processor time since a moment.
pub struct Watch {
    pub start: Instant,
    processor: Duration,
}

impl Watch {
    pub fn start() -> Watch {
        Watch { start: Instant::now(), processor: processor_time() }
    }

    /// Seconds until `end`.
    pub fn until(&self, end: Instant) -> f64 {
        end.saturating_duration_since(self.start).as_secs_f64()
    }

    pub fn cpu_seconds(&self) -> f64 {
        processor_time().saturating_sub(self.processor).as_secs_f64()
    }
}

/// When chunks were asked for and how long they took, shared by the readers of a run.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Times>>);

#[derive(Default)]
struct Times {
    /// By file and offset.
    asked: HashMap<(usize, u64), Instant>,
    /// In seconds.
    took: Vec<f64>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a chunk is there, if it was asked for.
    pub fn done(&self, file: usize, offset: u64) {
        let mut times = self.lock();
        let took = times.asked.remove(&(file, offset)).map(|since| since.elapsed().as_secs_f64());
        times.took.extend(took);
    }

    pub fn take(&self) -> Vec<f64> {
        std::mem::take(&mut self.lock().took)
    }
}

/// A reader that notes when its reads are asked for, and, unless someone else does, when they have landed.
pub struct Timed {
    inner: Box<dyn Reader>,
    log: Log,
    until_landed: bool,
}

impl Timed {
    pub fn new(inner: Box<dyn Reader>, log: Log, until_landed: bool) -> Timed {
        Timed { inner, log, until_landed }
    }
}

impl Reader for Timed {
    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn submit(&mut self, read: Read) {
        // The rest of a read that came back short belongs to it.
        self.log.lock().asked.entry((read.file, read.offset)).or_insert_with(Instant::now);
        self.inner.submit(read);
    }

    fn wait(&mut self, landed: &mut Vec<Landed>) -> io::Result<()> {
        let first = landed.len();
        self.inner.wait(landed)?;
        if self.until_landed {
            landed[first..].iter().for_each(|Landed { read, .. }| self.log.done(read.file, read.offset));
        }
        Ok(())
    }

    fn registered(&self) -> bool {
        self.inner.registered()
    }
}

/// Holds threads back until everything is ready for them. Opens by itself when it is dropped.
#[derive(Default)]
pub struct Gate(Arc<(Mutex<(usize, bool)>, Condvar)>);

impl Gate {
    /// What threads wait at; it may outlive the gate.
    pub fn entrance(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.0);
        move || {
            let mut state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 += 1;
            while !state.1 {
                state = shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// How many threads have arrived.
    pub fn arrived(&self) -> usize {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    pub fn open(&self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.0.1.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

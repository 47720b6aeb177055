//! One run of one stage: what it took, and what it ran with.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
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
    start: Instant,
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

/// How long each read took, in seconds, shared by the readers of a run.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<f64>>>);

impl Log {
    pub fn take(&self) -> Vec<f64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A reader that notes how long each of its reads takes, from when it is asked for until it has landed.
pub struct Timed {
    inner: Box<dyn Reader>,
    /// When reads that are in flight were asked for, by file and offset.
    asked: HashMap<(usize, u64), Instant>,
    log: Log,
}

impl Timed {
    pub fn new(inner: Box<dyn Reader>, log: Log) -> Timed {
        Timed { inner, asked: HashMap::new(), log }
    }
}

impl Reader for Timed {
    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn submit(&mut self, read: Read) {
        // The rest of a read that came back short belongs to it.
        self.asked.entry((read.file, read.offset)).or_insert_with(Instant::now);
        self.inner.submit(read);
    }

    fn wait(&mut self, landed: &mut Vec<Landed>) -> io::Result<()> {
        let first = landed.len();
        self.inner.wait(landed)?;
        let now = Instant::now();
        let mut log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Landed { read, .. } in &landed[first..] {
            log.extend(self.asked.remove(&(read.file, read.offset)).map(|since| (now - since).as_secs_f64()));
        }
        Ok(())
    }

    fn registered(&self) -> bool {
        self.inner.registered()
    }
}

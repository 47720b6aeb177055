//! The threads, and each one's scratch memory. Tasks are handed out by a counter; the calling thread works too, so a
//! small operation is done before another thread has woken up.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{attention, matmul};
use crate::{Error, Result};

/// Elements below which an element-wise operation is not worth waking a thread for.
const SMALL: usize = 1 << 15;

/// What one thread needs besides its stack. Its size does not depend on the model.
pub(super) struct Scratch {
    pub matmul: matmul::Scratch,
    pub attention: attention::Scratch,
}

impl Scratch {
    pub const BYTES: usize = matmul::Scratch::BYTES + attention::Scratch::BYTES;

    fn new() -> Scratch {
        Scratch { matmul: matmul::Scratch::new(), attention: attention::Scratch::new() }
    }
}

pub(super) struct Workers {
    /// All threads but the caller's; `None` if that leaves none.
    pool: Option<rayon::ThreadPool>,
    scratch: Vec<Scratch>,
}

/// The threads that a request for `threads` gets.
pub(super) fn count(threads: Option<usize>) -> usize {
    threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
}

impl Workers {
    pub fn new(threads: usize) -> Result<Workers> {
        let pool = match threads - 1 {
            0 => None,
            others => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(others)
                    .thread_name(|i| format!("compute-{}", i + 1))
                    .build()
                    .map_err(|e| Error::Request(format!("cannot start {threads} threads: {e}")))?,
            ),
        };
        Ok(Workers { pool, scratch: (0..threads).map(|_| Scratch::new()).collect() })
    }

    pub fn len(&self) -> usize {
        self.scratch.len()
    }

    /// Runs `work` for every task number below `tasks`, in any order, each thread with its own scratch.
    pub fn run(&mut self, tasks: usize, work: impl Fn(&mut Scratch, usize) + Sync) {
        let next = AtomicUsize::new(0);
        let drain = |scratch: &mut Scratch| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                work(scratch, task);
            }
        };
        let (mine, others) = self.scratch.split_at_mut(1);
        match &self.pool {
            Some(pool) if tasks > 1 => pool.in_place_scope(|scope| {
                for scratch in others.iter_mut().take(tasks - 1) {
                    scope.spawn(|_| drain(scratch));
                }
                drain(&mut mine[0]);
            }),
            _ => drain(&mut mine[0]),
        }
    }

    /// Runs `work` for every `width` elements of `data` (the last piece may be shorter) with the number of the piece.
    pub fn rows(&self, data: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        let share = data.len().div_ceil(width).div_ceil(self.len());
        let one_share = |first: usize, rows: &mut [f32]| {
            rows.chunks_mut(width).enumerate().for_each(|(r, row)| work(first + r, row));
        };
        match &self.pool {
            Some(pool) if data.len() >= SMALL => pool.in_place_scope(|scope| {
                let (mine, others) = data.split_at_mut(share * width);
                let one_share = &one_share;
                for (i, rows) in others.chunks_mut(share * width).enumerate() {
                    scope.spawn(move |_| one_share((i + 1) * share, rows));
                }
                one_share(0, mine);
            }),
            _ => one_share(0, data),
        }
    }
}

//! How fast a GPU is fed and how fast it reads its own memory: enough to say beforehand how long a pass takes.

use std::time::{Duration, Instant};

use layerstream_kernels::driver::{Memory, Stream};

use super::card::{Card, failed};
use super::staging::Buffer;
use crate::error::Result;
use crate::plan::Plan;

/// Bytes of one copy: about what tiles have.
const COPY: usize = 8 << 20;

/// Copies that are queued before they are waited for, as passes queue them: waiting for each few costs some percent.
const QUEUED: usize = 16;

/// Bytes of the GPU that are read at once: more than its caches hold.
const READ: usize = 128 << 20;

/// Bytes per second.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// From page-locked memory to the GPU.
    pub copy: f64,
    /// Of the GPU's memory, read by the GPU: no product is faster.
    pub read: f64,
}

/// Measures both for about so long, in memory that the plan has on either side: 128 and 256 MiB, if it has so much.
///
/// # Errors
/// Memory that is not there, on either side.
pub fn measure(card: &Card, plan: &Plan, time: Duration) -> Result<Speeds> {
    let gpu = &card.gpu;
    gpu.make_current().map_err(failed)?;
    let sizes = Sizes::within(plan.memory.total(), plan.gpu.as_ref().map_or(0, |gpu| gpu.allocation()));
    let mut host = Buffer::new(gpu, sizes.host)?;
    let memory = Memory::new(gpu, 2 * sizes.half).map_err(failed)?;
    let stream = Stream::new(gpu).map_err(failed)?;
    let (to, from) = (memory.address(), host.address());
    let copy = per_second(time / 2, || {
        for at in (0..QUEUED).map(|i| i * sizes.copy) {
            let (to, at) = (to + (at % sizes.half) as u64, at % sizes.host);
            // SAFETY: page-locked and inside, as sizes are multiples of a copy's; nothing else uses either place, and both
            // live until the stream has been waited for.
            unsafe { stream.upload(to, from.add(at), sizes.copy) }.map_err(failed)?;
        }
        stream.synchronize().map_err(failed)?;
        Ok(QUEUED * sizes.copy)
    });
    // Also where a copy could not be queued: those before it use the memory.
    stream.synchronize().map_err(failed)?;
    let read = per_second(time / 2, || {
        for _ in 0..QUEUED / 4 {
            // SAFETY: the two halves of the memory, which nothing else uses, and which lives until the stream has been waited for.
            unsafe { stream.copy(to + sizes.half as u64, to, sizes.half) }.map_err(failed)?;
        }
        stream.synchronize().map_err(failed)?;
        // Read once and written once.
        Ok(QUEUED / 4 * 2 * sizes.half)
    });
    stream.synchronize().map_err(failed)?;
    Ok(Speeds { copy: copy?, read: read? })
}

/// Bytes of a copy, of the host's memory and of half the GPU's, which are multiples of it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sizes {
    copy: usize,
    host: usize,
    half: usize,
}

impl Sizes {
    /// At most so many bytes of the host and of the GPU, but room for a copy of 1 MiB in any case.
    fn within(host: usize, on_gpu: usize) -> Sizes {
        let copy = COPY.min(host).min(on_gpu / 2).max(1 << 20);
        let copies = |bytes: usize, most: usize| bytes.min(most).max(copy) / copy * copy;
        Sizes { copy, host: copies(host, QUEUED * COPY), half: copies(on_gpu / 2, READ) }
    }
}

/// Bytes per second of what moves so many bytes a call. The calls of the first part of the time are not counted: a link that
/// was idle is slow at first.
fn per_second(time: Duration, mut call: impl FnMut() -> Result<usize>) -> Result<f64> {
    let begin = Instant::now();
    call()?;
    while begin.elapsed() < time / 4 {
        call()?;
    }
    let (start, mut bytes) = (Instant::now(), 0);
    while bytes == 0 || begin.elapsed() < time {
        bytes += call()?;
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_kept_to_and_sizes_are_whole_copies() {
        let mib =
            |copy: usize, host: usize, half: usize| Sizes { copy: copy << 20, host: host << 20, half: half << 20 };
        assert_eq!(Sizes::within(1 << 40, 1 << 40), mib(8, 128, 128));
        assert_eq!(Sizes::within(100 << 20, 100 << 20), mib(8, 96, 48));
        assert_eq!(Sizes::within(3 << 20, 1 << 30), mib(3, 3, 126));
        assert_eq!(Sizes::within(0, 0), mib(1, 1, 1));
        for (host, on_gpu) in [(5_000_001, 90_000_003), (77_777_777, 2_222_222), (900_000_000, 31 << 20)] {
            let Sizes { copy, host: in_memory, half } = Sizes::within(host, on_gpu);
            assert!(in_memory <= host && (2 * half <= on_gpu || half == copy), "{host} {on_gpu}");
            assert!(in_memory.is_multiple_of(copy) && half.is_multiple_of(copy) && copy >= 1 << 20);
        }
    }

    #[test]
    fn what_comes_first_is_not_counted() {
        let mut calls = 0;
        let speed = per_second(Duration::ZERO, || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(1));
            Ok(if calls == 1 { usize::MAX } else { 1 })
        });
        assert!(speed.unwrap() <= 1e3 && calls == 2);
    }
}

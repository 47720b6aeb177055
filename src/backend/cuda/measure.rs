//! How fast a GPU is fed and how fast it reads its own memory: enough to say beforehand how long a pass takes.

use std::time::{Duration, Instant};

use layerstream_kernels::driver::{Memory, Stream};

use super::card::{Card, failed};
use super::staging::Buffer;
use crate::error::Result;

/// Bytes of one copy: about what tiles have.
const COPY: usize = 8 << 20;

/// Bytes per second.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// From page-locked memory to the GPU.
    pub copy: f64,
    /// Of the GPU's memory, read by the GPU: no product is faster.
    pub read: f64,
}

/// Measures both for about so long.
///
/// # Errors
/// 32 MiB of memory that are not there, on either side.
pub fn measure(card: &Card, time: Duration) -> Result<Speeds> {
    let gpu = &card.gpu;
    gpu.make_current().map_err(failed)?;
    let mut host = Buffer::new(gpu, COPY)?;
    let mut memory = Memory::new(gpu, 2 * COPY).map_err(failed)?;
    let stream = Stream::new(gpu).map_err(failed)?;
    let copy = per_second(time / 2, || {
        for _ in 0..4 {
            // SAFETY: page-locked; nothing else uses either place, and both live until the stream has been waited for.
            unsafe { stream.upload(memory.address(), host.address(), COPY) }.map_err(failed)?;
        }
        stream.synchronize().map_err(failed)?;
        Ok(4 * COPY)
    });
    stream.synchronize().map_err(failed)?;
    // Read once and written once.
    let read = per_second(time / 2, || memory.copy_within(0, COPY, COPY).map_err(failed).map(|()| 2 * COPY))?;
    Ok(Speeds { copy: copy?, read })
}

/// Bytes per second of what moves so many bytes a call; the first call is not counted.
fn per_second(time: Duration, mut call: impl FnMut() -> Result<usize>) -> Result<f64> {
    call()?;
    let (start, mut bytes) = (Instant::now(), 0);
    while bytes == 0 || start.elapsed() < time {
        bytes += call()?;
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

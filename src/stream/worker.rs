//! An I/O thread: keeps its reader's queue full, judges what comes back, and tries again where that is right.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;

use crate::disk::memory::Mapping;
use crate::disk::{Drive, Files, Landed, Read, Reader};
use crate::error::{Error, Result};

/// Attempts in a row that may bring nothing before a read has failed.
const MAX_ATTEMPTS: u32 = 12;

/// What a test puts between a reader and the thread that drives it.
pub(super) type Wrap = dyn Fn(Box<dyn Reader>) -> Box<dyn Reader> + Send + Sync;

/// Whom I/O threads work for: it says what to read, and takes what has landed.
pub(super) trait Feed: Send + Sync + 'static {
    /// The next chunk to read. `None` at the end, and, unless told to wait, also while there is nothing to read.
    fn next_read(&self, wait_for_room: bool) -> Option<Read>;

    /// Takes back a chunk into which a drive has put all of its `bytes`.
    fn landed(&self, drive: usize, read: Read, bytes: usize);

    /// The first failure is kept, and ends everything.
    fn fail(&self, error: Error);

    /// A thread of this drive has begun; says whether its buffers are registered with the kernel.
    fn started(&self, drive: usize, registered: bool);
}

/// Starts the threads of one drive. What they read into may be registered with the kernel: `buffer`, all of whose pages come
/// into being with that.
pub(super) fn launch<F: Feed>(
    feed: &Arc<F>,
    index: usize,
    drive: &Drive,
    depth: usize,
    buffer: Option<&Arc<Mapping>>,
    wrap: &Arc<Wrap>,
) -> Result<Vec<JoinHandle<()>>> {
    let (threads, depth) = drive.threads(depth);
    let launch = |thread| {
        let (feed, drive) = (Arc::clone(feed), drive.clone());
        let (buffer, wrap) = (buffer.cloned(), Arc::clone(wrap));
        let work = move || {
            let work = || {
                let reader = drive.reader(depth, buffer.as_ref());
                let mut reader = wrap(reader.map_err(Error::io(drive.files.path(0), "set up reading"))?);
                feed.started(index, reader.registered());
                run(&*feed, index, &drive.files, reader.as_mut())
            };
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(())) => {}
                Ok(Err(e)) => feed.fail(e),
                Err(_) => feed.fail(Error::Request("a thread that reads weights has panicked".into())),
            }
        };
        let started = std::thread::Builder::new().name(format!("disk{index}-{thread}")).spawn(work);
        started.map_err(|e| Error::Budget(format!("cannot start a thread for reading: {e}")))
    };
    (0..threads).map(launch).collect()
}

/// Reads chunks until there are no more. On an error the reader is dropped, which waits for what is in flight.
fn run(shared: &impl Feed, drive: usize, files: &Files, reader: &mut dyn Reader) -> Result<()> {
    let mut in_flight = 0;
    let mut landed = Vec::new();
    loop {
        while in_flight < reader.depth() {
            let Some(read) = shared.next_read(in_flight == 0) else { break };
            reader.submit(read);
            in_flight += 1;
        }
        if in_flight == 0 {
            return Ok(());
        }
        reader.wait(&mut landed).map_err(Error::io(files.path(0), "wait for reads"))?;
        for read in landed.drain(..) {
            match judge(files, read)? {
                Verdict::Done(read, bytes) => {
                    shared.landed(drive, read, bytes);
                    in_flight -= 1;
                }
                Verdict::Again(read, after) => {
                    std::thread::sleep(after);
                    reader.submit(read);
                }
            }
        }
    }
}

/// What is to become of a read that came back.
pub(crate) enum Verdict {
    /// All bytes are there: this many, fewer than the region has only at the end of the file.
    Done(Read, usize),
    /// To be submitted again for the rest, after this long.
    Again(Read, Duration),
}

/// A read is done when it has brought all bytes up to the end of the chunk or, only there, of the file.
///
/// # Errors
/// [`Error::Read`] where trying again does not help, or has not helped.
pub(crate) fn judge(files: &Files, Landed { mut read, result }: Landed) -> Result<Verdict> {
    let expected = files.available(read.file, read.offset, read.region.len());
    let problem = match result {
        Ok(bytes) if read.filled + bytes >= expected => return Ok(Verdict::Done(read, expected)),
        Ok(bytes) => {
            // The rest must start at an aligned place again.
            let filled = read.filled + bytes;
            let filled = filled - filled % files.align;
            if filled > read.filled {
                (read.filled, read.attempts) = (filled, 0);
                return Ok(Verdict::Again(read, Duration::ZERO));
            }
            truncated(files.handle(read.file), read.offset + expected as u64)
        }
        Err(e) => e,
    };
    let passing = matches!(Errno::from_io_error(&problem), Some(Errno::INTR | Errno::AGAIN));
    if !passing || read.attempts >= MAX_ATTEMPTS {
        let (path, offset, len) = (files.path(read.file).into(), read.offset, expected as u64);
        return Err(Error::Read { path, offset, len, source: problem });
    }
    read.attempts += 1;
    // 0.1 ms, doubled every time up to 51 ms: about a quarter of a second in all.
    let after = Duration::from_micros(50 << read.attempts.min(10));
    Ok(Verdict::Again(read, after))
}

/// Why a read that should have reached `end` brought nothing: the file is shorter than it was, or else nobody knows.
fn truncated(file: &File, end: u64) -> io::Error {
    match file.metadata() {
        Ok(now) if now.len() < end => {
            let message = format!("the file is now only {} bytes long: it was cut while in use", now.len());
            io::Error::new(io::ErrorKind::UnexpectedEof, message)
        }
        Ok(_) => Errno::AGAIN.into(),
        Err(e) => e,
    }
}

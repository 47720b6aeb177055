//! How far a download is, and the way to stop it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Shared with the threads that download.
#[derive(Clone, Debug, Default)]
pub struct HubProgress(Arc<State>);

#[derive(Debug, Default)]
struct State {
    done: AtomicU64,
    total: AtomicU64,
    files: AtomicU64,
    all_files: AtomicU64,
    stopped: AtomicBool,
    note: Mutex<String>,
}

impl HubProgress {
    /// Bytes that are there, those of earlier attempts included.
    pub fn done(&self) -> u64 {
        self.0.done.load(Relaxed)
    }

    /// Bytes that are wanted, as far as it is known.
    pub fn total(&self) -> u64 {
        self.0.total.load(Relaxed)
    }

    /// Files that are there, and all that are wanted.
    pub fn files(&self) -> (u64, u64) {
        (self.0.files.load(Relaxed), self.0.all_files.load(Relaxed))
    }

    /// What is being waited for, if not for bytes; empty otherwise.
    pub fn note(&self) -> String {
        self.0.note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the download soon; what has come is kept.
    pub fn stop(&self) {
        self.0.stopped.store(true, Relaxed);
    }

    /// Whether [`stop`](HubProgress::stop) was called.
    pub fn stopped(&self) -> bool {
        self.0.stopped.load(Relaxed)
    }
}

#[cfg(feature = "hub")]
impl HubProgress {
    pub(super) fn add_file(&self, size: u64) {
        self.0.all_files.fetch_add(1, Relaxed);
        self.0.total.fetch_add(size, Relaxed);
    }

    pub(super) fn file_done(&self) {
        self.0.files.fetch_add(1, Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Relaxed);
    }

    /// Bytes that turned out to be of no use.
    pub(super) fn take_back(&self, bytes: u64) {
        self.0.done.fetch_sub(bytes, Relaxed);
    }

    pub(super) fn set_note(&self, note: String) {
        *self.0.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }
}

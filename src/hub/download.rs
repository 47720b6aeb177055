//! Bringing a repository's files into the cache: several at a time, each from where an earlier attempt ended, and none
//! under its name before its size and hash are right.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

use super::cache::{Cache, Need, indexed};
use super::choose::{self, Weights};
use super::client::{Again, Client, Outcome, Remote};
use super::options::HubOptions;
use super::problem;
use super::progress::HubProgress;
use super::repo::Repo;

/// Bytes read from the network at once.
const PIECE: usize = 1 << 18;
/// An attempt that brings less counts as one that failed, so that a server which always breaks off is given up.
const ENOUGH: u64 = 1 << 20;

/// One repository on its way into the cache.
struct Pull<'a> {
    client: Client<'a>,
    options: &'a HubOptions,
    progress: &'a HubProgress,
    cache: &'a Cache,
    repo: &'a Repo,
    commit: String,
    snapshot: PathBuf,
    /// Another file has failed: this one may as well stop.
    failed: AtomicBool,
}

/// Brings in what is needed, and returns the snapshot's directory.
pub(super) fn pull(
    options: &HubOptions,
    progress: &HubProgress,
    cache: &Cache,
    repo: &Repo,
    files: &[String],
    need: Need,
) -> Result<PathBuf> {
    let client = Client::new(options, progress, repo);
    let (commit, all) = client.files()?;
    let weights = choose::weights(&all, files, need).map_err(|why| problem(repo, why))?;
    let snapshot = cache.folder(repo).join("snapshots").join(&commit);
    let pull = Pull { client, options, progress, cache, repo, commit, snapshot, failed: AtomicBool::new(false) };
    let mut small = choose::small(&all);
    let shards = match weights {
        Weights::Index(index) => {
            pull.fetch(vec![index.clone()])?;
            let path = pull.snapshot.join(&index);
            let shards = indexed(&fs::read(&path).map_err(Error::io(&path, "read"))?);
            let shards = shards.ok_or_else(|| problem(repo, format!("{index} is no index of weights")))?;
            if let Some(missing) = shards.iter().find(|shard| !all.contains(shard)) {
                return Err(problem(repo, format!("{index} names {missing}, which the repository does not have")));
            }
            shards
        }
        Weights::Files(files) => files,
        Weights::None => Vec::new(),
    };
    small.extend(shards);
    pull.fetch(small)?;
    // Last, so that a branch only ever names what is there.
    if repo.revision() != pull.commit {
        let path = cache.folder(repo).join("refs").join(repo.revision());
        make_parent(&path)?;
        fs::write(&path, &pull.commit).map_err(Error::io(&path, "write"))?;
    }
    Ok(pull.snapshot)
}

impl Pull<'_> {
    /// Downloads what of these files is not there.
    fn fetch(&self, names: Vec<String>) -> Result<()> {
        let missing: Vec<String> = names.into_iter().filter(|name| !self.snapshot.join(name).exists()).collect();
        let remotes = Mutex::new(BTreeMap::new());
        self.each(missing, |name| {
            let remote = self.client.remote(&self.commit, &name)?;
            remotes.lock().unwrap_or_else(PoisonError::into_inner).insert(name, remote);
            Ok(())
        })?;
        let remotes: Vec<Remote> = remotes.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect();
        self.check_space(&remotes)?;
        for remote in &remotes {
            self.progress.add_file(remote.size.unwrap_or(0));
        }
        self.each(remotes, |remote| {
            self.file(&remote)?;
            self.link(&remote)?;
            self.progress.file_done();
            Ok(())
        })
    }

    /// Does something for each of a list, several at a time. The first error ends all.
    fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
        let workers = self.options.workers.clamp(1, items.len().max(1));
        let queue = Mutex::new(VecDeque::from(items));
        let error = Mutex::new(None);
        let run = || {
            while !self.failed.load(Relaxed) {
                let Some(item) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
                if let Err(e) = work(item) {
                    // What others say once this has failed is only that they stopped.
                    error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    self.failed.store(true, Relaxed);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(run);
            }
        });
        error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Refuses before the first byte what the disk cannot hold.
    fn check_space(&self, remotes: &[Remote]) -> Result<()> {
        let mut needed = 0;
        for remote in remotes {
            let (blob, partial) = self.paths(remote);
            let there = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
            needed += remote.size.unwrap_or(0).saturating_sub(there(&blob).max(there(&partial)));
        }
        let root = self.cache.root();
        fs::create_dir_all(root).map_err(Error::io(root, "create"))?;
        let stat = rustix::fs::statvfs(root).map_err(|e| Error::io(root, "ask for free space in")(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed <= free {
            return Ok(());
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        Err(problem(
            self.repo,
            format!(
                "{:.1} GB are still to be downloaded, and the disk of {} has {:.1} GB free: make room, or set HF_HUB_CACHE \
                 to a directory on a larger disk",
                gb(needed),
                root.display(),
                gb(free)
            ),
        ))
    }

    /// Where a file lies when it is whole, and before.
    fn paths(&self, remote: &Remote) -> (PathBuf, PathBuf) {
        let blobs = self.cache.folder(self.repo).join("blobs");
        (blobs.join(&remote.etag), blobs.join(format!("{}.incomplete", remote.etag)))
    }

    /// Downloads one file into the blobs, unless it is there.
    fn file(&self, remote: &Remote) -> Result<()> {
        let (blob, partial) = self.paths(remote);
        make_parent(&blob)?;
        let _lock = self.lock(remote)?;
        if let Ok(found) = fs::metadata(&blob)
            && remote.size.is_none_or(|size| size == found.len())
        {
            self.progress.add(found.len());
            return Ok(());
        }
        let io = |doing| Error::io(&partial, doing);
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&partial);
        let mut download = Download { file: open.map_err(io("open"))?, have: 0, hash: Sha256::new() };
        download.resume(&partial, self.progress)?;
        let resumed = download.have > 0;
        self.receive(remote, &partial, &mut download)?;
        let hash = hex(&download.hash.clone().finalize());
        let mut right = !is_sha256(&remote.etag) || hash == remote.etag;
        if !right && resumed {
            // What was there before may be to blame.
            download.restart(&partial, self.progress)?;
            self.receive(remote, &partial, &mut download)?;
            right = hex(&download.hash.clone().finalize()) == remote.etag;
        }
        if !right {
            fs::remove_file(&partial).map_err(io("remove"))?;
            return Err(problem(
                self.repo,
                format!(
                    "{}: what came has the SHA-256 {hash}, not {}; it was removed. Try again; if it stays so, something \
                     between here and {} changes it",
                    remote.name, remote.etag, self.options.endpoint
                ),
            ));
        }
        download.file.sync_all().map_err(|e| self.disk_error(&partial, e))?;
        fs::rename(&partial, &blob).map_err(Error::io(&blob, "name"))
    }

    /// Receives until a file has its size, over as many connections as it takes.
    fn receive(&self, remote: &Remote, partial: &Path, download: &mut Download) -> Result<()> {
        let mut failures = 0;
        let mut piece = vec![0; PIECE];
        loop {
            self.check_stopped()?;
            if remote.size.is_some_and(|size| download.have > size) {
                download.restart(partial, self.progress)?;
            }
            if remote.size == Some(download.have) {
                return Ok(());
            }
            let before = download.have;
            let again = match self.client.bytes(&self.commit, &remote.name, download.have)? {
                Outcome::Again(again) => again,
                Outcome::Done((mut body, there)) => {
                    if !there && download.have > 0 {
                        download.restart(partial, self.progress)?;
                    }
                    let mut reader = body.as_reader();
                    loop {
                        self.check_stopped()?;
                        match reader.read(&mut piece) {
                            Ok(0) if remote.size.is_none_or(|size| size == download.have) => return Ok(()),
                            Ok(0) => break broken(remote, download.have, "the connection ended"),
                            Ok(len) => {
                                let too_much = remote.size.is_some_and(|size| download.have + len as u64 > size);
                                if too_much {
                                    break broken(remote, download.have, "the server sends more than that");
                                }
                                let piece = &piece[..len];
                                download.file.write_all(piece).map_err(|e| self.disk_error(partial, e))?;
                                download.hash.update(piece);
                                download.have += len as u64;
                                self.progress.add(len as u64);
                            }
                            Err(e) if e.kind() == ErrorKind::Interrupted => {}
                            Err(e) => break broken(remote, download.have, &e.to_string()),
                        }
                    }
                }
            };
            failures = if download.have >= before + ENOUGH { 1 } else { failures + 1 };
            self.client.pause(failures, &again)?;
        }
    }

    /// Waits for whoever else downloads the same file. Where the file system knows no locks, there is none.
    fn lock(&self, remote: &Remote) -> Result<Option<File>> {
        let path = self.cache.lock(self.repo, &remote.etag);
        make_parent(&path)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(Error::io(&path, "open"))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::WouldBlock) => {
                    self.check_stopped()?;
                    self.progress.set_note("another process downloads the same".into());
                    thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::Error(_)) => return Ok(None),
            }
        }
    }

    /// Puts a file into the snapshot, as a link to where it is.
    fn link(&self, remote: &Remote) -> Result<()> {
        let path = self.snapshot.join(&remote.name);
        make_parent(&path)?;
        // From the snapshot's own directory it is two up; one more for each directory in the name.
        let up = "../".repeat(2 + remote.name.matches('/').count());
        let target = format!("{up}blobs/{}", remote.etag);
        if fs::read_link(&path).is_ok_and(|link| link == Path::new(&target)) {
            return Ok(());
        }
        // Whoever looks meanwhile sees the old file or the new one.
        let mut fresh = path.clone().into_os_string();
        fresh.push(format!(".{}-{:?}", std::process::id(), thread::current().id()));
        let _ = fs::remove_file(&fresh);
        symlink(target, &fresh).and_then(|()| fs::rename(&fresh, &path)).map_err(Error::io(&path, "link"))
    }

    fn check_stopped(&self) -> Result<()> {
        let stopped = self.progress.stopped() || self.failed.load(Relaxed);
        if stopped { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn disk_error(&self, path: &Path, error: std::io::Error) -> Error {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => problem(
                self.repo,
                format!(
                    "{}: the disk is full ({error}). What has come is kept: make room, and the same command goes on from \
                     there",
                    path.display()
                ),
            ),
            _ => Error::io(path, "write")(error),
        }
    }
}

/// A file that is being received.
struct Download {
    file: File,
    have: u64,
    /// Of all that is there.
    hash: Sha256,
}

impl Download {
    /// Takes up what an earlier attempt has left.
    fn resume(&mut self, path: &Path, progress: &HubProgress) -> Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            match self.file.read(&mut piece).map_err(Error::io(path, "read"))? {
                0 => break,
                len => {
                    self.hash.update(&piece[..len]);
                    self.have += len as u64;
                    if progress.stopped() {
                        return Err(Error::Interrupted);
                    }
                }
            }
        }
        progress.add(self.have);
        Ok(())
    }

    /// Begins again.
    fn restart(&mut self, path: &Path, progress: &HubProgress) -> Result<()> {
        self.file.set_len(0).map_err(Error::io(path, "empty"))?;
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io(path, "empty"))?;
        progress.take_back(self.have);
        (self.have, self.hash) = (0, Sha256::new());
        Ok(())
    }
}

fn broken(remote: &Remote, have: u64, why: &str) -> Again {
    let of = remote.size.map_or(String::new(), |size| format!(" of {size}"));
    Again { why: format!("{}: the download broke off after {have}{of} bytes ({why})", remote.name), wait: None }
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io(parent, "create"))
}

fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

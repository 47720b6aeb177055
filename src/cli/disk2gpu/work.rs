//! What is read: which bytes of which files on which drives, and in which pieces.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, FileId, Span};
use crate::disk::{Geometry, Source};
use crate::engine::StopFlag;
use crate::error::{Error, Result};
use crate::plan::Tier;
use crate::stream::TileRead;

use super::args::Cli;
use super::scratch::Scratch;
use super::sums;

/// Less than this says nothing about a drive.
const LEAST: u64 = 1 << 20;
/// The most bytes of files in a repetition, unless told otherwise.
const MOST: u64 = 4 << 30;
/// Likewise for each place of a sweep.
const MOST_OF_SWEEP: u64 = 1 << 30;

/// The bytes to be read: the first `bytes[i]` of file `i`.
pub struct Work {
    pub source: Source,
    pub bytes: Vec<u64>,
    /// What the files hold in all, read or not.
    pub available: u64,
    /// Offsets, lengths and addresses are multiples of this.
    pub align: usize,
    /// Drives that are read at the same time through one queue, because pieces of their files take turns.
    pub striped: usize,
    /// Kept as long as they are read.
    scratch: Vec<Scratch>,
}

/// One read of the disk, and one copy to the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub file: usize,
    /// In the file; a multiple of the alignment.
    pub offset: u64,
    /// Bytes to read, a multiple of the alignment; may reach past the end of the file.
    pub len: usize,
    /// Those of them that are asked for.
    pub bytes: usize,
}

impl Work {
    /// What the arguments ask for; makes the scratch files, with `written` told of bytes and all bytes.
    pub fn find(cli: &Cli, stop: &StopFlag, written: &mut dyn FnMut(u64, u64)) -> Result<Work> {
        let mut scratch = Vec::new();
        if let Some(len) = cli.scratch {
            enough(len, "the scratch file")?;
            let mut done = 0;
            for (i, dir) in cli.dir.iter().enumerate() {
                let all = len * cli.dir.len() as u64;
                scratch.push(Scratch::make(dir, len, i as u64 + 1, stop, &mut |bytes| {
                    done += bytes;
                    written(done, all);
                })?);
            }
        }
        let files = match scratch.is_empty() {
            true => files_of(&cli.paths)?,
            false => scratch.iter().map(Scratch::path).collect(),
        };
        let replicas = cli.replica.iter().map(|replica| replica_of(&files, replica)).collect::<Result<_>>()?;
        let source = Source { files, replicas, checksums: None };
        let geometry = Geometry::of(&source)?;
        let available: u64 = geometry.lens.iter().sum();
        let first = source.files.first().map_or(String::new(), |path| path.display().to_string());
        let name = if source.files.len() == 1 { first } else { format!("{} files", source.files.len()) };
        enough(available, &name)?;
        let most = cli.bytes.unwrap_or(match (&cli.sweep, cli.scratch) {
            (Some(_), _) => MOST_OF_SWEEP,
            (None, Some(_)) => u64::MAX,
            (None, None) => MOST,
        });
        if most < LEAST {
            return Err(Error::Request(format!("--bytes {most}: at least {LEAST} bytes are needed to say anything")));
        }
        let drives = drives_of(&source.files)?;
        let striped = if cli.stripe || drives > 1 { drives } else { 0 };
        let bytes = share(&geometry.lens, most, striped > 0);
        Ok(Work { source, bytes, available, align: geometry.align, striped, scratch })
    }

    /// Bytes read in a repetition.
    pub fn total(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Queues that are read at the same time: the original's and those of the replicas.
    pub fn queues(&self) -> usize {
        1 + self.source.replicas.len()
    }

    /// What to call file `i`.
    pub fn label(&self, i: usize) -> String {
        self.scratch.get(i).map_or_else(|| self.source.files[i].display().to_string(), Scratch::label)
    }

    /// A path with a name, on the drive of each file and of each replica's first file.
    pub fn places(&self) -> Vec<PathBuf> {
        let named = |i: usize| self.scratch.get(i).map_or_else(|| self.source.files[i].clone(), |s| s.dir().into());
        let replicas = self.source.replicas.iter().filter_map(|files| files.first().cloned());
        (0..self.source.files.len()).map(named).chain(replicas).collect()
    }

    /// Every file of every drive.
    pub fn all_files(&self) -> impl Iterator<Item = &Path> {
        self.source.files.iter().chain(self.source.replicas.iter().flatten()).map(PathBuf::as_path)
    }

    pub fn is_scratch(&self) -> bool {
        !self.scratch.is_empty()
    }

    /// The CRC-32 of the bytes of each file: as they were made, or as the plainest way of reading brings them.
    pub fn sums(&self, stop: &StopFlag) -> Result<Vec<u32>> {
        let sum = |(i, &len): (usize, &u64)| match self.scratch.get(i) {
            Some(scratch) => scratch.crc(len, stop),
            None => sums::crc_of_file(&self.source.files[i], len, stop),
        };
        self.bytes.iter().enumerate().map(sum).collect()
    }

    /// All bytes in pieces of `chunk`, a multiple of the alignment, file after file, or in turns where they are striped.
    pub fn pieces(&self, chunk: usize) -> Vec<Piece> {
        let of_file = |(file, &len): (usize, &u64)| {
            let piece = |at: u64| {
                let bytes = (len - at).min(chunk as u64) as usize;
                Piece { file, offset: at, len: bytes.next_multiple_of(self.align), bytes }
            };
            (0..len).step_by(chunk).map(piece).collect::<Vec<_>>()
        };
        let files: Vec<Vec<Piece>> = self.bytes.iter().enumerate().map(of_file).collect();
        if self.striped == 0 {
            return files.concat();
        }
        let longest = files.iter().map(Vec::len).max().unwrap_or(0);
        (0..longest).flat_map(|turn| files.iter().filter_map(move |file| file.get(turn).copied())).collect()
    }
}

/// The same pieces for the conveyor.
pub fn tiles(pieces: &[Piece]) -> Vec<TileRead> {
    let span = |p: &Piece| Span { file: FileId(p.file as u32), offset: p.offset, len: p.bytes as u64 };
    pieces.iter().map(|piece| TileRead { span: span(piece), tier: Tier::Disk }).collect()
}

fn enough(bytes: u64, what: &str) -> Result<()> {
    if bytes < LEAST {
        let message = "bytes, too few to measure anything";
        return Err(Error::Request(format!("{what}: {bytes} {message}: at least {LEAST} (1 MiB) are needed")));
    }
    Ok(())
}

/// Files as they are; of directories, the files of the checkpoint there.
fn files_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let found = fs::metadata(path).map_err(Error::io(path, "look at"))?;
        if found.is_dir() {
            files.extend(Checkpoint::open(path)?.files().iter().map(|file| file.path.clone()));
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

/// The copies of `files` in a directory, or the copy of a single file.
fn replica_of(files: &[PathBuf], replica: &Path) -> Result<Vec<PathBuf>> {
    if fs::metadata(replica).map_err(Error::io(replica, "look at"))?.is_dir() {
        return Ok(files.iter().filter_map(|file| Some(replica.join(file.file_name()?))).collect());
    }
    match files {
        [_] => Ok(vec![replica.into()]),
        _ => {
            let (replica, files) = (replica.display(), files.len());
            Err(Error::Request(format!("{replica} is one file, and there are {files} files: give a directory")))
        }
    }
}

/// How many file systems the files lie on.
fn drives_of(files: &[PathBuf]) -> Result<usize> {
    let device = |path: &PathBuf| Ok(fs::metadata(path).map_err(Error::io(path, "look at"))?.dev());
    Ok(files.iter().map(device).collect::<Result<BTreeSet<u64>>>()?.len())
}

/// How much of each file is read when that is `most` in all: from the first file on, or, `striped`, equal parts.
fn share(lens: &[u64], most: u64, striped: bool) -> Vec<u64> {
    let mut left = most;
    let each = if striped { most / lens.len() as u64 } else { most };
    let mut take = |&len: &u64| {
        let bytes = len.min(left).min(each);
        left -= bytes;
        bytes
    };
    lens.iter().map(&mut take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(bytes: &[u64], striped: usize) -> Work {
        let source = Source { files: vec!["x".into(); bytes.len()], ..Source::default() };
        Work { source, bytes: bytes.to_vec(), available: 0, align: 4096, striped, scratch: vec![] }
    }

    #[test]
    fn pieces_cover_every_byte_once_in_order() {
        for striped in [0, 2] {
            let work = work(&[10_000, 0, 8192, 1], striped);
            let pieces = work.pieces(4096);
            for (file, &len) in work.bytes.iter().enumerate() {
                let mut at = 0;
                for piece in pieces.iter().filter(|piece| piece.file == file) {
                    assert_eq!(piece.offset, at);
                    assert!(piece.len.is_multiple_of(4096) && piece.bytes <= piece.len && piece.len <= 4096);
                    at += piece.bytes as u64;
                }
                assert_eq!(at, len);
            }
        }
    }

    #[test]
    fn striped_pieces_take_turns() {
        let files: Vec<usize> = work(&[12_288, 4096, 8192], 2).pieces(4096).iter().map(|piece| piece.file).collect();
        assert_eq!(files, [0, 1, 2, 0, 2, 0]);
    }

    #[test]
    fn a_limit_takes_from_the_front_or_from_each() {
        assert_eq!(share(&[10, 10, 10], 15, false), [10, 5, 0]);
        assert_eq!(share(&[10, 10, 10], 15, true), [5, 5, 5]);
        assert_eq!(share(&[10, 2], 100, true), [10, 2]);
    }
}

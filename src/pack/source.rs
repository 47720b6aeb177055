//! What a source is known by: a checksum of pieces from all over a file, which is compared in every run and costs nothing; and
//! one of all of its bytes, which is made while it is packed, and compared before it is deleted in a later run.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::Xxh3;

use super::files::sum;
use super::manifest::{Manifest, Shard};
use super::reading::Reading;
use super::shard::{in_parallel, runs, source_at};
use crate::checkpoint::Checkpoint;
use crate::disk::memory::Region;
use crate::error::{Error, Result};

/// Bytes of the beginning that are compared, and others: pieces at equal distances, the last at the end.
const START: u64 = 1 << 20;
const PIECES: u64 = 64;
const PIECE: u64 = 64 << 10;

/// The directory of a model that was named by its directory or by its only file.
pub fn directory(source: &Path) -> PathBuf {
    match source.is_dir() {
        true => source.to_path_buf(),
        // Its file may be deleted already, and a directory is not.
        false => source.parent().unwrap_or(Path::new(".")).to_path_buf(),
    }
}

/// Refuses a source of which anything that is still there is not what packing began with.
pub fn require_same(source: &Path, out: &Path, manifest: &Manifest) -> Result<()> {
    let dir = directory(source);
    let config = manifest.small.iter().find(|small| small.file == "config.json");
    if let (Some(config), Ok(found)) = (config, fs::read(dir.join("config.json")))
        && sum(&found) != config.sum
    {
        return Err(other(&dir.join("config.json"), out));
    }
    let there: Vec<_> = manifest.shards.iter().filter(|shard| dir.join(&shard.source).exists()).collect();
    if there.is_empty() && manifest.finished && Checkpoint::open(source).is_ok() {
        return Err(other(&dir, out));
    }
    there.into_iter().try_for_each(|shard| require(&dir.join(&shard.source), out, manifest, shard))
}

/// Refuses another file than the one that a shard was, or is to be, made from.
pub fn require(from: &Path, out: &Path, manifest: &Manifest, shard: &Shard) -> Result<()> {
    let len = fs::metadata(from).map_err(Error::io(from, "open"))?.len();
    if len == shard.source_bytes && pieces_sum(from, &manifest.compared(len))? == shard.source_sum {
        return Ok(());
    }
    Err(other(from, out))
}

/// Refuses a file that is, in any byte, not the one that a shard was made from.
pub fn require_whole(from: &Path, out: &Path, shard: &Shard, threads: usize) -> Result<()> {
    let problem = match &shard.source_whole {
        sum if sum.is_empty() => {
            "was packed by an older version, which kept no checksum of all of it: compare and delete it yourself".into()
        }
        sum if *sum == whole(from, shard, threads)? => return Ok(()),
        _ => format!("was changed after {} was made from it, and is not deleted: pack it again", out.display()),
    };
    Err(Error::Checkpoint { path: from.into(), problem })
}

fn other(path: &Path, out: &Path) -> Error {
    let problem =
        format!("is not the file that {} was begun with: give the same source, or another --out", out.display());
    Error::Checkpoint { path: path.into(), problem }
}

/// The pieces of a file of so many bytes that are compared, as offsets and bytes.
pub fn pieces(len: u64) -> Vec<(u64, u64)> {
    if len <= START + PIECES * PIECE {
        return vec![(0, len)];
    }
    let room = len - PIECE - START;
    let piece = |i: u64| (START + room / PIECES * i + room % PIECES * i / PIECES, PIECE);
    std::iter::once((0, START)).chain((1..=PIECES).map(piece)).collect()
}

/// What was compared of a file by the version of manifests before.
pub fn start(len: u64) -> Vec<(u64, u64)> {
    vec![(0, len.min(START))]
}

/// The checksum of some pieces of a file.
pub fn pieces_sum(path: &Path, pieces: &[(u64, u64)]) -> Result<String> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let (mut hash, mut buffer) = (Xxh3::new(), Vec::new());
    for &(offset, len) in pieces {
        buffer.resize(len as usize, 0);
        file.read_exact_at(&mut buffer, offset).map_err(Error::io(path, "read"))?;
        hash.update(&buffer);
    }
    Ok(format!("{:032x}", hash.digest128()))
}

/// What of the source no tensor is made of, its header above all, in pieces.
pub fn rest(shard: &Shard) -> Vec<(u64, u64)> {
    let mut spans: Vec<_> = shard.tensors.iter().map(|t| (t.source_offset, t.source_offset + t.source_bytes)).collect();
    spans.push((shard.source_bytes, shard.source_bytes));
    spans.sort_unstable();
    let (mut rest, mut at) = (Vec::new(), 0);
    for (start, end) in spans {
        while at < start {
            let len = PIECE.min(start - at);
            rest.push((at, len));
            at += len;
        }
        at = at.max(end);
    }
    rest
}

/// The checksums of these places, in order.
pub fn sums(reading: &Reading, places: &[(u64, u64)], regions: Vec<Region>) -> Result<Vec<String>> {
    let sums = Mutex::new(vec![String::new(); places.len()]);
    in_parallel((0..places.len()).collect(), regions, |region, i| {
        let (offset, len) = places[i];
        let found = sum(reading.read(offset, len, region)?);
        sums.lock().unwrap_or_else(PoisonError::into_inner)[i] = found;
        Ok(())
    })?;
    Ok(sums.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The checksum of a whole source, of those of [`rest`] and of what each run of each tensor is made of.
pub fn joined<'a>(sums: impl IntoIterator<Item = &'a String>) -> String {
    let mut hash = Xxh3::new();
    sums.into_iter().for_each(|sum| hash.update(sum.as_bytes()));
    format!("{:032x}", hash.digest128())
}

/// The checksum of a whole source.
fn whole(from: &Path, shard: &Shard, threads: usize) -> Result<String> {
    let mut places = rest(shard);
    places.extend(runs(&shard.tensors).into_iter().map(|(t, run)| source_at(&shard.tensors[t], run)));
    let longest = places.iter().map(|(_, len)| *len).max().unwrap_or(0);
    let reading = Reading::open(from)?;
    Ok(joined(&sums(&reading, &places, reading.regions(threads, longest)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_inside_and_reach_the_end() {
        for len in [0, 1, START, START + PIECES * PIECE, START + PIECES * PIECE + 1, (5 << 30) + 17, 1 << 41] {
            let pieces = pieces(len);
            assert!(pieces.iter().all(|(offset, bytes)| offset + bytes <= len), "{len}: {pieces:?}");
            let (offset, bytes) = pieces[pieces.len() - 1];
            assert_eq!((pieces[0].0, offset + bytes), (0, len));
            assert!(pieces.windows(2).all(|two| two[0].0 < two[1].0), "{len}: {pieces:?}");
        }
    }
}

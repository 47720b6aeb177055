//! Whether a manifest can be true. What is read, compared and allocated afterwards follows from its numbers, and it may be
//! damaged or come from anybody; so these must agree with each other: shapes with bytes, bytes with places, runs with
//! checksums. Whether the files agree with them is found where these are opened.

use std::collections::HashSet;
use std::path::Path;

use super::encode::Numbers;
use super::manifest::{Entry, Manifest, Shard};
use super::shard::{LEAST_PIECE, RUN, runs_of, source_at};
use crate::checkpoint::{Dtype, FileId, Span, Tensor, excerpt, tensor_error};
use crate::error::{Error, Result};

/// More bytes than all files of a model can have; sums of what is below do not overflow.
const TOO_MANY: u64 = 1 << 62;

/// What to do with a manifest that cannot be true.
pub const ADVICE: &str = "the manifest is damaged: copy it again, or pack again into another directory";

const NO_SUM: &str = "not 32 hexadecimal digits";

/// Refuses numbers that contradict each other.
///
/// # Errors
/// The first contradiction, with the tensor that it is about: what was found, and what was expected.
pub fn check(path: &Path, manifest: &Manifest) -> Result<()> {
    let wrong = |problem: String| Err(Error::Checkpoint { path: path.into(), problem: format!("{problem}; {ADVICE}") });
    let Manifest { shards, small, .. } = manifest;
    let files = small.iter().map(|small| &small.file).chain(shards.iter().map(|shard| &shard.file));
    let tensors = || shards.iter().flat_map(|shard| &shard.tensors);
    let twice = first_twice(files)
        .or_else(|| first_twice(shards.iter().map(|shard| &shard.source)))
        .or_else(|| first_twice(tensors().map(|tensor| &tensor.name)));
    if let Some(name) = twice {
        return wrong(format!("lists `{}` twice", excerpt(name)));
    }
    if let Some(small) = small.iter().find(|small| !is_sum(&small.sum)) {
        return wrong(format!("the checksum of {} is `{}`, {NO_SUM}", excerpt(&small.file), excerpt(&small.sum)));
    }
    let all = [
        limited(shards.iter().map(|shard| shard.bytes)),
        limited(shards.iter().map(|shard| shard.source_bytes)),
        limited(tensors().map(|tensor| tensor.bytes)),
    ];
    if all.contains(&None) {
        return wrong("its files would be larger than any can be".into());
    }
    let whole = |shard: &Shard| match manifest.is_older() {
        true => shard.source_whole.is_empty(),
        false => is_sum(&shard.source_whole) == shard.packed,
    };
    if let Some(shard) = shards.iter().find(|shard| !whole(shard)) {
        let (source, found) = (excerpt(&shard.source), excerpt(&shard.source_whole));
        let expected = match (manifest.is_older(), shard.packed) {
            (true, _) => "where a manifest of this version has none",
            (_, false) => "though it is not packed yet",
            _ => NO_SUM,
        };
        return wrong(format!("the checksum of all of {source} is `{found}`, {expected}"));
    }
    if let Some(shard) = shards.iter().find(|shard| manifest.finished && !shard.packed) {
        return wrong(format!("says that packing is finished, and {} is not written", excerpt(&shard.file)));
    }
    shards.iter().try_for_each(|one| shard(path, one))
}

fn shard(path: &Path, shard: &Shard) -> Result<()> {
    for tensor in &shard.tensors {
        entry(path, tensor)?;
        runs(path, tensor, shard.packed)?;
        let Entry { source_offset, source_bytes, .. } = *tensor;
        if source_offset.checked_add(source_bytes).is_none_or(|end| end > shard.source_bytes) {
            let (source, len) = (excerpt(&shard.source), shard.source_bytes);
            let problem = format!("{source_bytes} bytes at offset {source_offset} are not in the {len} of {source}");
            return wrong(path, tensor, problem);
        }
    }
    let mut end = shard.first_offset();
    for tensor in &shard.tensors {
        if tensor.offset != end {
            return wrong(
                path,
                tensor,
                format!("its offset is {}, but what is before it ends at {end}", tensor.offset),
            );
        }
        end += tensor.bytes;
    }
    if shard.bytes == end {
        return Ok(());
    }
    let problem = format!("{} has {} bytes, but its tensors end at {end}; {ADVICE}", excerpt(&shard.file), shard.bytes);
    Err(Error::Checkpoint { path: path.into(), problem })
}

/// Type, shape and bytes, of the result and of the source.
fn entry(path: &Path, tensor: &Entry) -> Result<()> {
    let Entry { dtype, shape, bytes, source_dtype, source_bytes, .. } = tensor;
    let Some(dtype) = Dtype::from_name(dtype) else {
        return wrong(path, tensor, format!("its type is `{}`, which there is not", excerpt(dtype)));
    };
    if product(shape, dtype.size()) != Some(*bytes) {
        let shape = excerpt(&format!("{shape:?}"));
        return wrong(path, tensor, format!("{shape} of {dtype} are not the {bytes} bytes that it should have"));
    }
    let expected = match &tensor.packed {
        None => (*source_dtype == dtype.name()).then_some(*bytes),
        Some(stored) => {
            let span = Span { file: FileId(0), offset: 0, len: *bytes };
            let mut plain = Tensor { name: tensor.name.clone(), dtype, shape: shape.clone(), span, transposed: false };
            stored.apply(path, &mut plain)?;
            let size = Numbers::of(source_dtype).and(Dtype::from_name(source_dtype)).map(Dtype::size);
            size.and_then(|size| product(&plain.shape, size)).filter(|_| stored.columns > 0)
        }
    };
    if expected == Some(*source_bytes) {
        return Ok(());
    }
    wrong(path, tensor, format!("it was not made of {source_bytes} bytes of {}", excerpt(source_dtype)))
}

/// How it is cut, and that there is a checksum for every run once it was written.
fn runs(path: &Path, tensor: &Entry, written: bool) -> Result<()> {
    let Entry { shape, bytes, run, sums, .. } = tensor;
    if *bytes > 0 {
        let rows = shape.iter().rev().skip(1).product::<usize>().max(1) as u64;
        let row = bytes / rows;
        // Rows that are longer than what is read at once are cut anywhere, if they are not packed.
        let whole = *run > 0 && (run.is_multiple_of(row) || tensor.packed.is_none() && *run >= LEAST_PIECE);
        if !whole || source_at(tensor, 0).1 > RUN {
            return wrong(path, tensor, format!("runs of {run} bytes are not what rows of {row} are cut into"));
        }
    }
    let expected = if written { runs_of(tensor) } else { 0 };
    if sums.len() != expected {
        let (found, bytes) = (sums.len(), tensor.bytes);
        return wrong(path, tensor, format!("{found} checksums for {bytes} bytes in runs of {run}, not {expected}"));
    }
    match sums.iter().find(|sum| !is_sum(sum)) {
        Some(sum) => wrong(path, tensor, format!("a checksum is `{}`, {NO_SUM}", excerpt(sum))),
        None => Ok(()),
    }
}

fn wrong(path: &Path, tensor: &Entry, problem: String) -> Result<()> {
    let problem = format!("{problem}; {ADVICE}");
    Err(tensor_error(path, &tensor.name, problem))
}

/// Bytes of so many elements; `None` if no number is that large.
fn product(shape: &[usize], size: usize) -> Option<u64> {
    shape.iter().try_fold(size as u64, |bytes, dim| bytes.checked_mul(*dim as u64))
}

/// The sum, if it is one that there can be.
fn limited(mut bytes: impl Iterator<Item = u64>) -> Option<u64> {
    bytes.try_fold(0u64, |sum, more| sum.checked_add(more).filter(|sum| *sum < TOO_MANY))
}

fn first_twice<'a>(mut names: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let mut seen = HashSet::new();
    names.find(|name| !seen.insert(*name))
}

fn is_sum(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

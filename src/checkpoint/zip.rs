//! The directory of a zip archive (APPNOTE 6.3.10, sections 4.3 and 4.5.3), as `torch.save` writes it: entries stored as
//! they are, zip64 where something is large. What is in an entry is never read here; the archive is a list of names and
//! byte ranges.
//!
//! The `zip` crate is not used: of two entries of one name it keeps one without a word, it accepts archives that begin
//! somewhere inside the file, and it does not ask whether entries overlap. All three are ways to make one file mean two
//! things, and the part of the format that is needed is small.

use std::path::Path;

use super::words::{checkpoint_error, excerpt};
use crate::error::{Error, Result};

/// An entry of an archive: its name, and the range of the file that holds its bytes.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZipEntry {
    pub name: String,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Reads bytes at an offset of the archive into a buffer, all of it or an error.
pub(super) type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> Result<()> + 'a;

/// The largest directory that is read, in bytes: a hundred times that of the largest published checkpoint.
const MAX_DIRECTORY: u64 = 100_000_000;

const END: usize = 22;
const END_64: usize = 56;
const LOCATOR_64: usize = 20;
const CENTRAL: usize = 46;
const LOCAL: usize = 30;

/// The directory of an archive that lies in memory; `path` is for errors only. Public for the fuzzer.
///
/// # Errors
/// [`Error::Checkpoint`]: no directory, or one that contradicts itself or the file; entries that are compressed,
/// encrypted, of one name, overlapping, or not inside the file.
#[doc(hidden)]
pub fn parse_zip(path: &Path, bytes: &[u8]) -> Result<Vec<ZipEntry>> {
    let read = |offset: u64, to: &mut [u8]| {
        let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)?.get(..to.len()));
        to.copy_from_slice(from.ok_or_else(|| damaged(path, "a part of it lies past its end"))?);
        Ok(())
    };
    read_zip(path, bytes.len() as u64, &read)
}

/// The entries of the archive, by offset.
pub(super) fn read_zip(path: &Path, file_len: u64, read: &ReadAt) -> Result<Vec<ZipEntry>> {
    let directory = Directory::find(path, file_len, read)?;
    let mut bytes = vec![0; directory.len as usize];
    read(directory.offset, &mut bytes)?;
    let mut rest = bytes.as_slice();
    let mut entries = Vec::new();
    for _ in 0..directory.entries {
        let entry = central_entry(path, &mut rest)?;
        entries.push(locate(path, entry, directory.offset, read)?);
    }
    if !rest.is_empty() {
        return Err(damaged(path, &format!("{} bytes follow the last entry of its directory", rest.len())));
    }
    check_names(path, &entries)?;
    entries.sort_by_key(|entry| (entry.offset, entry.len));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].offset + pair[0].len > pair[1].offset) {
        let (a, b) = (excerpt(&pair[0].name), excerpt(&pair[1].name));
        return Err(damaged(path, &format!("its entries `{a}` and `{b}` overlap")));
    }
    Ok(entries)
}

/// Where the list of entries lies.
struct Directory {
    offset: u64,
    len: u64,
    entries: u64,
}

impl Directory {
    /// Finds the record that ends the file, and checks what it says against the file's length.
    fn find(path: &Path, file_len: u64, read: &ReadAt) -> Result<Directory> {
        // The record may be followed by a comment, whose length it gives.
        let tail_len = file_len.min((END + 0xffff) as u64);
        let mut tail = vec![0; tail_len as usize];
        read(file_len - tail_len, &mut tail)?;
        let ends = |at: &usize| {
            tail[*at..].starts_with(b"PK\x05\x06") && at + END + u16_at(&tail, at + 20) as usize == tail.len()
        };
        let Some(at) = (0..(tail.len() + 1).saturating_sub(END)).rev().find(ends) else {
            let problem = format!("has {file_len} bytes and no directory at its end: truncated, or not a zip archive");
            return Err(checkpoint_error(path, problem + "; download it again"));
        };
        let end_at = file_len - tail_len + at as u64;
        let end = &tail[at..];
        let directory = match at.checked_sub(LOCATOR_64).filter(|at| tail[*at..].starts_with(b"PK\x06\x07")) {
            Some(locator) => Self::zip64(path, u64_at(&tail, locator + 8), end_at, read)?,
            None => {
                if u16_at(end, 4) != 0 || u16_at(end, 6) != 0 || u16_at(end, 8) != u16_at(end, 10) {
                    return Err(damaged(path, "it is one part of an archive of several files"));
                }
                let (entries, len, offset) = (u16_at(end, 10), u32_at(end, 12), u32_at(end, 16));
                Directory { offset: offset.into(), len: len.into(), entries: entries.into() }
            }
        };
        let Directory { offset, len, entries } = directory;
        if offset.checked_add(len).is_none_or(|directory_end| directory_end > end_at) {
            return Err(damaged(
                path,
                &format!("its directory, {len} bytes at {offset}, does not end before {end_at}"),
            ));
        }
        if len > MAX_DIRECTORY || entries > len / CENTRAL as u64 {
            return Err(damaged(path, &format!("its directory is said to have {entries} entries in {len} bytes")));
        }
        Ok(directory)
    }

    fn zip64(path: &Path, at: u64, end: u64, read: &ReadAt) -> Result<Directory> {
        let mut record = [0; END_64];
        if at.checked_add(END_64 as u64).is_none_or(|record_end| record_end > end) {
            return Err(damaged(path, &format!("the second record of its end is said to be at {at}")));
        }
        read(at, &mut record)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(damaged(path, &format!("there is no second record of its end at {at}")));
        }
        if u32_at(&record, 16) != 0 || u32_at(&record, 20) != 0 || u64_at(&record, 24) != u64_at(&record, 32) {
            return Err(damaged(path, "it is one part of an archive of several files"));
        }
        Ok(Directory { entries: u64_at(&record, 32), len: u64_at(&record, 40), offset: u64_at(&record, 48) })
    }
}

/// What the directory says of one entry.
struct Central {
    name: String,
    /// Where its local header is.
    header: u64,
    len: u64,
}

/// Takes one entry off the directory.
fn central_entry(path: &Path, rest: &mut &[u8]) -> Result<Central> {
    let cut = || damaged(path, "its directory ends in the middle of an entry");
    let (fixed, after) = rest.split_first_chunk::<CENTRAL>().ok_or_else(cut)?;
    if !fixed.starts_with(b"PK\x01\x02") {
        return Err(damaged(path, "its directory holds something that is no entry"));
    }
    let [name_len, extra_len, comment_len] = [28, 30, 32].map(|at| u16_at(fixed, at) as usize);
    let (name, after) = after.split_at_checked(name_len).ok_or_else(cut)?;
    let (extra, after) = after.split_at_checked(extra_len).ok_or_else(cut)?;
    *rest = after.get(comment_len..).ok_or_else(cut)?;
    let name = std::str::from_utf8(name).map_err(|_| damaged(path, "the name of an entry is not UTF-8"))?;
    let refuse = |what: &str| damaged(path, &format!("its entry `{}` {what}", excerpt(name)));
    let (flags, method) = (u16_at(fixed, 8), u16_at(fixed, 10));
    if flags & 1 != 0 {
        return Err(refuse("is encrypted"));
    }
    if method != 0 {
        return Err(refuse(&format!(
            "is compressed (method {method}), so its tensors cannot be read in place; save it again with torch.save"
        )));
    }
    let mut wide = zip64_extra(extra);
    let mut field = |at: usize| match u32_at(fixed, at) {
        u32::MAX => wide.next().ok_or_else(|| refuse("lacks its 64-bit size or offset")),
        small => Ok(small.into()),
    };
    // In the order in which the extra field has them: the size as it was, the size as stored, the offset.
    let (size, stored, header) = (field(24)?, field(20)?, field(42)?);
    if size != stored {
        return Err(refuse(&format!("is stored as it is, but with {stored} bytes instead of {size}")));
    }
    Ok(Central { name: name.into(), header, len: size })
}

/// The 64-bit fields of an entry, if it has any.
fn zip64_extra(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut fields: &[u8] = &[];
    while let Some((head, after)) = extra.split_first_chunk::<4>() {
        let (id, len) = (u16_at(head, 0), u16_at(head, 2) as usize);
        let Some((content, after)) = after.split_at_checked(len) else { break };
        if id == 1 {
            fields = content;
            break;
        }
        extra = after;
    }
    fields.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Finds an entry's bytes, which follow its local header; all entries lie before the directory.
fn locate(path: &Path, entry: Central, directory: u64, read: &ReadAt) -> Result<ZipEntry> {
    let Central { name, header, len } = entry;
    let refuse = |what: String| damaged(path, &format!("its entry `{}` {what}", excerpt(&name)));
    if header.checked_add(LOCAL as u64).is_none_or(|end| end > directory) {
        return Err(refuse(format!("is said to begin at {header}, past the entries")));
    }
    let mut local = [0; LOCAL];
    read(header, &mut local)?;
    if !local.starts_with(b"PK\x03\x04") || u16_at(&local, 8) != 0 {
        return Err(refuse(format!("is said to begin at {header}, where there is no stored entry")));
    }
    let offset = header + LOCAL as u64 + u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
    match offset.checked_add(len) {
        Some(end) if end <= directory => Ok(ZipEntry { name, offset, len }),
        _ => Err(refuse(format!("has {len} bytes at {offset}, past the entries"))),
    }
}

fn check_names(path: &Path, entries: &[ZipEntry]) -> Result<()> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(damaged(path, &format!("it has two entries `{}`", excerpt(pair[0])))),
        None => Ok(()),
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    checkpoint_error(path, format!("is not a zip archive that can be read: {what}"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

//! The header of a safetensors file: 8 bytes of length, then JSON that maps names to dtype, shape and byte range
//! (<https://github.com/huggingface/safetensors>, format section of its README).
//!
//! The `safetensors` crate is not used for reading, for three reasons: it takes the whole file as one slice, which
//! means mapping data that must only ever be streamed; its errors name neither file nor, mostly, tensor; and of a
//! name that comes twice it silently keeps one.
//!
//! Everything in a header is hostile until checked. Deliberately more lenient than the format in one point: bytes
//! that belong to no tensor, between tensors or at the end, are accepted. They are never read, so they cannot change a
//! result, and writers that align tensors leave such holes. Overlapping tensors are refused.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::side::open_file;
use super::words::{LFS_POINTER, checkpoint_error, excerpt, first_repeated, json_problem, order_by_name, tensor_error};
use super::{Dtype, FileId, METADATA, Span, Stored, Tensor};
use crate::error::{Error, Result};

/// Bytes of the header's length, which opens the file.
const PREFIX: u64 = 8;
/// The format's own limit on the length of a header.
const MAX_HEADER: u64 = 100_000_000;
/// As many dimensions as PyTorch allows.
const MAX_DIMENSIONS: usize = 64;

/// Reads the header of one file: its length in bytes, and its tensors by offset.
pub(super) fn read(path: &Path, file: FileId) -> Result<(u64, Vec<Tensor>)> {
    let (handle, file_len) = open_file(path)?;
    if file_len < PREFIX {
        return Err(too_short(path, file_len));
    }
    let mut prefix = [0; PREFIX as usize];
    handle.read_exact_at(&mut prefix, 0).map_err(Error::io(path, "read"))?;
    let mut header = vec![0; header_len(path, prefix, file_len)?];
    handle.read_exact_at(&mut header, PREFIX).map_err(Error::io(path, "read"))?;
    Ok((file_len, parse(path, &header, file_len, file)?))
}

/// Parses the beginning of a file of `file_len` bytes, of which `bytes` holds at least the length and the header;
/// `path` is for errors only. Public for the fuzzer.
///
/// # Errors
///
/// [`Error::Checkpoint`] and [`Error::Tensor`]: file shorter than its header or its data, header over 100 MB, not
/// UTF-8 or not JSON of the format, a name twice, an unknown dtype, a shape that is no shape or overflows, byte
/// ranges reversed, out of range, overlapping, or of another length than shape × dtype.
#[doc(hidden)]
pub fn parse_header(path: &Path, bytes: &[u8], file_len: u64) -> Result<Vec<Tensor>> {
    let Some((prefix, rest)) = bytes.split_first_chunk() else {
        return Err(too_short(path, file_len));
    };
    let len = header_len(path, *prefix, file_len)?;
    match rest.get(..len) {
        Some(header) => parse(path, header, file_len, FileId(0)),
        None => Err(checkpoint_error(path, format!("only {} bytes of a header of {len} bytes", rest.len()))),
    }
}

fn too_short(path: &Path, file_len: u64) -> Error {
    let problem = format!("has {file_len} bytes, fewer than the {PREFIX} that open a safetensors file");
    checkpoint_error(path, problem + ": download it again")
}

/// The length of the header, checked against the file and the format's limit before anything is allocated.
fn header_len(path: &Path, prefix: [u8; 8], file_len: u64) -> Result<usize> {
    let len = u64::from_le_bytes(prefix);
    let room = file_len.saturating_sub(PREFIX);
    if len <= room && len <= MAX_HEADER {
        return Ok(len as usize);
    }
    let problem = match &prefix {
        b"version " => LFS_POINTER.into(),
        _ if len > MAX_HEADER => {
            format!(
                "gives its header {len} bytes, more than the {MAX_HEADER} that the format allows: not a safetensors file, or damaged"
            )
        }
        _ => format!("gives its header {len} bytes, but only {room} follow: truncated, or not a safetensors file"),
    };
    Err(checkpoint_error(path, problem))
}

fn parse(path: &Path, header: &[u8], file_len: u64, file: FileId) -> Result<Vec<Tensor>> {
    let data_start = PREFIX + header.len() as u64;
    let mut tensors = Vec::new();
    let (entries, packed) = parse_json(path, header)?;
    for (name, entry) in entries {
        let mut tensor = check_entry(path, name, entry, data_start, file)?;
        if let Some(stored) = packed.get(&tensor.name) {
            stored.apply(path, &mut tensor)?;
        }
        tensors.push(tensor);
    }
    if let Some((first, _)) = first_repeated(&tensors, &order_by_name(&tensors)) {
        return Err(tensor_error(path, &first.name, "comes twice in the header"));
    }
    tensors.sort_by(|a, b| (a.span.offset, a.span.len, &a.name).cmp(&(b.span.offset, b.span.len, &b.name)));
    check_ranges(path, &tensors, data_start, file_len)?;
    Ok(tensors)
}

/// One tensor on its own: dtype, shape, and the length of its range.
fn check_entry(path: &Path, name: String, entry: Entry<'_>, data_start: u64, file: FileId) -> Result<Tensor> {
    let refuse = |problem: String| tensor_error(path, &name, problem);
    let Entry { dtype, shape, data_offsets: (start, end) } = entry;
    let Some(dtype) = Dtype::from_name(&dtype) else {
        let known = Dtype::ALL.map(Dtype::name).join(", ");
        return Err(refuse(format!("dtype `{}` is not supported; these are: {known}", excerpt(&dtype))));
    };
    let bytes = shape.iter().try_fold(dtype.size() as u64, |product, &dim| product.checked_mul(dim as u64));
    let Some(bytes) = bytes else {
        return Err(refuse(format!("shape {shape:?} of {dtype} has more bytes than can be counted")));
    };
    let Some(len) = end.checked_sub(start) else {
        return Err(refuse(format!("data_offsets [{start}, {end}] end before they start")));
    };
    if len != bytes {
        let range = format!("data_offsets [{start}, {end}] hold {len}");
        return Err(refuse(format!("shape {shape:?} of {dtype} needs {bytes} bytes, but {range}")));
    }
    let Some(offset) = start.checked_add(data_start).filter(|offset| offset.checked_add(len).is_some()) else {
        return Err(refuse(format!("data_offsets [{start}, {end}] are out of range")));
    };
    Ok(Tensor { name, dtype, shape, span: Span { file, offset, len }, transposed: false })
}

/// All tensors, sorted by offset: within the file, and no byte in two of them.
fn check_ranges(path: &Path, tensors: &[Tensor], data_start: u64, file_len: u64) -> Result<()> {
    let end = |t: &Tensor| t.span.offset + t.span.len;
    let needed = tensors.iter().map(end).max().unwrap_or(data_start);
    if let Some(first) = tensors.iter().find(|t| end(t) > file_len) {
        let missing = needed - file_len;
        let problem = format!(
            "has {file_len} bytes, but its header describes {needed}: {missing} are missing, from tensor `{}` on; \
             download it again",
            excerpt(&first.name)
        );
        return Err(checkpoint_error(path, problem));
    }
    let mut filled = tensors.iter().filter(|t| t.span.len > 0);
    let Some(mut before) = filled.next() else { return Ok(()) };
    for tensor in filled {
        if tensor.span.offset < end(before) {
            let range = |t: &Tensor| format!("[{}, {}]", t.span.offset - data_start, end(t) - data_start);
            let other = format!("those of `{}`, {}", excerpt(&before.name), range(before));
            return Err(tensor_error(path, &tensor.name, format!("data_offsets {} overlap {other}", range(tensor))));
        }
        before = tensor;
    }
    Ok(())
}

/// The tensors, and which of them are packed.
#[expect(clippy::type_complexity, reason = "a pair of lists by name")]
fn parse_json<'h>(path: &Path, header: &'h [u8]) -> Result<(Vec<(String, Entry<'h>)>, HashMap<String, Stored>)> {
    let text = std::str::from_utf8(header).map_err(|e| {
        let at = PREFIX + e.valid_up_to() as u64;
        checkpoint_error(
            path,
            format!("its header is not UTF-8 (byte {at} of the file): not a safetensors file, or damaged"),
        )
    })?;
    let (mut culprit, mut metadata) = (None, Value::Null);
    let mut json = serde_json::Deserializer::from_str(text);
    let entries = Entries { culprit: &mut culprit, metadata: &mut metadata };
    let parsed = entries.deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    let parsed = parsed.map_err(|e| {
        let problem = json_problem(&e);
        match &culprit {
            Some(name) => tensor_error(path, name, format!("its entry in the header is malformed: {problem}")),
            None => checkpoint_error(path, format!("its header is not valid JSON: {problem}")),
        }
    })?;
    let packed = match metadata.get(METADATA).and_then(Value::as_str) {
        None => HashMap::new(),
        Some(text) => serde_json::from_str(text).map_err(|e| {
            checkpoint_error(path, format!("what `{METADATA}` in its header says is malformed: {}", json_problem(&e)))
        })?,
    };
    Ok((parsed, packed))
}

/// What the header says of one tensor. Keys of later versions of the format are ignored, as by its own reader.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    #[serde(deserialize_with = "shape")]
    shape: Vec<usize>,
    #[serde(deserialize_with = "data_offsets")]
    data_offsets: (u64, u64),
}

fn data_offsets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(u64, u64), D::Error> {
    <(u64, u64)>::deserialize(deserializer).map_err(|e| D::Error::custom(format!("data_offsets: {e}")))
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    deserializer.deserialize_seq(ShapeVisitor).map_err(|e| D::Error::custom(format!("shape: {e}")))
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::custom(format!("more than {MAX_DIMENSIONS} dimensions")));
            }
            shape.push(dim);
        }
        Ok(shape)
    }
}

/// Collects the pairs as they stand, so that a repeated name is seen, and remembers in which entry it failed.
struct Entries<'c> {
    culprit: &'c mut Option<String>,
    /// What is no tensor.
    metadata: &'c mut Value,
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Vec<(String, Entry<'de>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Vec<(String, Entry<'de>)>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object with an entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                *self.metadata = map.next_value()?;
                continue;
            }
            match map.next_value() {
                Ok(entry) => entries.push((name, entry)),
                Err(e) => {
                    *self.culprit = Some(name);
                    return Err(e);
                }
            }
        }
        Ok(entries)
    }
}

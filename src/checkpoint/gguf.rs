//! GGUF files, versions 2 and 3: metadata, then the list of tensors, then their bytes
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). A large model may be split into several files, of which the
//! first has the metadata.
//!
//! No crate reads it here: the ones there are bring the loading and the arithmetic of a whole runtime along, or trust the
//! lengths that a header gives. Everything in a header is hostile until checked, as in `safetensors.rs`.

use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::metadata::{Metadata, Value};
use super::side::open_file;
use super::words::{LFS_POINTER, checkpoint_error, excerpt, first_repeated, order_by_name, tensor_error};
use super::{CheckpointFile, Dtype, FileId, Span, Tensor};
use crate::error::{Error, Result};
use crate::hub::gguf as names;

/// The longest header that is read, in bytes: several times that of the largest vocabulary.
const MAX_HEADER: u64 = 100_000_000;
/// The most entries of all arrays together: ten times the largest vocabulary with its merges.
const MAX_ENTRIES: u64 = 10_000_000;
/// Dimensions that the format knows.
const MAX_DIMENSIONS: u32 = 4;
/// Where tensors begin, if the metadata does not say.
const ALIGNMENT: u64 = 32;
/// The tensor with the factors of rotary frequencies, and the most values that it may have.
const ROPE_FACTORS: (&str, usize) = ("rope_freqs.weight", 4096);

/// What one file says of itself.
#[doc(hidden)]
#[derive(Debug)]
pub struct GgufHeader {
    pub metadata: Metadata,
    /// By offset.
    pub tensors: Vec<Tensor>,
}

/// The files of one model.
pub(super) struct Opened {
    pub files: Vec<CheckpointFile>,
    pub tensors: Vec<Tensor>,
    pub metadata: Metadata,
}

/// Opens the files of one model: all parts, in order.
pub(super) fn open(paths: &[PathBuf]) -> Result<Opened> {
    let (mut files, mut tensors, mut first) = (Vec::new(), Vec::new(), None);
    for (path, id) in paths.iter().zip(0..) {
        let (handle, len) = open_file(path)?;
        let header = parse(path, &mut BufReader::new(&handle), len, FileId(id))?;
        let said = |key: &str, default: u64| -> Result<u64> { Ok(header.metadata.size(key)?.unwrap_or(default)) };
        let (no, count) = (said("split.no", 0)?, said("split.count", 1)?);
        if (no, count.max(1)) != (id.into(), paths.len() as u64) {
            let name = format!("is part {} of {} by its name", id + 1, paths.len());
            let problem = format!("{name}, but part {} of {count} by its metadata", no.saturating_add(1));
            return Err(checkpoint_error(path, problem));
        }
        files.push(CheckpointFile { path: path.clone(), len });
        tensors.extend(header.tensors);
        first.get_or_insert(header.metadata);
    }
    let mut metadata = first.expect("a model has at least one file");
    if let Some(expected) = metadata.size("split.tensors.count")?.filter(|count| *count != tensors.len() as u64) {
        let problem = format!("says that all parts hold {expected} tensors together, but they hold {}", tensors.len());
        return Err(checkpoint_error(metadata.path(), problem));
    }
    if let Some(tensor) = tensors.iter().find(|tensor| tensor.name == ROPE_FACTORS.0) {
        metadata.set_rope_factors(rope_factors(&files[tensor.span.file.0 as usize].path, tensor)?);
    }
    Ok(Opened { files, tensors, metadata })
}

/// Frequencies are part of the program, so this small tensor is read when the file is opened.
fn rope_factors(path: &Path, tensor: &Tensor) -> Result<Vec<f32>> {
    let count = tensor.shape.iter().product::<usize>();
    if tensor.dtype != Dtype::F32 || tensor.shape.len() != 1 || count > ROPE_FACTORS.1 {
        let problem = format!("is {} of shape {:?}; expected a short list of F32", tensor.dtype, tensor.shape);
        return Err(tensor_error(path, &tensor.name, problem));
    }
    let mut bytes = vec![0; tensor.span.len as usize];
    open_file(path)?.0.read_exact_at(&mut bytes, tensor.span.offset).map_err(Error::io(path, "read"))?;
    let factors: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        Some(factor) => {
            Err(tensor_error(path, &tensor.name, format!("has a factor {factor}; expected numbers above 0")))
        }
        None => Ok(factors),
    }
}

/// The name of a tensor in a GGUF file, given its name in the checkpoints of Hugging Face; `None` where it has none.
pub(super) fn stored_name(name: &str) -> Option<String> {
    let (stem, ending) = name.rsplit_once('.')?;
    let stem = match stem {
        "model.embed_tokens" => "token_embd".into(),
        "model.norm" => "output_norm".into(),
        "lm_head" => "output".into(),
        _ => {
            let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
            let part = match part {
                "input_layernorm" => "attn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "post_attention_layernorm" => "ffn_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => return None,
            };
            format!("blk.{layer}.{part}")
        }
    };
    Some(format!("{stem}.{ending}"))
}

/// The files of the model that `path` is a part of: `NAME-00001-of-00003.gguf` and so on, or itself.
pub(super) fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let all = names::parts(&name);
    if all.len() == 1 {
        return Ok(vec![path.into()]);
    }
    let all: Vec<PathBuf> = all.iter().map(|part| path.with_file_name(part)).collect();
    match all.iter().find(|part| !part.exists()) {
        Some(missing) => {
            Err(checkpoint_error(missing, "does not exist: all parts of a split model are needed; download it"))
        }
        None => Ok(all),
    }
}

/// Parses the beginning of a file of `file_len` bytes; `path` is for errors only. Public for the fuzzer.
///
/// # Errors
/// [`Error::Checkpoint`] and [`Error::Tensor`]: not GGUF, another version or byte order, lengths beyond the file, keys or
/// names that come twice, types that are not supported, tensors that overlap or lie outside of the file.
#[doc(hidden)]
pub fn parse_gguf(path: &Path, bytes: &[u8], file_len: u64) -> Result<GgufHeader> {
    parse(path, &mut &bytes[..], file_len, FileId(0))
}

fn parse(path: &Path, reader: &mut dyn Read, file_len: u64, file: FileId) -> Result<GgufHeader> {
    let mut cursor = Cursor { path, reader, at: 0, end: file_len.min(MAX_HEADER), file_len, entries: 0 };
    let magic: [u8; 4] = cursor.take()?;
    match &magic {
        b"GGUF" => {}
        b"vers" => return Err(checkpoint_error(path, LFS_POINTER)),
        b"ggml" | b"ggmf" | b"ggjt" | b"tjgg" | b"fmgg" | b"lmgg" => {
            return Err(checkpoint_error(
                path,
                "is in the form that llama.cpp used before GGUF; convert it from the original",
            ));
        }
        _ => return Err(checkpoint_error(path, "is no GGUF file, or damaged: it does not begin with `GGUF`")),
    }
    let version = u32::from_le_bytes(cursor.take()?);
    if !matches!(version, 2 | 3) {
        let order = if version.swap_bytes() <= 3 { " in big-endian byte order" } else { "" };
        let problem =
            format!("is GGUF{order} of version {}; versions 2 and 3 are supported", version.swap_bytes().min(version));
        return Err(checkpoint_error(path, problem));
    }
    let (tensor_count, key_count) = (cursor.u64()?, cursor.u64()?);
    let mut keys = BTreeMap::new();
    // The shortest entry: an empty key, a type, one byte. And of a tensor: name, dimensions, type, offset.
    cursor.must_hold(key_count, 13, "keys")?;
    for _ in 0..key_count {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let value = cursor.value(&key, kind)?;
        if keys.insert(key.clone(), value).is_some() {
            return Err(checkpoint_error(path, format!("its metadata has the key `{}` twice", excerpt(&key))));
        }
    }
    cursor.must_hold(tensor_count, 24, "tensors")?;
    let mut found = Vec::new();
    for _ in 0..tensor_count {
        found.push(cursor.tensor(file)?);
    }
    let metadata = Metadata::new(path, keys);
    let alignment = metadata.size("general.alignment")?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(checkpoint_error(path, format!("its `general.alignment` is {alignment}; expected a power of two")));
    }
    let data = cursor.at.next_multiple_of(alignment);
    let tensors = place(path, found, data, file_len)?;
    Ok(GgufHeader { metadata, tensors })
}

/// Moves tensors from offsets in the data to offsets in the file, and checks that they lie there, each for itself.
fn place(path: &Path, mut tensors: Vec<Tensor>, data: u64, file_len: u64) -> Result<Vec<Tensor>> {
    for tensor in &mut tensors {
        let end = tensor.span.offset.checked_add(data).and_then(|offset| offset.checked_add(tensor.span.len));
        if end.is_none_or(|end| end > file_len) {
            let range = format!("{} bytes at {} of the data", tensor.span.len, tensor.span.offset);
            let problem =
                format!("{range}, which begins at {data}, but the file has {file_len}: truncated; download it again");
            return Err(tensor_error(path, &tensor.name, problem));
        }
        tensor.span.offset += data;
    }
    if let Some((first, _)) = first_repeated(&tensors, &order_by_name(&tensors)) {
        return Err(tensor_error(path, &first.name, "comes twice in the header"));
    }
    tensors.sort_by(|a, b| (a.span.offset, a.span.len, &a.name).cmp(&(b.span.offset, b.span.len, &b.name)));
    let filled: Vec<&Tensor> = tensors.iter().filter(|tensor| tensor.span.len > 0).collect();
    match filled.windows(2).find(|pair| pair[0].span.offset + pair[0].span.len > pair[1].span.offset) {
        Some(pair) => {
            let problem = format!("its bytes overlap those of `{}`", excerpt(&pair[0].name));
            Err(tensor_error(path, &pair[1].name, problem))
        }
        None => Ok(tensors),
    }
}

/// The header, read from its beginning to its end, never further than the file or the limit.
struct Cursor<'a> {
    path: &'a Path,
    reader: &'a mut dyn Read,
    at: u64,
    end: u64,
    file_len: u64,
    /// Entries of arrays so far.
    entries: u64,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() as u64 > self.end - self.at {
            return Err(self.too_long());
        }
        self.reader.read_exact(bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => self.too_long(),
            _ => Error::io(self.path, "read")(e),
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn too_long(&self) -> Error {
        let what = match self.file_len > MAX_HEADER {
            true => format!("its header is longer than {MAX_HEADER} bytes: damaged"),
            false => format!("its header goes on past the end of the file ({} bytes): truncated", self.file_len),
        };
        checkpoint_error(self.path, what + "; download it again")
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// Refuses a count whose entries, of at least so many bytes each, cannot all be there.
    fn must_hold(&self, count: u64, least: u64, what: &str) -> Result<()> {
        match count <= (self.end - self.at) / least {
            true => Ok(()),
            false => Err(checkpoint_error(
                self.path,
                format!("its header announces {count} {what}, more than the file can hold: damaged, or truncated"),
            )),
        }
    }

    fn text(&mut self) -> Result<String> {
        let len = self.u64()?;
        self.must_hold(len, 1, "characters of a text")?;
        // Memory for what is there, not for what is announced.
        let mut bytes = Vec::new();
        (&mut *self.reader).take(len).read_to_end(&mut bytes).map_err(Error::io(self.path, "read"))?;
        if (bytes.len() as u64) < len {
            return Err(self.too_long());
        }
        self.at += len;
        String::from_utf8(bytes).map_err(|_| {
            checkpoint_error(self.path, format!("a text in its header, before byte {}, is not UTF-8", self.at))
        })
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        Ok(match kind {
            0..=5 | 10 | 11 => Value::Int(self.int(kind)?),
            6 | 12 => Value::Float(self.float(kind)?),
            7 => Value::Bool(self.take::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => self.array(key)?,
            _ => return Err(self.unknown_kind(key, kind)),
        })
    }

    fn array(&mut self, key: &str) -> Result<Value> {
        let (kind, count) = (self.u32()?, self.u64()?);
        self.must_hold(count, 1, "entries of an array")?;
        self.entries += count;
        if self.entries > MAX_ENTRIES {
            let problem = format!("its arrays have more than {MAX_ENTRIES} entries, at `{}`: damaged", excerpt(key));
            return Err(checkpoint_error(self.path, problem));
        }
        Ok(match kind {
            0..=5 | 7 | 10 | 11 => Value::Ints((0..count).map(|_| Ok(self.int(kind)? as i64)).collect::<Result<_>>()?),
            6 | 12 => Value::Floats((0..count).map(|_| Ok(self.float(kind)? as f32)).collect::<Result<_>>()?),
            8 => Value::Texts((0..count).map(|_| self.text()).collect::<Result<_>>()?),
            _ => return Err(self.unknown_kind(key, kind)),
        })
    }

    /// A whole number of one of the format's types; true is 1.
    fn int(&mut self, kind: u32) -> Result<i128> {
        Ok(match kind {
            0 | 7 => u8::from_le_bytes(self.take()?).into(),
            1 => i8::from_le_bytes(self.take()?).into(),
            2 => u16::from_le_bytes(self.take()?).into(),
            3 => i16::from_le_bytes(self.take()?).into(),
            4 => u32::from_le_bytes(self.take()?).into(),
            5 => i32::from_le_bytes(self.take()?).into(),
            10 => u64::from_le_bytes(self.take()?).into(),
            _ => i64::from_le_bytes(self.take()?).into(),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64> {
        Ok(match kind {
            6 => f32::from_le_bytes(self.take()?).into(),
            _ => f64::from_le_bytes(self.take()?),
        })
    }

    fn unknown_kind(&self, key: &str, kind: u32) -> Error {
        checkpoint_error(self.path, format!("its key `{}` has a value of an unknown type, {kind}", excerpt(key)))
    }

    /// One entry of the list of tensors, at an offset within the data.
    fn tensor(&mut self, file: FileId) -> Result<Tensor> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(tensor_error(self.path, &name, format!("has {dimensions} dimensions; the format knows four")));
        }
        let mut shape = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<u64>>>()?;
        let (kind, offset) = (self.u32()?, self.u64()?);
        let dtype = match dtype(kind) {
            Ok(dtype) => dtype,
            Err(other) => {
                let what = format!("tensor `{}` of type {other}", excerpt(&name));
                return Err(Error::Unsupported { path: self.path.into(), what });
            }
        };
        let (block, block_bytes) = dtype.block();
        let along = shape.first().copied().unwrap_or(1);
        if !along.is_multiple_of(block as u64) {
            let problem = format!("has rows of {along}, which is no multiple of the {block} in a block of {dtype}");
            return Err(tensor_error(self.path, &name, problem));
        }
        // The innermost dimension comes first.
        shape.reverse();
        let count = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let len = count.and_then(|count| (count / block as u64).checked_mul(block_bytes as u64));
        let (Some(len), true) = (len, shape.iter().all(|dim| usize::try_from(*dim).is_ok())) else {
            let problem = format!("shape {shape:?} of {dtype} has more bytes than can be counted");
            return Err(tensor_error(self.path, &name, problem));
        };
        let shape = shape.into_iter().map(|dim| dim as usize).collect();
        Ok(Tensor { name, dtype, shape, span: Span { file, offset, len }, transposed: false })
    }
}

/// The type of that number in a header, or the name of one that is not supported.
fn dtype(kind: u32) -> Result<Dtype, String> {
    Ok(match kind {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Q4_0,
        3 => Dtype::Q4_1,
        6 => Dtype::Q5_0,
        7 => Dtype::Q5_1,
        8 => Dtype::Q8_0,
        12 => Dtype::Q4K,
        13 => Dtype::Q5K,
        14 => Dtype::Q6K,
        24 => Dtype::I8,
        25 => Dtype::I16,
        26 => Dtype::I32,
        27 => Dtype::I64,
        28 => Dtype::F64,
        30 => Dtype::Bf16,
        _ => {
            let name = match kind {
                9 => "Q8_1",
                10 => "Q2_K",
                11 => "Q3_K",
                15 => "Q8_K",
                16 => "IQ2_XXS",
                17 => "IQ2_XS",
                18 => "IQ3_XXS",
                19 => "IQ1_S",
                20 => "IQ4_NL",
                21 => "IQ3_S",
                22 => "IQ2_S",
                23 => "IQ4_XS",
                29 => "IQ1_M",
                34 => "TQ1_0",
                35 => "TQ2_0",
                39 => "MXFP4",
                _ => return Err(format!("number {kind}")),
            };
            return Err(name.into());
        }
    })
}

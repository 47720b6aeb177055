//! `pytorch_model.bin`: what `torch.save` writes since PyTorch 1.6, a zip archive with a pickle that describes tensors and
//! an uncompressed entry for each storage (layout as in PyTorch's `caffe2/serialize`). The pickle is interpreted by a
//! machine that can build tensors and nothing else; tensors are then byte ranges of the archive, read in place.
//!
//! Several tensors may be views of one storage: tied weights, or parts of a fused matrix.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::pickle::{PickledTensor, parse_pickle};
use super::side::open_file;
use super::words::{LFS_POINTER, checkpoint_error, excerpt, tensor_error};
use super::zip::{ReadAt, ZipEntry, read_zip};
use super::{FileId, Span, Tensor};
use crate::error::{Error, Result};

/// The largest pickle that is read, in bytes: a hundred times that of the largest published checkpoint.
const MAX_PICKLE: u64 = 100_000_000;

/// How the first pickle of the form before PyTorch 1.6 begins: protocol 2, a long integer, 0x1950a86a20f9469cfc6c.
const OLD_MAGIC: [u8; 14] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Reads what one file says of its tensors: its length in bytes, and the tensors by offset.
pub(super) fn read(path: &Path, file: FileId) -> Result<(u64, Vec<Tensor>)> {
    let (handle, file_len) = open_file(path)?;
    let read = |offset: u64, to: &mut [u8]| handle.read_exact_at(to, offset).map_err(Error::io(path, "read"));
    let mut start = [0; OLD_MAGIC.len()];
    let known = start.len().min(file_len as usize);
    read(0, &mut start[..known])?;
    if start == OLD_MAGIC {
        let problem = "is in the form that torch.save wrote before PyTorch 1.6; load it once with torch.load and save it \
                       again with torch.save, or as safetensors";
        return Err(checkpoint_error(path, problem));
    }
    if start.starts_with(b"version ") {
        return Err(checkpoint_error(path, LFS_POINTER));
    }
    let archive = Archive::open(path, file_len, &read)?;
    let pickled = parse_pickle(path, &archive.read("data.pkl", MAX_PICKLE, &read)?)?;
    if archive.entries.contains_key("byteorder") && archive.read("byteorder", 100, &read)? != b"little" {
        return Err(checkpoint_error(path, "was saved on a big-endian machine; save it again on a little-endian one"));
    }
    let mut tensors = Vec::with_capacity(pickled.len());
    for tensor in pickled {
        tensors.push(archive.place(tensor, file)?);
    }
    tensors.sort_by(|a, b| (a.span.offset, a.span.len, &a.name).cmp(&(b.span.offset, b.span.len, &b.name)));
    Ok((file_len, tensors))
}

/// The entries of an archive by their names below its one folder.
struct Archive<'p> {
    path: &'p Path,
    entries: HashMap<String, ZipEntry>,
}

impl Archive<'_> {
    fn open<'p>(path: &'p Path, file_len: u64, read: &ReadAt) -> Result<Archive<'p>> {
        let entries = read_zip(path, file_len, read)?;
        let roots: Vec<&str> = entries.iter().filter_map(|entry| entry.name.strip_suffix("/data.pkl")).collect();
        let root = match roots.as_slice() {
            [root] => format!("{root}/"),
            _ => {
                let problem =
                    format!("is a zip archive with {} entries `…/data.pkl`, and torch.save writes one", roots.len());
                return Err(checkpoint_error(path, problem));
            }
        };
        let below = |entry: ZipEntry| Some((entry.name.strip_prefix(&root)?.to_owned(), entry));
        Ok(Archive { path, entries: entries.into_iter().filter_map(below).collect() })
    }

    /// The bytes of one small entry.
    fn read(&self, name: &str, limit: u64, read: &ReadAt) -> Result<Vec<u8>> {
        let entry = &self.entries[name];
        if entry.len > limit {
            let problem =
                format!("its entry `{name}` has {} bytes, more than the {limit} that are ever read", entry.len);
            return Err(checkpoint_error(self.path, problem));
        }
        let mut bytes = vec![0; entry.len as usize];
        read(entry.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of the file that hold a tensor.
    fn place(&self, tensor: PickledTensor, file: FileId) -> Result<Tensor> {
        let PickledTensor { name, dtype, storage, storage_len, offset, shape, strides } = tensor;
        let refuse = |problem: String| tensor_error(self.path, &name, problem);
        let Some(entry) = self.entries.get(&format!("data/{storage}")) else {
            return Err(refuse(format!("its storage `{}` is not in the archive", excerpt(&storage))));
        };
        let size = dtype.size() as u64;
        if storage_len.checked_mul(size).is_none_or(|bytes| bytes > entry.len) {
            let problem = format!("its storage has {} bytes, too few for {storage_len} elements of {dtype}", entry.len);
            return Err(refuse(problem));
        }
        let count = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let end = count.and_then(|count| count.checked_add(offset)).filter(|end| *end <= storage_len);
        let (Some(count), Some(_)) = (count, end) else {
            return Err(refuse(format!(
                "shape {shape:?} at {offset} is not inside its storage of {storage_len} elements"
            )));
        };
        let transposed = match order(&shape, &strides) {
            Some(order) => order == Order::Columns,
            None => {
                let problem = format!("its elements are spread out (shape {shape:?}, strides {strides:?})");
                return Err(refuse(problem + ", which is not supported; save it again after `.contiguous()`"));
            }
        };
        // Both products are at most the length of the entry, which lies in the file.
        let span = Span { file, offset: entry.offset + offset * size, len: count * size };
        Ok(Tensor { name, dtype, shape: shape.into_iter().map(|dim| dim as usize).collect(), span, transposed })
    }
}

#[derive(PartialEq)]
enum Order {
    Rows,
    Columns,
}

/// How elements that lie without gaps follow each other.
fn order(shape: &[u64], strides: &[u64]) -> Option<Order> {
    let dims = || shape.iter().copied().zip(strides.iter().copied());
    if shape.contains(&0) || gapless(dims().rev()) {
        return Some(Order::Rows);
    }
    (shape.len() == 2 && gapless(dims())).then_some(Order::Columns)
}

/// Whether each stride is the product of the dimensions before. Along a dimension of one, strides mean nothing.
fn gapless(dims: impl Iterator<Item = (u64, u64)>) -> bool {
    let mut expected = 1u64;
    for (dim, stride) in dims {
        if dim != 1 && stride != expected {
            return false;
        }
        expected = expected.saturating_mul(dim);
    }
    true
}

//! A checkpoint: files on disk, and in them tensors as byte ranges with a dtype. Only headers are read here, and tensors
//! that say how others are to be read; the data is streamed later by whoever holds the ranges.
//!
//! [`Checkpoint::open`] takes what the Hub hands out, as it lies on disk: a directory with `model.safetensors` or
//! `pytorch_model.bin`, or with shards and an index of them, or with one model in GGUF form; or one such file. Symbolic links (the Hub's cache is made of
//! them) are followed, and never shown: every error names the path that the caller knows.

mod dtype;
mod gguf;
mod index;
mod locate;
mod metadata;
mod packed;
mod pickle;
mod safetensors;
mod side;
mod torch;
mod words;
mod zip;

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use dtype::Dtype;
#[doc(hidden)]
pub use gguf::{GgufHeader, parse_gguf};
#[doc(hidden)]
pub use index::parse_index;
pub use metadata::Metadata;
pub use packed::Packed;
pub(crate) use packed::{BLOCK, BLOCK_BYTES, BLOCK_CODES, METADATA, NESTED, RUN, Stored};
#[doc(hidden)]
pub use pickle::{PickledTensor, parse_pickle};
#[doc(hidden)]
pub use safetensors::parse_header;
pub use side::read_json;
#[doc(hidden)]
pub use zip::{ZipEntry, parse_zip};

use crate::error::{Error, Result};
use locate::{Form, Place};
pub(crate) use words::{excerpt, json_problem, tensor_error};
use words::{first_repeated, nearest, order_by_name};

/// Index of a file in [`Checkpoint::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// A run of bytes in one file of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub file: FileId,
    /// Bytes from the start of the file. Not aligned to anything.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// One tensor: its name, element type, shape (outermost dimension first) and where its bytes lie, row-major unless it is
/// transposed. `shape` × `dtype` = `span.len`, checked when the checkpoint was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub span: Span,
    /// Of a matrix: it lies column after column, as PyTorch saves a transposed view.
    pub transposed: bool,
}

impl Tensor {
    /// Whether it is packed, and has this name in its file.
    pub(crate) fn is_packed_as(&self, name: &str) -> bool {
        matches!(self.dtype, Dtype::Packed(packed) if packed::plain_name(name, packed) == Some(&self.name))
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFile {
    /// As the caller knows it: links are not resolved.
    pub path: PathBuf,
    /// Bytes in the file, header included.
    pub len: u64,
}

/// An opened checkpoint: the list of its files and of its tensors. Holds no file open and no data.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    /// What says which tensors there are: the index, or the only file.
    listing: PathBuf,
    files: Vec<CheckpointFile>,
    /// By file, then offset.
    tensors: Vec<Tensor>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
    /// Of a GGUF file.
    metadata: Option<Arc<Metadata>>,
}

impl Checkpoint {
    /// Opens a model directory, or a single file of weights, reading nothing but headers.
    ///
    /// Safetensors are preferred to PyTorch's `.bin`, and an index to a single file. A tensor that a shard holds and the
    /// index does not name is kept: it has one place, so nothing about it is in doubt.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Io`] when a file cannot be read; [`crate::Error::Checkpoint`] and [`crate::Error::Tensor`] when there is no
    /// checkpoint of a supported form, a shard is missing or truncated, or anything in an index or a header is
    /// malformed or contradicts the files (see [`parse_header`] for what is checked).
    pub fn open(path: &Path) -> Result<Checkpoint> {
        match locate::locate(path)? {
            Place::Single { dir, file, form } => {
                let (len, tensors) = read_file(form, &file, FileId(0))?;
                let files = vec![CheckpointFile { path: file.clone(), len }];
                Checkpoint::assemble(dir, file, files, tensors)
            }
            Place::Sharded { dir, index, form } => Checkpoint::open_sharded(dir, index, form),
            Place::Gguf { dir, parts } => {
                let gguf::Opened { files, tensors, metadata } = gguf::open(&parts)?;
                let checkpoint = Checkpoint::assemble(dir, metadata.path().into(), files, tensors)?;
                Ok(Checkpoint { metadata: Some(Arc::new(metadata)), ..checkpoint })
            }
        }
    }

    fn open_sharded(dir: PathBuf, index_path: PathBuf, form: Form) -> Result<Checkpoint> {
        let index = index::read(&index_path)?;
        index.require_shards(&index_path, &dir)?;
        let mut files = Vec::with_capacity(index.shards.len());
        let mut tensors = Vec::with_capacity(index.weights.len());
        for (shard, id) in index.shards.iter().zip(0..) {
            let path = dir.join(shard);
            let (len, found) = read_file(form, &path, FileId(id))?;
            files.push(CheckpointFile { path, len });
            tensors.extend(found);
        }
        let checkpoint = Checkpoint::assemble(dir, index_path, files, tensors)?;
        for (name, shard) in &index.weights {
            checkpoint.check_place(name, *shard)?;
        }
        Ok(checkpoint)
    }

    /// `tensors` come by file, then offset, and no name twice in one file.
    fn assemble(
        dir: PathBuf,
        listing: PathBuf,
        files: Vec<CheckpointFile>,
        tensors: Vec<Tensor>,
    ) -> Result<Checkpoint> {
        let by_name = order_by_name(&tensors);
        if let Some((a, b)) = first_repeated(&tensors, &by_name) {
            let file = |t: &Tensor| &files[t.span.file.0 as usize].path;
            let problem = format!("is also in {}: which of the two is meant cannot be known", file(a).display());
            return Err(tensor_error(file(b), &b.name, problem));
        }
        Ok(Checkpoint { dir, listing, files, tensors, by_name, metadata: None })
    }

    /// The index says that `name` is in the shard `said`; refuses anything else.
    fn check_place(&self, name: &str, said: u32) -> Result<()> {
        let shard = |id: u32| self.files[id as usize].path.file_name().unwrap_or_default().display();
        // An index has the names that are in the files.
        let unpacked = || Some(self.get(name.rsplit_once('.')?.0)?).filter(|t| t.is_packed_as(name));
        let problem = match self.get(name).or_else(unpacked) {
            Some(t) if t.span.file.0 == said => return Ok(()),
            Some(t) => format!("the index says that it is in {}, but it is in {}", shard(said), shard(t.span.file.0)),
            None => format!("the index says that it is in {}, which does not hold it", shard(said)),
        };
        Err(tensor_error(&self.listing, name, problem))
    }

    /// The directory in which `config.json` and the tokenizer are to be found.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a GGUF file says of its model, instead of `config.json` and the tokenizer's files.
    pub fn metadata(&self) -> Option<&Arc<Metadata>> {
        self.metadata.as_ref()
    }

    /// The files that hold tensors, in the order of [`FileId`].
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// The path of one file, for opening it and for errors about it.
    ///
    /// # Panics
    ///
    /// If `id` is of another checkpoint with more files.
    pub fn file_path(&self, id: FileId) -> &Path {
        &self.files[id.0 as usize].path
    }

    /// All tensors, in the order in which they lie on disk: by file, then offset.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.iter()
    }

    /// Bytes of all tensors together, without headers; those that share bytes count each.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, t| sum.saturating_add(t.span.len))
    }

    /// The tensor of that name, if there is one. Tensors of a GGUF file are found by the names that they have in the
    /// checkpoints of Hugging Face, too.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let name = &*self.stored_name(name);
        let found = self.by_name.binary_search_by(|&i| self.tensors[i as usize].name.as_str().cmp(name));
        found.ok().map(|i| &self.tensors[self.by_name[i] as usize])
    }

    /// The tensor of that name, or an error that says where it was sought and which names come near.
    pub fn require(&self, name: &str) -> Result<&Tensor> {
        self.get(name).ok_or_else(|| {
            let name = &*self.stored_name(name);
            let mut problem = format!("is missing; there are {} tensors in {}", self.tensors.len(), self.places());
            let near = nearest(name, self.tensors.iter().map(|t| t.name.as_str()));
            if !near.is_empty() {
                problem += &format!(", the nearest: {}", near.join(", "));
            }
            tensor_error(&self.listing, name, problem)
        })
    }

    /// The first bytes of a small tensor, at most so many: one that says how others are to be read.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Io`] when its file cannot be read.
    pub fn read(&self, tensor: &Tensor, most: usize) -> Result<Vec<u8>> {
        let path = self.file_path(tensor.span.file);
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        file.seek(SeekFrom::Start(tensor.span.offset)).map_err(Error::io(path, "read"))?;
        let mut bytes = vec![0; most.min(tensor.span.len as usize)];
        file.read_exact(&mut bytes).map_err(Error::io(path, "read"))?;
        Ok(bytes)
    }

    fn stored_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let translated = self.metadata.as_ref().and_then(|_| gguf::stored_name(name));
        translated.map_or(Cow::Borrowed(name), Cow::Owned)
    }

    fn places(&self) -> String {
        match self.files.len() {
            1 => "this file".into(),
            n => format!("its {n} shards"),
        }
    }
}

/// Reads what one file says of itself: its length in bytes, and its tensors by offset.
fn read_file(form: Form, path: &Path, file: FileId) -> Result<(u64, Vec<Tensor>)> {
    match form {
        Form::Safetensors => safetensors::read(path, file),
        Form::Torch => torch::read(path, file),
    }
}

//! The manifest, `layerstream-pack.json`: what the result is made of, with a checksum for every run of rows of every tensor;
//! and, while packing goes on, the record of what is done. It is replaced as a whole, never changed in place.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Options;
use super::agree::{self, ADVICE};
use super::files::{Steps, replace, sum};
use super::shard::{run_at, runs, runs_of};
use super::source;
use crate::checkpoint::{Checkpoint, CheckpointFile, Dtype, METADATA, Stored, Tensor, excerpt, json_problem};
use crate::disk::{CheckedRun, Checksums};
use crate::encoding::Packed;
use crate::error::{Error, Result};

pub(crate) const MANIFEST: &str = "layerstream-pack.json";
const VERSION: u32 = 3;
/// The one before: its sources are known by their beginnings alone, and have no checksums of all their bytes.
const OLDER: u32 = 2;
/// As long as any checksum.
const NO_SUM: &str = "00000000000000000000000000000000";
/// Where tensors begin in a file if they can: at multiples of this, so that rows are read directly without a detour.
pub const ALIGN: u64 = 4096;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    /// Checksum of the rest of the manifest.
    #[serde(default)]
    sum: String,
    /// The encoding, as its metadata calls it.
    to: String,
    block: usize,
    head: bool,
    /// Nothing is left to do.
    pub finished: bool,
    /// Matrices that lie as their transpose, and stay as they are.
    pub transposed: usize,
    /// Matrices that stay as they are, since they would not get smaller without loss.
    #[serde(default)]
    pub kept: usize,
    pub small: Vec<Small>,
    pub shards: Vec<Shard>,
}

/// A file that was copied whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Small {
    pub file: String,
    pub bytes: u64,
    pub sum: String,
}

/// A file of tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shard {
    pub file: String,
    pub bytes: u64,
    /// It is safe on disk.
    pub packed: bool,
    /// The file that it is made from.
    pub source: String,
    pub source_bytes: u64,
    /// Checksum of pieces of the source.
    pub source_sum: String,
    /// Checksum of all of the source, once it was read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_whole: String,
    /// In the order in which they lie in the file.
    pub tensors: Vec<Entry>,
}

/// A tensor of the result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// As in the file.
    pub name: String,
    pub dtype: String,
    /// As in the file.
    pub shape: Vec<usize>,
    /// From the start of the file, in bytes.
    pub offset: u64,
    pub bytes: u64,
    /// If it is packed, what the file says of it.
    pub packed: Option<Stored>,
    /// The type of the numbers before, and where they lay.
    pub source_dtype: String,
    pub source_offset: u64,
    pub source_bytes: u64,
    /// Bytes that a checksum is of; the last may be of fewer.
    pub run: u64,
    pub sums: Vec<String>,
}

impl Manifest {
    pub fn new(options: &Options, small: Vec<Small>) -> Manifest {
        Manifest {
            version: VERSION,
            sum: String::new(),
            to: options.to.name().into(),
            block: options.to.block(),
            head: options.head,
            finished: false,
            transposed: 0,
            kept: 0,
            small,
            shards: Vec::new(),
        }
    }

    /// That of a directory, if there is one.
    pub fn read(dir: &Path) -> Result<Option<Manifest>> {
        let path = dir.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "read")(error)),
        };
        Manifest::parse(&path, &bytes).map(Some)
    }

    /// What a file says, if it can be true.
    ///
    /// # Errors
    /// Anything else than what [`Manifest::write`] wrote.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest> {
        let refuse = |problem: String| Err(Error::Checkpoint { path: path.into(), problem });
        let manifest: Manifest = match serde_json::from_slice(bytes) {
            Ok(manifest) => manifest,
            Err(error) => return refuse(format!("is no manifest: {}; {ADVICE}", json_problem(&error))),
        };
        if ![OLDER, VERSION].contains(&manifest.version) {
            let found = manifest.version;
            return refuse(format!(
                "is of version {found}, and this program knows {OLDER} and {VERSION}: pack the model again"
            ));
        }
        if !manifest.is_plain() {
            return refuse(format!("names files outside of its directory; {ADVICE}"));
        }
        agree::check(path, &manifest)?;
        if manifest.sum != manifest.own_sum() {
            let (found, expected) = (excerpt(&manifest.sum), manifest.own_sum());
            return refuse(format!("its checksum of itself is `{found}`, not `{expected}`; {ADVICE}"));
        }
        Ok(manifest)
    }

    /// Whether it was begun before there were checksums of whole sources.
    pub fn is_older(&self) -> bool {
        self.version == OLDER
    }

    /// The pieces of a source of so many bytes that are compared.
    pub fn compared(&self, len: u64) -> Vec<(u64, u64)> {
        if self.is_older() { source::start(len) } else { source::pieces(len) }
    }

    /// Bytes of the manifest and the index that are still to be written, at most: the one that is replaced is there until
    /// the other one is.
    pub fn bytes_to_come(&self) -> u64 {
        let mut finished = self.clone();
        for shard in &mut finished.shards {
            shard.source_whole = NO_SUM.into();
            for tensor in &mut shard.tensors {
                tensor.sums = vec![NO_SUM.into(); runs_of(tensor)];
            }
        }
        2 * finished.whole().len() as u64 + self.index().len() as u64
    }

    /// What the file has to say.
    pub fn whole(&self) -> Vec<u8> {
        Manifest { sum: self.own_sum(), ..self.clone() }.text()
    }

    /// The checksum of all that it says.
    fn own_sum(&self) -> String {
        sum(&Manifest { sum: String::new(), ..self.clone() }.text())
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest has no keys that are not text")
    }

    fn is_plain(&self) -> bool {
        let names = self.shards.iter().flat_map(|s| [&s.file, &s.source]).chain(self.small.iter().map(|s| &s.file));
        names.into_iter().all(|name| Path::new(name).file_name().is_some_and(|file| file == name.as_str()))
    }

    /// What the bytes of the files of a checkpoint must be, or why that is not known.
    pub fn checksums(&self, checkpoint: &Checkpoint) -> Result<Checksums, String> {
        let of = |file: &CheckpointFile| {
            let shard = self.shard_of(file)?;
            if shard.bytes != file.len {
                let (len, name) = (file.len, &shard.file);
                return Err(format!("says that {name} has {} bytes, but it has {len}", shard.bytes));
            }
            let checked = |(t, run): (usize, usize)| {
                let tensor: &Entry = &shard.tensors[t];
                let (offset, len) = run_at(tensor, run);
                let sum = tensor.sums.get(run).and_then(|sum| u128::from_str_radix(sum, 16).ok());
                let sum = sum.ok_or_else(|| format!("has no checksum of `{}`", tensor.name))?;
                Ok(CheckedRun { offset, len, sum, tensor: tensor.name.as_str().into() })
            };
            runs(&shard.tensors).into_iter().map(checked).collect()
        };
        let files = checkpoint.files();
        let sums = files.iter().map(of).collect::<Result<_, String>>()?;
        let places =
            self.shards.iter().flat_map(|shard| shard.tensors.iter().map(move |t| ((&shard.file, t.offset), t)));
        let places: HashMap<_, _> = places.filter(|(_, tensor)| tensor.bytes > 0).collect();
        for tensor in checkpoint.tensors().filter(|tensor| tensor.span.len > 0) {
            let shard = self.shard_of(&files[tensor.span.file.0 as usize])?;
            let known = places.get(&(&shard.file, tensor.span.offset));
            if known.is_none_or(|known| known.bytes != tensor.span.len || !known.is(tensor)) {
                let (offset, len) = (tensor.span.offset, tensor.span.len);
                return Err(format!(
                    "does not know `{}`, which has {len} bytes at offset {offset} of {}",
                    tensor.name, shard.file
                ));
            }
        }
        Ok(Checksums::new(sums))
    }

    fn shard_of(&self, file: &CheckpointFile) -> Result<&Shard, String> {
        let name = file.path.file_name().unwrap_or_default();
        let shard = self.shards.iter().find(|shard| name == shard.file.as_str());
        shard.ok_or_else(|| format!("does not list {}", name.display()))
    }

    /// What was begun, if it was with these options.
    pub fn continued(self, dir: &Path, options: &Options) -> Result<Manifest> {
        let wanted = (options.to.name(), options.to.block(), options.head);
        let found = (self.to.as_str(), self.block, self.head);
        if found == wanted {
            return Ok(self);
        }
        let words = |(to, block, head): (&str, usize, bool)| {
            format!("{to} with blocks of {block}{}", if head { " and the head" } else { "" })
        };
        let problem = format!("was begun as {}, not as {}: give another directory", words(found), words(wanted));
        Err(Error::Request(format!("{}: {problem}", dir.display())))
    }

    /// Says that a shard is safe on disk.
    pub fn packed(&mut self, shard: usize) {
        let older = self.is_older();
        let shard = &mut self.shards[shard];
        shard.packed = true;
        if older {
            shard.source_whole.clear();
        }
    }

    pub fn write(&self, dir: &Path, steps: &Steps) -> Result<()> {
        replace(&dir.join(MANIFEST), &self.whole(), steps)
    }

    /// Which tensor is in which file, in the form that all readers of safetensors know.
    pub fn index(&self) -> Vec<u8> {
        let places = self.shards.iter().flat_map(|s| s.tensors.iter().map(|t| (t.name.as_str(), s.file.as_str())));
        let places: BTreeMap<&str, &str> = places.collect();
        let total: u64 = self.shards.iter().flat_map(|shard| &shard.tensors).map(|tensor| tensor.bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": places});
        serde_json::to_vec_pretty(&index).expect("an index is text")
    }
}

impl Entry {
    /// Makes a packed matrix of what is a plain one until now.
    pub fn pack(&mut self, packed: Packed) {
        let columns = self.shape.last_mut().expect("a matrix has columns");
        self.packed = Some(Stored::new(packed, *columns));
        *columns = packed.row_bytes(*columns);
        self.bytes = self.shape.iter().map(|n| *n as u64).product();
        self.name = format!("{}.{}", self.name, packed.name());
        self.dtype = Dtype::U8.name().into();
    }

    /// Whether a tensor of a checkpoint is this one.
    fn is(&self, tensor: &Tensor) -> bool {
        self.name == tensor.name || tensor.is_packed_as(&self.name)
    }
}

impl Shard {
    /// Places the tensors behind a header with room for them, without gaps, as readers of safetensors demand. The first is at
    /// a multiple of [`ALIGN`], and those with a multiple of it in bytes come first: so all of these are.
    pub fn place(&mut self) {
        self.tensors.sort_by_key(|tensor| (tensor.bytes % ALIGN != 0, tensor.bytes % 8 != 0));
        let mut at = self.first_offset();
        for tensor in &mut self.tensors {
            tensor.offset = at;
            at += tensor.bytes;
        }
        self.bytes = at;
    }

    /// Where tensors begin in a file with these.
    pub fn first_offset(&self) -> u64 {
        (8 + self.header_json().len() as u64).next_multiple_of(ALIGN)
    }

    /// Length and header: the beginning of the file, up to its first tensor.
    pub fn header(&self) -> Vec<u8> {
        let json = self.header_json();
        let start = (8 + json.len()).next_multiple_of(ALIGN as usize);
        let mut header = ((start - 8) as u64).to_le_bytes().to_vec();
        header.extend(json.as_bytes());
        header.resize(start, b' ');
        header
    }

    fn header_json(&self) -> String {
        let packed: BTreeMap<_, _> =
            self.tensors.iter().filter_map(|tensor| Some((&tensor.name, tensor.packed.as_ref()?))).collect();
        let packed = serde_json::to_string(&packed).expect("names are text");
        let mut entries = serde_json::Map::new();
        entries.insert("__metadata__".into(), json!({"format": "pt", METADATA: packed}));
        let mut at = 0;
        for tensor in &self.tensors {
            let end = at + tensor.bytes;
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]});
            entries.insert(tensor.name.clone(), entry);
            at = end;
        }
        Value::Object(entries).to_string()
    }
}

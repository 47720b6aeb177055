//! Writing a synthetic checkpoint as the Hub would hold it: shards of at most 5 GB, an index, and the configuration
//! last, so that what was interrupted cannot be mistaken for a model. What fails is taken away again.
//!
//! Headers are written here rather than by the `safetensors` crate, which wants the data of a file in memory.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use serde_json::{Map, Value, json};

use super::content::Content;
use super::noise::{Noise, Region};
use super::{Options, Spec};
use crate::checkpoint::Dtype;
use crate::error::{Error, Result};

/// The largest shard with more than one tensor, in bytes of data: the Hub's own.
const MAX_SHARD: u64 = 5_000_000_000;

/// Writes a checkpoint of `spec` into `dir`, which is made if it is not there. `progress` is told bytes done and
/// bytes in all, now and then.
///
/// # Errors
///
/// [`Error::Request`] when `dir` holds anything, the file system has too little room, or weights are not written in
/// that dtype; [`Error::Io`] when writing fails: then nothing is left behind.
pub(crate) fn write(spec: &Spec, dir: &Path, options: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let Some(noise) = Noise::new(options.dtype) else {
        return Err(Error::Request(format!("weights are written in BF16, F16 or F32, not in {}", options.dtype)));
    };
    let total = spec.bytes(options.dtype);
    let mut output = Output::begin(dir)?;
    if !options.sparse {
        require_room(dir, total)?;
    }
    let shards = shards(spec, options.dtype);
    let mut done = 0;
    progress(done, total);
    for shard in &shards {
        let (file, path) = output.create(&shard.file)?;
        let header = shard.header(options.dtype);
        if options.sparse {
            file.write_all_at(&header, 0).map_err(Error::io(&path, "write"))?;
            file.set_len(header.len() as u64 + shard.bytes).map_err(Error::io(&path, "extend"))?;
            done += shard.bytes;
            progress(done, total);
        } else {
            let content = Content { header, regions: shard.regions(options.seed), noise: &noise, data: shard.bytes };
            content.write(&file, &path, &mut |bytes| {
                done = (done + bytes).min(total);
                progress(done, total);
            })?;
        }
    }
    if shards.len() > 1 {
        output.json("model.safetensors.index.json", &index(&shards, total))?;
    }
    output.json("generation_config.json", &generation_config(&spec.config))?;
    output.json("config.json", &Value::Object(config(spec, options.dtype)))?;
    output.keep();
    Ok(())
}

/// One file to be written.
struct Shard {
    file: String,
    /// In the order of their names, as published files are.
    tensors: Vec<Placed>,
    /// Bytes of data.
    bytes: u64,
}

/// A tensor and its place in the data of its shard.
struct Placed {
    name: String,
    shape: Vec<usize>,
    start: u64,
    end: u64,
}

/// Deals the tensors, in the order of the model, to shards.
fn shards(spec: &Spec, dtype: Dtype) -> Vec<Shard> {
    let size = |shape: &[usize]| shape.iter().product::<usize>() as u64 * dtype.size() as u64;
    let mut groups: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, shape) in spec.shapes() {
        let bytes = size(&shape);
        if filled > 0 && filled + bytes > MAX_SHARD {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        groups.last_mut().expect("there is always a last group").push((name, shape));
    }
    let count = groups.len();
    let place = |(mut group, number): (Vec<(String, Vec<usize>)>, usize)| {
        group.sort();
        let mut end = 0;
        let tensors = group.into_iter().map(|(name, shape)| {
            let start = end;
            end += size(&shape);
            Placed { name, shape, start, end }
        });
        let tensors = tensors.collect();
        let file = match count {
            1 => "model.safetensors".into(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        Shard { file, tensors, bytes: end }
    };
    groups.into_iter().zip(1..).map(place).collect()
}

impl Shard {
    fn regions(&self, seed: u64) -> Vec<Region> {
        self.tensors.iter().map(|t| Region::new(seed, &t.name, t.start, t.end)).collect()
    }

    /// Length and header, padded with spaces so that the data starts at a multiple of 8.
    fn header(&self, dtype: Dtype) -> Vec<u8> {
        let mut entries = Map::new();
        entries.insert("__metadata__".into(), json!({"format": "pt"}));
        for tensor in &self.tensors {
            let entry =
                json!({"dtype": dtype.name(), "shape": tensor.shape, "data_offsets": [tensor.start, tensor.end]});
            entries.insert(tensor.name.clone(), entry);
        }
        let mut header = Value::Object(entries).to_string();
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes
    }
}

fn index(shards: &[Shard], total: u64) -> Value {
    let mut places: Vec<(&str, &str)> =
        shards.iter().flat_map(|shard| shard.tensors.iter().map(|t| (t.name.as_str(), shard.file.as_str()))).collect();
    places.sort();
    let map: Map<String, Value> = places.into_iter().map(|(tensor, file)| (tensor.into(), file.into())).collect();
    json!({"metadata": {"total_size": total}, "weight_map": map})
}

/// The configuration, with the dtype that was written, under the key that this configuration uses for it.
fn config(spec: &Spec, dtype: Dtype) -> Map<String, Value> {
    let mut config = spec.config.clone();
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    let name = match dtype {
        Dtype::F16 => "float16",
        Dtype::F32 => "float32",
        _ => "bfloat16",
    };
    config.insert(key.into(), name.into());
    config
}

fn generation_config(config: &Map<String, Value>) -> Value {
    let keys = ["bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"];
    let kept = keys.into_iter().filter_map(|key| Some((key.to_string(), config.get(key)?.clone())));
    Value::Object(kept.filter(|(_, value)| !value.is_null()).collect())
}

fn require_room(dir: &Path, needed: u64) -> Result<()> {
    let room = rustix::fs::statvfs(dir).map_err(|e| Error::io(dir, "ask for the free space")(e.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if needed <= free {
        return Ok(());
    }
    let [needed, free] = [needed, free].map(|bytes| ByteSize::b(bytes).display().si().to_string());
    let advice = "write fewer layers, or a sparse checkpoint, which takes no space";
    Err(Error::Request(format!("{}: {needed} would be written, but {free} are free: {advice}", dir.display())))
}

/// The directory being written. Unless it is kept, everything that was put there is removed again.
struct Output {
    dir: PathBuf,
    made_dir: bool,
    files: Vec<PathBuf>,
}

impl Output {
    /// Refuses a directory that holds anything: nothing is ever overwritten.
    fn begin(dir: &Path) -> Result<Output> {
        let made_dir = !dir.exists();
        fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
        if fs::read_dir(dir).map_err(Error::io(dir, "list"))?.next().is_some() {
            let problem = "is not empty; name a directory that is, or that does not exist";
            return Err(Error::Request(format!("{}: {problem}", dir.display())));
        }
        Ok(Output { dir: dir.into(), made_dir, files: Vec::new() })
    }

    fn create(&mut self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.dir.join(name);
        let file = File::create_new(&path).map_err(Error::io(&path, "create"))?;
        self.files.push(path.clone());
        Ok((file, path))
    }

    fn json(&mut self, name: &str, value: &Value) -> Result<()> {
        let (mut file, path) = self.create(name)?;
        file.write_all(format!("{value:#}\n").as_bytes()).map_err(Error::io(&path, "write"))
    }

    fn keep(mut self) {
        self.files.clear();
        self.made_dir = false;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Best effort: the error that led here is the one to be told.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        if self.made_dir {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::checkpoint::Checkpoint;

    /// A model of about a megabyte.
    fn small() -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 1, "eos_token_id": [2, 3], "hidden_size": 128,
            "intermediate_size": 300, "model_type": "qwen2", "num_attention_heads": 4, "num_hidden_layers": 3,
            "num_key_value_heads": 2, "tie_word_embeddings": false, "dtype": "float32", "vocab_size": 1000
        })
    }

    fn spec(config: Value) -> Spec {
        Spec::new(config, Path::new("config.json")).unwrap()
    }

    fn refused(result: Result<()>, parts: &[&str]) {
        let text = result.unwrap_err().to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn what_is_written_opens_with_the_same_names_and_shapes() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("new/model");
        let spec = spec(small());
        for (dtype, name) in [(Dtype::Bf16, "bfloat16"), (Dtype::F16, "float16"), (Dtype::F32, "float32")] {
            let dir = dir.join(name);
            let mut told = Vec::new();
            write(&spec, &dir, &Options { dtype, ..Options::default() }, &mut |done, _| told.push(done)).unwrap();
            assert_eq!((told[0], *told.last().unwrap()), (0, spec.bytes(dtype)));

            let checkpoint = Checkpoint::open(&dir).unwrap();
            let mut written: Vec<_> = checkpoint.tensors().map(|t| (t.name.clone(), t.shape.clone())).collect();
            let mut wanted = spec.shapes();
            written.sort();
            wanted.sort();
            assert_eq!(written, wanted);
            assert!(checkpoint.tensors().all(|t| t.dtype == dtype));
            let read = |file: &str| crate::checkpoint::read_json(&dir.join(file)).unwrap();
            assert_eq!(read("config.json")["dtype"], name);
            assert_eq!(read("generation_config.json"), json!({"bos_token_id": 1, "eos_token_id": [2, 3]}));
        }
    }

    #[test]
    fn the_reference_reader_takes_it_and_fewer_layers_have_the_same_weights() {
        let temporary = tempfile::tempdir().unwrap();
        let bytes = |layers: usize| {
            let dir = temporary.path().join(layers.to_string());
            write(&spec(small()).with_layers(layers).unwrap(), &dir, &Options::default(), &mut |_, _| ()).unwrap();
            fs::read(dir.join("model.safetensors")).unwrap()
        };
        let (whole, cut) = (bytes(3), bytes(1));
        let whole = safetensors::SafeTensors::deserialize(&whole).unwrap();
        let cut = safetensors::SafeTensors::deserialize(&cut).unwrap();
        assert_eq!(cut.len(), 1 + 12 + 2);
        for (name, tensor) in cut.iter() {
            assert_eq!(whole.tensor(name).unwrap().data(), tensor.data(), "{name}");
            assert!(tensor.data().iter().any(|&byte| byte != 0), "{name}");
        }
    }

    #[test]
    fn four_hundred_billion_sparse_parameters_take_no_time() {
        use std::os::unix::fs::MetadataExt;
        let temporary = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let options = Options { sparse: true, ..Options::default() };
        write(&Spec::preset("llama-3.1-405b").unwrap(), temporary.path(), &options, &mut |_, _| ()).unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "writing took {:?}", start.elapsed());
        let start = Instant::now();
        let checkpoint = Checkpoint::open(temporary.path()).unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "opening took {:?}", start.elapsed());
        assert_eq!(checkpoint.bytes(), 811_706_777_600);
        assert!(checkpoint.files().len() > 160);
        let largest = checkpoint.files().iter().map(|file| file.len).max().unwrap();
        assert!(largest < MAX_SHARD + 100_000, "{largest}");
        let blocks: u64 = checkpoint.files().iter().map(|file| fs::metadata(&file.path).unwrap().blocks()).sum();
        assert!(blocks * 512 < 16 << 20, "{blocks} blocks on disk");
    }

    #[test]
    fn nothing_is_overwritten() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("thesis.txt"), "text").unwrap();
        let result = write(&spec(small()), temporary.path(), &Options::default(), &mut |_, _| ());
        refused(result, &[temporary.path().to_str().unwrap(), "is not empty"]);
        assert!(temporary.path().join("thesis.txt").exists());
    }

    #[test]
    fn room_is_asked_for_first() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("model");
        let mut config = small();
        config["vocab_size"] = (1u64 << 50).into();
        let result = write(&spec(config), &dir, &Options::default(), &mut |_, _| panic!("has begun"));
        refused(result, &[dir.to_str().unwrap(), "would be written", "are free", "sparse"]);
        assert!(!dir.exists());
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("model");
        // An embedding of 2^63 bytes: no file can be as long.
        let mut config = small();
        for (key, value) in [("vocab_size", 1u64 << 50), ("hidden_size", 2048), ("head_dim", 1)] {
            config[key] = value.into();
        }
        config["tie_word_embeddings"] = true.into();
        let options = Options { sparse: true, dtype: Dtype::F32, ..Options::default() };
        let result = write(&spec(config), &dir, &options, &mut |_, _| ());
        refused(result, &["model-00001-of-00002.safetensors", "cannot extend"]);
        assert!(!dir.exists());
    }

    #[test]
    fn an_interruption_leaves_nothing_behind() {
        let temporary = tempfile::tempdir().unwrap();
        let mut calls = 0;
        let interrupted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            write(&spec(small()), temporary.path(), &Options::default(), &mut |_, _| {
                calls += 1;
                assert!(calls < 2, "a deliberate interruption");
            })
        }));
        assert!(interrupted.is_err());
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_type_that_weights_are_not_written_in() {
        let temporary = tempfile::tempdir().unwrap();
        let options = Options { dtype: Dtype::I8, ..Options::default() };
        refused(write(&spec(small()), temporary.path(), &options, &mut |_, _| ()), &["not in I8"]);
    }
}

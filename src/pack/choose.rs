//! What becomes of every tensor: the matrices of the program that the family builds are packed; norms, biases, routers, gates
//! of one row and, unless nothing is lost or it is asked for, embedding and head stay as they are.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use super::Options;
use super::lossless::Measuring;
use super::manifest::{Entry, Manifest, Shard, Small};
use super::shard::run_of;
use super::source;
use crate::checkpoint::{Checkpoint, Dtype, FileId, Tensor};
use crate::encoding::{Encoding, Packed};
use crate::error::{Error, Result};
use crate::family;
use crate::program::{Matrix, Program, Step};

/// Files of weights in any form, and lists of them: what is not copied.
const WEIGHTS: [&str; 10] =
    ["safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx", "ckpt", "safetensors.index.json"];
/// No small file is larger: the largest tokenizers have a third of it.
const MAX_SMALL: u64 = 100_000_000;

/// Gives the manifest of a packing that nothing was done of its shards. `tell` is told how many bytes of the source
/// are read for that, and of how many.
pub fn choose(manifest: &mut Manifest, model: &Path, options: &Options, tell: &dyn Fn(u64, u64)) -> Result<()> {
    let checkpoint = Checkpoint::open(model)?;
    if checkpoint.metadata().is_some() {
        let what = "a GGUF file as a source of packing: pack the checkpoint it was made from".into();
        return Err(Error::Unsupported { path: model.into(), what });
    }
    let program = family::program(&checkpoint)?;
    let (chosen, transposed) = matrices(&checkpoint, &program, options)?;
    let only = checkpoint.files().len() == 1;
    let (mut read, total) = (0, checkpoint.files().iter().map(|file| file.len).sum());
    for (file, id) in checkpoint.files().iter().zip(0..) {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lossless = matches!(options.to, Packed::Lossless { .. });
        let mut measuring = lossless.then(|| Measuring::new(&file.path, options)).transpose()?;
        let tensors = checkpoint.tensors().filter(|tensor| tensor.span.file == FileId(id));
        let tensors = tensors.map(|tensor| {
            let mut entry = entry(&checkpoint, tensor)?;
            if chosen.contains(tensor.name.as_str()) {
                let packed = match &mut measuring {
                    Some(measuring) if tensor.dtype == Dtype::Bf16 => measuring.measure(&entry)?,
                    Some(_) => None,
                    None => Some(options.to),
                };
                packed.map_or_else(|| manifest.kept += 1, |packed| entry.pack(packed));
            }
            read += tensor.span.len;
            tell(read, total);
            entry.run = run_of(&entry, options)?;
            Ok(entry)
        });
        let mut shard = Shard {
            file: if only { "model.safetensors".into() } else { safetensors_name(&name) },
            bytes: 0,
            packed: false,
            source: name,
            source_bytes: file.len,
            source_sum: source::pieces_sum(&file.path, &source::pieces(file.len))?,
            source_whole: String::new(),
            tensors: tensors.collect::<Result<_>>()?,
        };
        shard.place();
        manifest.shards.push(shard);
    }
    manifest.transposed = transposed;
    match manifest.shards.iter().flat_map(|shard| &shard.tensors).any(|tensor| tensor.packed.is_some()) {
        true => Ok(()),
        false => Err(nothing(model, manifest, options, &types(&checkpoint, &chosen))),
    }
}

/// The types of these tensors, each once.
fn types(checkpoint: &Checkpoint, names: &HashSet<&str>) -> String {
    let types =
        checkpoint.tensors().filter(|tensor| names.contains(tensor.name.as_str())).map(|tensor| tensor.dtype.name());
    types.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

/// All would be copied as it is, for which nobody needs a second one.
fn nothing(source: &Path, manifest: &Manifest, options: &Options, types: &str) -> Error {
    let (to, kept, transposed) = (options.to.name(), manifest.kept, manifest.transposed);
    let mut found = Vec::new();
    if kept > 0 {
        found.push(format!("{kept} are not bf16, or would hardly get smaller (their types: {types})"));
    }
    if transposed > 0 {
        found.push(format!("{transposed} are stored as their transpose"));
    }
    let advice = match options.to {
        Packed::Lossless { .. } => "pack it --to int8 or nf4, or use it as it is",
        _ => "use it as it is",
    };
    let found = if found.is_empty() { "it has none that are streamed".into() } else { found.join(", and ") };
    Error::Request(format!(
        "{}: no matrix would be packed as {to}: {found}. Nothing was written: {advice}",
        source.display()
    ))
}

/// The names of the tensors to be packed, and how many matrices are transposed and therefore are not.
fn matrices<'p>(checkpoint: &Checkpoint, program: &'p Program, options: &Options) -> Result<(HashSet<&'p str>, usize)> {
    let kept: HashSet<_> = program.steps.iter().filter_map(kept_output).collect();
    let keeps = |output: usize| kept.contains(&output) || (output == program.logits.0 && !options.head);
    let streamed = program.steps.iter().filter_map(|step| match step {
        Step::MatMul(product) if !keeps(product.output.0) => Some(&program.matrices[product.matrix.0]),
        _ => None,
    });
    let experts = program.experts.iter().flat_map(|layer| &layer.experts);
    if let Some(exponents) = experts.clone().flat_map(|expert| &expert.exponents).next() {
        return Err(quantised(checkpoint, &exponents.tensor, "mxfp4"));
    }
    let (mut chosen, mut transposed) = (HashSet::new(), HashSet::new());
    for matrix in streamed.chain(experts.flat_map(|expert| &expert.matrices)) {
        let Matrix { tensor, encoding, .. } = matrix;
        if !matches!(encoding, Encoding::F32 | Encoding::F16 | Encoding::Bf16) {
            return Err(quantised(checkpoint, tensor, encoding.name()));
        }
        // A tied head is the embedding.
        if tensor.name == program.embedding.tensor.name {
            continue;
        }
        if tensor.transposed {
            transposed.insert(&tensor.name)
        } else {
            chosen.insert(tensor.name.as_str())
        };
    }
    if matches!(options.to, Packed::Lossless { .. }) {
        chosen.insert(program.embedding.tensor.name.as_str());
    }
    Ok((chosen, transposed.len()))
}

/// The buffer that a step reads and that a matrix makes which must stay exact: a router's logits, a gate of one number.
fn kept_output(step: &Step) -> Option<usize> {
    match step {
        Step::Route { logits, .. } => Some(logits.0),
        Step::GateRows { gate, .. } => Some(gate.0),
        _ => None,
    }
}

fn quantised(checkpoint: &Checkpoint, tensor: &Tensor, what: &str) -> Error {
    let path = checkpoint.file_path(tensor.span.file).to_path_buf();
    let what = format!("packing what is quantised already (tensor `{}` is {what})", tensor.name);
    Error::Unsupported { path, what }
}

/// A tensor as it is. Its place in the file, and in what runs it is made, are found later.
fn entry(checkpoint: &Checkpoint, tensor: &Tensor) -> Result<Entry> {
    let entry = Entry {
        name: tensor.name.clone(),
        dtype: tensor.dtype.name().into(),
        shape: tensor.shape.clone(),
        offset: 0,
        bytes: tensor.span.len,
        packed: None,
        source_dtype: tensor.dtype.name().into(),
        source_offset: tensor.span.offset,
        source_bytes: tensor.span.len,
        run: 0,
        sums: Vec::new(),
    };
    if matches!(tensor.dtype, Dtype::Packed(_)) {
        return Err(quantised(checkpoint, tensor, tensor.dtype.name()));
    }
    // A tensor that only a file in PyTorch's form can lay column after column would have to be turned to be copied.
    if tensor.transposed && checkpoint.file_path(tensor.span.file).extension().is_some_and(|e| e != "safetensors") {
        let path = checkpoint.file_path(tensor.span.file).to_path_buf();
        let what = format!("packing a file in which a tensor is saved as a transposed view (`{}`)", tensor.name);
        return Err(Error::Unsupported { path, what });
    }
    Ok(entry)
}

fn safetensors_name(name: &str) -> String {
    match name.strip_suffix(".safetensors") {
        Some(_) => name.into(),
        None => format!("{}.safetensors", Path::new(name).file_stem().unwrap_or_default().to_string_lossy()),
    }
}

/// Configuration, tokenizer and whatever else lies beside the weights.
pub fn small_files(dir: &Path) -> Result<Vec<Small>> {
    let mut small = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let entry = entry.map_err(Error::io(dir, "list"))?;
        let Ok(file) = entry.file_name().into_string() else { continue };
        let metadata = fs::metadata(entry.path()).map_err(Error::io(&entry.path(), "open"))?;
        let weights =
            WEIGHTS.iter().any(|form| file.ends_with(&format!(".{form}"))) || file.ends_with(".bin.index.json");
        if metadata.is_file() && metadata.len() <= MAX_SMALL && !weights && !file.starts_with('.') {
            small.push(Small { file, bytes: 0, sum: String::new() });
        }
    }
    small.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(small)
}

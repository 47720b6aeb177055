//! Finding the checkpoint in what the caller names: a model directory or a file. When there is none, the error says
//! what was looked for and what is there instead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::gguf;
use super::words::{checkpoint_error, excerpt};
use crate::error::{Error, Result};

/// How a file of tensors is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Safetensors,
    /// The zip archive of `torch.save`.
    Torch,
}

impl Form {
    /// What a directory is searched for, best first: the index of the shards, then the only file.
    const SEARCHED: [(Form, &str, &str); 2] = [
        (Form::Safetensors, "model.safetensors.index.json", "model.safetensors"),
        (Form::Torch, "pytorch_model.bin.index.json", "pytorch_model.bin"),
    ];

    /// The form that a file's name promises; safetensors unless it says otherwise.
    fn of(name: &str) -> Form {
        match Path::new(name).extension().and_then(|extension| extension.to_str()) {
            Some("bin" | "pt" | "pth") => Form::Torch,
            _ => Form::Safetensors,
        }
    }
}

/// Where the list of tensors is.
#[derive(Debug)]
pub(super) enum Place {
    Single {
        dir: PathBuf,
        file: PathBuf,
        form: Form,
    },
    Sharded {
        dir: PathBuf,
        index: PathBuf,
        form: Form,
    },
    /// All parts of one model.
    Gguf {
        dir: PathBuf,
        parts: Vec<PathBuf>,
    },
}

pub(super) fn locate(path: &Path) -> Result<Place> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => checkpoint_error(
            path,
            "does not exist: give a directory with a model, a .gguf file, or a repository of the Hub as org/name",
        ),
        _ => Error::io(path, "open")(error),
    })?;
    if !metadata.is_dir() {
        return locate_file(path);
    }
    let dir = path.to_path_buf();
    // A link to nothing counts as being there: opening it says that the download is incomplete.
    let there = |name: &str| Some(path.join(name)).filter(|file| file.symlink_metadata().is_ok());
    for (form, index, single) in Form::SEARCHED {
        if let Some(index) = there(index) {
            return Ok(Place::Sharded { dir, index, form });
        }
        if let Some(file) = there(single) {
            return Ok(Place::Single { dir, file, form });
        }
    }
    let names = names(path)?;
    match crate::hub::gguf::models(&names).as_slice() {
        [] => Err(checkpoint_error(path, describe(&names))),
        [model] => Ok(Place::Gguf { dir, parts: gguf::parts(&path.join(model))? }),
        models => {
            let problem =
                format!("holds {} models in GGUF form ({}): give the path of one", models.len(), some_of(models));
            Err(checkpoint_error(path, problem))
        }
    }
}

/// The names of what a directory holds, sorted.
fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        names.push(entry.map_err(Error::io(dir, "list"))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn locate_file(path: &Path) -> Result<Place> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(form) = unsupported_form(&name) {
        return Err(checkpoint_error(path, format!("checkpoints in {form} form are not supported yet")));
    }
    if name.ends_with(".json") {
        return Err(checkpoint_error(path, "is not a checkpoint: give the directory that it is in"));
    }
    let dir = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    match name.ends_with(".gguf") {
        true => Ok(Place::Gguf { dir, parts: gguf::parts(path)? }),
        false => Ok(Place::Single { dir, file: path.to_path_buf(), form: Form::of(&name) }),
    }
}

/// The name of the form that a weight file has, when it is one that cannot be read.
fn unsupported_form(name: &str) -> Option<&'static str> {
    let extension = Path::new(name).extension()?.to_str()?;
    match extension {
        "ckpt" => Some("PyTorch Lightning (.ckpt)"),
        "ggml" => Some("GGML, which GGUF replaced,"),
        "h5" => Some("TensorFlow (.h5)"),
        "msgpack" => Some("Flax (.msgpack)"),
        "onnx" => Some("ONNX"),
        "npz" => Some("NumPy (.npz)"),
        _ => None,
    }
}

/// What is wrong with a directory that holds neither an index nor a single file.
fn describe(names: &[String]) -> String {
    let searched = "neither model.safetensors nor pytorch_model.bin, nor an index of either, nor a .gguf file is here";
    let safetensors: Vec<&str> = names.iter().map(String::as_str).filter(|n| n.ends_with(".safetensors")).collect();
    let foreign = names.iter().find_map(|name| Some((unsupported_form(name)?, name)));
    if names.iter().any(|n| n == "snapshots") {
        format!(
            "{searched}: this is a model's folder in the Hub's cache, give one of the directories in its snapshots/"
        )
    } else if !safetensors.is_empty() {
        let found = some_of(&safetensors);
        format!("{searched}, only {found}: download the index, or give the path of the one file to be opened")
    } else if let Some((form, name)) = foreign {
        format!("{searched}, only {}: checkpoints in {form} form are not supported yet", excerpt(name))
    } else if names.is_empty() {
        format!("{searched}: the directory is empty")
    } else {
        format!("{searched}; found {}", some_of(&names.iter().map(String::as_str).collect::<Vec<_>>()))
    }
}

/// The first few of a list, and how many more there are.
pub(super) fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let mut text = names.iter().take(SHOWN).map(|n| excerpt(n)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

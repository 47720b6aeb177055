//! `model.safetensors.index.json`, `pytorch_model.bin.index.json`: which shard holds which tensor. Taken as a claim, which the shards must bear out.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::locate::some_of;
use super::side::read_small;
use super::words::{checkpoint_error, excerpt, json_problem, tensor_error};
use crate::error::Result;

/// A parsed index.
#[doc(hidden)]
#[derive(Debug)]
pub struct Index {
    /// File names, sorted: plain names, never paths.
    pub shards: Vec<String>,
    /// Tensor name and index into `shards`, sorted by name.
    pub weights: Vec<(String, u32)>,
}

pub(super) fn read(path: &Path) -> Result<Index> {
    parse_index(path, &read_small(path)?)
}

/// Parses the text of an index; `path` is for errors only. Public for the fuzzer.
///
/// # Errors
///
/// [`crate::Error::Checkpoint`] and [`crate::Error::Tensor`]: not JSON, no `weight_map` or an empty one, a tensor
/// named twice, a shard whose name is not that of a file in the same directory. (`metadata.total_size` is not looked
/// at: published ones are wrong often enough, and the shards themselves say what they hold.)
#[doc(hidden)]
pub fn parse_index(path: &Path, text: &[u8]) -> Result<Index> {
    let parsed: IndexJson = serde_json::from_slice(text)
        .map_err(|e| checkpoint_error(path, format!("is not a valid index: {}", json_problem(&e))))?;
    let Some(WeightMap(mut entries)) = parsed.weight_map else {
        return Err(checkpoint_error(path, "has no `weight_map`, which should say which shard holds which tensor"));
    };
    if entries.is_empty() {
        return Err(checkpoint_error(path, "has an empty `weight_map`: it names no tensor"));
    }
    entries.sort();
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let problem = format!("is named twice, in {} and in {}", excerpt(&pair[0].1), excerpt(&pair[1].1));
        return Err(tensor_error(path, &pair[0].0, problem));
    }
    if let Some((tensor, shard)) = entries.iter().find(|(_, shard)| !is_plain_file_name(shard)) {
        let problem = format!("the shard `{}` is not the name of a file in the same directory", excerpt(shard));
        return Err(tensor_error(path, tensor, problem));
    }
    let mut shards: Vec<String> = entries.iter().map(|(_, shard)| shard.clone()).collect();
    shards.sort();
    shards.dedup();
    let position = |shard: &String| shards.partition_point(|other| other < shard) as u32;
    let weights = entries.into_iter().map(|(tensor, shard)| (tensor, position(&shard))).collect();
    Ok(Index { shards, weights })
}

/// A name that stays in the directory, that a file system takes, and that is fit to be printed.
fn is_plain_file_name(name: &str) -> bool {
    let foreign = |c: char| c.is_control() || matches!(c, '/' | '\\');
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(foreign)
}

impl Index {
    /// All missing shards in one error: a person downloads once.
    pub(super) fn require_shards(&self, index: &Path, dir: &Path) -> Result<()> {
        let missing: Vec<&str> = self.shards.iter().map(String::as_str).filter(|s| !dir.join(s).exists()).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let path: PathBuf = dir.join(first);
        let what = match path.read_link() {
            Ok(target) => format!("is a link to {}, which does not exist", target.display()),
            Err(_) => "does not exist".into(),
        };
        let index = index.file_name().unwrap_or_default().display();
        let (count, all) = (missing.len(), self.shards.len());
        let problem = format!(
            "{what}: {count} of the {all} shards that {index} names are missing ({}); download them",
            some_of(&missing)
        );
        Err(checkpoint_error(&path, problem))
    }
}

#[derive(Deserialize)]
struct IndexJson {
    weight_map: Option<WeightMap>,
}

/// The pairs as they stand, so that a repeated key is seen rather than overwritten.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("`weight_map` to map names of tensors to names of files")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(WeightMap(entries))
    }
}

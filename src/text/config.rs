//! The small JSON files beside a tokenizer: `tokenizer_config.json` and `special_tokens_map.json`, read for the few
//! keys that change what is encoded or rendered.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// The largest text file that is read whole. The largest published `tokenizer.json` is below 40 MB.
const MAX_FILE: u64 = 256 << 20;

/// What `tokenizer_config.json` says, with `special_tokens_map.json` for the special tokens that it leaves out.
pub(crate) struct TokenizerConfig {
    pub path: PathBuf,
    keys: Map<String, Value>,
    /// The named special tokens (`bos_token`, `eos_token`, …), as templates see them.
    pub special: BTreeMap<String, String>,
}

impl TokenizerConfig {
    /// Reads both files; either may be missing.
    pub fn open(dir: &Path) -> Result<TokenizerConfig> {
        let path = dir.join("tokenizer_config.json");
        let keys = read_object(&path)?.unwrap_or_default();
        let map = read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        let mut special = BTreeMap::new();
        for (name, value) in map.iter().chain(&keys).filter(|(name, _)| name.ends_with("_token")) {
            if let Some(content) = content_of(value) {
                special.insert(name.clone(), content.to_owned());
            }
        }
        Ok(TokenizerConfig { path, keys, special })
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// A flag, or `None` where it is absent or null.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.keys.get(key).and_then(Value::as_bool)
    }

    /// Every string that the files call a special token, named or additional.
    pub fn special_contents(&self) -> impl Iterator<Item = &str> {
        let additional = ["additional_special_tokens", "extra_special_tokens"].into_iter();
        let additional = additional.filter_map(|key| self.keys.get(key)?.as_array()).flatten().filter_map(content_of);
        self.special.values().map(String::as_str).chain(additional)
    }
}

/// A special token is written as a string or as an object with its `content`.
fn content_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Reads a JSON object; `None` if there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let problem = |problem| Error::Text { path: path.to_path_buf(), problem };
    match serde_json::from_str(&text).map_err(|e| problem(format!("not valid JSON: {e}")))? {
        Value::Object(map) => Ok(Some(map)),
        _ => Err(problem("expected a JSON object".into())),
    }
}

/// Reads a file of UTF-8 text; `None` if there is no such file.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "open it")(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read it"))?;
    let problem = |problem: String| Error::Text { path: path.to_path_buf(), problem };
    if bytes.len() as u64 > MAX_FILE {
        return Err(problem(format!("larger than {} MiB, which no tokenizer file is", MAX_FILE >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|e| problem(format!("not UTF-8 text: {}", e.utf8_error())))?;
    Ok(Some(text))
}

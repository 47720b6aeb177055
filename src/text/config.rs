//! The small JSON files beside a tokenizer: `tokenizer_config.json` and `special_tokens_map.json`, read for the few
//! keys that change what is encoded or rendered.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::{Error, Result};

/// The largest text file that is read whole. The largest published `tokenizer.json` is below 40 MB.
const MAX_FILE: u64 = 256 << 20;

/// What `tokenizer_config.json` says, with `special_tokens_map.json` for the special tokens that it leaves out.
#[derive(Default)]
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

    /// Whether a key is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// A flag, or `None` where it is absent or null.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.keys.get(key).and_then(Value::as_bool)
    }

    /// The tokens of `added_tokens_decoder`, by id.
    ///
    /// # Errors
    /// If an entry is not a token with an id.
    pub fn added_tokens(&self) -> Result<Vec<(u32, AddedToken)>> {
        let bad = |id: &str| Error::Text {
            path: self.path.clone(),
            problem: format!("added_tokens_decoder: entry `{id}` is not a token with an id"),
        };
        let mut tokens = Vec::new();
        for (id, token) in self.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
            tokens.push((id.parse().map_err(|_| bad(id))?, added_token(token).ok_or_else(|| bad(id))?));
        }
        tokens.sort_by_key(|(id, _)| *id);
        Ok(tokens)
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

/// An added token as `tokenizer_config.json` writes it, with the library's defaults for what it leaves out.
fn added_token(token: &Value) -> Option<AddedToken> {
    let flag = |name| token.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    let mut added = AddedToken::from(token.get("content")?.as_str()?, special);
    added.single_word = flag("single_word").unwrap_or(false);
    added.lstrip = flag("lstrip").unwrap_or(false);
    added.rstrip = flag("rstrip").unwrap_or(false);
    added.normalized = flag("normalized").unwrap_or(!special);
    Some(added)
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
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    let problem = |problem: String| Error::Text { path: path.to_path_buf(), problem };
    let text = String::from_utf8(bytes).map_err(|e| problem(format!("not UTF-8 text: {}", e.utf8_error())))?;
    Ok(Some(text))
}

/// Reads a file of a sane size; `None` if there is no such file.
pub(super) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
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
    Ok(Some(bytes))
}

//! Text to token ids and back, with the `tokenizer.json` of a checkpoint.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{AddedToken, Encoding, PostProcessor, Token};

use crate::{Error, Result};

use super::config::{TokenizerConfig, read_text};
use super::stream::{Stage, TextStream, stages};

/// A tokenizer: cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// `tokenizer.json`, for messages.
    path: PathBuf,
    hf: tokenizers::Tokenizer,
    stages: Vec<Stage>,
    /// The ids put before and after a text that is encoded with special tokens.
    before: Vec<u32>,
    after: Vec<u32>,
    bos: Option<String>,
    eos: Option<String>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens the tokenizer in `dir`: `tokenizer.json`, with what `tokenizer_config.json` and `special_tokens_map.json`
    /// change about it. `dir` needs no model.
    ///
    /// # Errors
    /// If there is no `tokenizer.json`, or one of the files is damaged or uses something unknown.
    pub fn open(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        let Some(json) = read_text(&path)? else { return Err(missing(dir)) };
        let problem = |problem: String| Error::Text { path: path.clone(), problem };
        let hf: tokenizers::Tokenizer = guarded(|| json.parse())
            .map_err(|e| problem(format!("not a tokenizer that the tokenizers library can use: {e}")))?;
        drop(json);
        Inner::new(path, hf, &TokenizerConfig::open(dir)?).map(|inner| Tokenizer { inner: Arc::new(inner) })
    }

    /// The ids of a text. Special tokens written out in the text are recognised, as Hugging Face does; so this is for
    /// text that may hold them (a rendered chat template, a raw prompt). With `add_special` the tokenizer's own frame is
    /// added, usually a beginning-of-sequence token.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let inner = &self.inner;
        let encoding = guarded(|| inner.hf.encode_fast(text, false))
            .map_err(|e| self.error(format!("cannot encode the text: {e}")))?;
        let (before, after) = if add_special { (&*inner.before, &*inner.after) } else { (&[][..], &[][..]) };
        Ok([before, encoding.get_ids(), after].concat())
    }

    /// The text of a sequence of ids, without its special tokens if `skip_special`.
    ///
    /// Spaces before punctuation are kept: transformers removes them only for tokenizers that are not BPE
    /// (`clean_up_tokenization_spaces`), which no supported family has.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut stream = self.stream(skip_special);
        let mut text = String::new();
        for &id in ids {
            text += &stream.push(id)?;
        }
        text += &stream.finish()?;
        Ok(text)
    }

    /// Decodes token by token; see [`TextStream`].
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special)
    }

    /// How many tokens there are, added ones included. The model's embedding may have more rows, for padding.
    pub fn vocab_size(&self) -> usize {
        self.inner.hf.get_vocab_size(true)
    }

    /// The id of a token, by its exact content.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.hf.token_to_id(token)
    }

    /// The beginning-of-sequence token, if the configuration names one.
    pub fn bos_token(&self) -> Option<&str> {
        self.inner.bos.as_deref()
    }

    /// The end-of-sequence token, if the configuration names one.
    pub fn eos_token(&self) -> Option<&str> {
        self.inner.eos.as_deref()
    }

    pub(super) fn hf(&self) -> &tokenizers::Tokenizer {
        &self.inner.hf
    }

    pub(super) fn decoder_stages(&self) -> &[Stage] {
        &self.inner.stages
    }

    /// The token with this id, in the form that the decoder takes.
    pub(super) fn token(&self, id: u32) -> Result<String> {
        self.inner.hf.id_to_token(id).ok_or_else(|| {
            Error::Request(format!("token id {id} is outside the vocabulary of {} tokens", self.vocab_size()))
        })
    }

    pub(super) fn is_special(&self, token: &str) -> bool {
        self.inner.hf.get_added_vocabulary().is_special_token(token)
    }

    pub(super) fn error(&self, problem: String) -> Error {
        Error::Text { path: self.inner.path.clone(), problem }
    }
}

impl Inner {
    fn new(path: PathBuf, mut hf: tokenizers::Tokenizer, config: &TokenizerConfig) -> Result<Inner> {
        let problem = |problem: String| Error::Text { path: path.clone(), problem };
        // Training settings that some files carry; neither belongs to the text-to-ids mapping.
        hf.with_padding(None);
        hf.with_truncation(None).map_err(|e| problem(e.to_string()))?;
        add_config_tokens(&mut hf, config)?;
        let stages = stages(hf.get_decoder()).map_err(|what| Error::Unsupported { path: path.clone(), what })?;
        let (mut before, mut after) = guarded(|| frame(&hf)).map_err(|e| problem(format!("post_processor: {e}")))?;
        // As transformers does, flags in the configuration replace what `tokenizer.json` adds.
        let named = |name: &str| config.special.get(name).cloned();
        let (bos, eos) = (named("bos_token"), named("eos_token"));
        let id = |token: &Option<String>| token.as_deref().and_then(|token| hf.token_to_id(token));
        if let Some(add) = config.flag("add_bos_token") {
            before = id(&bos).filter(|_| add).into_iter().collect();
        }
        if let Some(add) = config.flag("add_eos_token") {
            after = id(&eos).filter(|_| add).into_iter().collect();
        }
        Ok(Inner { path, hf, stages, before, after, bos, eos })
    }
}

/// Runs a piece of the tokenizers library, which panics on some of the nonsense that a damaged file can hold.
pub(super) fn guarded<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("the tokenizers library failed: {}", text.unwrap_or("no reason given")).into())
    })
}

/// What the post-processor puts around a text, seen by letting it process a single token that is not in any vocabulary.
fn frame(hf: &tokenizers::Tokenizer) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
    const TEXT: u32 = u32::MAX;
    let Some(post) = hf.get_post_processor() else { return Ok((Vec::new(), Vec::new())) };
    let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
    let framed = post.process(text, None, true)?;
    let mut halves = framed.get_ids().split(|&id| id == TEXT).map(<[u32]>::to_vec);
    match (halves.next(), halves.next(), halves.next()) {
        (Some(before), Some(after), None) => Ok((before, after)),
        _ => Err("expected a template with the text in it once".into()),
    }
}

/// Adds the tokens that `tokenizer_config.json` lists and `tokenizer.json` lacks or describes otherwise, and marks as
/// special those that it names so. This is what transformers does on loading.
fn add_config_tokens(hf: &mut tokenizers::Tokenizer, config: &TokenizerConfig) -> Result<()> {
    let problem = |problem: String| Error::Text { path: config.path.clone(), problem };
    let bad = |id: &str| problem(format!("added_tokens_decoder: entry `{id}` is not a token with an id"));
    let mut tokens: Vec<(u32, AddedToken)> = Vec::new();
    for (id, token) in config.get("added_tokens_decoder").and_then(|v| v.as_object()).into_iter().flatten() {
        tokens.push((id.parse().map_err(|_| bad(id))?, added_token(token).ok_or_else(|| bad(id))?));
    }
    tokens.sort_by_key(|(id, _)| *id);
    let contents: Vec<(u32, String)> = tokens.iter().map(|(id, token)| (*id, token.content.clone())).collect();
    guarded(|| hf.add_tokens(tokens.into_iter().map(|(_, token)| token))).map_err(|e| problem(e.to_string()))?;
    for (id, content) in contents {
        let found = hf.token_to_id(&content);
        if found != Some(id) {
            let found = found.map_or("none".into(), |id| id.to_string());
            return Err(problem(format!(
                "added_tokens_decoder gives `{content}` the id {id}, but in tokenizer.json it has {found}"
            )));
        }
    }
    let special = config.special_contents().filter(|content| {
        let added = hf.get_added_vocabulary();
        hf.token_to_id(content).is_some() && !added.is_special_token(content)
    });
    let special: Vec<AddedToken> = special.map(|content| AddedToken::from(content, true)).collect();
    guarded(|| hf.add_special_tokens(special)).map_err(|e| problem(e.to_string()))?;
    Ok(())
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

fn missing(dir: &Path) -> Error {
    let others = ["tokenizer.model", "qwen.tiktoken", "spiece.model", "vocab.json", "tekken.json"];
    let found: Vec<&str> = others.into_iter().filter(|name| dir.join(name).exists()).collect();
    let problem = if !dir.is_dir() {
        "no tokenizer: the directory does not exist".into()
    } else if found.is_empty() {
        "no tokenizer: there is no tokenizer.json".into()
    } else {
        format!(
            "no tokenizer: there is no tokenizer.json; {} is there, which is not supported yet",
            found.join(" and ")
        )
    };
    Error::Text { path: dir.to_path_buf(), problem }
}

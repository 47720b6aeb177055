//! Tokenizers that are not a `tokenizer.json`: `tokenizer.model` and `qwen.tiktoken`, with the special tokens and frames
//! that the code of their models gives them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, AddedVocabulary, NormalizerWrapper};

use crate::{Error, Result};

use super::builtin::{self, Format};
use super::config::{TokenizerConfig, read_bytes, read_object};
use super::sentencepiece::{self, Kind, SentencePiece};
use super::tiktoken::{self, Tiktoken};
use super::tokenizer::{Inner, guarded};
use super::words::{Prefix, Words};

/// Classes whose own code names `<s>`, `</s>` and `<unk>` and puts the first in front, unless the configuration says
/// otherwise.
const LLAMA: [&str; 6] = ["Llama", "CodeLlama", "Gemma", "InternLM", "InternLM2", "Yi"];

/// Opens the `tokenizer.model` or `qwen.tiktoken` in `dir`; `None` if there is neither.
///
/// # Errors
/// If it is damaged, or of a class whose rules are not known.
pub(super) fn open(dir: &Path) -> Result<Option<Inner>> {
    let config = TokenizerConfig::open(dir)?;
    let class = class(&config);
    let path = dir.join("tokenizer.model");
    if let Some(file) = read_bytes(&path)? {
        return match &*class {
            "ChatGLM4" => glm4(path, &file, &config).map(Some),
            _ if tiktoken::looks_like(&file) => Err(Error::Unsupported {
                path,
                what: format!("a tiktoken vocabulary of the tokenizer class {class:?} (ChatGLM4Tokenizer is known)"),
            }),
            "ChatGLM" => glm(path, &file, dir, &config).map(Some),
            _ => plain(path, &file, Some(dir), &class, &config).map(Some),
        };
    }
    let path = dir.join("qwen.tiktoken");
    let Some(file) = read_bytes(&path)? else { return Ok(None) };
    qwen(path, &file, &config).map(Some)
}

/// A SentencePiece model alone, with the special tokens that Llama's code gives it.
pub(super) fn sentencepiece(path: &Path, file: &[u8]) -> Result<Inner> {
    plain(path.to_path_buf(), file, None, "", &TokenizerConfig::default())
}

/// A `qwen.tiktoken` alone.
pub(super) fn tiktoken(path: &Path, file: &[u8]) -> Result<Inner> {
    qwen(path.to_path_buf(), file, &TokenizerConfig::default())
}

/// `added_tokens.json`, where old checkpoints list the tokens that were added to the pieces.
fn old_added(dir: &Path) -> Result<BTreeMap<u32, AddedToken>> {
    let path = dir.join("added_tokens.json");
    let mut added = BTreeMap::new();
    for (content, id) in read_object(&path)?.unwrap_or_default() {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| Error::Text { path: path.clone(), problem: format!("`{content}` has no id") })?;
        added.insert(id, AddedToken::from(content, false));
    }
    Ok(added)
}

/// The tokenizer class without the word that all share, from its name or from the code that it is in.
fn class(config: &TokenizerConfig) -> String {
    let auto = || config.get("auto_map")?.get("AutoTokenizer")?.as_array()?.iter().find_map(Value::as_str);
    let class = config.get("tokenizer_class").and_then(Value::as_str).or_else(auto).unwrap_or_default();
    let class = class.rsplit('.').next().unwrap_or_default();
    class.trim_end_matches("Fast").trim_end_matches("Tokenizer").to_owned()
}

/// Baichuan's chat format, where the generation configuration says which tokens begin messages.
fn baichuan_chat(dir: &Path, model: &SentencePiece) -> Result<Option<Format>> {
    let path = dir.join("generation_config.json");
    let config = read_object(&path)?.unwrap_or_default();
    let (Some(user), Some(assistant)) = (config.get("user_token_id"), config.get("assistant_token_id")) else {
        return Ok(None);
    };
    let piece = |id: &Value| {
        let piece = id.as_u64().and_then(|id| model.pieces().get(usize::try_from(id).ok()?));
        piece.map(|piece| piece.text.clone()).ok_or_else(|| Error::Text {
            path: path.clone(),
            problem: format!(
                "messages begin with token {id}, but the tokenizer has {} pieces; download both files again",
                model.pieces().len()
            ),
        })
    };
    Ok(Some(builtin::baichuan(piece(user)?, piece(assistant)?)))
}

/// InternLM 1's, if there is what ends an answer. The code of its first release knew no `rotary` in a configuration.
fn internlm_chat(
    dir: &Path,
    model: &SentencePiece,
    added: &BTreeMap<u32, AddedToken>,
    bos: &str,
    framed: bool,
) -> Result<Option<Format>> {
    let end = builtin::INTERNLM_EOA;
    if model.id(end).is_none() && added.values().all(|token| token.content != end) {
        return Ok(None);
    }
    let config = read_object(&dir.join("config.json"))?.unwrap_or_default();
    let first = config.get("rotary").is_none_or(Value::is_null);
    Ok(Some(builtin::internlm(first, bos, framed)))
}

/// SentencePiece by itself, or as Llama and others use it; `dir` is where its neighbours are, if it has any.
fn plain(path: PathBuf, file: &[u8], dir: Option<&Path>, class: &str, config: &TokenizerConfig) -> Result<Inner> {
    let model = model(&path, file)?;
    let mut special = config.special.clone();
    let llama = LLAMA.contains(&class) || class.is_empty();
    if llama {
        let piece = |id: usize| model.pieces().get(id).filter(|piece| piece.kind == Kind::Control);
        let unknown = model.pieces().iter().find(|piece| piece.kind == Kind::Unknown);
        for (name, piece) in [("unk_token", unknown), ("bos_token", piece(1)), ("eos_token", piece(2))] {
            if let Some(piece) = piece.filter(|_| !config.has(name)) {
                special.entry(name.into()).or_insert_with(|| piece.text.clone());
            }
        }
    }
    // Without `legacy`, only the Llama class itself puts the space in front of the whole text.
    let prefix = match (class, config.flag("legacy"), config.flag("add_prefix_space")) {
        ("Llama", Some(false), Some(false)) => Prefix::Never,
        ("Llama", Some(false), _) => Prefix::Once,
        ("Llama", _, _) => Prefix::Legacy,
        _ => Prefix::Each,
    };
    let add_bos = config.flag("add_bos_token").unwrap_or(llama);
    let bos = special.get("bos_token").map_or("", String::as_str);
    let mut added = dir.map_or_else(|| Ok(BTreeMap::new()), old_added)?;
    added.extend(config.added_tokens()?);
    let chat = match dir {
        None => None,
        Some(dir) => match baichuan_chat(dir, &model)? {
            Some(chat) => Some(chat),
            None if class == "InternLM" => internlm_chat(dir, &model, &added, bos, add_bos)?,
            None => None,
        },
    };
    let contents = special.values().map(String::as_str).chain(config.special_contents());
    let contents = contents.chain(chat.iter().flat_map(|chat| &chat.tokens).map(|(_, token)| token.as_str()));
    for content in contents.collect::<Vec<_>>() {
        let listed = added.iter().find(|(_, token)| token.content == content).map(|(id, _)| *id);
        if let Some(id) = listed.or_else(|| model.id(content)) {
            added.entry(id).or_insert_with(|| AddedToken::from(content, true)).special = true;
        }
    }
    let inner = Inner {
        words: Words::SentencePiece { model, prefix },
        added: vocabulary(&path, added)?,
        special_in_text: true,
        before: Vec::new(),
        after: Vec::new(),
        bos: special.get("bos_token").cloned(),
        eos: special.get("eos_token").cloned(),
        chat,
        path,
    };
    Ok(framed(inner, add_bos, config.flag("add_eos_token").unwrap_or(false)))
}

/// ChatGLM 2 and 3: special tokens after the pieces, which plain text cannot write, and two of them before every text.
fn glm(path: PathBuf, file: &[u8], dir: &Path, config: &TokenizerConfig) -> Result<Inner> {
    let model = model(&path, file)?;
    let listed = config.added_tokens()?;
    let model_config = read_object(&dir.join("config.json"))?.unwrap_or_default();
    let names = [config.get("name_or_path"), model_config.get("_name_or_path")];
    let third = names.into_iter().flatten().filter_map(Value::as_str).any(|name| name.contains("chatglm3"))
        || listed.iter().any(|(_, token)| token.content == "<|user|>");
    let roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"].into_iter().filter(|_| third);
    let names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"].into_iter().chain(roles);
    let special = (model.pieces().len() as u32..).zip(names).map(|(id, name)| (id, AddedToken::from(name, true)));
    let special_in_text = !listed.is_empty();
    let added = special.chain(listed.into_iter().map(|(id, token)| (id, token.special(true)))).collect();
    let inner = Inner {
        words: Words::SentencePiece { model, prefix: Prefix::Each },
        added: vocabulary(&path, added)?,
        special_in_text,
        before: Vec::new(),
        after: Vec::new(),
        bos: None,
        eos: Some("</s>".into()),
        chat: Some(if third { builtin::CHATGLM3 } else { builtin::CHATGLM2 }),
        path,
    };
    prefixed(inner, ["[gMASK]", "sop"])
}

/// GLM-4: a tiktoken vocabulary under SentencePiece's name, with special tokens from the configuration.
fn glm4(path: PathBuf, file: &[u8], config: &TokenizerConfig) -> Result<Inner> {
    let words = Tiktoken::read(&path, file, tiktoken::GLM4, false)?;
    let inner = Inner {
        words: Words::Tiktoken(words),
        added: vocabulary(&path, config.added_tokens()?.into_iter().collect())?,
        special_in_text: true,
        before: Vec::new(),
        after: Vec::new(),
        bos: None,
        eos: config.special.get("eos_token").cloned(),
        chat: None,
        path,
    };
    prefixed(inner, ["[gMASK]", "<sop>"])
}

/// Qwen 1: special tokens after the ranks, by the list in its code.
fn qwen(path: PathBuf, file: &[u8], config: &TokenizerConfig) -> Result<Inner> {
    let words = Tiktoken::read(&path, file, tiktoken::QWEN, true)?;
    let mut names: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    // The first release had five more names, and its configuration a key that later ones lack.
    let first = config.has("clean_up_tokenization_spaces");
    names.extend(["<R>", "<S>", "<X>", "<mask>", "<sep>"].into_iter().filter(|_| first).map(String::from));
    names.extend((0..if first { 200 } else { 205 }).map(|i| format!("<|extra_{i}|>")));
    let special = (words.len() as u32..).zip(names).map(|(id, name)| (id, AddedToken::from(name, true)));
    let added = special.chain(config.added_tokens()?).collect();
    Ok(Inner {
        words: Words::Tiktoken(words),
        added: vocabulary(&path, added)?,
        special_in_text: true,
        before: Vec::new(),
        after: Vec::new(),
        bos: None,
        eos: Some("<|endoftext|>".into()),
        chat: Some(builtin::CHATML),
        path,
    })
}

fn model(path: &Path, file: &[u8]) -> Result<SentencePiece> {
    SentencePiece::new(sentencepiece::read(path, file)?).map_err(|problem| Error::Text {
        path: path.to_path_buf(),
        problem: format!("not a SentencePiece model: {problem}; download it again"),
    })
}

/// Puts the named tokens around texts.
pub(super) fn framed(mut inner: Inner, add_bos: bool, add_eos: bool) -> Inner {
    let id = |token: &Option<String>| {
        let token = token.as_deref()?;
        inner.added.get_vocab().get(token).copied().or_else(|| inner.words.id(token))
    };
    let (bos, eos) = (id(&inner.bos), id(&inner.eos));
    inner.before = bos.filter(|_| add_bos).into_iter().collect();
    inner.after = eos.filter(|_| add_eos).into_iter().collect();
    inner
}

/// Puts two special tokens before texts.
fn prefixed(mut inner: Inner, tokens: [&str; 2]) -> Result<Inner> {
    for token in tokens {
        let id = inner.added.get_vocab().get(token).copied();
        inner.before.push(id.ok_or_else(|| Error::Text {
            path: inner.path.clone(),
            problem: format!("the special token {token} has no id in tokenizer_config.json (added_tokens_decoder)"),
        })?);
    }
    Ok(inner)
}

/// The library's search for tokens that are added to a vocabulary, with these ids.
pub(super) fn vocabulary(path: &Path, tokens: BTreeMap<u32, AddedToken>) -> Result<AddedVocabulary> {
    let add = || {
        // The library gives ids itself, except to tokens that its model has.
        let ids: Vocab = tokens.iter().map(|(id, token)| (token.content.clone(), *id)).collect();
        let ids = BPE::builder().vocab_and_merges(ids, Vec::new()).build()?;
        let mut added = AddedVocabulary::new();
        // These are looked for in the text as it is.
        let tokens = tokens.into_values().map(|token| token.normalized(false));
        added.add_tokens(tokens, &ids, None::<&NormalizerWrapper>)?;
        Ok(added)
    };
    guarded(add).map_err(|e| Error::Text { path: path.to_path_buf(), problem: format!("its special tokens: {e}") })
}

//! `tokenizer.json`, run by the tokenizers library, with what the files beside it change.

use std::path::Path;

use tokenizers::{AddedToken, AddedVocabulary, Encoding, PostProcessor, Token};

use crate::{Error, Result};

use super::config::{TokenizerConfig, read_text};
use super::stream::stages;
use super::tokenizer::{Inner, guarded};
use super::words::Words;

/// Opens the `tokenizer.json` in `dir`; `None` if there is none.
///
/// # Errors
/// If it is damaged or uses something unknown.
pub(super) fn open(dir: &Path) -> Result<Option<Inner>> {
    let path = dir.join("tokenizer.json");
    let Some(json) = read_text(&path)? else { return Ok(None) };
    let problem = |problem: String| Error::Text { path: path.clone(), problem };
    let mut hf: tokenizers::Tokenizer = guarded(|| json.parse())
        .map_err(|e| problem(format!("not a tokenizer that the tokenizers library can use: {e}")))?;
    drop(json);
    let config = TokenizerConfig::open(dir)?;
    // Training settings that some files carry; neither belongs to the text-to-ids mapping.
    hf.with_padding(None);
    hf.with_truncation(None).map_err(|e| problem(e.to_string()))?;
    add_config_tokens(&mut hf, &config)?;
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
    inner(&path, hf, before, after, bos, eos).map(Some)
}

/// A tokenizer that the library runs.
///
/// # Errors
/// If its decoder cannot be run token by token.
pub(super) fn inner(
    path: &Path,
    hf: tokenizers::Tokenizer,
    before: Vec<u32>,
    after: Vec<u32>,
    bos: Option<String>,
    eos: Option<String>,
) -> Result<Inner> {
    let path = path.to_path_buf();
    let stages = stages(hf.get_decoder()).map_err(|what| Error::Unsupported { path: path.clone(), what })?;
    let words = Words::Library { hf: Box::new(hf), stages };
    let added = AddedVocabulary::new();
    Ok(Inner { path, words, added, special_in_text: true, before, after, bos, eos, chat: None })
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
    let tokens = config.added_tokens()?;
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

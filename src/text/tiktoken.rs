//! Vocabularies in tiktoken's format: a line for each token, its bytes in base64 and its rank. Text is cut by a regular
//! expression, and in each cut the neighbours that make the token of the lowest rank are merged first.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::{Error, Result};

use super::merge::{Symbol, merge};

/// The cuts of `tokenization_qwen.py` (Qwen 1), which Qwen 2 kept.
pub(super) const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The cuts of `tokenization_chatglm.py` (GLM-4), which are also those of Llama 3: up to three digits together.
pub(super) const GLM4: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A vocabulary that is ready to encode.
pub(super) struct Tiktoken {
    tokens: Vec<Vec<u8>>,
    ranks: HashMap<Vec<u8>, u32>,
    split: Split,
    /// Whether text is brought into Unicode's composed form (NFC) first.
    nfc: bool,
}

impl fmt::Debug for Tiktoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiktoken").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Tiktoken {
    /// Reads a vocabulary; `pattern` is what its model cuts text with.
    ///
    /// # Errors
    /// If a line is not a token and its rank, a rank is missing or there twice, or a single byte is no token.
    pub fn read(path: &Path, file: &[u8], pattern: &str, nfc: bool) -> Result<Tiktoken> {
        let problem = |problem: String| Error::Text {
            path: path.to_path_buf(),
            problem: format!("not a tiktoken vocabulary: {problem}; download it again"),
        };
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(file.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii();
            if !line.is_empty() {
                lines.push(entry(line).ok_or_else(|| problem(format!("line {number} is not base64 and a rank")))?);
            }
        }
        let mut tokens = vec![Vec::new(); lines.len()];
        let mut ranks = HashMap::with_capacity(lines.len());
        for (token, rank) in lines {
            let Some(place) = tokens.get_mut(rank as usize) else {
                return Err(problem(format!("the rank {rank} in a file of {} tokens", tokens.len())));
            };
            if !place.is_empty() || ranks.insert(token.clone(), rank).is_some() {
                return Err(problem(format!("the token or the rank of rank {rank} is there twice")));
            }
            *place = token;
        }
        if let Some(byte) = (0..=255).find(|byte| !ranks.contains_key(&[*byte][..])) {
            return Err(problem(format!("no token is the single byte {byte}")));
        }
        let split = Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false);
        let split = split.map_err(|e| problem(format!("its pattern: {e}")))?;
        Ok(Tiktoken { tokens, ranks, split, nfc })
    }

    /// How many tokens there are; special ones are not among them.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize).map(Vec::as_slice)
    }

    pub fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.ranks.get(bytes).copied()
    }

    /// The text in the form in which special tokens are looked for.
    pub fn normalize(&self, text: &str) -> Option<String> {
        let differs = self.nfc && is_nfc_quick(text.chars()) != IsNormalized::Yes;
        differs.then(|| text.nfc().collect())
    }

    /// The ids of a text, without those in `banned`.
    pub fn encode(&self, text: &str, banned: &HashSet<u32>) -> tokenizers::Result<Vec<u32>> {
        let normalized = self.normalize(text);
        let mut cuts = PreTokenizedString::from(normalized.as_deref().unwrap_or(text));
        self.split.pre_tokenize(&mut cuts)?;
        let mut ids = Vec::new();
        for (cut, _, _) in cuts.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            let cut = cut.as_bytes();
            let rank = |bytes: &[u8]| self.id(bytes).filter(|rank| !banned.contains(rank));
            if let Some(whole) = rank(cut) {
                ids.push(whole);
                continue;
            }
            let symbols = (0..cut.len()).map(|at| Symbol { range: at..at + 1, frozen: false }).collect();
            let parts = merge(symbols, |whole, _| rank(&cut[whole]));
            // A part is one byte or the result of a merge, so it has a rank.
            ids.extend(parts.into_iter().filter_map(|part| self.id(&cut[part])));
        }
        Ok(ids)
    }
}

/// Whether a file is of this format, by its first line: a SentencePiece model begins with a line feed.
pub(super) fn looks_like(file: &[u8]) -> bool {
    file.split(|byte| *byte == b'\n').next().is_some_and(|line| entry(line.trim_ascii()).is_some())
}

/// A line: a token's bytes, and its rank.
fn entry(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    let rank = std::str::from_utf8(&line[space + 1..]).ok()?.parse().ok()?;
    base64(&line[..space]).filter(|token| !token.is_empty()).map(|token| (token, rank))
}

/// Decodes base64, with or without the padding at the end.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let mut bits = 0u32;
    for (i, digit) in digits.iter().enumerate() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        if i % 4 > 0 {
            bytes.push((bits >> (6 - 2 * (i % 4))) as u8);
        }
    }
    (digits.len() % 4 != 1).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_digits() {
        assert_eq!(base64(b"SGVsbG8sIHdvcmxk").unwrap(), b"Hello, world");
        assert_eq!(base64(b"SGVsbG8=").unwrap(), b"Hello");
        assert_eq!(base64(b"SGVsbA==").unwrap(), b"Hell");
        assert_eq!(base64(b"//79").unwrap(), [0xFF, 0xFE, 0xFD]);
        assert_eq!((base64(b"A"), base64(b"AA\xFF=")), (None, None));
    }
}

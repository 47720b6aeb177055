//! What SentencePiece does to a text before it looks for pieces: rewriting by longest match (`precompiled_charsmap`),
//! spaces, and the space in front. Written after the behaviour of SentencePiece's `Normalizer`; the tokenizers library has
//! a normalizer for the same table, which matches by grapheme and so gives other ids for some texts.

use super::{SPACE, Spec};

/// The rules of one model.
#[derive(Debug)]
pub(super) struct Normalizer {
    charsmap: Option<Charsmap>,
    pub dummy_prefix: bool,
    pub remove_extra_spaces: bool,
    escape_spaces: bool,
}

impl Normalizer {
    /// # Errors
    /// If the table is damaged.
    pub fn new(spec: &Spec) -> Result<Normalizer, String> {
        let charsmap = Some(&spec.charsmap).filter(|bytes| !bytes.is_empty());
        Ok(Normalizer {
            charsmap: charsmap.map(|bytes| Charsmap::new(bytes)).transpose()?,
            dummy_prefix: spec.dummy_prefix,
            remove_extra_spaces: spec.remove_extra_spaces,
            escape_spaces: spec.escape_spaces,
        })
    }

    /// The text that is looked up. `symbol` gives the length of the user-defined symbol at the start of a text: those
    /// are not rewritten. `prefix` says whether a space goes in front.
    pub fn normalize(&self, text: &str, prefix: bool, symbol: impl Fn(&str) -> Option<usize>) -> String {
        let space = if self.escape_spaces { SPACE } else { " " };
        let mut rest = text;
        if self.remove_extra_spaces {
            while !rest.is_empty() {
                let (rule, len) = self.longest(rest, &symbol);
                if rule != " " {
                    break;
                }
                rest = &rest[len..];
            }
        }
        let mut out = String::with_capacity(text.len() + space.len());
        if rest.is_empty() {
            return out;
        }
        if prefix {
            out += space;
        }
        let mut after_space = self.remove_extra_spaces;
        while !rest.is_empty() {
            let (rule, len) = self.longest(rest, &symbol);
            let rule = if after_space { rule.trim_start_matches(' ') } else { rule };
            if !rule.is_empty() {
                if self.escape_spaces {
                    out.extend(rule.split_inclusive(' ').flat_map(|part| match part.strip_suffix(' ') {
                        Some(word) => [word, SPACE],
                        None => [part, ""],
                    }));
                } else {
                    out += rule;
                }
                after_space = rule.ends_with(' ');
            }
            after_space &= self.remove_extra_spaces;
            rest = &rest[len..];
        }
        if self.remove_extra_spaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        out
    }

    /// What the start of a text becomes, and how many bytes of the text that is.
    fn longest<'a>(&'a self, text: &'a str, symbol: impl Fn(&str) -> Option<usize>) -> (&'a str, usize) {
        if let Some(len) = symbol(text) {
            return (&text[..len], len);
        }
        if let Some((rule, len)) = self.charsmap.as_ref().and_then(|map| map.longest(text)) {
            return (rule, len);
        }
        let len = text.chars().next().map_or(0, char::len_utf8);
        (&text[..len], len)
    }
}

/// The table of rewritings: a double-array trie over what is replaced, and the replacements, each ended by a zero byte.
#[derive(Debug)]
struct Charsmap {
    units: Vec<u32>,
    texts: String,
}

impl Charsmap {
    fn new(bytes: &[u8]) -> Result<Charsmap, String> {
        let damaged = || "its table of characters (precompiled_charsmap) is damaged".to_owned();
        let (len, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let len = u32::from_le_bytes(*len) as usize;
        if !len.is_multiple_of(4) || len > rest.len() {
            return Err(damaged());
        }
        let (trie, texts) = rest.split_at(len);
        let units = trie.chunks_exact(4).map(|unit| u32::from_le_bytes(unit.try_into().expect("four bytes"))).collect();
        let texts = std::str::from_utf8(texts).map_err(|_| damaged())?.to_owned();
        Ok(Charsmap { units, texts })
    }

    /// The replacement for the longest start of a text that the table has.
    fn longest(&self, text: &str) -> Option<(&str, usize)> {
        // Each unit has 8 bits of label, a flag for a value below it, and an offset to its children.
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut found = None;
        let mut at = offset(*self.units.first()?);
        for (i, byte) in text.bytes().enumerate() {
            at ^= usize::from(byte);
            let Some(&unit) = self.units.get(at) else { break };
            // The highest bit marks values, which no byte leads to.
            if unit & 0x8000_00FF != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit & (1 << 8) != 0 {
                let Some(value) = self.units.get(at) else { break };
                found = Some(((value & 0x7FFF_FFFF) as usize, i + 1));
            }
        }
        let (start, len) = found.filter(|(_, len)| text.is_char_boundary(*len))?;
        let rule = self.texts.get(start..)?;
        Some((&rule[..rule.find('\0').unwrap_or(rule.len())], len))
    }
}

//! Decoding for vocabularies of bytes and of SentencePiece: what the tokens say is joined, spaces come back, and the space
//! that encoding put in front goes. Each token yields the text that no later one can change.

use super::sentencepiece::SPACE;
use super::stream::take_utf8;
use super::words::{Prefix, Said, Words};

/// The state between two tokens.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    /// The beginning of a character.
    tail: Vec<u8>,
    /// Spaces in front that are still to be taken off.
    strip: Strip,
    /// Bytes that are no text become one U+FFFD each (SentencePiece), or one for each beginning of a character (Python).
    each_byte: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strip {
    None,
    /// One, by SentencePiece.
    One,
    /// One, of the first token, by transformers; and then one by SentencePiece.
    First {
        then: bool,
    },
    /// One of each piece, as long as nothing else has come.
    All,
}

impl Joined {
    pub fn new(words: &Words) -> Joined {
        let (strip, each_byte) = match words {
            Words::SentencePiece { model, .. } if model.removes_spaces() => (Strip::All, true),
            Words::SentencePiece { model, prefix: Prefix::Each } if model.dummy_prefix() => (Strip::One, true),
            Words::SentencePiece { prefix: Prefix::Once, .. } => (Strip::First { then: false }, true),
            Words::SentencePiece { model, prefix: Prefix::Legacy } => {
                (Strip::First { then: model.dummy_prefix() }, true)
            }
            Words::SentencePiece { .. } => (Strip::None, true),
            Words::Library { .. } | Words::Tiktoken(_) => (Strip::None, false),
        };
        Joined { tail: Vec::new(), strip, each_byte }
    }

    /// Takes what a token of these words says, and returns the text that has become certain.
    pub fn push(&mut self, words: &Words, said: Said) -> String {
        match said {
            Said::Bytes(bytes) => {
                self.strip = Strip::None;
                self.tail.extend_from_slice(bytes);
            }
            Said::Text(text) => self.text(text),
            Said::Token(token) => self.text(&token),
            Said::Marked(mut piece) => {
                if let (Strip::First { then }, Some(rest)) = (self.strip, piece.strip_prefix(SPACE)) {
                    // Transformers looks the rest of the first piece up again; what is no piece is plain text.
                    if words.id(rest).is_none() {
                        self.strip = if then && rest.is_empty() { Strip::One } else { Strip::None };
                        self.tail.extend_from_slice(rest.as_bytes());
                        return take_utf8(&mut self.tail, self.each_byte);
                    }
                    self.strip = if then { Strip::One } else { Strip::None };
                    piece = rest;
                }
                let strip = matches!(self.strip, Strip::One | Strip::All);
                let stripped = piece.strip_prefix(SPACE).filter(|_| strip);
                let said = stripped.unwrap_or(piece);
                if !said.is_empty() || (stripped.is_some() && self.strip != Strip::All) {
                    self.strip = Strip::None;
                }
                self.tail.extend_from_slice(said.replace(SPACE, " ").as_bytes());
            }
        }
        take_utf8(&mut self.tail, self.each_byte)
    }

    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.strip = Strip::None;
        }
        self.tail.extend_from_slice(text.as_bytes());
    }

    /// There are no more tokens: returns what was held back.
    pub fn finish(&mut self) -> String {
        let each = if self.each_byte { self.tail.len() } else { usize::from(!self.tail.is_empty()) };
        self.tail.clear();
        "\u{FFFD}".repeat(each)
    }
}

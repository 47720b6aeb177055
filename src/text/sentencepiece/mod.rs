//! SentencePiece models (`tokenizer.model`, and the same data from GGUF): BPE by scores and unigram, both with byte
//! fallback, with exactly the ids of SentencePiece.
//!
//! The BPE and Unigram of the tokenizers library are declined: they break ties otherwise, turn characters into bytes before
//! instead of after merging, and know neither user-defined nor unused pieces.

mod normalize;
mod prefixes;
mod proto;
mod unigram;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use self::normalize::Normalizer;
use self::prefixes::Prefixes;
use self::unigram::Unigram;
use super::merge::{Symbol, merge};

pub(super) use self::proto::read;

/// What stands for a space in pieces.
pub(super) const SPACE: &str = "\u{2581}";

/// What a piece is, in the numbers of the file (and of GGUF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal = 1,
    /// What text becomes that no piece covers.
    Unknown,
    /// Never in text: `<s>`, `</s>`.
    Control,
    /// Found before anything else.
    UserDefined,
    /// Only a step towards other pieces; in the result it is taken apart again.
    Unused,
    /// A byte, written `<0x41>`.
    Byte,
}

impl Kind {
    pub fn new(number: u64) -> Option<Kind> {
        use Kind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
        [Normal, Unknown, Control, UserDefined, Unused, Byte].into_iter().find(|kind| *kind as u64 == number)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub text: String,
    /// Higher is better.
    pub score: f32,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    Unigram,
    Bpe,
}

/// What a file says, before it is checked.
#[derive(Debug)]
pub(super) struct Spec {
    pub pieces: Vec<Piece>,
    pub model: Model,
    pub byte_fallback: bool,
    /// What an unknown piece is decoded to.
    pub unknown_surface: String,
    pub charsmap: Vec<u8>,
    pub dummy_prefix: bool,
    pub remove_extra_spaces: bool,
    pub escape_spaces: bool,
}

impl Default for Spec {
    /// The format's defaults.
    fn default() -> Spec {
        Spec {
            pieces: Vec::new(),
            model: Model::Unigram,
            byte_fallback: false,
            unknown_surface: " \u{2047} ".into(),
            charsmap: Vec::new(),
            dummy_prefix: true,
            remove_extra_spaces: true,
            escape_spaces: true,
        }
    }
}

/// A model that is ready to encode.
pub(super) struct SentencePiece {
    pieces: Vec<Piece>,
    /// Normal, user-defined and unused pieces, by text.
    ids: HashMap<String, u32>,
    /// The others.
    reserved: HashMap<String, u32>,
    unknown: u32,
    unknown_surface: String,
    /// The ids of the 256 bytes, if characters without a piece become bytes.
    bytes: Option<Vec<u32>>,
    symbols: Prefixes,
    normalizer: Normalizer,
    unigram: Option<Unigram>,
}

impl fmt::Debug for SentencePiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentencePiece").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl SentencePiece {
    /// # Errors
    /// What SentencePiece itself refuses: pieces that are empty or there twice, no or two unknown pieces, byte pieces
    /// that are missing or of no use, a damaged table of characters.
    pub fn new(spec: Spec) -> Result<SentencePiece, String> {
        let normalizer = Normalizer::new(&spec)?;
        let Spec { pieces, model, byte_fallback, unknown_surface, .. } = spec;
        if u32::try_from(pieces.len()).is_err() {
            return Err(format!("it has {} pieces", pieces.len()));
        }
        let (mut ids, mut reserved) = (HashMap::new(), HashMap::new());
        let mut unknown = None;
        for (id, piece) in (0u32..).zip(&pieces) {
            let problem = |problem: &str| Err(format!("piece {id} ({:?}): {problem}", piece.text));
            if piece.text.is_empty() {
                return problem("it is empty");
            }
            if !piece.score.is_finite() {
                return problem("its score is not a number");
            }
            let in_text = matches!(piece.kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
            let map = if in_text { &mut ids } else { &mut reserved };
            if map.insert(piece.text.clone(), id).is_some() {
                return problem("there are two of it");
            }
            match piece.kind {
                Kind::Unknown if unknown.replace(id).is_some() => return problem("it is the second unknown piece"),
                Kind::Byte if !byte_fallback => return problem("a byte, but byte_fallback is off"),
                _ => {}
            }
        }
        let unknown = unknown.ok_or("it has no unknown piece")?;
        let byte_id = |byte: u8| {
            let id = reserved.get(&byte_piece(byte)).copied();
            let id = id.filter(|id| pieces[*id as usize].kind == Kind::Byte);
            id.ok_or_else(|| format!("byte_fallback is on, but there is no piece {}", byte_piece(byte)))
        };
        let bytes = byte_fallback.then(|| (0..=255).map(byte_id).collect::<Result<Vec<u32>, String>>()).transpose()?;
        let unigram = (model == Model::Unigram).then(|| Unigram::new(&pieces, unknown));
        let symbols = Prefixes::new(&pieces, |kind| kind == Kind::UserDefined);
        Ok(SentencePiece { ids, reserved, unknown, unknown_surface, bytes, symbols, normalizer, unigram, pieces })
    }

    /// Whether a space goes in front of a text, and is taken off again.
    pub fn dummy_prefix(&self) -> bool {
        self.normalizer.dummy_prefix
    }

    /// Whether all spaces in front of a text are taken off.
    pub fn removes_spaces(&self) -> bool {
        self.normalizer.remove_extra_spaces
    }

    /// All pieces; their ids are their places.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub fn id(&self, piece: &str) -> Option<u32> {
        self.reserved.get(piece).or_else(|| self.ids.get(piece)).copied()
    }

    /// What an unknown piece is decoded to.
    pub fn unknown_surface(&self) -> &str {
        &self.unknown_surface
    }

    /// The ids of a text, with a space in front if `prefix`, and without the pieces in `banned`.
    pub fn encode(&self, text: &str, prefix: bool, banned: &HashSet<u32>) -> Vec<u32> {
        let symbol = |text: &str| self.symbols.longest(&self.pieces, text, |id| !banned.contains(&id));
        let text = self.normalizer.normalize(text, prefix, |text| symbol(text).map(|(_, len)| len));
        let cut = match &self.unigram {
            Some(unigram) => unigram.cut(&text, &self.pieces, banned),
            None => self.merge(&text, banned, |text| symbol(text).map(|(_, len)| len)),
        };
        let mut ids = Vec::with_capacity(cut.len());
        let mut after_unknown = false;
        for (piece, id) in cut {
            let unknown = id == self.unknown;
            match &self.bytes {
                Some(bytes) if unknown => ids.extend(piece.bytes().map(|byte| bytes[usize::from(byte)])),
                // A run of characters that no piece covers is one unknown piece.
                _ if unknown && after_unknown => {}
                _ => ids.push(id),
            }
            after_unknown = unknown;
        }
        ids
    }

    /// Merges characters by the scores of what they make.
    fn merge<'a>(
        &self,
        text: &'a str,
        banned: &HashSet<u32>,
        symbol: impl Fn(&str) -> Option<usize>,
    ) -> Vec<(&'a str, u32)> {
        let mut symbols = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let found = symbol(&text[at..]);
            let end = at + found.unwrap_or(c.len_utf8());
            symbols.push(Symbol { range: at..end, frozen: found.is_some() });
            at = end;
        }
        // How unused pieces were made, to take them apart.
        let mut made: HashMap<&str, (Range<usize>, Range<usize>)> = HashMap::new();
        let parts = merge(symbols, |whole, middle| {
            let id = *self.ids.get(&text[whole.clone()]).filter(|id| !banned.contains(id))?;
            let piece = &self.pieces[id as usize];
            if piece.kind == Kind::Unused {
                made.insert(&text[whole.clone()], (whole.start..middle, middle..whole.end));
            }
            Some(descending(piece.score))
        });
        let mut cut = Vec::with_capacity(parts.len());
        for part in parts {
            let mut stack = vec![part];
            while let Some(part) = stack.pop() {
                let piece = &text[part];
                let id = self.id(piece).filter(|id| !banned.contains(id)).unwrap_or(self.unknown);
                match made.get(piece).filter(|_| self.pieces[id as usize].kind == Kind::Unused) {
                    Some((left, right)) => stack.extend([right.clone(), left.clone()]),
                    None => cut.push((piece, id)),
                }
            }
        }
        cut
    }
}

/// A number that is lower for higher scores, and equal for equal ones.
fn descending(score: f32) -> u32 {
    // Adding zero makes the two zeros one. Positive floats are in the order of their bits, negative ones in the opposite.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { 0x7FFF_FFFF - bits } else { bits }
}

/// How a byte is written as a piece.
fn byte_piece(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The byte that a byte piece stands for.
pub(super) fn piece_byte(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_rank_from_high_to_low() {
        let scores = [1e9, 2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -1e9];
        assert!(scores.windows(2).all(|pair| descending(pair[0]) < descending(pair[1])));
        assert_eq!(descending(0.0), descending(-0.0));
    }

    fn model(pieces: &[(&str, f32, Kind)]) -> SentencePiece {
        let pieces =
            pieces.iter().map(|(text, score, kind)| Piece { text: (*text).into(), score: *score, kind: *kind });
        let spec = Spec { pieces: pieces.collect(), model: Model::Bpe, remove_extra_spaces: false, ..Spec::default() };
        SentencePiece::new(spec).unwrap()
    }

    #[test]
    fn unused_pieces_are_steps_only() {
        let pieces = [
            ("<unk>", 0.0, Kind::Unknown),
            ("a", -9.0, Kind::Normal),
            ("b", -9.0, Kind::Normal),
            ("c", -9.0, Kind::Normal),
            ("ab", -1.0, Kind::Unused),
            ("abc", -2.0, Kind::Normal),
        ];
        let model = model(&pieces);
        assert_eq!(model.encode("abcab", false, &HashSet::new()), [5, 1, 2]);
        assert_eq!(model.encode("xyab", false, &HashSet::new()), [0, 1, 2], "unknown characters are one piece");
    }

    #[test]
    fn user_defined_pieces_come_first_unless_banned() {
        let pieces = [
            ("<unk>", 0.0, Kind::Unknown),
            ("<", -9.0, Kind::Normal),
            ("a", -9.0, Kind::Normal),
            (">", -9.0, Kind::Normal),
            ("<a>", 0.0, Kind::UserDefined),
            ("a>", -1.0, Kind::Normal),
        ];
        let model = model(&pieces);
        assert_eq!(model.encode("<a>a>", false, &HashSet::new()), [4, 5]);
        assert_eq!(model.encode("<a>a>", false, &HashSet::from([4])), [1, 5, 5]);
    }

    #[test]
    fn refuses_what_sentencepiece_refuses() {
        let refused = |pieces: &[(&str, f32, Kind)], byte_fallback| {
            let pieces =
                pieces.iter().map(|(text, score, kind)| Piece { text: (*text).into(), score: *score, kind: *kind });
            SentencePiece::new(Spec { pieces: pieces.collect(), byte_fallback, ..Spec::default() }).unwrap_err()
        };
        assert!(refused(&[("a", 0.0, Kind::Normal)], false).contains("no unknown piece"));
        let unknown = ("<unk>", 0.0, Kind::Unknown);
        assert!(refused(&[unknown, ("", 0.0, Kind::Normal)], false).contains("piece 1"));
        assert!(refused(&[unknown, ("a", f32::NAN, Kind::Normal)], false).contains("score"));
        assert!(refused(&[unknown, ("a", 0.0, Kind::Normal), ("a", 1.0, Kind::Normal)], false).contains("two"));
        assert!(refused(&[unknown, ("<0x00>", 0.0, Kind::Byte)], false).contains("byte_fallback is off"));
        assert!(refused(&[unknown, ("<0x00>", 0.0, Kind::Byte)], true).contains("<0x01>"));
    }
}

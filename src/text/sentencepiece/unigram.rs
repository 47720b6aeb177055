//! The unigram model: the cut of a text into pieces whose scores have the largest sum. Sums are rounded as SentencePiece
//! rounds them (float32 after each piece), since equal sums decide between cuts; the tokenizers library adds in float64.

use std::collections::HashSet;

use super::prefixes::Prefixes;
use super::{Kind, Piece};

/// What a character that no piece covers costs more than the rarest piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The pieces that text is cut into.
#[derive(Debug)]
pub(super) struct Unigram {
    prefixes: Prefixes,
    unknown: u32,
    smallest: f32,
    largest: f32,
}

/// The best way to the end of a prefix of the text.
#[derive(Clone, Copy)]
struct Best {
    id: u32,
    score: f32,
    start: Option<usize>,
}

impl Unigram {
    pub fn new(pieces: &[Piece], unknown: u32) -> Unigram {
        let scores = || pieces.iter().filter(|piece| piece.kind == Kind::Normal).map(|piece| piece.score);
        Unigram {
            prefixes: Prefixes::new(pieces, |kind| matches!(kind, Kind::Normal | Kind::UserDefined)),
            unknown,
            smallest: scores().fold(f32::MAX, f32::min),
            largest: scores().fold(f32::MIN_POSITIVE, f32::max),
        }
    }

    /// Cuts the text, without pieces whose id is in `banned`.
    pub fn cut<'a>(&self, text: &'a str, pieces: &[Piece], banned: &HashSet<u32>) -> Vec<(&'a str, u32)> {
        let mut best = vec![Best { id: self.unknown, score: 0.0, start: None }; text.len() + 1];
        for (start, c) in text.char_indices() {
            let so_far = f64::from(best[start].score);
            let mut offer = |len: usize, id: u32, score: f64| {
                let best = &mut best[start + len];
                if best.start.is_none() || score > f64::from(best.score) {
                    *best = Best { id, score: score as f32, start: Some(start) };
                }
            };
            let mut single = false;
            self.prefixes.each(pieces, &text[start..], |id, len| {
                if banned.contains(&id) {
                    return;
                }
                let piece = &pieces[id as usize];
                let score = match piece.kind {
                    Kind::UserDefined => f64::from(len as f32 * self.largest) - 0.1,
                    _ => f64::from(piece.score),
                };
                offer(len, id, score + so_far);
                single |= len == c.len_utf8();
            });
            if !single {
                let score = (self.smallest - UNKNOWN_PENALTY) + so_far as f32;
                offer(c.len_utf8(), self.unknown, f64::from(score));
            }
        }
        let mut cut = Vec::new();
        let mut end = text.len();
        while let Some(start) = best[end].start {
            cut.push((&text[start..end], best[end].id));
            end = start;
        }
        cut.reverse();
        cut
    }
}

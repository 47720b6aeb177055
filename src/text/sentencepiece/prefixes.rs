//! Which pieces a text begins with: the pieces in order, narrowed byte by byte. It takes four bytes a piece, and no more
//! steps than the text matches.

use super::{Kind, Piece};

/// The ids of some pieces, in the order of their texts.
#[derive(Debug)]
pub(super) struct Prefixes(Vec<u32>);

impl Prefixes {
    pub fn new(pieces: &[Piece], which: impl Fn(Kind) -> bool) -> Prefixes {
        let mut ids: Vec<u32> = (0u32..).zip(pieces).filter(|(_, piece)| which(piece.kind)).map(|(id, _)| id).collect();
        ids.sort_unstable_by_key(|id| pieces[*id as usize].text.as_bytes());
        Prefixes(ids)
    }

    /// Calls `found` with the id and length of each piece that the text begins with, shortest first.
    pub fn each(&self, pieces: &[Piece], text: &str, mut found: impl FnMut(u32, usize)) {
        let bytes_of = |id: &u32| pieces[*id as usize].text.as_bytes();
        let mut left = &self.0[..];
        for (at, byte) in text.bytes().enumerate() {
            // All that are left agree on the bytes before this one, and are longer.
            let from = left.partition_point(|id| bytes_of(id)[at] < byte);
            let to = left.partition_point(|id| bytes_of(id)[at] <= byte);
            left = &left[from..to];
            if let Some((id, longer)) = left.split_first()
                && bytes_of(id).len() == at + 1
            {
                found(*id, at + 1);
                left = longer;
            }
            if left.is_empty() {
                return;
            }
        }
    }

    /// The longest piece that the text begins with, as id and length.
    pub fn longest(&self, pieces: &[Piece], text: &str, mut allowed: impl FnMut(u32) -> bool) -> Option<(u32, usize)> {
        let mut longest = None;
        self.each(pieces, text, |id, len| {
            if allowed(id) {
                longest = Some((id, len));
            }
        });
        longest
    }
}

//! Greedy pair merging, the core of byte-pair encodings: of all neighbours whose concatenation is a token, the pair with
//! the best key is joined first, the leftmost of equals. SentencePiece and tiktoken differ only in what a symbol is and
//! where the key comes from.
//!
//! The BPE of the tokenizers library is declined here: it numbers pairs, so two ways to write the same token never rank
//! equal, while in both originals they do.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// A piece of the text before it is merged.
pub(super) struct Symbol {
    pub range: Range<usize>,
    /// Whether it stays as it is.
    pub frozen: bool,
}

/// Where the piece at a position ends, and its neighbours. An empty one was merged into the piece on its left.
struct Node {
    range: Range<usize>,
    frozen: bool,
    before: Option<usize>,
    after: Option<usize>,
}

/// A pair that could be merged: best key first, then leftmost. The length tells a pair that has changed since.
type Candidate = Reverse<(u32, usize, usize, usize)>;

/// Merges neighbours until no two of them make a token. `key` is given a concatenation and the range of its left part,
/// and answers where it ranks (lower is merged earlier) if it is a token. The symbols lie side by side.
pub(super) fn merge(
    symbols: Vec<Symbol>,
    mut key: impl FnMut(Range<usize>, usize) -> Option<u32>,
) -> Vec<Range<usize>> {
    let last = symbols.len().wrapping_sub(1);
    let mut nodes: Vec<Node> = symbols
        .into_iter()
        .enumerate()
        .map(|(i, Symbol { range, frozen })| Node {
            range,
            frozen,
            before: i.checked_sub(1),
            after: (i != last).then_some(i + 1),
        })
        .collect();
    let mut heap = BinaryHeap::new();
    let mut offer = |nodes: &[Node], heap: &mut BinaryHeap<Candidate>, left: Option<usize>, right: Option<usize>| {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (l, r) = (&nodes[left], &nodes[right]);
        if l.frozen || r.frozen {
            return;
        }
        if let Some(key) = key(l.range.start..r.range.end, l.range.end) {
            heap.push(Reverse((key, left, right, l.range.len() + r.range.len())));
        }
    };
    for right in 1..nodes.len() {
        offer(&nodes, &mut heap, Some(right - 1), Some(right));
    }
    while let Some(Reverse((_, left, right, len))) = heap.pop() {
        let gone = nodes[left].range.is_empty() || nodes[right].range.is_empty();
        if gone || nodes[left].range.len() + nodes[right].range.len() != len {
            continue;
        }
        let (end, after) = (nodes[right].range.end, nodes[right].after);
        nodes[left].range.end = end;
        nodes[left].after = after;
        nodes[right].range = end..end;
        if let Some(after) = after {
            nodes[after].before = Some(left);
        }
        offer(&nodes, &mut heap, nodes[left].before, Some(left));
        offer(&nodes, &mut heap, Some(left), after);
    }
    nodes.into_iter().map(|node| node.range).filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(text: &str, tokens: &[&str]) -> Vec<String> {
        let symbols = text.char_indices().map(|(at, c)| Symbol { range: at..at + c.len_utf8(), frozen: c == '#' });
        let key = |range: Range<usize>, _| tokens.iter().position(|token| *token == &text[range.clone()]);
        let parts = merge(symbols.collect(), |range, left| key(range, left).map(|rank| rank as u32));
        parts.into_iter().map(|range| text[range].to_owned()).collect()
    }

    #[test]
    fn best_first_then_leftmost() {
        assert_eq!(merged("", &["ab"]), [""; 0]);
        assert_eq!(merged("aaaaa", &["aa", "aaaa"]), ["aaaa", "a"]);
        assert_eq!(merged("abc", &["bc", "ab", "abc"]), ["abc"]);
        assert_eq!(merged("aaab", &["ab", "aa", "aab"]), ["aa", "ab"]);
        assert_eq!(merged("a#b", &["a#", "#b", "a#b"]), ["a", "#", "b"]);
    }
}

//! Small helpers of the checkpoint readers: errors whose quoted text cannot flood or command a terminal, names that
//! come near a missing one, names that come twice.

use std::cmp::Reverse;
use std::path::Path;

use super::Tensor;
use crate::error::Error;

/// Longest piece of a file's own text that is repeated in an error, in characters.
const EXCERPT: usize = 200;

/// What is wrong with a file that begins with `version https://git-lfs.github.com/spec/v1`.
pub(super) const LFS_POINTER: &str = "is a Git LFS pointer instead of the file it stands for: run `git lfs pull`";

/// Text out of a file, fit for a message: control characters escaped, cut when long.
pub(crate) fn excerpt(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len().min(EXCERPT));
    for (i, c) in text.chars().enumerate() {
        match c {
            _ if i == EXCERPT => {
                escaped.push('…');
                break;
            }
            c if c.is_control() => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

pub(super) fn checkpoint_error(path: &Path, problem: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.into(), problem: problem.into() }
}

pub(crate) fn tensor_error(path: &Path, tensor: &str, problem: impl Into<String>) -> Error {
    Error::Tensor { path: path.into(), tensor: excerpt(tensor), problem: problem.into() }
}

/// What serde_json has to say, without the text of the file it may quote at length.
pub(crate) fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => excerpt(what) + &place,
        None => excerpt(&text),
    }
}

/// The indices of `tensors` in the order of their names.
pub(super) fn order_by_name(tensors: &[Tensor]) -> Vec<u32> {
    let mut order: Vec<u32> = (0u32..).take(tensors.len()).collect();
    order.sort_unstable_by(|&a, &b| {
        let (a_name, b_name) = (&tensors[a as usize].name, &tensors[b as usize].name);
        a_name.cmp(b_name).then(a.cmp(&b))
    });
    order
}

/// The first two tensors of one name, given the order by name.
pub(super) fn first_repeated<'a>(tensors: &'a [Tensor], order: &[u32]) -> Option<(&'a Tensor, &'a Tensor)> {
    let pairs = order.windows(2).map(|pair| (&tensors[pair[0] as usize], &tensors[pair[1] as usize]));
    pairs.into_iter().find(|(a, b)| a.name == b.name)
}

/// Up to three of `names` that share most of their beginning and end with `name`: what a misread configuration or
/// a foreign prefix looks like. One look at each name.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> =
        names.map(|other| (likeness(name, other), other)).filter(|(score, _)| *score * 3 >= name.len() * 2).collect();
    scored.sort_by_key(|&(score, other)| (Reverse(score), other.len(), other));
    scored.iter().take(3).map(|(_, other)| format!("`{}`", excerpt(other))).collect()
}

/// Bytes that two names share at the beginning and at the end.
fn likeness(a: &str, b: &str) -> usize {
    let head = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a.as_bytes()[head..], &b.as_bytes()[head..]);
    head + a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_neither_flood_nor_command_the_terminal() {
        assert_eq!(excerpt("model.norm.weight"), "model.norm.weight");
        assert_eq!(excerpt("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(excerpt(&"é".repeat(100_000)).chars().count(), EXCERPT + 1);
    }

    #[test]
    fn names_that_differ_by_a_prefix_or_a_number_are_near() {
        let names = ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.layers.2.mlp.up_proj.weight"];
        let near = nearest("layers.1.mlp.up_proj.weight", names.into_iter());
        assert_eq!(near[0], "`model.layers.1.mlp.up_proj.weight`");
        assert!(nearest("visual.patch_embed", names.into_iter()).is_empty());
    }
}

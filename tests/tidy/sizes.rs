//! Files stay short enough to be one idea, and the repository small enough to clone in a moment.

use crate::tree::Tree;

const LINES: usize = 800;
const FILE_BYTES: u64 = 5 << 20;
const TREE_BYTES: u64 = 30 << 20;

/// Rust files of more than [`LINES`] lines.
pub fn lines(tree: &Tree) -> Vec<String> {
    let long = tree.rust().map(|(path, text, _)| (path, text.lines().count())).filter(|(_, lines)| *lines > LINES);
    long.map(|(path, lines)| format!("{path}:{lines}: more than {LINES} lines: divide it by its ideas")).collect()
}

/// Files of more than [`FILE_BYTES`], and all of them together from [`TREE_BYTES`] on.
pub fn bytes(tree: &Tree) -> Vec<String> {
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let large = tree.files().iter().filter(|file| file.bytes > FILE_BYTES);
    let mut problems: Vec<String> = large
        .map(|file| {
            let (found, most) = (mib(file.bytes), mib(FILE_BYTES));
            format!(
                "{}: {found:.1} MiB, more than {most} MiB: make it smaller, or make it when it is needed",
                file.path
            )
        })
        .collect();
    let all: u64 = tree.files().iter().map(|file| file.bytes).sum();
    if all >= TREE_BYTES {
        let (found, most) = (mib(all), mib(TREE_BYTES));
        problems
            .push(format!("all files: {found:.1} MiB together, {most} MiB or more: remove what the tests do not need"));
    }
    problems
}

#[test]
fn what_is_too_large_is_seen() {
    let long = "\n".repeat(LINES + 1);
    sees_lines(&long, &[&format!("src/a.rs:{}", LINES + 1)]);
    sees_lines(&long[1..], &[]);
    let large = "x".repeat(FILE_BYTES as usize + 1);
    crate::sees(bytes(&Tree::planted(&[("demo/model", &large), ("demo/card", &large[1..])])), &["demo/model"]);
    let many = [("demo/part", &large[1..]); (TREE_BYTES / FILE_BYTES) as usize];
    crate::sees(bytes(&Tree::planted(&many)), &["all files"]);
}

#[cfg(test)]
#[track_caller]
fn sees_lines(text: &str, places: &[&str]) {
    crate::sees(lines(&Tree::planted(&[("src/a.rs", text)])), places);
}

//! Every file opens with what it is for: a sentence or more, before anything else.

use crate::tree::Tree;

/// Rust files begin with a `//!` paragraph, scripts with a comment (a docstring in Python) after `#!` and licence lines.
pub fn purposes(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in tree.texts() {
        let (opening, how) = match kind(path) {
            Kind::Rust => (paragraph(text.lines(), "//!"), "a `//!` paragraph"),
            Kind::Script => (script_opening(text), "a comment"),
            Kind::Other => continue,
        };
        if !is_sentence(&opening) {
            problems
                .push(format!("{path}:1: begin with {how} of at least one sentence that says what the file is for"));
        }
    }
    problems
}

enum Kind {
    Rust,
    Script,
    Other,
}

fn kind(path: &str) -> Kind {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("rs") => Kind::Rust,
        Some("sh" | "py" | "mk") => Kind::Script,
        _ if name == "Makefile" || path.starts_with(".ci/") => Kind::Script,
        _ => Kind::Other,
    }
}

/// The lines up to the first that is empty behind `mark` or does not begin with it, joined.
fn paragraph<'a>(lines: impl Iterator<Item = &'a str>, mark: &str) -> String {
    let lines = lines.map_while(|line| line.strip_prefix(mark)).map(str::trim).take_while(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

fn script_opening(text: &str) -> String {
    let mut lines = text.lines().skip_while(|line| line.starts_with("#!") || line.contains("SPDX-")).peekable();
    match lines.peek().and_then(|line| line.strip_prefix("\"\"\"")) {
        Some(first) => first.trim().to_owned(),
        None => paragraph(lines, "#"),
    }
}

/// At least five words, and an end.
fn is_sentence(text: &str) -> bool {
    text.split_whitespace().count() >= 5 && text.trim_end_matches([')', '"', '`']).ends_with(['.', ':', '?', '!'])
}

#[test]
fn a_file_without_a_purpose_is_seen() {
    let tree = Tree::planted(&[
        ("src/a.rs", "//! Reads what\n//! the other one wrote.\n\nfn f() {}"),
        ("src/b.rs", "fn f() {}"),
        ("src/c.rs", "//! Utilities."),
        ("src/d.rs", "//!\n//! Says it too late for anyone."),
        ("tests/e.rs", "use std::fs;\n//! Says it behind the first import."),
        ("Makefile", "# Everything that a person types here.\nall:"),
        (".ci/run", "#!/usr/bin/env bash\nset -e"),
        ("demo/train.py", "#!/usr/bin/env python3\n# SPDX-License-Identifier: X\n\"\"\"Train a model from nothing."),
        ("notes.txt", "anything"),
    ]);
    crate::sees(purposes(&tree), &["src/b.rs:1", "src/c.rs:1", "src/d.rs:1", "tests/e.rs:1", ".ci/run:1"]);
}

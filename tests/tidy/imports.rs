//! Imports go one way: a module uses itself and modules before it in [`ORDER`].

use std::collections::HashMap;

use crate::lex::{Word, words};
use crate::tree::Tree;
use crate::{ONLY, ORDER};

/// Every `crate::…` path (outside of unit tests) and every `super::…` that leaves its top module, in src/ without lib.rs.
pub fn one_way(tree: &Tree) -> Vec<String> {
    let exports = exports(tree);
    let mut problems = Vec::new();
    for (path, _, code) in tree.rust() {
        let Some(module) = module_of(path) else { continue };
        if rank(module).is_none() {
            problems.push(format!(
                "{path}:1: the module `{module}` has no place in the order (tests/tidy.rs): give it one"
            ));
            continue;
        }
        let words = words(&code);
        for Word { text, line } in crate_paths(&without_tests(&words)) {
            let target = exports.get(text).map_or(text, String::as_str);
            problems.extend(judge(module, target).map(|problem| format!("{path}:{line}: {problem}")));
        }
        for line in supers_beyond(&words, depth_of(path)) {
            problems.push(format!("{path}:{line}: `super::` leaves `{module}`: write `crate::` and the module's name"));
        }
    }
    problems
}

/// The top module that a file belongs to; `None` for lib.rs, which joins them, and for what is not in src/.
pub fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/").filter(|inside| inside.ends_with(".rs") && *inside != "lib.rs")?;
    let top = inside.split('/').next()?;
    Some(top.strip_suffix(".rs").unwrap_or(top))
}

/// How many modules deep the file itself is: 1 for src/plan.rs and src/disk/mod.rs, 2 for src/disk/uring.rs.
fn depth_of(path: &str) -> usize {
    path.matches('/').count() - usize::from(path.ends_with("/mod.rs"))
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|other| *other == module)
}

fn judge(module: &str, target: &str) -> Option<String> {
    if module == target {
        return None;
    }
    let only = ONLY.iter().find(|(name, _)| *name == module).map(|(_, only)| only);
    match (rank(target), only) {
        (None, _) => {
            Some(format!("`crate::{target}` is neither a module in the order nor exported by lib.rs from one"))
        }
        (_, Some(only)) if !only.contains(&target) => Some(format!(
            "`{module}` may use {} only, not `{target}`: move what both need there, or join them in `model`",
            only.join(" and ")
        )),
        (there, _) if there > rank(module) => {
            Some(format!("`{module}` may not use `{target}`, which comes after it: move what both need before them"))
        }
        _ => None,
    }
}

/// Names that lib.rs exports, and the module they come from: `pub use error::{Error, Result};`.
fn exports(tree: &Tree) -> HashMap<String, String> {
    let mut exports = HashMap::new();
    for (_, _, code) in tree.rust().filter(|(path, ..)| *path == "src/lib.rs") {
        let words = words(&code);
        for statement in words.split(|word| word.text == ";") {
            let Some(at) = statement.iter().position(|word| word.text == "use") else { continue };
            let mut names = statement[at + 1..].iter().map(|word| word.text).filter(|text| is_name(text));
            let Some(module) = names.next() else { continue };
            exports.extend(names.map(|name| (name.to_owned(), module.to_owned())));
        }
    }
    exports
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_') && !matches!(text, "crate" | "self" | "as")
}

/// The words outside of `#[cfg(test)] mod … { … }`: a unit test may compare with what comes later.
fn without_tests<'a>(words: &[Word<'a>]) -> Vec<Word<'a>> {
    const OPENING: [&str; 8] = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let opens = words[at..].iter().map(|word| word.text).take(OPENING.len()).eq(OPENING);
        // `mod tests;` is another file.
        if opens && words.get(at + OPENING.len() + 1).is_some_and(|word| word.text == "{") {
            at += OPENING.len() + 1;
            at += block(&words[at..]);
        } else {
            kept.push(words[at]);
            at += 1;
        }
    }
    kept
}

/// How many words the block has that opens here, braces included.
fn block(words: &[Word]) -> usize {
    let mut depth = 0usize;
    for (at, word) in words.iter().enumerate() {
        match word.text {
            "{" => depth += 1,
            "}" if depth == 1 => return at + 1,
            "}" => depth -= 1,
            _ => {}
        }
    }
    words.len()
}

/// What follows `crate::`, every member of a group on its own; `*` for a glob.
fn crate_paths<'a>(words: &[Word<'a>]) -> Vec<Word<'a>> {
    let mut found = Vec::new();
    for at in 0..words.len() {
        if words[at].text != "crate" || !is_path(&words[at + 1..]) {
            continue;
        }
        let Some(next) = words.get(at + 3) else { continue };
        if next.text == "{" {
            found.extend(group_heads(&words[at + 3..]));
        } else {
            found.push(*next);
        }
    }
    found
}

fn is_path(words: &[Word]) -> bool {
    words.len() > 1 && words[..2].iter().all(|word| word.text == ":")
}

/// The first word of each member of the group that opens here.
fn group_heads<'a>(words: &[Word<'a>]) -> Vec<Word<'a>> {
    let (mut depth, mut heads) = (0, Vec::new());
    for pair in words.windows(2) {
        match pair[0].text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        let starts = matches!(pair[0].text, "{" | ",");
        if depth == 1 && starts && !matches!(pair[1].text, "}" | "self") {
            heads.push(pair[1]);
        }
    }
    heads
}

/// Lines on which a chain of `super::` reaches the crate's root, in a file that is itself `depth` modules deep.
fn supers_beyond(words: &[Word], depth: usize) -> Vec<usize> {
    let (mut braces, mut modules, mut lines) = (0usize, Vec::new(), Vec::new());
    let mut at = 0;
    while at < words.len() {
        match words[at].text {
            "mod" if words.get(at + 2).is_some_and(|word| word.text == "{") => modules.push(braces),
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                modules.pop_if(|opened| *opened == braces);
            }
            "super" => {
                let chain = chain(&words[at..]);
                if chain >= depth + modules.len() {
                    lines.push(words[at].line);
                }
                at += 3 * chain.max(1) - 1;
            }
            _ => {}
        }
        at += 1;
    }
    lines
}

/// How many `super::` follow each other here; 0 for the `super` of `pub(super)`.
fn chain(words: &[Word]) -> usize {
    words.chunks(3).take_while(|part| part[0].text == "super" && is_path(&part[1..])).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sees;

    const LIB: (&str, &str) = ("src/lib.rs", "mod error; pub use error::{Error, Result}; pub use model::Model;");

    #[test]
    fn an_import_against_the_flow_is_seen() {
        let tree = Tree::planted(&[
            LIB,
            ("src/plan.rs", "use crate::disk::x;\nuse crate::engine::Engine;\nfn f() { crate::cli::run() }"),
            ("src/disk/mod.rs", "use crate::{Error, error::Result,\n stream::{a, b}};\nuse crate::Model;"),
            ("src/synth/write.rs", "use crate::checkpoint::Dtype;\nuse crate::program::Program;"),
            (
                "src/text/chat.rs",
                "// use crate::cli::no;\nfn f() -> &str { \"crate::cli\" }\nuse crate::{Error, Result};",
            ),
        ]);
        sees(
            one_way(&tree),
            &["src/plan.rs:2", "src/plan.rs:3", "src/disk/mod.rs:2", "src/disk/mod.rs:3", "src/synth/write.rs:2"],
        );
    }

    #[test]
    fn a_module_or_name_without_a_place_is_seen() {
        let tree = Tree::planted(&[
            LIB,
            ("src/elsewhere/mod.rs", "fn f() {}"),
            ("src/plan.rs", "use crate::Unheard;\nuse crate::*;"),
        ]);
        sees(one_way(&tree), &["src/elsewhere/mod.rs:1", "src/plan.rs:1", "src/plan.rs:2"]);
    }

    #[test]
    fn unit_tests_may_look_ahead() {
        let tests = "#[cfg(test)]\nmod tests { fn f() { use crate::engine::Engine; } }";
        let tree = Tree::planted(&[("src/plan.rs", &format!("{tests}\nuse crate::engine::Engine;"))]);
        sees(one_way(&tree), &["src/plan.rs:3"]);
    }

    #[test]
    fn super_stays_within_its_top_module() {
        let inside = "mod tests { use super::*; } pub(super) fn f() {}";
        let tree = Tree::planted(&[
            ("src/plan.rs", &format!("{inside}\nuse super::engine;")),
            ("src/disk/mod.rs", &format!("{inside}\nmod tests {{ use super::super::kv; }}")),
            ("src/disk/uring.rs", &format!("{inside}\nuse super::Reader;\nuse super::super::kv;\nuse super::Read;")),
            ("src/backend/cpu/isa/x86.rs", "use super::super::dots;"),
        ]);
        sees(one_way(&tree), &["src/plan.rs:2", "src/disk/mod.rs:2", "src/disk/uring.rs:3"]);
    }
}

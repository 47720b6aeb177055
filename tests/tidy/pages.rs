//! The pages that a person reads first say what is there: the import order, every module, and no file that does not exist.

use crate::ORDER;
use crate::imports::module_of;
use crate::tree::Tree;

const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// Pages whose mentions of files are checked. (The changelog may speak of what is gone.)
const PAGES: [&str; 2] = [ARCHITECTURE, "README.md"];

/// ARCHITECTURE.md has the same order as [`ORDER`], and its code map names every module that there is.
pub fn modules(tree: &Tree) -> Vec<String> {
    let text = tree.text(ARCHITECTURE).unwrap_or_default();
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut problems = Vec::new();
    let order = ORDER.join(" < ");
    if !flat.contains(&order) {
        problems.push(format!("{ARCHITECTURE}:1: does not say the import order of tests/tidy.rs: {order}"));
    }
    let mut modules: Vec<&str> = tree.texts().filter_map(|(path, _)| module_of(path)).collect();
    modules.dedup();
    for module in modules {
        if !text.contains(&format!("`src/{module}.rs`")) && !text.contains(&format!("`src/{module}/`")) {
            problems.push(format!("{ARCHITECTURE}:1: its code map does not name `src/{module}`: say what it is for"));
        }
    }
    problems
}

/// Every path in backquotes that begins in a directory of the project leads somewhere.
pub fn paths(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for page in PAGES {
        for (at, line) in tree.text(page).unwrap_or_default().lines().enumerate() {
            let quoted = line.split('`').skip(1).step_by(2);
            for path in quoted.filter(|text| is_ours(text) && !exists(tree, text)) {
                problems.push(format!("{page}:{}: `{path}` is not there: name what took its place", at + 1));
            }
        }
    }
    problems
}

fn is_ours(text: &str) -> bool {
    let inside = ["src/", "tests/", "benches/", "demo/", "fuzz/", ".ci/"].iter().any(|dir| text.starts_with(dir));
    inside && !text.contains(char::is_whitespace)
}

/// A file, or, with a slash at the end, a directory that has files.
fn exists(tree: &Tree, path: &str) -> bool {
    tree.files().iter().any(|file| file.path == path || (path.ends_with('/') && file.path.starts_with(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sees;

    #[test]
    fn an_architecture_that_is_silent_is_seen() {
        let order = ORDER.join(" <\n");
        let complete = format!("{order}\n`src/plan.rs` and `src/disk/`");
        let sources = [("src/plan.rs", ""), ("src/disk/mod.rs", ""), ("src/disk/uring.rs", "")];
        let with = |text: &str| modules(&Tree::planted(&[&sources[..], &[(ARCHITECTURE, text)]].concat()));
        sees(with(&complete), &[]);
        sees(with(&complete.replace("plan <\nprofile", "profile <\nplan")), &["ARCHITECTURE.md:1"]);
        sees(with(&complete.replace("`src/disk/`", "")), &["ARCHITECTURE.md:1"]);
    }

    #[test]
    fn a_page_that_names_what_is_gone_is_seen() {
        let page = "`src/disk/` has\n`src/disk/uring.rs`, `src/disk/aio.rs`\nand `tests`, `tests/old/`, `cargo test`";
        let tree = Tree::planted(&[("src/disk/uring.rs", ""), (ARCHITECTURE, page), ("README.md", "`demo/x`")]);
        sees(paths(&tree), &["ARCHITECTURE.md:2", "ARCHITECTURE.md:3", "README.md:1"]);
    }
}

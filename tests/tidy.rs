//! The house keeps itself in order: rules about the text of this project that no compiler checks, each a function that
//! reads the tree and lists what breaks it, with the line and what to do. Each is also shown a planted violation.

use tree::Tree;

#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/lex.rs"]
mod lex;
#[path = "tidy/openings.rs"]
mod openings;
#[path = "tidy/pages.rs"]
mod pages;
#[path = "tidy/safety.rs"]
mod safety;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/words.rs"]
mod words;

/// The top modules, in the order in which data flows. A module imports only from itself and from those before it.
/// ARCHITECTURE.md says the same, which is checked.
const ORDER: [&str; 25] = [
    "error",
    "hub",
    "checkpoint",
    "encoding",
    "text",
    "program",
    "family",
    "disk",
    "plan",
    "profile",
    "stream",
    "pass",
    "kv",
    "backend",
    "memory",
    "engine",
    "sample",
    "generate",
    "defaults",
    "synth",
    "pack",
    "model",
    "eval",
    "cli",
    "bin",
];

/// Modules that import less than their place would allow.
const ONLY: [(&str, &[&str]); 1] = [("synth", &["error", "checkpoint"])];

/// Where `unsafe` may be: memory that the kernel writes to, and the inner loops of the processor's arithmetic.
const UNSAFE_PLACES: [&str; 5] = ["src/disk/", "src/stream/", "src/backend/", "kernels/", "tests/cudasim/"];

/// Fails with the list of what is wrong.
#[track_caller]
fn obey(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// A rule sees what was planted, at its place, and nothing else.
#[track_caller]
fn sees(problems: Vec<String>, places: &[&str]) {
    assert_eq!(problems.len(), places.len(), "{problems:#?}");
    for place in places {
        assert!(problems.iter().any(|problem| problem.starts_with(&format!("{place}: "))), "{place} in {problems:#?}");
    }
}

#[test]
fn imports_go_one_way() {
    obey(imports::one_way(&Tree::open()));
}

#[test]
fn architecture_says_the_order_and_names_the_modules() {
    obey(pages::modules(&Tree::open()));
}

#[test]
fn pages_name_only_what_is_there() {
    obey(pages::paths(&Tree::open()));
}

#[test]
fn files_open_with_their_purpose() {
    obey(openings::purposes(&Tree::open()));
}

#[test]
fn unsafe_is_in_its_places_and_has_reasons() {
    obey(safety::reasons(&Tree::open()));
}

#[test]
fn nothing_is_left_unfinished() {
    obey(words::unfinished(&Tree::open()));
}

#[test]
fn no_paths_or_hosts_of_a_machine() {
    obey(words::machine_paths(&Tree::open()));
    obey(words::hosts(&Tree::open()));
}

#[test]
fn dependencies_come_from_the_public_registry() {
    obey(words::lock_sources(&Tree::open()));
}

#[test]
fn files_and_tree_stay_small() {
    obey(sizes::lines(&Tree::open()));
    obey(sizes::bytes(&Tree::open()));
}

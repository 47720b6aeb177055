//! Words that must not be in the tree: what was left unfinished, and traces of the machine it was written on. They are
//! put together from halves here, so that this file does not break its own rules.

use crate::lex::words;
use crate::tree::Tree;

/// The only place that dependencies come from, as Cargo.lock writes it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Code that is not written yet, debugging output, and tests that do not run.
pub fn unfinished(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text, code) in tree.rust() {
        let code = words(&code);
        for at in 0..code.len() {
            let is = |n: usize, text: &str| code.get(at + n).is_some_and(|word| word.text == text);
            let macros = ["todo", "unimplemented", "dbg"];
            let what = match () {
                _ if macros.contains(&code[at].text) && is(1, "!") => format!("`{}!`", code[at].text),
                _ if is(0, "#") && is(1, "[") && is(2, "ignore") => "a test that does not run".into(),
                _ => continue,
            };
            problems.push(format!("{path}:{}: {what} is left: finish it or take it out", code[at].line));
        }
        for line in lines_with(text, |line| line.contains(concat!("FIX", "ME"))) {
            problems
                .push(format!("{path}:{line}: a note to mend something: mend it, or say plainly what the limit is"));
        }
    }
    problems
}

/// Absolute paths that exist on one machine only.
pub fn machine_paths(tree: &Tree) -> Vec<String> {
    let roots = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm/"), concat!("/ho", "me/")];
    let has_path =
        |line: &str| roots.iter().any(|root| line.match_indices(root).any(|(at, _)| begins_path(line, at, root)));
    find(tree, has_path, "a path of one machine: use a relative one, or a temporary directory")
}

/// Whether the text at `at` is the beginning of a path, not the middle of one, with a name behind it.
fn begins_path(line: &str, at: usize, root: &str) -> bool {
    let before = line[..at].chars().next_back();
    let after = line[at + root.len()..].chars().next();
    let inside = before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '~' | '}' | '>'));
    !inside && (!root.starts_with(concat!("/ho", "me")) || after.is_some_and(|c| c.is_ascii_alphanumeric()))
}

/// Hosts of package registries and of private networks: which mirror is used is each machine's own affair.
pub fn hosts(tree: &Tree) -> Vec<String> {
    let registries = [
        concat!("index.crates", ".io"),
        concat!("static.crates", ".io"),
        concat!("py", "pi.org"),
        concat!("pythonhosted", ".org"),
        concat!("registry.npm", "js.org"),
        concat!("proxy.go", "lang.org"),
    ];
    let has_host = |line: &str| registries.iter().any(|host| line.contains(host)) || urls(line).any(is_private);
    find(tree, has_host, "a host that is not everyone's: name the project's public page, or nothing")
}

/// The host of every URL in a line.
fn urls(line: &str) -> impl Iterator<Item = &str> {
    line.split("://").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-')).unwrap_or(rest.len());
        rest[..end].trim_end_matches('.')
    })
}

fn is_private(host: &str) -> bool {
    let suffixes = [".internal", ".local", ".lan", ".corp", ".intranet"];
    let address: Option<std::net::Ipv4Addr> = host.parse().ok();
    suffixes.iter().any(|suffix| host.ends_with(suffix)) || address.is_some_and(|address| address.is_private())
}

/// Cargo.lock names the public registry for everything that is not part of the project.
pub fn lock_sources(tree: &Tree) -> Vec<String> {
    let locks = tree.texts().filter(|(path, _)| path.ends_with("Cargo.lock"));
    let foreign = |line: &str| line.starts_with("source = ") && line != format!("source = \"{REGISTRY}\"");
    let problem =
        |path, line| format!("{path}:{line}: a dependency that does not come from {REGISTRY}: take it from there");
    locks.flat_map(|(path, text)| lines_with(text, foreign).into_iter().map(move |line| problem(path, line))).collect()
}

/// Lines of any text file that are `wrong`.
fn find(tree: &Tree, wrong: impl Fn(&str) -> bool, problem: &str) -> Vec<String> {
    let found = tree.texts().flat_map(|(path, text)| {
        lines_with(text, &wrong).into_iter().map(move |line| format!("{path}:{line}: {problem}"))
    });
    found.collect()
}

/// Numbers, from 1, of the lines that are `wrong`.
fn lines_with(text: &str, wrong: impl Fn(&str) -> bool) -> Vec<usize> {
    text.lines().enumerate().filter(|(_, line)| wrong(line)).map(|(at, _)| at + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sees;

    #[test]
    fn unfinished_code_is_seen() {
        let tree = Tree::planted(&[
            ("src/a.rs", "fn f() {\n    todo!()\n}\n// a todo! in words"),
            ("src/b.rs", "fn f() { unimplemented!(\"later\") }\nfn g() { dbg!(1); }"),
            ("tests/c.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}"),
            ("tests/d.rs", concat!("// FIX", "ME: wrong")),
            ("src/e.rs", "let todo = 1; #[allow(unused)] fn ignore() {} \"dbg!\""),
        ]);
        sees(unfinished(&tree), &["src/a.rs:2", "src/b.rs:1", "src/b.rs:2", "tests/c.rs:2", "tests/d.rs:1"]);
    }

    #[test]
    fn a_machines_path_is_seen() {
        let tree = Tree::planted(&[
            ("README.md", concat!("see\n`/ho", "me/ada/models`")),
            ("src/a.rs", concat!("let p = \"/wo", "rk/x\";")),
            ("b.json", concat!("{\"p\": \"/ro", "ot/x\"}")),
            ("c.md", concat!("https://example.org/wo", "rk/x and target/ro", "ot/y and /ho", "me/<name>")),
        ]);
        sees(machine_paths(&tree), &["README.md:2", "src/a.rs:1", "b.json:1"]);
    }

    #[test]
    fn a_foreign_host_is_seen() {
        let tree = Tree::planted(&[
            ("a.md", concat!("https://static.crates", ".io/x")),
            ("b.toml", concat!("url = \"http://mirror.inter", "nal/x\"")),
            ("c.toml", concat!("url = \"http://10.", "1.2.3:80/x\"")),
            ("d.md", "https://sh.rustup.rs and http://127.0.0.1:8080/v1 and https://huggingface.co."),
        ]);
        sees(hosts(&tree), &["a.md:1", "b.toml:1", "c.toml:1"]);
    }

    #[test]
    fn a_dependency_from_elsewhere_is_seen() {
        let lock = format!("name = \"a\"\nsource = \"{REGISTRY}\"\nsource = \"git+https://example.org/b\"");
        sees(lock_sources(&Tree::planted(&[("Cargo.lock", &lock)])), &["Cargo.lock:3"]);
    }
}

//! All `unsafe` is in a few places, and says why it is right.

use crate::UNSAFE_PLACES;
use crate::lex::words;
use crate::tree::Tree;

/// Lines of code that may stand between a `SAFETY:` comment and its `unsafe`.
const NEAR: usize = 3;

/// `unsafe` outside [`UNSAFE_PLACES`], or without a `SAFETY:` comment near it (`# Safety` where a caller is obliged).
pub fn reasons(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text, code) in tree.rust() {
        let lines: Vec<&str> = text.lines().collect();
        let words = words(&code);
        for (at, word) in words.iter().enumerate().filter(|(_, word)| word.text == "unsafe") {
            let line = word.line;
            let next = |n: usize| words.get(at + n).map_or("", |word| word.text);
            let is_type = next(1) == "fn" && next(2) == "(";
            if !UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
                let places = UNSAFE_PLACES.join(", ");
                problems.push(format!("{path}:{line}: `unsafe` is allowed in {places} only: find a safe way"));
            } else if !is_type && !has_reason(&lines[..line]) {
                problems.push(format!(
                    "{path}:{line}: say why this is sound in a `// SAFETY:` comment right above it (`# Safety` in the \
                     documentation of an unsafe function)"
                ));
            }
        }
    }
    problems
}

/// Whether the last of `lines` has a reason: on it, or in a comment above it with little code between. Attributes and
/// other comments do not count as code.
fn has_reason(lines: &[&str]) -> bool {
    let (last, above) = lines.split_last().expect("a word is on a line");
    if last.contains("SAFETY:") {
        return true;
    }
    let mut code = 0;
    for line in above.iter().rev().map(|line| line.trim_start()) {
        if line.starts_with("//") {
            if line.contains("SAFETY:") || line.contains("# Safety") {
                return true;
            }
        } else if !line.starts_with("#[") {
            code += 1;
            if code > NEAR {
                return false;
            }
        }
    }
    false
}

#[test]
fn unsafe_without_a_place_or_a_reason_is_seen() {
    let far = format!("// SAFETY: too far away.\n{}unsafe {{ f() }}", "f();\n".repeat(NEAR + 1));
    let tree = Tree::planted(&[
        ("src/disk/a.rs", "// SAFETY: it is.\nlet x =\n    unsafe { f() };\ntype F = unsafe fn();"),
        ("src/disk/b.rs", "unsafe impl Send for X {}"),
        ("src/disk/c.rs", &far),
        ("src/stream/d.rs", "/// # Safety\n/// The pointer is valid.\n#[inline]\npub unsafe fn f(p: *const u8) {}"),
        ("src/backend/cpu/e.rs", "/// Nothing is said.\nunsafe fn f() {}"),
        ("src/kv.rs", "// SAFETY: not here.\nunsafe { f() }"),
        ("src/plan.rs", "// unsafe\nlet unsafe_op = \"unsafe\";"),
        ("tests/f.rs", "unsafe { f() }"),
    ]);
    let c = format!("src/disk/c.rs:{}", NEAR + 3);
    crate::sees(reasons(&tree), &["src/disk/b.rs:1", &c, "src/backend/cpu/e.rs:2", "src/kv.rs:2", "tests/f.rs:1"]);
}

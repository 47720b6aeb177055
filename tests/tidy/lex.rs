//! Just enough of Rust's lexical grammar to tell code from comments and literals, and to walk over its words.

/// The code of a Rust file: comments, strings and characters are blanked out, lines stay where they are.
pub fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = at + literal(&chars, at);
        if end > at {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// How many characters of comment or literal begin at `at`.
fn literal(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    match rest {
        ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => block_comment(rest),
        ['"', ..] => quoted(rest, '"'),
        ['\'', '\\', ..] => quoted(rest, '\''),
        ['\'', _, '\'', ..] => 3,
        ['r', ..] if !joined(chars, at) => raw_string(rest),
        _ => 0,
    }
}

/// Whether the character at `at` continues a word (`for` ends in an `r`), the prefixes of raw strings aside.
fn joined(chars: &[char], at: usize) -> bool {
    let word = |i: usize| is_word(chars[i]);
    match at.checked_sub(1) {
        None => false,
        Some(before) if matches!(chars[before], 'b' | 'c') => before > 0 && word(before - 1),
        Some(before) => word(before),
    }
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] if depth == 1 => return at + 2,
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `r"…"`, `r#"…"#`; 0 for a raw identifier or the letter alone.
fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = &rest[2 + hashes..];
    let end = body.windows(close.len()).position(|window| window == close);
    end.map_or(rest.len(), |end| 2 + hashes + end + close.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A word of code, or one character of punctuation, and the line it is on (from 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Word<'a> {
    pub text: &'a str,
    pub line: usize,
}

/// The words of blanked code.
pub fn words(code: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    for (line, text) in code.lines().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let len = match is_word(first) {
                true => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                false => first.len_utf8(),
            };
            words.push(Word { text: &rest[..len], line: line + 1 });
            rest = rest[len..].trim_start();
        }
    }
    words
}

#[test]
fn comments_and_literals_are_blanked_and_nothing_else() {
    let text = r##"let a = "x // y"; // unsafe
/* a /* nested */ unsafe */ fn f<'a>(c: char) -> &'a str { '"'; '\''; r#"un"safe"#; b"unsafe"; for r in 0..1 {} }"##;
    let words: Vec<&str> = words(&code(text)).iter().map(|word| word.text.to_owned().leak() as &str).collect();
    let expected = "let a = ; fn f < ' a > ( c : char ) - > & ' a str { ; ; ; b ; for r in 0 . . 1 { } }";
    assert_eq!(words.join(" "), expected);
    assert_eq!(code(text).lines().count(), text.lines().count());
}

#[test]
fn words_know_their_lines() {
    assert_eq!(words("a\n\n b::c")[1], Word { text: "b", line: 3 });
}

//! The name of a repository and, where one is given, of a branch, tag or commit in it.

use std::fmt;

/// `org/name` or `org/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    /// `org/name`.
    pub id: String,
    /// A branch, a tag, a commit, or `refs/pr/N`.
    pub revision: Option<String>,
}

impl Repo {
    /// Reads a name; `None` if it can be none by the Hub's rules (then it is a path).
    pub fn parse(name: &str) -> Option<Repo> {
        let (id, revision) = match name.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (name, None),
        };
        let (org, repo) = id.split_once('/')?;
        if ![org, repo].into_iter().all(is_name) || repo.ends_with(".git") || !revision.is_none_or(is_revision) {
            return None;
        }
        Some(Repo { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// The revision, or the Hub's default.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.id),
            None => f.write_str(&self.id),
        }
    }
}

/// Letters, digits, `-`, `_` and `.`, none of the last two kinds at the ends or doubled.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let end = |c: char| c == '-' || c == '.';
    (1..=96).contains(&name.len())
        && name.chars().all(plain)
        && !name.starts_with(end)
        && !name.ends_with(end)
        && !name.contains("--")
        && !name.contains("..")
}

/// Whether a revision can be part of a path in the cache.
pub(super) fn is_revision(revision: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    revision.len() <= 200
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        let repo = Repo::parse("Qwen/Qwen2.5-7B-Instruct").unwrap();
        assert_eq!((repo.id.as_str(), repo.revision()), ("Qwen/Qwen2.5-7B-Instruct", "main"));
        let repo = Repo::parse("a/b@refs/pr/3").unwrap();
        assert_eq!((repo.id.as_str(), repo.revision()), ("a/b", "refs/pr/3"));
        assert_eq!(repo.to_string(), "a/b@refs/pr/3");
        let paths = [
            "demo", "./a", "../a/b", "/a/b", "a/b/c", "a//b", "a/b@", "a/b@../c", "a/.b", "a--b/c", "a/b.git", "a b/c",
            "a/", "~/b@/",
        ];
        for path in paths {
            assert_eq!(Repo::parse(path), None, "{path}");
        }
    }
}

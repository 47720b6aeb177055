//! Which files of a repository are needed, so that nothing else is downloaded: many have their weights in three forms.

use super::cache::Need;
use super::gguf;

/// Files beside the weights.
const SMALL: [&str; 12] = [
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Where the weights are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// In the files that this index names.
    Index(String),
    Files(Vec<String>),
    None,
}

/// The small files that are wanted, of all that the repository has.
pub(super) fn small(all: &[String]) -> Vec<String> {
    let template = |name: &str| name.starts_with("additional_chat_templates/") && name.ends_with(".jinja");
    all.iter().filter(|name| SMALL.contains(&name.as_str()) || template(name)).cloned().collect()
}

/// The weights that are wanted; the error says why there are none.
pub(super) fn weights(all: &[String], asked: &[String], need: Need) -> Result<Weights, String> {
    let has = |name: &str| all.iter().any(|file| file == name);
    if !asked.is_empty() {
        let mut files = Vec::new();
        for pattern in asked {
            let before = files.len();
            files.extend(all.iter().filter(|file| matches(pattern, file)).cloned());
            if files.len() == before {
                return Err(format!("no file matches {pattern:?}; there are {}", some(all)));
            }
        }
        files.sort();
        files.dedup();
        return Ok(Weights::Files(files));
    }
    if need == Need::Text {
        return Ok(Weights::None);
    }
    for single in ["model.safetensors", "pytorch_model.bin"] {
        let index = format!("{single}.index.json");
        if has(&index) {
            return Ok(Weights::Index(index));
        }
        if has(single) {
            return Ok(Weights::Files(vec![single.into()]));
        }
    }
    let of = |end: &str| all.iter().filter(|file| file.ends_with(end)).cloned().collect::<Vec<_>>();
    let (safetensors, ggufs) = (of(".safetensors"), of(".gguf"));
    match (&safetensors[..], &gguf::models(&ggufs)[..]) {
        ([one], _) if !one.contains('/') => Ok(Weights::Files(safetensors)),
        (_, [one]) if !one.contains('/') => Ok(Weights::Files(gguf::parts(one))),
        (_, [_, ..]) => Err(format!("its weights are GGUF files: choose with `pull --files`, of {}", some(&ggufs))),
        _ => Err(format!("it has no weights that can be read; there are {}", some(all))),
    }
}

/// Whether a name is what a pattern says, where `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// The first names of a list.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "none".into(),
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn patterns() {
        assert!(matches("a.gguf", "a.gguf") && matches("*Q4*.gguf", "x-Q4_0.gguf") && matches("*", "x"));
        assert!(!matches("a", "ab") && !matches("*Q4*.gguf", "Q5.gguf") && !matches("a*a", "a"));
    }

    #[test]
    fn one_form_of_weights() {
        let both = list(&["model.safetensors.index.json", "pytorch_model.bin", "consolidated.safetensors"]);
        let index = Weights::Index("model.safetensors.index.json".into());
        assert_eq!(weights(&both, &[], Need::Model), Ok(index));
        assert_eq!(weights(&both, &[], Need::Text), Ok(Weights::None));
        let asked = weights(&both, &list(&["*.bin"]), Need::Model);
        assert_eq!(asked, Ok(Weights::Files(list(&["pytorch_model.bin"]))));
        assert!(weights(&both, &list(&["*.gguf"]), Need::Model).unwrap_err().contains("no file matches"));
        let gguf = list(&["a-Q4.gguf", "a-Q8.gguf"]);
        assert!(weights(&gguf, &[], Need::Model).unwrap_err().contains("--files"));
        let parts = ["a-Q4-00001-of-00002.gguf", "a-Q4-00002-of-00002.gguf"];
        let alone = list(&[parts[0], parts[1], "mmproj-a.gguf"]);
        assert_eq!(weights(&alone, &[], Need::Model), Ok(Weights::Files(list(&parts))));
        assert!(weights(&list(&["README.md"]), &[], Need::Model).unwrap_err().contains("README.md"));
    }
}

//! GGUF models by the names of their files: a file each, or several parts of one, `stem-00001-of-00003.gguf`.

/// Of these file names, the first of each model. Projectors for images (`mmproj`) are no models.
pub fn models(names: &[String]) -> Vec<&str> {
    let first = |name: &str| part_of(name).is_none_or(|(_, number, _)| number == 1);
    let model = |name: &&str| name.ends_with(".gguf") && !name.starts_with("mmproj") && first(name);
    names.iter().map(String::as_str).filter(model).collect()
}

/// The names of all parts of the model that a file is of: its own, where it is alone.
pub fn parts(name: &str) -> Vec<String> {
    match part_of(name) {
        Some((stem, _, count)) => (1..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}.gguf")).collect(),
        None => vec![name.into()],
    }
}

/// Stem, number and count.
fn part_of(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
    let (number, count) = (digits(number)?, digits(count)?);
    (1..=count).contains(&number).then_some((stem, number, count))
}

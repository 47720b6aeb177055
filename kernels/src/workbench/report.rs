//! What ptxas says that each kernel takes on each target, as a table; and whether any of them uses local memory.

use std::collections::{BTreeMap, BTreeSet};

/// What a kernel, or a function that one calls, takes on a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub registers: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
    /// Bytes of local memory a thread: arrays that do not fit registers, spilled registers, calls.
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
}

impl Usage {
    fn is_local(&self) -> bool {
        self.stack + self.spill_stores + self.spill_loads > 0
    }
}

/// By kernel, then by target such as `sm_80`.
pub type Usages = BTreeMap<String, BTreeMap<String, Usage>>;

/// Reads what `ptxas -v` says of one file.
///
/// # Errors
/// A kernel without the lines that there should be: another ptxas may say it in other words, and silence is not success.
pub fn parse(said: &str) -> Result<Usages, String> {
    let mut usages = Usages::new();
    let (mut entry, mut function, mut target) = ("", "", "");
    let mut complete = BTreeSet::new();
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(rest) = line.split_once("Compiling entry function '").map(|(_, rest)| rest) {
            let mut quoted = rest.split('\'');
            entry = quoted.next().unwrap_or_default();
            target = quoted.nth(1).ok_or_else(|| format!("ptxas names no target in: {line}"))?;
            usages.entry(entry.into()).or_default().insert(target.into(), Usage::default());
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name.trim();
        } else if line.contains("bytes stack frame") {
            let usage = usages.entry(function.into()).or_default().entry(target.into()).or_default();
            usage.stack = before(&words, &["bytes", "stack", "frame,"])?;
            usage.spill_stores = before(&words, &["bytes", "spill", "stores,"])?;
            usage.spill_loads = before(&words, &["bytes", "spill", "loads"])?;
        } else if line.contains(": Used ") {
            if entry.is_empty() {
                return Err(format!("ptxas names no kernel for: {line}"));
            }
            let usage = usages.entry(entry.into()).or_default().entry(target.into()).or_default();
            usage.registers = before(&words, &["registers,"])?;
            usage.shared =
                before(&words, &["bytes", "smem"]).or_else(|_| before(&words, &["bytes", "smem,"])).unwrap_or(0);
            complete.insert((entry, target));
        }
    }
    let frames = said.matches("bytes stack frame").count();
    let incomplete = usages.iter().find_map(|(name, targets)| {
        let missing = targets.keys().find(|target| !complete.contains(&(name.as_str(), target.as_str())))?;
        // Functions that are not inlined have no registers of their own.
        said.contains(&format!("entry function '{name}'")).then(|| format!("{name} on {missing}"))
    });
    match incomplete {
        Some(which) => Err(format!("ptxas does not say what {which} takes")),
        None if usages.is_empty() => Err("ptxas names no kernel".into()),
        None if frames < complete.len() => Err("ptxas does not say how much stack each kernel takes".into()),
        None => Ok(usages),
    }
}

/// The number before these words.
fn before(words: &[&str], what: &[&str]) -> Result<u32, String> {
    let at = words.windows(what.len()).position(|w| w == what);
    let number = at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok());
    number.ok_or_else(|| format!("ptxas: no number of `{}` in: {}", what.join(" "), words.join(" ")))
}

/// What uses local memory, a line each.
pub fn complaints(usages: &Usages) -> Vec<String> {
    let all =
        usages.iter().flat_map(|(name, targets)| targets.iter().map(move |(target, usage)| (name, target, usage)));
    all.filter(|(_, _, usage)| usage.is_local())
        .map(|(name, target, u)| {
            let spills = format!("{} bytes of spill stores, {} of spill loads", u.spill_stores, u.spill_loads);
            format!("{name} on {target}: {} bytes of stack, {spills}", u.stack)
        })
        .collect()
}

/// sm_80 before sm_100.
fn number(target: &str) -> u32 {
    target.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(u32::MAX)
}

/// The table of one file of kernels, in Markdown: registers, and shared memory where there is any.
pub fn table(usages: &Usages) -> String {
    let mut targets: Vec<&String> = usages.values().flat_map(BTreeMap::keys).collect();
    targets.sort_by_key(|target| number(target));
    targets.dedup();
    let mut text = String::from("| kernel |");
    targets.iter().for_each(|target| text += &format!(" {target} |"));
    text += "\n| --- |";
    targets.iter().for_each(|_| text += " ---: |");
    for (name, usage) in usages {
        text += &format!("\n| {name} |");
        for target in &targets {
            text += &format!(" {} |", usage.get(*target).map(cell).unwrap_or_default());
        }
    }
    text + "\n"
}

fn cell(usage: &Usage) -> String {
    let mut text = usage.registers.to_string();
    if usage.shared > 0 {
        text += &format!(" + {} B", usage.shared);
    }
    if usage.is_local() {
        text += &format!(" **stack {} B, spills {} / {} B**", usage.stack, usage.spill_stores, usage.spill_loads);
    }
    text
}

/// The whole page, and the complaints.
pub fn page<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(String, Vec<String>), String> {
    let files: BTreeMap<&str, &str> = files.collect();
    let (mut text, mut all) = (String::from(INTRODUCTION), Vec::new());
    for (file, said) in files {
        let usages = parse(said).map_err(|e| format!("{file}.cu: {e}"))?;
        text += &format!("\n## {file}.cu\n\n{}", table(&usages));
        all.extend(complaints(&usages).into_iter().map(|line| format!("{file}.cu: {line}")));
    }
    text += &match all.as_slice() {
        [] => "\nNothing spills, and nothing uses local memory.\n".to_string(),
        lines => {
            format!("\n**Local memory is used:**\n\n{}", lines.iter().map(|l| format!("* {l}\n")).collect::<String>())
        }
    };
    Ok((text, all))
}

const INTRODUCTION: &str = "# What the kernels take

Registers a thread and static shared memory a block, as ptxas reports them for each target. Written by `make kernel-report`,
which fails when a kernel (naive twins are no exception) spills registers or uses local memory in any other way.
";

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'layer_norm' for 'sm_80'
ptxas info    : Function properties for layer_norm
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 37 registers, used 1 barriers, 128 bytes smem, 464 bytes cmem[0]
ptxas info    : Compile time = 93.329 ms
ptxas info    : Compiling entry function 'rms_norm' for 'sm_80'
ptxas info    : Function properties for rms_norm
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 36 registers, used 0 barriers, 464 bytes cmem[0]
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'rms_norm' for 'sm_100'
ptxas info    : Function properties for rms_norm
    24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 128 bytes smem
ptxas info    : Function properties for helper
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
";

    #[test]
    fn every_number_is_read() {
        let usages = parse(SAID).expect("it is what ptxas says");
        let spilling = Usage { registers: 255, shared: 128, stack: 24, spill_stores: 8, spill_loads: 16 };
        assert_eq!(usages["rms_norm"]["sm_100"], spilling);
        assert_eq!(usages["rms_norm"]["sm_80"], Usage { registers: 36, ..Usage::default() });
        assert_eq!(usages["layer_norm"]["sm_80"], Usage { registers: 37, shared: 128, ..Usage::default() });
        assert_eq!(usages["helper"]["sm_100"].stack, 40);
    }

    #[test]
    fn spills_and_stack_are_complained_about_by_kernel_and_target() {
        let complaints = complaints(&parse(SAID).expect("it is what ptxas says"));
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].starts_with("helper on sm_100: 40 bytes of stack"), "{complaints:?}");
        assert!(complaints[1].starts_with("rms_norm on sm_100: 24 bytes of stack, 8 bytes of spill stores, 16 of"));
    }

    #[test]
    fn silence_is_no_success() {
        let without = |part: &str| SAID.lines().filter(|line| !line.contains(part)).collect::<Vec<_>>().join("\n");
        for part in ["Used 36", "stack frame", "Compiling entry", "registers"] {
            assert!(parse(&without(part)).is_err(), "without `{part}`");
        }
        assert!(parse("").is_err());
        assert!(parse(&SAID.replace("24 bytes stack", "many bytes stack")).is_err());
    }

    #[test]
    fn the_table_has_a_column_a_target_in_their_order() {
        let table = table(&parse(SAID).expect("it is what ptxas says"));
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "| kernel | sm_80 | sm_100 |");
        assert_eq!(lines[3], "| layer_norm | 37 + 128 B |  |");
        assert_eq!(lines[4], "| rms_norm | 36 | 255 + 128 B **stack 24 B, spills 8 / 16 B** |");
    }
}

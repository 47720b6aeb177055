//! `targets`: what the figures of a run of the bundle come to, beside what layerstream promises of a GPU. It reads what the
//! parts have printed, and nothing of the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};

/// Compare the figures of a run with the targets.
#[derive(Parser)]
#[command(name = "targets", version)]
struct Arguments {
    /// Where the parts' outputs are: NAME.out, and NAME.memory with the MiB of the GPU that were in use before a part and,
    /// line by line, while it ran
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The parts that have passed; of others no figure counts
    #[arg(value_name = "PART")]
    passed: Vec<String>,
    /// Print a table in Markdown instead of JSON
    #[arg(long)]
    table: bool,
}

/// The least part of a bandwidth that streaming must reach.
const BANDWIDTH: f64 = 0.95;

/// How far a prediction may be off, as a part of it.
const PREDICTION: f64 = 0.05;

/// Runs what the arguments of this process ask for.
pub fn main() -> ExitCode {
    let Arguments { out, passed, table } = Arguments::parse();
    let targets = all(&Figures::read(&out, &passed));
    match table {
        true => print!("{}", in_markdown(&targets)),
        false => println!("{}", Value::from_iter(targets.iter().map(Target::json))),
    }
    ExitCode::SUCCESS
}

/// What the parts have found.
#[derive(Default)]
struct Figures {
    disk2gpu: Value,
    disk: Streamed,
    memory: Streamed,
}

/// Of a streamed model: what was predicted, what it took, and MiB of the GPU in use, those before it first.
#[derive(Default)]
struct Streamed {
    plan: Value,
    stream: Value,
    mib: Vec<f64>,
}

impl Figures {
    fn read(out: &Path, passed: &[String]) -> Figures {
        let text = |name: &str, kind: &str| match passed.iter().any(|part| part == name) {
            true => fs::read_to_string(out.join(format!("{name}.{kind}"))).unwrap_or_default(),
            false => String::new(),
        };
        let json = |name: &str| serde_json::from_str(&text(name, "out")).unwrap_or(Value::Null);
        let streamed = |tier: &str| {
            let part = format!("stream-from-{tier}");
            let mib = text(&part, "memory").lines().map_while(|line| line.trim().parse().ok()).collect();
            Streamed { plan: json(&format!("plan-{tier}")), stream: json(&part), mib }
        };
        Figures { disk2gpu: json("disk2gpu"), disk: streamed("disk"), memory: streamed("memory") }
    }
}

/// A target, and how near this machine came. `met` is nothing where it was not measured, for which `basis` has the reason.
#[derive(Debug, PartialEq)]
struct Target {
    name: &'static str,
    gate: String,
    value: Option<f64>,
    met: Option<bool>,
    basis: String,
}

impl Target {
    /// From value, whether it will do, and what it was computed from; or why there is none.
    fn new(name: &'static str, gate: String, found: Result<(f64, bool, String), &str>) -> Target {
        match found {
            Ok((value, met, basis)) => Target { name, gate, value: Some(value), met: Some(met), basis },
            Err(why) => Target { name, gate, value: None, met: None, basis: why.into() },
        }
    }

    fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not measured",
        }
    }

    fn json(&self) -> Value {
        let Target { name, gate, value, basis, .. } = self;
        json!({"target": name, "gate": gate, "value": value, "verdict": self.verdict(), "basis": basis})
    }
}

fn all(figures: &Figures) -> Vec<Target> {
    let Figures { disk2gpu, disk, memory } = figures;
    let pinned = disk2gpu["roofline"]["h2d_gbps"].as_f64();
    vec![
        overlapped(disk2gpu),
        from_memory(memory, pinned),
        predicted("seconds per token from disk, of what `plan` predicted", disk),
        predicted("seconds per token from memory, of what `plan` predicted", memory),
        in_budget("GPU memory in use, streaming from disk (MiB)", disk),
        in_budget("GPU memory in use, streaming from memory (MiB)", memory),
    ]
}

fn overlapped(disk2gpu: &Value) -> Target {
    let roofline = &disk2gpu["roofline"];
    let found = match (roofline["of"].as_str(), roofline["fraction"].as_f64()) {
        (Some("disk-gpu"), Some(fraction)) => {
            let number = |key: &str| roofline[key].as_f64().unwrap_or(f64::NAN);
            let basis = format!("disk {:.2} GB/s, copies {:.2} GB/s", number("disk_gbps"), number("h2d_gbps"));
            Ok((fraction, fraction >= BANDWIDTH, basis))
        }
        _ => Err("disk2gpu has no figure"),
    };
    Target::new("disk to GPU, both at once, of the slower of the two alone", format!(">= {BANDWIDTH}"), found)
}

/// `pinned` is what disk2gpu found for copies, in GB/s: the better of that and of what `plan` found is the measure.
fn from_memory(memory: &Streamed, pinned: Option<f64>) -> Target {
    let found = (|| {
        let plan = |key: &str| memory.plan[key].as_f64().ok_or("there is no plan for a GPU");
        if plan("disk_bytes_per_pass")? > 0.0 {
            return Err("memory does not hold the weights: some come from disk");
        }
        let (bytes, copies) = (plan("copied_bytes")?, plan("copy_bytes_per_second")? / 1e9);
        if bytes == 0.0 {
            return Err("the GPU holds all weights");
        }
        let seconds = steady(memory)?;
        let (streamed, copies) = (bytes / seconds / 1e9, copies.max(pinned.unwrap_or(0.0)));
        let share = streamed / copies;
        Ok((share, share >= BANDWIDTH, format!("{streamed:.2} of {copies:.2} GB/s")))
    })();
    Target::new("streaming from memory, of copies from pinned memory alone", format!(">= {BANDWIDTH}"), found)
}

fn predicted(name: &'static str, streamed: &Streamed) -> Target {
    let found = (|| {
        let plan = streamed.plan["seconds_per_token"].as_f64().ok_or("there is no plan")?;
        let seconds = steady(streamed)?;
        let share = seconds / plan;
        Ok((share, (share - 1.0).abs() <= PREDICTION, format!("{seconds:.4} s, predicted {plan:.4} s")))
    })();
    Target::new(name, format!("{} to {}", 1.0 - PREDICTION, 1.0 + PREDICTION), found)
}

fn in_budget(name: &'static str, streamed: &Streamed) -> Target {
    let budget = streamed.plan["gpu_memory"]["vram_bytes"].as_f64().map(|bytes| bytes / f64::from(1 << 20));
    let gate = budget.map_or("<= --vram".into(), |budget| format!("<= {budget:.0}"));
    let found = match (budget, &streamed.mib[..]) {
        (Some(budget), [before, during @ ..]) if !during.is_empty() => {
            let peak = during.iter().copied().fold(f64::MIN, f64::max);
            let ours = peak - before;
            Ok((ours, ours <= budget, format!("{peak} MiB in use, {before} before")))
        }
        (None, _) => Err("there is no plan for a GPU"),
        _ => Err("nvidia-smi does not say"),
    };
    Target::new(name, gate, found)
}

fn steady(streamed: &Streamed) -> Result<f64, &'static str> {
    streamed.stream["steady_seconds_per_token"].as_f64().ok_or("there is no streamed run")
}

fn in_markdown(targets: &[Target]) -> String {
    let mut text = String::from("| target | gate | value | verdict | from |\n| --- | --- | --- | --- | --- |\n");
    for target in targets {
        let Target { name, gate, value, basis, .. } = target;
        // Bandwidths and times have three digits; memory comes in whole MiB.
        let value = value.map_or(String::new(), |value| match value < 10.0 {
            true => format!("{value:.3}"),
            false => format!("{value:.0}"),
        });
        text += &format!("| {name} | {gate} | {value} | {} | {basis} |\n", target.verdict());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(seconds: f64, mib: &[f64]) -> Streamed {
        Streamed {
            plan: json!({"disk_bytes_per_pass": 0, "copied_bytes": 2_000_000_000u64, "copy_bytes_per_second": 20e9,
                "seconds_per_token": 0.1, "gpu_memory": {"vram_bytes": 1500u64 << 20}}),
            stream: json!({"steady_seconds_per_token": seconds}),
            mib: mib.into(),
        }
    }

    fn verdicts(figures: &Figures) -> Vec<&'static str> {
        all(figures).iter().map(Target::verdict).collect()
    }

    fn roofline(fraction: f64, h2d: f64) -> Value {
        json!({"roofline": {"of": "disk-gpu", "fraction": fraction, "disk_gbps": 6.0, "h2d_gbps": h2d}})
    }

    #[test]
    fn nothing_is_measured_where_nothing_has_passed() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("disk2gpu.out"), roofline(0.99, 20.0).to_string()).unwrap();
        assert_eq!(verdicts(&Figures::read(out.path(), &[])), ["not measured"; 6]);
        let passed = ["disk2gpu".to_string(), "stream-from-disk".into()];
        assert_eq!(verdicts(&Figures::read(out.path(), &passed))[0], "met");
    }

    #[test]
    fn outputs_are_found_by_the_names_of_parts() {
        let out = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(out.path().join(name), text).unwrap();
        write("disk2gpu.out", &roofline(0.96, 20.0).to_string());
        for tier in ["disk", "memory"] {
            let Streamed { plan, stream, .. } = streamed(0.1, &[]);
            write(&format!("plan-{tier}.out"), &plan.to_string());
            write(&format!("stream-from-{tier}.out"), &stream.to_string());
            write(&format!("stream-from-{tier}.memory"), "300\n301\n1700\n");
        }
        let passed =
            ["disk2gpu", "plan-disk", "plan-memory", "stream-from-disk", "stream-from-memory"].map(String::from);
        assert_eq!(verdicts(&Figures::read(out.path(), &passed)), ["met"; 6]);
    }

    #[test]
    fn each_gate_has_two_sides() {
        let cases = [(0.95, "met"), (0.949, "missed")];
        for (fraction, verdict) in cases {
            assert_eq!(overlapped(&roofline(fraction, 20.0)).verdict(), verdict);
        }
        let disk_alone = json!({"roofline": {"of": "disk-ring", "fraction": 0.99}});
        assert_eq!(overlapped(&disk_alone).verdict(), "not measured");
        // 2 GB in 0.105 s are 19 of 20 GB/s.
        for (seconds, pinned, verdict) in
            [(0.105, None, "met"), (0.106, None, "missed"), (0.105, Some(19.5), "met"), (0.105, Some(20.5), "missed")]
        {
            assert_eq!(from_memory(&streamed(seconds, &[]), pinned).verdict(), verdict, "{seconds} {pinned:?}");
        }
        for (seconds, verdict) in [(0.1049, "met"), (0.0951, "met"), (0.106, "missed"), (0.094, "missed")] {
            assert_eq!(predicted("", &streamed(seconds, &[])).verdict(), verdict, "{seconds}");
        }
        for (mib, verdict) in [
            (&[300.0, 250.0, 1800.0, 1700.0][..], "met"),
            (&[300.0, 1801.0], "missed"),
            (&[300.0], "not measured"),
            (&[], "not measured"),
        ] {
            assert_eq!(in_budget("", &streamed(0.1, mib)).verdict(), verdict, "{mib:?}");
        }
    }

    #[test]
    fn what_does_not_come_from_memory_alone_is_not_held_to_its_target() {
        for (key, value) in
            [("disk_bytes_per_pass", json!(1)), ("copied_bytes", json!(0)), ("copied_bytes", Value::Null)]
        {
            let mut streamed = streamed(0.1, &[]);
            streamed.plan[key] = value;
            assert_eq!(from_memory(&streamed, None).verdict(), "not measured", "{key}");
        }
    }

    #[test]
    fn the_table_has_a_row_for_each() {
        let figures = Figures { memory: streamed(0.1, &[300.0, 1700.0]), ..Figures::default() };
        let table = in_markdown(&all(&figures));
        assert_eq!(table.lines().count(), 8);
        assert!(table.contains("| <= 1500 | 1400 | met | 1700 MiB in use, 300 before |"), "{table}");
        assert!(table.contains("| 0.95 to 1.05 | 1.000 | met | 0.1000 s, predicted 0.1000 s |"), "{table}");
        assert!(table.contains("| >= 0.95 |  | not measured | disk2gpu has no figure |"), "{table}");
    }
}

//! What the benchmarks of whole passes share: arguments, models to measure on, tables, and where results are kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use layerstream::{GenerateOptions, Model};
use serde_json::{Value, json};

pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

pub struct Arguments {
    pub dir: PathBuf,
    pub rounds: usize,
}

impl Arguments {
    pub fn parse() -> Result<Arguments> {
        let mut arguments = Arguments { dir: Path::new(env!("CARGO_TARGET_TMPDIR")).into(), rounds: 7 };
        let mut given = std::env::args().skip(1);
        while let Some(name) = given.next() {
            match name.as_str() {
                "--bench" => {} // cargo adds it
                "--dir" => arguments.dir = given.next().ok_or("--dir needs a directory")?.into(),
                "--rounds" => arguments.rounds = given.next().ok_or("--rounds needs a number")?.parse()?,
                other => return Err(format!("unknown argument {other}; there are --dir DIR and --rounds N").into()),
            }
        }
        Ok(arguments)
    }
}

/// A synthetic model, made by the command that anyone would use, once.
pub fn checkpoint(dir: &Path, like: &str, layers: Option<usize>) -> Result<PathBuf> {
    let model = dir.join(layers.map_or(like.into(), |layers| format!("{like}-{layers}")));
    if !model.join("config.json").exists() {
        let mut synth = Command::new(env!("CARGO_BIN_EXE_layerstream"));
        synth.args(["synth", "--like", like, "--out"]).arg(&model);
        if let Some(layers) = layers {
            synth.args(["--layers", &layers.to_string()]);
        }
        if !synth.status()?.success() {
            return Err(format!("could not make a model in {}", model.display()).into());
        }
    }
    Ok(model)
}

pub struct Ran {
    pub seconds: f64,
    pub bytes: u64,
}

/// `passes` passes: the first carries the prompt, the others a token each.
pub fn generate(model: &mut Model, prompt: &[u32], passes: usize) -> Result<Ran> {
    let options = GenerateOptions { max_new_tokens: passes, ..GenerateOptions::default() };
    let start = Instant::now();
    let mut generation = model.generate(vec![prompt.to_vec()], &options)?;
    generation.outputs()?;
    Ok(Ran { seconds: start.elapsed().as_secs_f64(), bytes: generation.stats().bytes_read })
}

/// Samples by name, in the order in which the names first came.
#[derive(Default)]
pub struct Rows(pub Vec<(String, Vec<f64>)>);

impl Rows {
    pub fn add(&mut self, name: &str, sample: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((name.into(), vec![sample])),
        }
    }

    pub fn median(&self, name: &str) -> f64 {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map_or(f64::NAN, |(_, samples)| sorted(samples)[samples.len() / 2])
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::from("| what | median | min | max |\n| --- | --- | --- | --- |\n");
        for (name, samples) in &self.0 {
            let samples = sorted(samples);
            let (least, most) = (samples[0], samples[samples.len() - 1]);
            text += &format!("| {name} | {:.3} | {least:.3} | {most:.3} |\n", self.median(name));
        }
        text
    }

    /// For programs.
    pub fn samples(&self) -> Value {
        self.0.iter().map(|(name, samples)| (name.clone(), json!(samples))).collect::<serde_json::Map<_, _>>().into()
    }
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Writes `<name>.json` and `<name>.md` into the folder of this day and machine, which is returned.
pub fn write_results(name: &str, record: &Value, text: &str) -> Result<PathBuf> {
    let machine = &record["machine"];
    let date = machine["date"].as_str().unwrap_or("undated");
    let processor =
        machine["processor"].as_str().unwrap_or("cpu").to_lowercase().replace(|c: char| !c.is_alphanumeric(), "-");
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results").join(format!("{date}-{processor}"));
    fs::create_dir_all(&out)?;
    fs::write(out.join(format!("{name}.json")), serde_json::to_string_pretty(record)? + "\n")?;
    fs::write(out.join(format!("{name}.md")), text)?;
    Ok(out)
}

/// What a reader of the figures needs to know of the machine.
pub fn machine() -> Value {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':').map(|(_, value)| value.trim().to_string()))
    };
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    json!({
        "date": output("date", &["-u", "+%Y-%m-%d"]),
        "commit": output("git", &["rev-parse", "--short", "HEAD"]),
        "processor": first("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": output("uname", &["-r"]),
        "huge_pages": fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok().map(|text| text.trim().to_string()),
        "fio": output("fio", &["--version"]),
    })
}

//! `inspect`: what a checkpoint holds, and what of it is not supported and why.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Tensor, read_json};
use crate::error::Result;
use crate::family;
use crate::hub::Need;
use crate::program::{KvShape, Program};

use super::args;
use super::hub;
use super::output;
use super::table::{Table, count, data, memory};

pub fn run(args: &args::Inspect) -> Result<()> {
    let checkpoint = Checkpoint::open(&hub::local(&args.model, Need::Model)?)?;
    let program = family::program(&checkpoint);
    let problem = program.as_ref().err().map(ToString::to_string);
    let report = Report::new(&args.model.path, &checkpoint, program.as_ref().ok(), problem, args.tensors);
    if args.json {
        output::json(&report)?;
    } else {
        output::print(&report.text())?;
    }
    // What cannot be run is told, and is a failure.
    program.map(|_| ())
}

#[derive(Serialize)]
struct Report {
    model: String,
    architecture: Option<String>,
    supported: bool,
    /// Why it cannot be run.
    problem: Option<String>,
    parameters: u64,
    bytes: u64,
    dtypes: BTreeMap<&'static str, Kind>,
    tensor_count: usize,
    layers: Option<Layers>,
    other_bytes: u64,
    #[serde(flatten)]
    run: Option<Run>,
    files: Vec<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Row>>,
}

/// Tensors of one element type.
#[derive(Default, Serialize)]
struct Kind {
    tensors: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Layers {
    count: usize,
    smallest_bytes: u64,
    largest_bytes: u64,
}

/// What is known of a model that can be run.
#[derive(Serialize)]
struct Run {
    family: &'static str,
    vocabulary: usize,
    max_positions: usize,
    embedding_bytes: u64,
    head_bytes: u64,
    tied_head: bool,
    /// With one token: of experts only those that it has.
    bytes_per_pass: u64,
    /// Bytes of matrices by encoding.
    encodings: BTreeMap<&'static str, u64>,
    kv_bytes_per_token: usize,
}

#[derive(Serialize)]
struct File {
    path: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Row {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    file: String,
    offset: u64,
    bytes: u64,
}

impl Report {
    fn new(
        path: &Path,
        checkpoint: &Checkpoint,
        program: Option<&Program>,
        problem: Option<String>,
        list: bool,
    ) -> Report {
        let mut dtypes: BTreeMap<_, Kind> = BTreeMap::new();
        let mut by_layer: BTreeMap<usize, u64> = BTreeMap::new();
        let mut other_bytes = 0;
        for tensor in checkpoint.tensors() {
            let kind = dtypes.entry(tensor.dtype.name()).or_default();
            kind.tensors += 1;
            kind.bytes += tensor.span.len;
            *layer(&tensor.name).map_or(&mut other_bytes, |layer| by_layer.entry(layer).or_default()) +=
                tensor.span.len;
        }
        let file = |file: &crate::checkpoint::CheckpointFile| File { path: name(&file.path), bytes: file.len };
        Report {
            model: path.display().to_string(),
            architecture: architecture(checkpoint),
            supported: program.is_some(),
            problem,
            parameters: checkpoint.tensors().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum(),
            bytes: checkpoint.bytes(),
            dtypes,
            tensor_count: checkpoint.tensors().len(),
            layers: by_layer.values().min().zip(by_layer.values().max()).map(|(min, max)| Layers {
                count: by_layer.len(),
                smallest_bytes: *min,
                largest_bytes: *max,
            }),
            other_bytes,
            run: program.map(Run::new),
            files: checkpoint.files().iter().map(file).collect(),
            tensors: list.then(|| checkpoint.tensors().map(|tensor| Row::new(tensor, checkpoint)).collect()),
        }
    }

    fn text(&self) -> String {
        let dtypes = self
            .dtypes
            .iter()
            .map(|(name, kind)| format!("{name}: {} in {}", data(kind.bytes), count(kind.tensors as u64, "tensor")));
        let mut table = Table::default();
        table
            .row("model", &self.model)
            .row("architecture", self.architecture.as_deref().unwrap_or("unknown"))
            .row("parameters", parameters(self.parameters))
            .row("weights", dtypes.collect::<Vec<_>>().join(", "));
        if let Some(layers) = &self.layers {
            let each = match layers.smallest_bytes == layers.largest_bytes {
                true => data(layers.largest_bytes),
                false => format!("{} to {}", data(layers.smallest_bytes), data(layers.largest_bytes)),
            };
            table.row("layers", format!("{} of {each}, beside them {}", layers.count, data(self.other_bytes)));
        }
        if let Some(run) = &self.run {
            let head = if run.tied_head { "the same".into() } else { data(run.head_bytes) };
            table
                .row("family", run.family)
                .row(
                    "embedding",
                    format!("{} (only the rows of a pass' tokens are read); head {head}", data(run.embedding_bytes)),
                )
                .row("a pass reads", data(run.bytes_per_pass))
                .row("matrices", encodings(&run.encodings))
                .row("KV cache", format!("{} for a token", memory(run.kv_bytes_per_token as u64)))
                .row(
                    "made for",
                    format!("{}, vocabulary {}", count(run.max_positions as u64, "token"), run.vocabulary),
                );
        }
        for (i, line) in listed(&self.files).into_iter().enumerate() {
            table.row(if i == 0 { "files" } else { "" }, line);
        }
        table.row("supported", if self.supported { "yes" } else { "no, see below" });
        let mut text = table.to_string();
        if let Some(tensors) = &self.tensors {
            let mut table = Table::default();
            for row in tensors {
                table.row(&row.name, format!("{:5} {:>10}  {:?}  {}", row.dtype, data(row.bytes), row.shape, row.file));
            }
            text += &format!("\n{table}");
        }
        text
    }
}

impl Run {
    fn new(program: &Program) -> Run {
        let head = program.matrices.last();
        Run {
            family: program.family,
            vocabulary: program.vocab,
            max_positions: program.max_positions,
            embedding_bytes: program.embedding.bytes(),
            head_bytes: head.map_or(0, |head| head.bytes()),
            tied_head: head.is_some_and(|head| head.tensor.span == program.embedding.tensor.span),
            bytes_per_pass: program.matrices.iter().map(|matrix| matrix.bytes() + matrix.factor_bytes()).sum::<u64>()
                + program.experts.iter().map(|layer| layer.token_bytes()).sum::<u64>(),
            encodings: program.encodings(),
            kv_bytes_per_token: program.kv.iter().copied().map(KvShape::token_bytes).sum(),
        }
    }
}

impl Row {
    fn new(tensor: &Tensor, checkpoint: &Checkpoint) -> Row {
        Row {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name(),
            shape: tensor.shape.clone(),
            file: name(checkpoint.file_path(tensor.span.file)),
            offset: tensor.span.offset,
            bytes: tensor.span.len,
        }
    }
}

/// `bnb_nf4: 3.5 GB, bf16: 1.1 GB`
pub(super) fn encodings(bytes: &BTreeMap<&'static str, u64>) -> String {
    let of = bytes.iter().map(|(name, bytes)| format!("{name}: {}", data(*bytes)));
    of.collect::<Vec<_>>().join(", ")
}

/// A line for each file; of many only the first and the last.
fn listed(files: &[File]) -> Vec<String> {
    const MANY: usize = 6;
    let line = |file: &File| format!("{} ({})", file.path, data(file.bytes));
    match files {
        [first, between @ .., last] if files.len() > MANY => {
            vec![line(first), format!("… {} more", between.len()), line(last)]
        }
        few => few.iter().map(line).collect(),
    }
}

/// The number in a tensor's name: `model.layers.7.mlp.up_proj.weight`.
fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// What `config.json`, or the metadata of a GGUF file, calls the model, as far as it can be read.
fn architecture(checkpoint: &Checkpoint) -> Option<String> {
    if let Some(metadata) = checkpoint.metadata() {
        return metadata.text("general.architecture").ok()?.map(str::to_owned);
    }
    let config = read_json(&checkpoint.dir().join("config.json")).ok()?;
    config.get("architectures")?.get(0).and_then(Value::as_str).map(str::to_owned)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// `70.6 billion`
fn parameters(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.1} billion", n / 1e9),
        n if n >= 1e6 => format!("{:.1} million", n / 1e6),
        _ => n.to_string(),
    }
}

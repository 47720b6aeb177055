//! `eval`: how well a model predicts a text, and how far it is from another model.

use std::fs;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::eval::{EvalOptions, Evaluation, Position, evaluate};
use crate::family;
use crate::hub::Need;
use crate::memory;
use crate::model::{Model, Options, Outline};
use crate::text::{TextSide, Tokenizer};

use super::args;
use super::hub;
use super::interrupt::{Reaction, on_next};
use super::output;
use super::table::{Table, count, seconds};

/// The window where no number was given: what models are commonly compared with.
const WINDOW: usize = 2048;

pub fn run(args: &args::Eval) -> Result<()> {
    let path = hub::local(&args.model, Need::Model)?;
    let other = args.against.as_deref().map(|path| hub::local_at(path, &args.model.hub, Need::Model)).transpose()?;
    let (checkpoint, text) = (Checkpoint::open(&path)?, read(&args.text)?);
    let longest = family::program(&checkpoint)?.max_positions;
    let side = TextSide::of(&checkpoint)?;
    let tokenizer = side.tokenizer()?.clone();
    let ids = tokenizer.encode(&text, true)?;
    if let Some(other) = &other {
        same_ids(&ids, &text, &args.model.path, other)?;
    }
    let window = args.resources.context.unwrap_or(longest.min(WINDOW));
    let stride = args.stride.unwrap_or(window.saturating_sub(1));
    let evaluation = EvalOptions { window, stride, worst: args.worst };

    let resources = args.resources.options(None, 1);
    let options = Options { context: Some(window.min(ids.len()).max(1)), all_logits: true, ..resources };
    let options = match other {
        None => options,
        Some(_) => halved(&path, options)?,
    };
    let mut model = Model::start(shared(Outline::new(&path, &options), other.is_some())?, side, &options)?;
    let open = |path| shared(Model::open(path, &options), true);
    let mut against = other.as_deref().map(open).transpose()?;

    on_next(Reaction::Stop(model.stop_flag()));
    let bar = ProgressBar::new(ids.len() as u64);
    let style = ProgressStyle::with_template("[{bar:20}] {pos} of {len} tokens  {eta} left");
    bar.set_style(style.expect("a template").progress_chars("#--"));
    let found = evaluate(&mut model, against.as_mut(), &ids, &evaluation, |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let found = found?;

    let report = report(args, &found, &tokenizer)?;
    match args.json {
        true => output::json(&report),
        false => output::print(&table(args, &found, &tokenizer)?.to_string()),
    }
}

/// The text, which must hold something.
fn read(path: &Path) -> Result<String> {
    let problem = |problem: &str| Error::Text { path: path.into(), problem: problem.into() };
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    let text = String::from_utf8(bytes).map_err(|_| problem("is not UTF-8 text"))?;
    match text.trim().is_empty() {
        true => Err(problem("is empty: give a text to predict")),
        false => Ok(text),
    }
}

/// Refuses a model whose tokenizer gives the text other ids. One without a tokenizer is taken at its word.
fn same_ids(ids: &[u32], text: &str, model: &Path, other: &Path) -> Result<()> {
    let side = TextSide::of(&Checkpoint::open(other)?)?;
    let Ok(tokenizer) = side.tokenizer() else { return Ok(()) };
    let others = tokenizer.encode(text, true)?;
    if others == ids {
        return Ok(());
    }
    let first = others.iter().zip(ids).take_while(|(a, b)| a == b).count();
    Err(Error::Request(format!(
        "{} and {} cannot be compared: their tokenizers give the text different ids, from token {first} on",
        model.display(),
        other.display()
    )))
}

/// Half of the memory, and of that of the GPU if one computes, for each of two models of which this is one.
fn halved(model: &Path, options: Options) -> Result<Options> {
    let ram = match options.ram {
        Some(ram) => ram,
        None => memory::available()? / 2,
    };
    let options = Options { ram: Some(ram / 2), ..options };
    let vram = match options.vram {
        Some(vram) => Some(vram),
        // What the model would have if it were alone.
        None => shared(Outline::new(model, &options), true)?.plan().gpu.as_ref().map(|gpu| gpu.vram),
    };
    Ok(Options { vram: vram.map(|vram| vram / 2), ..options })
}

/// Says, where two models share a budget, that each has half of it.
fn shared<T>(result: Result<T>, by_two: bool) -> Result<T> {
    result.map_err(|error| match error {
        Error::Budget(problem) if by_two => {
            Error::Budget(format!("{problem} (two models share the budget, and each has half of it)"))
        }
        error => error,
    })
}

fn report(args: &args::Eval, found: &Evaluation, tokenizer: &Tokenizer) -> Result<Value> {
    let mut report = json!(found);
    report["model"] = json!(args.model.path);
    if let Some(path) = &args.against {
        report["against"]["model"] = json!(path);
    }
    for (i, position) in found.worst.iter().enumerate() {
        report["worst"][i]["text"] = tokenizer.decode(&[position.id], false)?.into();
        report["worst"][i]["predicted_text"] = tokenizer.decode(&[position.predicted], false)?.into();
    }
    Ok(report)
}

fn table(args: &args::Eval, found: &Evaluation, tokenizer: &Tokenizer) -> Result<Table> {
    let mut table = Table::default();
    table.row("perplexity", format!("{:.4} ({:.4} nats a token)", found.perplexity, found.mean_nll));
    if let (Some(other), Some(path)) = (&found.against, &args.against) {
        table.row("against", path.display());
        table.row("  its perplexity", format!("{:.4} ({:.4} nats a token)", other.perplexity, other.mean_nll));
        table.row("  KL divergence", format!("{:.3e} on average, {:.3e} at most", other.mean_kl, other.max_kl));
        table.row("  same top token", format!("{:.2} %", 100.0 * other.top1_agreement));
    }
    let windows = format!("{} of {}, {} apart", count(found.windows, "window"), found.window, found.stride);
    table.row("text", format!("{}, {windows}", count(found.tokens, "token")));
    table.row("time", seconds(found.seconds));
    for (number, position) in found.worst.iter().enumerate() {
        let Position { position, id, nll, kl, predicted } = *position;
        let [text, instead] = [tokenizer.decode(&[id], false)?, tokenizer.decode(&[predicted], false)?];
        let kl = kl.map_or(String::new(), |kl| format!(", KL {kl:.3e}"));
        let name = if number == 0 { "worst" } else { "" };
        table.row(name, format!("token {position}, {text:?}: {nll:.3} nats{kl}; most probable {instead:?}"));
    }
    Ok(table)
}

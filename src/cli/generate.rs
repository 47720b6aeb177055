//! `generate`: continues prompts, or answers them.

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::family;
use crate::generate::{GenerateOptions, Generation, Output, Token};
use crate::hub::Need;
use crate::model::{Model, Options, Outline};
use crate::text::TextSide;

use super::args;
use super::hub;
use super::interrupt::{Reaction, on_next};
use super::output;
use super::profile::Seeing;
use super::progress::Status;
use super::prompts::{self, Prompt};
use super::report::{Answer, Costs, Report};

pub fn run(args: &args::Generate) -> Result<()> {
    let path = &args.model.path;
    let local = hub::local(&args.model, Need::Model)?;
    let checkpoint = Checkpoint::open(&local)?;
    let longest = family::program(&checkpoint)?.max_positions;
    let text = TextSide::of(&checkpoint)?;
    let prompts = prompts::read(args, &text)?;
    let options = args.answer.over(GenerateOptions::of_model(&checkpoint, &text)?);
    let needed = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0) + options.max_new_tokens;
    let seeing = Seeing::begin(&args.seeing)?;
    let resources = args.resources.options(Some(needed.clamp(1, longest)), prompts.len());
    let open = Options { recorder: seeing.recorder(), ..resources };
    let mut model = Model::start(Outline::new(&local, &open)?, text, &open)?;

    on_next(Reaction::Stop(model.stop_flag()));
    let status = Status::watch(model.progress());
    let words = model.text().tokenizer().is_ok();
    let ids = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
    let mut generation = model.generate(ids, &options)?;
    let outputs = match &prompts[..] {
        _ if args.json => follow(&mut generation, &status, prompts.len(), |_, _| String::new())?,
        [_] => follow(&mut generation, &status, 1, |token, outputs| piece(token, &outputs[0], words))?,
        _ => follow(&mut generation, &status, prompts.len(), in_order(&prompts, words))?,
    };
    let stats = generation.stats();
    drop(status);

    seeing.end(&model)?;
    let costs = Costs::new(&model, path, stats);
    if args.stats {
        output::tell(costs.table());
    }
    if args.json {
        let answers = outputs.into_iter().zip(&prompts).map(|(output, prompt)| Answer::new(output, prompt.ids.len()));
        output::json(&Report::new(answers.collect(), costs))?;
    }
    Ok(())
}

/// Runs to the end. `text` says what to print for a token, given all outputs with it.
pub fn follow(
    generation: &mut Generation,
    status: &Status,
    prompts: usize,
    mut text: impl FnMut(&Token, &[Output]) -> String,
) -> Result<Vec<Output>> {
    let mut outputs = vec![Output::default(); prompts];
    for token in generation {
        let token = token?;
        outputs[token.sequence].push(&token);
        let tokens = outputs[token.sequence].ids.len();
        status.print(tokens, &text(&token, &outputs))?;
    }
    Ok(outputs)
}

/// What a token adds to the only answer: text, or its id where the model has no `words`.
pub fn piece(token: &Token, output: &Output, words: bool) -> String {
    let mut piece = match (token.id, output.ids.len()) {
        _ if words => token.text.clone(),
        (None, _) => String::new(),
        (Some(id), 1) => id.to_string(),
        (Some(id), _) => format!(",{id}"),
    };
    if token.finish.is_some() {
        piece.push('\n');
    }
    piece
}

/// Each answer under a heading, when it and all before it are complete.
fn in_order(prompts: &[Prompt], words: bool) -> impl FnMut(&Token, &[Output]) -> String {
    let mut printed = 0;
    move |_, outputs| {
        let mut text = String::new();
        while let Some(output) = outputs.get(printed).filter(|output| output.finish.is_some()) {
            let answer = if words { output.text.clone() } else { prompts::list(&output.ids) };
            let gap = if printed == 0 { "" } else { "\n" };
            text += &format!("{gap}## {}: {}\n{answer}\n", printed + 1, heading(&prompts[printed].given));
            printed += 1;
        }
        text
    }
}

/// The beginning of a prompt, on one line.
fn heading(prompt: &str) -> String {
    const SHOWN: usize = 60;
    let line = prompt.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

//! `chat`: a conversation, line by line, that keeps what was said.

use std::io::{self, BufRead, IsTerminal};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::hub::Need;
use crate::model::{Model, Options};

use super::args;
use super::generate::{follow, piece};
use super::hub;
use super::interrupt::{Reaction, on_next};
use super::output::tell;
use super::profile::Seeing;
use super::progress::Status;
use super::prompts::messages;
use super::report::Costs;

const LEAVE: &str = "\n(/quit or Ctrl-D leaves)\n> ";

pub fn run(args: &args::Chat) -> Result<()> {
    let seeing = Seeing::begin(&args.seeing)?;
    let options = Options { recorder: seeing.recorder(), ..args.resources.options(None, 1) };
    let mut model = Model::open(hub::local(&args.model, Need::Model)?, &options)?;
    model.text().chat_template()?;
    // An answer may be as long as the context has room for, unless told otherwise.
    let room = GenerateOptions { max_new_tokens: model.plan().context, ..model.defaults().clone() };
    let mut chat = Chat { args, options: args.answer.over(room), messages: messages(args.system.as_deref(), None) };
    let terminal = io::stdin().is_terminal();
    while let Some(line) = read_line(terminal)? {
        match line.split_once(' ').map_or((line.as_str(), ""), |(command, rest)| (command, rest.trim())) {
            ("", _) => {}
            ("/quit" | "/exit", "") => break,
            ("/reset", "") => chat.messages.retain(|message| message["role"] == "system"),
            ("/system", text) => chat.messages = messages(Some(text).filter(|text| !text.is_empty()), None),
            (command, "") if command.starts_with('/') => tell("there are /reset, /system TEXT and /quit\n"),
            _ => chat.turn(&mut model, &line)?,
        }
    }
    seeing.end(&model)
}

struct Chat<'a> {
    args: &'a args::Chat,
    options: GenerateOptions,
    messages: Vec<Value>,
}

impl Chat<'_> {
    /// Answers one message. What a person can mend (a full context, a refused message) is said, and the message
    /// forgotten.
    fn turn(&mut self, model: &mut Model, line: &str) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": line}));
        match self.answer(model) {
            Ok(text) => self.messages.push(json!({"role": "assistant", "content": text})),
            Err(error @ (Error::Request(_) | Error::Text { .. })) => {
                self.messages.pop();
                tell(format!("{error}; /reset begins anew\n"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn answer(&self, model: &mut Model) -> Result<String> {
        let ids = model.encode_chat(&self.messages.clone().into())?;
        let stop = model.stop_flag();
        // Ctrl-C after the end of the last answer is not meant for this one.
        stop.clear();
        on_next(Reaction::Stop(stop));
        let status = Status::watch(model.progress());
        let mut generation = model.generate(vec![ids], &self.options)?;
        let mut outputs = follow(&mut generation, &status, 1, |token, outputs| piece(token, &outputs[0], true))?;
        let stats = generation.stats();
        drop(status);
        if self.args.stats {
            let costs = Costs::new(model, &self.args.model.path, stats);
            tell(costs.table());
        }
        Ok(outputs.swap_remove(0).text)
    }
}

/// The next line without its end; none at the end of the input.
fn read_line(terminal: bool) -> Result<Option<String>> {
    on_next(if terminal { Reaction::Say(LEAVE) } else { Reaction::Exit });
    if terminal {
        tell("> ");
    }
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line).map_err(Error::io("standard input".as_ref(), "read"))?;
    if read == 0 && terminal {
        tell("\n");
    }
    Ok((read > 0).then(|| line.trim().to_string()))
}

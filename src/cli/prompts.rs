//! Where prompts come from: arguments, token ids, a file, standard input; and what the chat template makes of them.

use std::fs;
use std::io::{IsTerminal, Read};
use std::path::Path;

use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::text::{ChatInput, TextSide};

use super::args::{Cli, Generate};

/// A prompt, ready to run.
pub struct Prompt {
    /// As the user gave it: text, or ids.
    pub given: String,
    pub ids: Vec<u32>,
}

/// All prompts of a call, in the order of its arguments, then those of its file.
pub fn read(args: &Generate, text: &TextSide) -> Result<Vec<Prompt>> {
    let mut prompts = if args.ids.is_empty() {
        let encode = |given: String| Ok(Prompt { ids: encode(args, text, &given)?, given });
        texts(args)?.into_iter().map(encode).collect::<Result<Vec<_>>>()?
    } else {
        args.ids.iter().map(|ids| Prompt { given: list(&ids.0), ids: ids.0.clone() }).collect()
    };
    if let Some(length) = args.max_length {
        prompts.iter_mut().for_each(|prompt| prompt.ids.truncate(length));
    }
    Ok(prompts)
}

/// Ids as `--ids` takes them.
pub fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// A conversation of a single question.
pub fn messages(system: Option<&str>, user: Option<&str>) -> Vec<Value> {
    let message = |role: &str, content: Option<&str>| content.map(|content| json!({"role": role, "content": content}));
    [message("system", system), message("user", user)].into_iter().flatten().collect()
}

fn encode(args: &Generate, text: &TextSide, given: &str) -> Result<Vec<u32>> {
    if given.is_empty() {
        return Err(Error::Request("the prompt is empty; give some text, or token ids with --ids".into()));
    }
    if args.chat {
        text.encode_chat(&ChatInput::new(&messages(args.system.as_deref(), Some(given)).into()))
    } else {
        text.encode(given)
    }
}

fn texts(args: &Generate) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for prompt in &args.prompts {
        texts.push(if prompt == "-" { standard_input()? } else { prompt.clone() });
    }
    if let Some(path) = &args.prompts_file {
        texts.extend(lines(path)?);
    }
    if args.prompts.is_empty() && args.prompts_file.is_none() {
        if std::io::stdin().is_terminal() {
            let problem = "no prompt: give one as an argument, with --ids, or on standard input";
            Cli::command().error(ErrorKind::MissingRequiredArgument, problem).exit();
        }
        texts.push(standard_input()?);
    }
    Ok(texts)
}

/// All of standard input, without the line break that ends it.
fn standard_input() -> Result<String> {
    let mut text = utf8_input()?;
    if text.ends_with('\n') {
        text.pop();
        text.truncate(text.strip_suffix('\r').unwrap_or(&text).len());
    }
    Ok(text)
}

/// All of standard input, as it is.
pub fn utf8_input() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(Error::io(Path::new("standard input"), "read"))?;
    utf8(bytes, Path::new("standard input"))
}

fn lines(path: &Path) -> Result<Vec<String>> {
    let text = utf8(fs::read(path).map_err(Error::io(path, "read"))?, path)?;
    let unquote = |line: &str| match serde_json::from_str(line) {
        Ok(Value::String(text)) => text,
        _ => line.to_string(),
    };
    let prompts: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).map(unquote).collect();
    match prompts.is_empty() {
        true => Err(Error::Text { path: path.into(), problem: "holds no prompt: every line is empty".into() }),
        false => Ok(prompts),
    }
}

fn utf8(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let problem = format!("is not UTF-8 text: byte {at} is 0x{:02x}", e.as_bytes()[at]);
        Error::Text { path: path.into(), problem }
    })
}

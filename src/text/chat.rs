//! Chat templates: the Jinja program that a checkpoint brings to turn messages into a prompt, run so that the prompt is
//! byte for byte what transformers' `apply_chat_template` gives.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

use super::builtin::Format;
use super::config::{TokenizerConfig, read_object, read_text};
use super::python;

/// Instructions of the template engine that a rendering may take. A published template takes some hundreds per message.
const FUEL: u64 = 50_000_000;

/// The conversation to render.
#[derive(Clone, Debug)]
pub struct ChatInput<'a> {
    /// A list of objects with `role`, `content` and whatever else the template knows (`tool_calls`, …).
    pub messages: &'a Value,
    /// A list of JSON schemas of functions.
    pub tools: Option<&'a Value>,
    /// Whether to end with the header of an assistant's message, so that the model writes that message.
    pub add_generation_prompt: bool,
    /// More variables for the template (`enable_thinking`, `documents`, …).
    pub extra: Map<String, Value>,
    /// What a template that asks for the date is told; `None` is the local time.
    pub now: Option<DateTime>,
}

impl<'a> ChatInput<'a> {
    /// Messages alone, with a generation prompt.
    pub fn new(messages: &'a Value) -> ChatInput<'a> {
        ChatInput { messages, tools: None, add_generation_prompt: true, extra: Map::new(), now: None }
    }
}

/// The chat template of a checkpoint, or several under names.
pub struct ChatTemplate {
    /// Where it was found, for messages.
    path: PathBuf,
    env: Environment<'static>,
    /// The special tokens, which templates see as `bos_token`, `eos_token`, ….
    special: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Finds the template of the checkpoint in `dir`: `chat_template.jinja` (with `additional_chat_templates/`), or
    /// `chat_template` in `tokenizer_config.json`, or `chat_template.json`; `None` if it has none.
    ///
    /// # Errors
    /// If a file is damaged or a template is not valid Jinja.
    pub fn open(dir: &Path) -> Result<Option<ChatTemplate>> {
        let config = TokenizerConfig::open(dir)?;
        let Some((path, templates)) = find(dir, &config)? else { return Ok(None) };
        ChatTemplate::new(path, templates, config.special).map(Some)
    }

    /// A template that no file has; `path` is the file that asks for it.
    pub(super) fn built_in(path: &Path, format: &Format) -> Result<ChatTemplate> {
        let tokens = format.tokens.iter().map(|(name, token)| ((*name).to_owned(), token.clone()));
        ChatTemplate::embedded(path, format.template, tokens.collect())
    }

    /// A template that is part of a larger file, with the special tokens that it may name.
    pub(super) fn embedded(path: &Path, source: &str, special: BTreeMap<String, String>) -> Result<ChatTemplate> {
        let templates = BTreeMap::from([("default".into(), source.to_owned())]);
        ChatTemplate::new(path.to_path_buf(), templates, special)
    }

    fn new(
        path: PathBuf,
        templates: BTreeMap<String, String>,
        special: BTreeMap<String, String>,
    ) -> Result<ChatTemplate> {
        let mut env = Environment::new();
        python::install(&mut env);
        env.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("default delimiters"),
        );
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_fuel(Some(FUEL));
        env.add_function("raise_exception", |message: String| {
            Err::<(), _>(minijinja::Error::from(ErrorKind::InvalidOperation).with_source(Raised(message)))
        });
        for (name, source) in templates {
            let source = without_generation_tags(&source);
            env.add_template_owned(name, source).map_err(|e| Error::Text {
                path: path.clone(),
                problem: format!("the chat template is not valid: {}", describe(&e)),
            })?;
        }
        Ok(ChatTemplate { path, env, special })
    }

    /// The prompt.
    ///
    /// # Errors
    /// If the template refuses the messages (its own words are in the error), fails, or runs without end.
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        let Some(messages) = input.messages.as_array().filter(|messages| !messages.is_empty()) else {
            return Err(Error::Request("the messages of a chat must be a list with at least one message".into()));
        };
        let messages = messages.iter().map(prepared).collect::<Result<Vec<Value>>>()?;
        let mut variables = Map::new();
        variables.extend(self.special.iter().map(|(name, token)| (name.clone(), json!(token))));
        variables.extend([("documents".into(), Value::Null)]);
        variables.extend(input.extra.clone());
        variables.extend([
            ("messages".into(), messages.into()),
            ("tools".into(), input.tools.cloned().unwrap_or(Value::Null)),
            ("add_generation_prompt".into(), input.add_generation_prompt.into()),
        ]);
        let now = input.now;
        let strftime = move |format: &str| strftime(now, format);
        let strftime = minijinja::Value::from_function(strftime);
        let context = minijinja::context! { strftime_now => strftime, ..minijinja::Value::from(Serde(&variables)) };
        self.template(input)?.render(context).map_err(|e| self.error(describe(&e)))
    }

    /// The text of all templates.
    pub(super) fn source(&self) -> String {
        self.env.templates().map(|(_, template)| template.source().to_owned()).collect()
    }

    fn template(&self, input: &ChatInput) -> Result<minijinja::Template<'_, '_>> {
        let tool_use = input.tools.and_then(|_| self.env.get_template("tool_use").ok());
        tool_use.map_or_else(|| self.env.get_template("default"), Ok).map_err(|_| {
            let names: Vec<&str> = self.env.templates().map(|(name, _)| name).collect();
            self.error(format!("there is no chat template named `default`, only {}", names.join(", ")))
        })
    }

    fn error(&self, problem: String) -> Error {
        Error::Text { path: self.path.clone(), problem }
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The templates of a checkpoint by name, and the file that they are in.
fn find(dir: &Path, config: &TokenizerConfig) -> Result<Option<(PathBuf, BTreeMap<String, String>)>> {
    let path = dir.join("chat_template.jinja");
    if let Some(source) = read_text(&path)? {
        let mut templates = BTreeMap::from([("default".into(), source)]);
        let more = dir.join("additional_chat_templates");
        for entry in more.read_dir().into_iter().flatten() {
            let file = entry.map_err(Error::io(&more, "list it"))?.path();
            if let Some(name) = file.file_name().and_then(|name| name.to_str()?.strip_suffix(".jinja")) {
                templates.insert(name.to_owned(), read_text(&file)?.unwrap_or_default());
            }
        }
        return Ok(Some((path, templates)));
    }
    if let Some(value) = config.get("chat_template") {
        return Ok(Some((config.path.clone(), named(&config.path, value)?)));
    }
    let path = dir.join("chat_template.json");
    match read_object(&path)?.and_then(|mut map| map.remove("chat_template")) {
        Some(value) => named(&path, &value).map(|templates| Some((path, templates))),
        None => Ok(None),
    }
}

/// `chat_template` is a string, a list of `{name, template}`, or an object from names to templates.
fn named(path: &Path, value: &Value) -> Result<BTreeMap<String, String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let templates = match value {
        Value::String(source) => Some(BTreeMap::from([("default".into(), source.clone())])),
        Value::Array(list) => {
            list.iter().map(|item| Some((text(item.get("name")?)?, text(item.get("template")?)?))).collect()
        }
        Value::Object(map) => map.iter().map(|(name, source)| Some((name.clone(), text(source)?))).collect(),
        _ => None,
    };
    templates.ok_or_else(|| Error::Text {
        path: path.to_path_buf(),
        problem: "chat_template: expected a string, or a list of objects with `name` and `template`".into(),
    })
}

/// A message as transformers hands it to the template: without keys that are null, and with its reasoning under every name
/// that templates look for.
fn prepared(message: &Value) -> Result<Value> {
    let Some(given) = message.as_object() else {
        return Err(Error::Request(format!("a message of a chat must be an object, not {message}")));
    };
    let mut message = Map::new();
    let given = || given.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone()));
    let names = ["reasoning_content", "thinking", "reasoning"];
    match names.into_iter().find_map(|name| given().find(|(key, _)| key == name)) {
        Some((_, reasoning)) => {
            message.insert("thinking".into(), reasoning.clone());
            message.extend(given());
            message.insert("reasoning_content".into(), reasoning);
        }
        None => message.extend(given()),
    }
    Ok(message.into())
}

/// Transformers marks the assistant's words with `{% generation %}`, a block that prints what is in it; `{% with %}`
/// does that, with the same scope.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out += before;
        let body = tag.trim_start_matches(['-', '+']).trim_start();
        let end = body.strip_prefix("end");
        match end.unwrap_or(body).strip_prefix("generation") {
            Some(tail) if tail.trim_start().trim_start_matches(['-', '+']).starts_with("%}") => {
                out += &tag[..tag.len() - body.len()];
                out += if end.is_some() { "endwith" } else { "with" };
                rest = tail;
            }
            _ => rest = tag,
        }
    }
    out + rest
}

fn strftime(now: Option<DateTime>, format: &str) -> Result<String, minijinja::Error> {
    let now = now.unwrap_or_else(|| jiff::Zoned::now().datetime());
    jiff::fmt::strtime::format(format, now)
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
}

/// What `raise_exception` was given.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// An error of the engine, in one line.
fn describe(error: &minijinja::Error) -> String {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref() {
            return format!("the chat template refuses these messages: {message}");
        }
        cause = e.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("the chat template does not end: stopped after {FUEL} steps");
    }
    format!("the chat template failed: {error}")
}

//! Chats to token ids such that only the template writes control tokens: whatever the text of a message says, it is
//! encoded as text.
//!
//! A rendered prompt does not tell who wrote which part of it. So the strings of the messages are rendered with some of
//! their characters replaced by private-use ones (masks) that no control token contains, the control tokens are found in
//! the prompt, and then the characters are put back into the text between them.
//!
//! Templates look at what they render (`'</think>' in content`), so masks are chosen twice. The *light* masks replace the
//! first character of every control token that is written out in a string, and nothing else. The *heavy* ones also replace
//! every character with which a control token could begin or end, so that none can be put together from parts (`<|im_` in a
//! message, `end|>` from elsewhere). The light result is used if it has exactly the control tokens of the heavy one.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value};
use tokenizers::AddedVocabulary;

use crate::{Error, Result};

use super::chat::{ChatInput, ChatTemplate};
use super::tokenizer::{Tokenizer, guarded};

impl ChatTemplate {
    /// Renders a chat and encodes it. The ids are those of the rendered text, [`Tokenizer::encode`]d without a frame,
    /// except that control tokens written out in messages, tools or extra variables become plain text.
    ///
    /// Control tokens are the special tokens and all that look like `<|…|>`. In messages from anyone but the assistant, the
    /// system or the developer, they are also the other added tokens that the template uses (`<tool_response>`, `<think>`).
    /// Roles are structure, not text: they must be plain words.
    ///
    /// # Errors
    /// As [`render`](ChatTemplate::render), and if a role is not a plain word.
    pub fn encode(&self, tokenizer: &Tokenizer, input: &ChatInput) -> Result<Vec<u32>> {
        let plain = self.render(input)?;
        check_roles(input.messages)?;
        let source = self.source();
        let controls = Controls::new(tokenizer, &source);
        let masks = Masks::new(tokenizer, &controls, &source, input);
        let render = |heavy| self.render(&masks.input(&controls, input, heavy)?.as_input(input));
        let heavy = render(true)?;
        if heavy == plain {
            return tokenizer.encode_written(&plain);
        }
        let light = masks.encode(tokenizer, &controls, &render(false)?)?;
        let heavy = masks.encode(tokenizer, &controls, &heavy)?;
        let same = controls.among(&light).eq(controls.among(&heavy));
        Ok(if same { light } else { heavy })
    }
}

/// A role becomes part of control tokens in many templates (`'<|' + role + '|>'`).
fn check_roles(messages: &Value) -> Result<()> {
    let roles = messages.as_array().into_iter().flatten().filter_map(|message| message["role"].as_str());
    let plain = |c: char| c.is_alphanumeric() || "_-. ".contains(c);
    match roles.into_iter().find(|role| !role.chars().all(plain)) {
        Some(role) => Err(Error::Request(format!("the role {role:?} of a message is not a plain word"))),
        None => Ok(()),
    }
}

/// The tokens that messages must not write.
struct Controls {
    /// Not to be written by anyone.
    always: Vec<String>,
    /// Markup that the assistant writes too, and system prompts mention.
    markup: Vec<String>,
    /// Their ids, except that of the unknown token, which plain text may well give.
    ids: HashSet<u32>,
}

impl Controls {
    fn new(tokenizer: &Tokenizer, source: &str) -> Controls {
        let mut controls = Controls { always: Vec::new(), markup: Vec::new(), ids: HashSet::new() };
        for (id, token) in tokenizer.added().get_added_tokens_decoder() {
            let content = &token.content;
            let list = if token.special || barred(content) {
                &mut controls.always
            } else if source.contains(content.as_str()) && !content.trim().is_empty() {
                &mut controls.markup
            } else {
                continue;
            };
            list.push(content.clone());
            controls.ids.insert(*id);
        }
        // No vocabulary has this character: what comes out is bytes, or the unknown token.
        let (words, none) = (tokenizer.words(), AddedVocabulary::new());
        let unknown = guarded(|| words.encode(&none, "\u{10FFFF}", &|c| c, &HashSet::new()));
        for unknown in unknown.unwrap_or_default() {
            controls.ids.remove(&unknown);
        }
        controls
    }

    /// What a string must not write: `trusted` ones may write markup.
    fn of(&self, trusted: bool) -> impl Iterator<Item = &str> {
        let markup = if trusted { &[][..] } else { &self.markup };
        self.always.iter().chain(markup).map(String::as_str)
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.of(false)
    }

    fn among<'a>(&'a self, ids: &'a [u32]) -> impl Iterator<Item = &'a u32> {
        ids.iter().filter(|id| self.ids.contains(id))
    }
}

/// Whether a token looks like `<|this|>`; DeepSeek writes its role markers with full-width bars and does not call them
/// special.
fn barred(token: &str) -> bool {
    (token.starts_with("<|") && token.ends_with("|>")) || (token.starts_with("<｜") && token.ends_with("｜>"))
}

/// Private-use characters that stand for others.
struct Masks(BTreeMap<char, char>);

/// The parts of a [`ChatInput`] with masked strings.
struct Masked {
    messages: Value,
    tools: Option<Value>,
    extra: Map<String, Value>,
}

impl Masked {
    fn as_input<'a>(&'a self, input: &ChatInput) -> ChatInput<'a> {
        ChatInput {
            messages: &self.messages,
            tools: self.tools.as_ref(),
            add_generation_prompt: input.add_generation_prompt,
            extra: self.extra.clone(),
            now: input.now,
        }
    }
}

impl Masks {
    /// Masks for every character of the input that may have to be hidden, none of which occurs in the input or the
    /// templates.
    fn new(tokenizer: &Tokenizer, controls: &Controls, source: &str, input: &ChatInput) -> Masks {
        let mut used: BTreeSet<char> = source.chars().collect();
        let extra = input.extra.iter().map(|(key, value)| key.clone() + &value.to_string());
        for text in [input.messages, input.tools.unwrap_or_default()].map(Value::to_string).into_iter().chain(extra) {
            used.extend(text.chars());
        }
        let ends: BTreeSet<char> =
            controls.all().flat_map(|token| [token.chars().next(), token.chars().last()]).flatten().collect();
        let hides = |c: &char| ends.contains(c) || tokenizer.words().normalized(*c).chars().any(|c| ends.contains(&c));
        let hidden: Vec<char> = used.iter().copied().filter(hides).collect();
        // Two planes of 65,534 characters; more text than fits a context would be needed to use them up.
        let free = ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}').filter(|c| !used.contains(c));
        Masks(hidden.into_iter().zip(free).collect())
    }

    fn input(&self, controls: &Controls, input: &ChatInput, heavy: bool) -> Result<Masked> {
        let message = |message: &Value| {
            let role = message["role"].as_str();
            let trusted = matches!(role, Some("assistant" | "system" | "developer"));
            let mut masked = self.value(message, controls, trusted, heavy);
            if let (Some(role), Some(masked)) = (role, masked.get_mut("role")) {
                *masked = role.into();
            }
            masked
        };
        let Some(messages) = input.messages.as_array() else {
            return Err(Error::Request("the messages of a chat must be a list".into()));
        };
        Ok(Masked {
            messages: messages.iter().map(message).collect(),
            tools: input.tools.map(|tools| self.value(tools, controls, true, heavy)),
            extra: input.extra.iter().map(|(key, v)| (key.clone(), self.value(v, controls, true, heavy))).collect(),
        })
    }

    fn value(&self, value: &Value, controls: &Controls, trusted: bool, heavy: bool) -> Value {
        match value {
            Value::String(text) => self.text(text, controls, trusted, heavy).into(),
            Value::Array(items) => items.iter().map(|item| self.value(item, controls, trusted, heavy)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, v)| (self.text(key, controls, trusted, heavy), self.value(v, controls, trusted, heavy)))
                .collect(),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str, controls: &Controls, trusted: bool, heavy: bool) -> String {
        // Markup that the text may write stays whole, since templates take it apart.
        let allowed = |rest: &str| {
            let markup = controls.markup.iter().filter(|token| rest.starts_with(token.as_str())).map(String::len);
            markup.chain([tag(rest)]).max().filter(|_| trusted).unwrap_or(0)
        };
        let mut allowed_until = 0;
        let mut out = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let rest = &text[at..];
            allowed_until = allowed_until.max(at + allowed(rest));
            let Some(&mask) = self.0.get(&c) else {
                out.push(c);
                continue;
            };
            // Letters are left alone: hiding those of `sop` would hide half of every text. So a template that takes
            // characters out of messages could make such a token; no known one of ChatGLM does.
            let part = heavy && at >= allowed_until && !c.is_alphanumeric();
            let hide = part || controls.of(trusted).any(|token| rest.starts_with(token));
            out.push(if hide { mask } else { c });
        }
        out
    }

    /// Finds the control tokens of a masked prompt, then unmasks and encodes what is between them.
    fn encode(&self, tokenizer: &Tokenizer, controls: &Controls, text: &str) -> Result<Vec<u32>> {
        let hidden: BTreeMap<char, char> = self.0.iter().map(|(c, mask)| (*mask, *c)).collect();
        let unmask = |c: char| hidden.get(&c).copied().unwrap_or(c);
        let (words, added) = (tokenizer.words(), tokenizer.added());
        guarded(|| words.encode(added, text, &unmask, &controls.ids))
            .map_err(|e| tokenizer.error(format!("cannot encode the chat: {e}")))
    }
}

/// The length of the `<tag>` or `</tag>` at the start of a text.
fn tag(text: &str) -> usize {
    let Some(body) = text.strip_prefix("</").or_else(|| text.strip_prefix('<')) else { return 0 };
    let rest = body.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if rest.len() < body.len() && rest.starts_with('>') { text.len() - rest.len() + 1 } else { 0 }
}

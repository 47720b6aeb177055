//! Incremental detokenisation: each token yields the text that no later token can change, at a cost that does not depend
//! on how much came before. The whole decoder of a `tokenizer.json` is run this way, and decoding at once is the same
//! code, so both agree by construction. Other tokenizers are decoded by [`Joined`].

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::mem::take;
use std::sync::LazyLock;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, Result as HfResult};

use crate::Result;

use super::joined::Joined;
use super::tokenizer::Tokenizer;
use super::words::{Said, Words};

/// Turns tokens into text one by one. The pieces from [`push`](TextStream::push) and [`finish`](TextStream::finish)
/// joined together are what [`Tokenizer::decode`] gives for all ids at once.
#[derive(Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: State,
}

/// What is remembered between two tokens.
#[derive(Clone)]
enum State {
    Stages(Vec<Stage>),
    Joined(Joined),
}

impl State {
    fn new(words: &Words) -> State {
        match words {
            Words::Library { stages, .. } => State::Stages(stages.clone()),
            Words::SentencePiece { .. } | Words::Tiktoken(_) => State::Joined(Joined::new(words)),
        }
    }
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> TextStream {
        let state = State::new(tokenizer.words());
        TextStream { tokenizer, skip_special, state }
    }

    /// Takes one token and returns the text that has become certain: whole characters only, often empty in the middle
    /// of one.
    ///
    /// # Errors
    /// If the id is outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let said = self.tokenizer.said(id)?;
        if self.skip_special && self.tokenizer.is_special(id, &said) {
            return Ok(String::new());
        }
        let mut text = String::new();
        match (&mut self.state, said) {
            (State::Stages(stages), Said::Token(token)) => {
                run(stages, token, &mut text).map_err(|e| self.tokenizer.error(format!("cannot decode: {e}")))?;
            }
            (State::Joined(joined), said) => text = joined.push(self.tokenizer.words(), said),
            (State::Stages(_), _) => {}
        }
        Ok(text)
    }

    /// There are no more tokens: returns what was held back. The stream is then as new.
    pub fn finish(&mut self) -> Result<String> {
        let mut text = String::new();
        match &mut self.state {
            State::Joined(joined) => text = joined.finish(),
            State::Stages(stages) => {
                finish(stages, &mut text).map_err(|e| self.tokenizer.error(format!("cannot decode: {e}")))?;
            }
        }
        self.state = State::new(self.tokenizer.words());
        Ok(text)
    }
}

/// One step of a decoder. Until the tokens are fused (by `Fuse` or `ByteLevel`) a stage sees whole tokens; after that,
/// arbitrary pieces of one long string.
#[derive(Clone)]
pub(super) enum Stage {
    /// A decoder whose result for a token depends only on whether it is the first.
    PerToken { decoder: DecoderWrapper, first: bool },
    /// `BPEDecoder`: the end-of-word mark becomes a space except in the last token, which is therefore held.
    WordEnd { mark: String, held: Option<String> },
    /// Tokens like `<0xE2>` are bytes. A run of them is text if all of it is UTF-8, else one U+FFFD per byte: nothing of
    /// a run is certain before its end.
    ByteFallback { run: Vec<u8> },
    /// Characters stand for bytes, which are decoded as one lossy UTF-8 string.
    ByteLevel { tail: Vec<u8> },
    /// No decoder at all: tokens are joined with spaces.
    Spaces { first: bool },
    /// Removes up to `start` characters from the start and `stop` from the end, of each token or of the fused string.
    Strip { mark: char, start: usize, stop: usize, fused: Option<Fused> },
}

/// What `Strip` remembers of a string that comes in pieces: how many more characters may be removed from its start, and
/// the marks that may turn out to be its end.
#[derive(Clone)]
pub(super) struct Fused {
    start_left: usize,
    tail: VecDeque<char>,
}

/// The stages of a decoder, or the name of a step that cannot be run incrementally.
pub(super) fn stages(decoder: Option<&DecoderWrapper>) -> Result<Vec<Stage>, String> {
    let Some(decoder) = decoder else { return Ok(vec![Stage::Spaces { first: true }]) };
    let mut out = Vec::new();
    let mut fused = false;
    add_stages(decoder, &mut fused, &mut out)?;
    Ok(out)
}

fn add_stages(decoder: &DecoderWrapper, fused: &mut bool, out: &mut Vec<Stage>) -> Result<(), String> {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for decoder in sequence.get_decoders() {
                add_stages(decoder, fused, out)?;
            }
        }
        DecoderWrapper::Fuse(_) => *fused = true,
        DecoderWrapper::Strip(strip) => {
            let state = fused.then(|| Fused { start_left: strip.start, tail: VecDeque::new() });
            out.push(Stage::Strip { mark: strip.content, start: strip.start, stop: strip.stop, fused: state });
        }
        DecoderWrapper::CTC(_) => return Err("a CTC decoder".into()),
        _ if *fused => return Err("a decoder with a step that changes tokens after they were joined".into()),
        DecoderWrapper::BPE(bpe) => out.push(Stage::WordEnd { mark: bpe.suffix.clone(), held: None }),
        DecoderWrapper::ByteFallback(_) => out.push(Stage::ByteFallback { run: Vec::new() }),
        DecoderWrapper::ByteLevel(_) => {
            *fused = true;
            out.push(Stage::ByteLevel { tail: Vec::new() });
        }
        DecoderWrapper::Replace(_) | DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) => {
            out.push(Stage::PerToken { decoder: decoder.clone(), first: true });
        }
    }
    Ok(())
}

/// Sends one token through all stages.
fn run(stages: &mut [Stage], token: String, text: &mut String) -> HfResult<()> {
    let Some((stage, rest)) = stages.split_first_mut() else {
        text.push_str(&token);
        return Ok(());
    };
    stage.push(token, &mut |token| run(rest, token, text))
}

/// Ends the stages in order, each of which may still have something to send to those after it.
fn finish(stages: &mut [Stage], text: &mut String) -> HfResult<()> {
    let Some((stage, rest)) = stages.split_first_mut() else { return Ok(()) };
    stage.finish(&mut |token| run(rest, token, text))?;
    finish(rest, text)
}

type Next<'a> = &'a mut dyn FnMut(String) -> HfResult<()>;

impl Stage {
    fn push(&mut self, token: String, next: Next) -> HfResult<()> {
        match self {
            Stage::PerToken { decoder, first } => {
                // The library tells the first token from the others by position.
                let tokens = if take(first) { vec![token] } else { vec![String::new(), token] };
                decoder.decode_chain(tokens)?.pop().map_or(Ok(()), next)
            }
            Stage::WordEnd { mark, held } => match held.replace(token) {
                Some(before) => next(before.replace(mark.as_str(), " ")),
                None => Ok(()),
            },
            Stage::ByteFallback { run } => match fallback_byte(&token) {
                Some(byte) => {
                    run.push(byte);
                    Ok(())
                }
                None => {
                    flush_run(run, next)?;
                    next(token)
                }
            },
            Stage::ByteLevel { tail } => {
                tail.extend_from_slice(&byte_level(&token));
                next(take_utf8(tail, false))
            }
            Stage::Spaces { first } => next(if take(first) { token } else { format!(" {token}") }),
            Stage::Strip { mark, start, stop, fused: None } => next(strip(&token, *mark, *start, *stop).to_owned()),
            Stage::Strip { mark, stop, fused: Some(fused), .. } => next(fused.push(&token, *mark, *stop)),
        }
    }

    fn finish(&mut self, next: Next) -> HfResult<()> {
        match self {
            Stage::WordEnd { mark, held } => match held.take() {
                Some(last) => next(last.replace(mark.as_str(), "")),
                None => Ok(()),
            },
            Stage::ByteFallback { run } => flush_run(run, next),
            Stage::ByteLevel { tail } if !tail.is_empty() => next(String::from_utf8_lossy(&take(tail)).into_owned()),
            // The marks still in `fused.tail` are the end of the string, and removed.
            _ => Ok(()),
        }
    }
}

impl Fused {
    fn push(&mut self, piece: &str, mark: char, stop: usize) -> String {
        let mut out = String::new();
        for c in piece.chars() {
            if self.start_left > 0 && c == mark {
                self.start_left -= 1;
                continue;
            }
            self.start_left = 0;
            if c == mark && stop > 0 {
                self.tail.push_back(c);
                if self.tail.len() > stop {
                    out.extend(self.tail.pop_front());
                }
            } else {
                out.extend(self.tail.drain(..));
                out.push(c);
            }
        }
        out
    }
}

/// Removes up to `start` marks from the start and `stop` from the end.
fn strip(token: &str, mark: char, start: usize, stop: usize) -> &str {
    let mut token = token;
    for _ in 0..start.min(token.len()) {
        token = token.strip_prefix(mark).unwrap_or(token);
    }
    for _ in 0..stop.min(token.len()) {
        token = token.strip_suffix(mark).unwrap_or(token);
    }
    token
}

/// `<0xE2>` is the byte 0xE2.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

fn flush_run(run: &mut Vec<u8>, next: Next) -> HfResult<()> {
    if run.is_empty() {
        return Ok(());
    }
    next(String::from_utf8(take(run)).unwrap_or_else(|e| "\u{FFFD}".repeat(e.as_bytes().len())))
}

/// Takes from `bytes` all that later bytes cannot change, and leaves an unfinished character. An invalid sequence becomes
/// one U+FFFD, or as many as it has bytes.
pub(super) fn take_utf8(bytes: &mut Vec<u8>, each_byte: bool) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        let invalid = chunk.invalid();
        let last = done + invalid.len() == bytes.len();
        // The beginning of a character, and nothing after it: more bytes may still complete it.
        if last && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
            break;
        }
        let marks = if each_byte { invalid.len() } else { usize::from(!invalid.is_empty()) };
        text.extend(std::iter::repeat_n('\u{FFFD}', marks));
        done += invalid.len();
    }
    bytes.drain(..done);
    text
}

/// The bytes of a byte-level token: each character stands for one byte (the table of GPT-2), and a token with any other
/// character (an added one) for its own UTF-8.
fn byte_level(token: &str) -> Cow<'_, [u8]> {
    static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut others = 0x100..;
        let stands_for =
            |b: u8| if printable(b) { char::from(b) } else { others.next().and_then(char::from_u32).unwrap_or('\0') };
        (0..=255).map(stands_for).zip(0..=255).collect()
    });
    match token.chars().map(|c| BYTES.get(&c).copied()).collect::<Option<Vec<u8>>>() {
        Some(bytes) => Cow::Owned(bytes),
        None => Cow::Borrowed(token.as_bytes()),
    }
}

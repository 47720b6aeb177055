//! Generation: sequences of tokens that share every pass. Each pass takes what is pending of every sequence, prompt or
//! last token, as far as the plan's rows go; sequences whose tokens are all in get their next one.

use std::collections::VecDeque;
use std::time::Instant;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::pass::{Segment, Wanted};
use crate::sample::{Sampler, Sampling};
use crate::text::{StopStrings, TextStream, Tokenizer};

/// When to stop and how to choose tokens. [`Model::defaults`](crate::Model::defaults) gives what the model's
/// `generation_config.json` asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens to add to each prompt; the context may end a sequence earlier.
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Text that ends a sequence; it is not part of the answer.
    pub stop: Vec<String>,
    /// Tokens that end a sequence.
    pub eos: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { max_new_tokens: 256, sampling: Sampling::default(), stop: Vec::new(), eos: Vec::new() }
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model gave an end token.
    Eos,
    /// A stop string appeared.
    Stop,
    /// `max_new_tokens` were given.
    Length,
    /// The context is full.
    Context,
    /// The caller asked to stop.
    Interrupted,
}

/// One step of one sequence, as [`Generation`] yields it.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Which prompt of the call, from 0.
    pub sequence: usize,
    /// The token, unless a sequence that was interrupted ends without one.
    pub id: Option<u32>,
    /// Text that has become certain with this token: whole characters, nothing that may still be part of a stop string.
    pub text: String,
    /// Set on the last token of a sequence.
    pub finish: Option<Finish>,
}

/// What became of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// New tokens, an end token included.
    pub ids: Vec<u32>,
    pub text: String,
    pub finish: Option<Finish>,
}

impl Output {
    /// Adds the sequence's next token.
    pub fn push(&mut self, token: &Token) {
        self.ids.extend(token.id);
        self.text.push_str(&token.text);
        self.finish = token.finish;
    }
}

/// Counts of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GenerateStats {
    pub prompt_tokens: usize,
    pub new_tokens: usize,
    /// Passes over the weights.
    pub passes: u64,
    /// Bytes of weights that were read from disk.
    pub bytes_read: u64,
    /// From the start of the call to its last token so far.
    pub seconds: f64,
    /// Until the first token.
    pub first_token_seconds: f64,
    /// For each token after the first, or after those that came with it: without the first pass, which fills the memory
    /// that weights stay in. None before there are any.
    pub steady_seconds_per_token: Option<f64>,
    /// That passes spent waiting for weights.
    pub disk_wait_seconds: f64,
}

/// The tokens of a call, as they come: an iterator.
pub struct Generation<'m> {
    engine: &'m mut Engine,
    cached: &'m mut [Cached],
    sequences: Vec<Sequence>,
    ready: VecDeque<Token>,
    failed: bool,
    started: Instant,
    stats: GenerateStats,
    /// Tokens that the pass with the first one gave.
    first_tokens: usize,
    /// Passes, bytes and waits of the engine before this call.
    before: (u64, u64, f64),
}

/// What the KV cache of a sequence holds, so that a later call can go on from there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cached {
    ids: Vec<u32>,
    /// How many of them, from the first, were part of a prompt when they were computed.
    prompt: usize,
}

impl Cached {
    pub fn clear(&mut self) {
        *self = Cached::default();
    }

    /// Keeps what a sequence that begins with this prompt can use, and says how many tokens that is. At least one token of
    /// a prompt is computed: it gives the logits.
    fn keep(&mut self, engine: &Engine, prompt: &[u32]) -> usize {
        let common = common_prefix(&self.ids, &prompt[..prompt.len() - 1]);
        let kept = engine.reusable(self.ids.len(), self.prompt, common);
        self.ids.truncate(kept);
        self.prompt = self.prompt.min(kept);
        kept
    }

    /// Notes that tokens have been computed, of a sequence whose prompt has so many.
    fn extend(&mut self, ids: &[u32], prompt: usize) {
        self.ids.extend(ids);
        self.prompt = self.ids.len().min(prompt);
    }
}

struct Sequence {
    /// Prompt and answer.
    ids: Vec<u32>,
    prompt: usize,
    /// Tokens that are in the KV cache.
    fed: usize,
    /// Tokens of the sequence when it was last in a pass.
    rotated_for: usize,
    limit: usize,
    context: usize,
    eos: Vec<u32>,
    sampler: Sampler,
    text: Option<TextStream>,
    stops: StopStrings,
    finish: Option<Finish>,
}

impl<'m> Generation<'m> {
    pub(crate) fn new(
        engine: &'m mut Engine,
        cached: &'m mut [Cached],
        tokenizer: Option<&Tokenizer>,
        prompts: Vec<Vec<u32>>,
        options: &GenerateOptions,
    ) -> Result<Generation<'m>> {
        options.sampling.check()?;
        check_prompts(engine, &prompts)?;
        if tokenizer.is_none() && !options.stop.is_empty() {
            return Err(Error::Request("stop strings need a tokenizer, and this model has none".into()));
        }
        let stats = GenerateStats { prompt_tokens: prompts.iter().map(Vec::len).sum(), ..Default::default() };
        let sequences = prompts.into_iter().enumerate().map(|(index, ids)| {
            let fed = cached[index].keep(engine, &ids);
            Sequence::new(engine, index, ids, fed, tokenizer, options)
        });
        let sequences = sequences.collect::<Result<Vec<_>>>()?;
        let before = totals(engine);
        Ok(Generation {
            engine,
            cached,
            sequences,
            ready: VecDeque::new(),
            failed: false,
            started: Instant::now(),
            stats,
            first_tokens: 0,
            before,
        })
    }

    /// Counts so far.
    pub fn stats(&self) -> GenerateStats {
        let (passes, bytes, wait) = totals(self.engine);
        GenerateStats {
            passes: passes - self.before.0,
            bytes_read: bytes - self.before.1,
            disk_wait_seconds: wait - self.before.2,
            ..self.stats
        }
    }

    /// Runs to the end and collects what each prompt became.
    pub fn outputs(&mut self) -> Result<Vec<Output>> {
        let mut outputs = vec![Output::default(); self.sequences.len()];
        for token in self {
            let token = token?;
            outputs[token.sequence].push(&token);
        }
        Ok(outputs)
    }

    /// One pass, and the tokens that come of it.
    fn advance(&mut self) -> Result<()> {
        self.restart();
        let shares = self.shares();
        let segments: Vec<Segment> = self
            .sequences
            .iter()
            .enumerate()
            .zip(&shares)
            .filter(|(_, share)| **share > 0)
            .map(|((index, sequence), share)| Segment {
                sequence: index,
                start: sequence.fed,
                tokens: &sequence.ids[sequence.fed..sequence.fed + share],
                length: sequence.ids.len(),
                prompt: sequence.prompt,
                logits: if sequence.fed + share == sequence.ids.len() { Wanted::Last } else { Wanted::None },
            })
            .collect();
        let vocab = self.engine.program().vocab;
        let logits = self.engine.forward(&segments)?;
        let mut rows = logits.chunks_exact_mut(vocab);
        for (index, (sequence, share)) in self.sequences.iter_mut().zip(&shares).enumerate() {
            self.cached[index].extend(&sequence.ids[sequence.fed..sequence.fed + share], sequence.prompt);
            sequence.fed += share;
            if *share > 0 && sequence.fed == sequence.ids.len() {
                let logits = rows.next().expect("a row of logits for every sequence that is complete");
                self.ready.push_back(sequence.next(index, logits)?);
            }
        }
        self.stats.new_tokens += self.ready.len();
        self.stats.seconds = self.started.elapsed().as_secs_f64();
        if !self.ready.is_empty() {
            self.note_times();
        }
        Ok(())
    }

    /// After a pass that gave tokens.
    fn note_times(&mut self) {
        if self.first_tokens == 0 {
            self.first_tokens = self.stats.new_tokens;
            self.stats.first_token_seconds = self.stats.seconds;
        } else {
            let later = self.stats.new_tokens - self.first_tokens;
            self.stats.steady_seconds_per_token =
                Some((self.stats.seconds - self.stats.first_token_seconds) / later as f64);
        }
    }

    /// Forgets what the caches hold of sequences that have grown beyond a length at which their rotation changes.
    fn restart(&mut self) {
        let program = self.engine.program();
        for (sequence, cached) in self.sequences.iter_mut().zip(self.cached.iter_mut()) {
            let (was, is) = (sequence.rotated_for, sequence.ids.len());
            if program.restarts().any(|length| was <= length && length < is) {
                sequence.fed = 0;
                cached.clear();
            }
            sequence.rotated_for = is;
        }
    }

    /// How many tokens of each sequence the next pass takes: all that are pending, but every sequence gets its turn.
    fn shares(&self) -> Vec<usize> {
        let mut live = self.sequences.iter().filter(|sequence| sequence.finish.is_none()).count();
        let mut left = self.engine.plan().rows;
        let share = |sequence: &Sequence| {
            if sequence.finish.is_some() {
                return 0;
            }
            live -= 1;
            let share = (sequence.ids.len() - sequence.fed).min(left - live);
            left -= share;
            share
        };
        self.sequences.iter().map(share).collect()
    }

    /// Ends what is still running, with the text that was held back.
    fn interrupt(&mut self) -> Result<()> {
        self.engine.stop_flag().clear();
        self.stats.seconds = self.started.elapsed().as_secs_f64();
        for (sequence_index, sequence) in self.sequences.iter_mut().enumerate() {
            if sequence.finish.is_none() {
                sequence.finish = Some(Finish::Interrupted);
                let text = sequence.rest()?;
                let finish = sequence.finish;
                self.ready.push_back(Token { sequence: sequence_index, id: None, text, finish });
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        match self.advance() {
            Err(Error::Interrupted) => self.interrupt(),
            other => other,
        }
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        loop {
            if let Some(token) = self.ready.pop_front() {
                return Some(Ok(token));
            }
            if self.failed || self.sequences.iter().all(|sequence| sequence.finish.is_some()) {
                return None;
            }
            if let Err(error) = self.step() {
                self.failed = true;
                return Some(Err(error));
            }
        }
    }
}

impl Sequence {
    fn new(
        engine: &Engine,
        index: usize,
        ids: Vec<u32>,
        fed: usize,
        tokenizer: Option<&Tokenizer>,
        options: &GenerateOptions,
    ) -> Result<Sequence> {
        let mut sampler = Sampler::new(options.sampling.clone(), index as u64, engine.program().vocab);
        ids.iter().for_each(|id| sampler.observe(*id));
        Ok(Sequence {
            prompt: ids.len(),
            rotated_for: ids.len(),
            ids,
            fed,
            limit: options.max_new_tokens,
            context: engine.plan().context,
            eos: options.eos.clone(),
            sampler,
            text: tokenizer.map(|tokenizer| tokenizer.stream(true)),
            stops: StopStrings::new(options.stop.clone())?,
            finish: (options.max_new_tokens == 0).then_some(Finish::Length),
        })
    }

    /// Chooses the next token and says what it adds.
    fn next(&mut self, index: usize, logits: &mut [f32]) -> Result<Token> {
        let id = self.sampler.sample(logits);
        self.sampler.observe(id);
        self.ids.push(id);
        let new = self.ids.len() - self.prompt;
        let mut text = match &mut self.text {
            Some(stream) => self.stops.push(&words(stream.push(id))?),
            None => String::new(),
        };
        self.finish = match () {
            _ if self.eos.contains(&id) => Some(Finish::Eos),
            _ if self.stops.stopped() => Some(Finish::Stop),
            _ if new == self.limit => Some(Finish::Length),
            // Its place in the cache would be the first beyond the end.
            _ if self.ids.len() > self.context => Some(Finish::Context),
            _ => None,
        };
        if self.finish.is_some() {
            text.push_str(&self.rest()?);
        }
        Ok(Token { sequence: index, id: Some(id), text, finish: self.finish })
    }

    /// Text that was held back and can no longer become anything else.
    fn rest(&mut self) -> Result<String> {
        let Some(stream) = &mut self.text else { return Ok(String::new()) };
        let mut rest = self.stops.push(&stream.finish()?);
        rest.push_str(&self.stops.finish());
        Ok(rest)
    }
}

/// The text of a token. Rows that only pad the embedding have none: a model may still choose one of them.
fn words(pushed: Result<String>) -> Result<String> {
    match pushed {
        Err(Error::Request(_)) => Ok(String::new()),
        other => other,
    }
}

fn check_prompts(engine: &Engine, prompts: &[Vec<u32>]) -> Result<()> {
    let plan = engine.plan();
    if prompts.len() > plan.sequences {
        let problem = format!("{} prompts, but the model was opened for {} sequences", prompts.len(), plan.sequences);
        return Err(Error::Request(problem));
    }
    for prompt in prompts {
        if prompt.is_empty() {
            return Err(Error::Request("the prompt is empty: there is no token to begin from".into()));
        }
        if prompt.len() > plan.context {
            let problem = format!(
                "the prompt has {} tokens, and the context holds {}; raise --context or cut the prompt (--max-length)",
                prompt.len(),
                plan.context
            );
            return Err(Error::Request(problem));
        }
    }
    Ok(())
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn totals(engine: &Engine) -> (u64, u64, f64) {
    let stream = engine.stream_stats();
    let (mut bytes, mut wait) = (stream.bytes_read, stream.consumer_wait);
    if let Some(experts) = engine.expert_stats() {
        bytes += experts.bytes_read;
        wait += experts.consumer_wait;
    }
    (engine.passes(), bytes, wait.as_secs_f64())
}

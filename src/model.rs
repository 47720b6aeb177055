//! A model, opened within a budget: what a caller of the library holds. It joins the checkpoint, its family's program,
//! the plan, the engine and the text side.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::backend::cpu::Cpu;
use crate::backend::{Device, Processor};
use crate::checkpoint::Checkpoint;
use crate::disk::{DiskOptions, Geometry, Source};
use crate::engine::{Engine, Progress, StopFlag};
use crate::error::{Error, Result};
use crate::family::{self, Config, Family};
use crate::generate::{Cached, GenerateOptions, Generation};
use crate::hub::{Hub, HubOptions, Need};
use crate::memory;
use crate::pack;
use crate::pass::{Segment, Wanted};
use crate::plan::{Plan, Request};
use crate::profile::Recorder;
use crate::program::Program;
use crate::stream::{DemandStats, StreamStats};
use crate::text::{ChatInput, TextSide};

/// How to open a model. The default takes half of the memory that is free.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The hard limit on memory for weights, KV cache and activations, in bytes. The program itself and the tokenizer
    /// come on top (below 150 MB). None: half of what is available to this process now.
    pub ram: Option<u64>,
    /// The most tokens of one sequence, prompt and answer together. None: 4096, or what the model was made for if less.
    pub context: Option<usize>,
    /// Sequences that may run together. 0 counts as 1.
    pub sequences: usize,
    /// Whether [`Model::logits`] will be called: it needs memory for logits at every position of a pass.
    pub all_logits: bool,
    /// How the disk is read.
    pub disk: DiskOptions,
    /// Directories with the same files on other drives, to be read in parallel.
    pub replicas: Vec<PathBuf>,
    /// Compare every tile with the checksums that packing wrote, each time it is streamed: an error names the tensor whose
    /// bytes are not those that were written. Only for models that `layerstream pack` wrote.
    pub check: bool,
    /// Threads that compute. None: one for each core.
    pub threads: Option<usize>,
    /// What computes.
    pub device: Device,
    /// The hard limit on memory of the GPU, in bytes, with all that the driver takes of it for this process. None: nine
    /// tenths of what is free; if that is too little, [`Device::Auto`] is the processor.
    pub vram: Option<u64>,
    /// What is told where the time goes: reads, copies and steps.
    pub recorder: Recorder,
    /// Families of the caller's own. They are asked before those of this crate.
    pub families: Vec<Family>,
}

/// A checkpoint, its program and its plan, before any memory is taken: enough to say what would happen.
pub struct Outline {
    checkpoint: Checkpoint,
    program: Program,
    plan: Plan,
    source: Source,
    processor: Processor,
}

impl Outline {
    /// Reads headers and configuration, and divides the budget. `path` is a path, or the name of a repository of the
    /// Hugging Face Hub, as for [`Model::open`].
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn new(path: &Path, options: &Options) -> Result<Outline> {
        let path = Hub::new(HubOptions::from_env()).open(path, Need::Model)?;
        let checkpoint = Checkpoint::open(&path)?;
        let program = family::program_of(&checkpoint, &Config::of(&checkpoint)?, &options.families)?;
        Outline::with_program(checkpoint, program, options)
    }

    /// The same for a program that the caller made, or changed, for this checkpoint.
    ///
    /// # Errors
    /// A program that does not hold together, a budget below its floor, or files that cannot be read.
    pub fn with_program(checkpoint: Checkpoint, program: Program, options: &Options) -> Result<Outline> {
        program.check()?;
        let mut source = source(&checkpoint, &options.replicas);
        if options.check {
            source.checksums = Some(Arc::new(pack::checksums(&checkpoint)?));
        }
        let processor = Processor::choose(options.device, &program)?;
        let request = Request {
            ram: match options.ram {
                Some(ram) => ram,
                None => memory::available()? / 2,
            },
            context: options.context.unwrap_or(program.max_positions.min(4096)),
            sequences: options.sequences.max(1),
            all_logits: options.all_logits,
            align: Geometry::of(&source)?.align,
            scratch: Cpu::scratch_bytes(options.threads),
            gpu: None,
        };
        if request.context == 0 {
            return Err(Error::Request("a context of 0 tokens holds nothing; give at least 1".into()));
        }
        if let (Processor::Cpu { because: Some(because) }, Some(_)) = (&processor, options.vram) {
            tracing::warn!("the processor computes, and takes none of a budget of GPU memory: {because}");
        }
        let (plan, processor) = match processor.gpu(options.vram) {
            None => (Plan::new(&program, &request)?, processor),
            Some(gpu) => {
                let on_gpu = Request { gpu: Some(gpu), scratch: 0, ..request };
                match Plan::new(&program, &on_gpu) {
                    Err(Error::Budget(because)) if options.device == Device::Auto && options.vram.is_none() => {
                        (Plan::new(&program, &request)?, Processor::Cpu { because: Some(because) })
                    }
                    plan => (plan?, processor),
                }
            }
        };
        Ok(Outline { checkpoint, program, plan, source, processor })
    }

    /// What would compute.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The files that will be read.
    pub fn source(&self) -> &Source {
        &self.source
    }
}

/// A model that is ready to run. All large memory has been taken, and its first tiles are being read.
///
/// ```
/// use layerstream::{GenerateOptions, Model, Options};
///
/// let options = Options { ram: Some(32 << 20), sequences: 2, ..Options::default() };
/// let mut model = Model::open("demo", &options)?;
/// let prompts = vec![model.encode("What is 27 + 58?")?, model.encode("What is the capital of France?")?];
///
/// // Both prompts share every pass over the weights.
/// let greedy = GenerateOptions { max_new_tokens: 20, ..model.defaults().clone() };
/// let mut generation = model.generate(prompts, &greedy)?;
/// let outputs = generation.outputs()?;
/// assert_eq!((outputs[0].text.as_str(), outputs[1].text.as_str()), (" 85", " Paris"));
/// assert!(generation.stats().passes < 20);
/// # Ok::<(), layerstream::Error>(())
/// ```
pub struct Model {
    engine: Engine,
    checkpoint: Checkpoint,
    text: TextSide,
    defaults: GenerateOptions,
    /// What each KV cache holds.
    cached: Vec<Cached>,
}

impl Model {
    /// Opens the model in a directory with a Hugging Face checkpoint, or in a repository of the Hub (`org/name` or
    /// `org/name@revision`), which is taken from the Hub's cache or downloaded into it. What exists as a path is a path.
    ///
    /// # Errors
    /// Files that are missing or damaged, architectures and options that are not implemented, a budget below the
    /// model's floor. A tokenizer is not needed to run token ids: if there is none, only text is refused.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Model> {
        let outline = Outline::new(path.as_ref(), options)?;
        let text = TextSide::of(&outline.checkpoint)?;
        Model::start(outline, text, options)
    }

    /// Takes the memory of an outline made with the same options, and starts to read. For callers that had to see the
    /// prompt's tokens, or the plan, first.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn start(outline: Outline, text: TextSide, options: &Options) -> Result<Model> {
        let Outline { checkpoint, program, plan, source, processor } = outline;
        let defaults = GenerateOptions::of_model(&checkpoint, &text)?;
        let cached = vec![Cached::default(); plan.sequences];
        let (threads, recorder) = (options.threads, options.recorder.clone());
        let engine = Engine::new(&source, program, plan, &options.disk, processor, threads, recorder)?;
        Ok(Model { engine, checkpoint, text, defaults, cached })
    }

    /// What the model's `generation_config.json` asks for.
    pub fn defaults(&self) -> &GenerateOptions {
        &self.defaults
    }
}

impl Model {
    /// The family, program and sizes of the model.
    pub fn program(&self) -> &Program {
        self.engine.program()
    }

    /// Where the budget goes.
    pub fn plan(&self) -> &Plan {
        self.engine.plan()
    }

    /// What computes.
    pub fn processor(&self) -> &Processor {
        self.engine.processor()
    }

    /// Bytes of the GPU's memory that were in use because of this process when the model had been opened, by the driver's count,
    /// to be compared with the plan's. `None` without a GPU or without NVML, and for a GPU that this process used before.
    pub fn vram_taken(&self) -> Option<u64> {
        self.engine.vram_taken()
    }

    /// The files and tensors it was opened from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What the disk has delivered so far, and who waited for whom.
    pub fn stream_stats(&self) -> StreamStats {
        self.engine.stream_stats()
    }

    /// What was read of experts so far, and how much of it was still in memory, if the model has any.
    pub fn expert_stats(&self) -> Option<DemandStats> {
        self.engine.expert_stats()
    }

    /// The tokenizer and the chat template, if there are any.
    pub fn text(&self) -> &TextSide {
        &self.text
    }

    /// The token ids of a prompt, with the special tokens that the tokenizer puts around it. Special tokens written out
    /// in the text are recognised.
    ///
    /// # Errors
    /// If the model's directory has no tokenizer.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.text.encode(text)
    }

    /// The token ids of a conversation, a JSON list of messages with `role` and `content`, up to where the assistant
    /// answers. Text in messages cannot become control tokens.
    ///
    /// # Errors
    /// If the model has no chat template, or it refuses the messages.
    pub fn encode_chat(&self, messages: &Value) -> Result<Vec<u32>> {
        self.text.encode_chat(&ChatInput::new(messages))
    }

    /// A flag that ends a running [`generate`](Model::generate) or [`logits`](Model::logits) from another thread.
    pub fn stop_flag(&self) -> StopFlag {
        self.engine.stop_flag().clone()
    }

    /// How far the running pass is, for another thread to show.
    pub fn progress(&self) -> Progress {
        self.engine.progress().clone()
    }

    /// Continues prompts, given as token ids, together: every pass over the weights serves all of them. The result is
    /// an iterator over tokens as they come. What a previous call left in the KV cache is used again where a prompt
    /// begins with the same tokens.
    ///
    /// # Errors
    /// An empty prompt, one that does not fit the context, more prompts than [`Options::sequences`], ids outside the
    /// vocabulary; and, from the iterator, reads that fail.
    pub fn generate(&mut self, prompts: Vec<Vec<u32>>, options: &GenerateOptions) -> Result<Generation<'_>> {
        Generation::new(&mut self.engine, &mut self.cached, self.text.tokenizer().ok(), prompts, options)
    }

    /// The logits at every position of `ids`: `each` gets runs of rows, `[tokens, vocab]`, in order, as passes give
    /// them. The model must have been opened with [`Options::all_logits`].
    ///
    /// ```
    /// use layerstream::{Model, Options};
    ///
    /// let options = Options { ram: Some(32 << 20), context: Some(64), all_logits: true, ..Options::default() };
    /// let mut model = Model::open("demo", &options)?;
    /// let vocab = model.program().vocab;
    /// let mut tokens = 0;
    /// model.logits(&[0, 287, 268, 270], |rows| {
    ///     tokens += rows.len() / vocab;
    ///     Ok(())
    /// })?;
    /// assert_eq!(tokens, 4);
    /// # Ok::<(), layerstream::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`generate`](Model::generate), and whatever `each` returns.
    pub fn logits(&mut self, ids: &[u32], mut each: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Request("there are no token ids to give logits for".into()));
        }
        let rows = self.plan().rows;
        for start in (0..ids.len()).step_by(rows) {
            each(self.logits_of(ids, start..ids.len().min(start + rows))?)?;
        }
        Ok(())
    }

    /// The logits at some positions of `ids`, `[tokens, vocab]`: at most as many as a pass has rows. Those before them must
    /// have been asked for just before, from 0 on.
    pub(crate) fn logits_of(&mut self, ids: &[u32], part: Range<usize>) -> Result<&[f32]> {
        if self.plan().logit_rows < self.plan().rows {
            return Err(Error::Request(
                "the model was opened without room for all logits (Options::all_logits)".into(),
            ));
        }
        self.cached[0].clear();
        let (start, length) = (part.start, ids.len());
        let tokens = &ids[part];
        let segment = Segment { sequence: 0, start, tokens, length, prompt: length, logits: Wanted::All };
        let logits: &[f32] = self.engine.forward(&[segment])?;
        Ok(logits)
    }
}

/// The checkpoint's files, and the same names in each replica.
fn source(checkpoint: &Checkpoint, replicas: &[PathBuf]) -> Source {
    let files: Vec<PathBuf> = checkpoint.files().iter().map(|file| file.path.clone()).collect();
    let copies = replicas
        .iter()
        .map(|replica| files.iter().map(|file| replica.join(file.file_name().expect("a file has a name"))).collect());
    Source { replicas: copies.collect(), files: files.clone(), checksums: None }
}

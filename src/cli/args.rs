//! The arguments of every command, each defined once.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::backend::Device;
use crate::checkpoint::Dtype;
use crate::disk::{DiskOptions, ReaderKind};
use crate::generate::GenerateOptions;
use crate::model::Options;
use crate::synth::Spec;

use super::values::{Ids, positive, size};

/// Run language models that do not fit: their weights stay on disk and stream, tile by tile, through a fixed amount of
/// memory.
#[derive(Parser)]
#[command(name = "layerstream", version, disable_help_subcommand = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  layerstream plan ./Llama-3.1-70B --ram 8GiB
  layerstream generate ./Llama-3.1-70B-Instruct --chat \"What is the capital of France?\" --ram 8GiB
  layerstream chat ./Qwen3-8B --ram 4GiB

MODEL is a directory with a Hugging Face checkpoint (config.json, *.safetensors or pytorch_model*.bin,
tokenizer), a .gguf file, or a repository of the Hub, org/name or org/name@revision: it is taken from the
Hub's cache, or downloaded into it. What exists as a path is always a path.

Environment: HF_HOME, HF_HUB_CACHE (where the cache is), HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Continue prompts, or answer them
    Generate(Generate),
    /// Talk with a model
    Chat(Chat),
    /// Show where the memory would go and how long a token would take, without running anything
    Plan(Plan),
    /// Show what a checkpoint holds, and what of it is not supported
    Inspect(Inspect),
    /// List the families of models that can be run
    Families(Families),
    /// Write the logits of every position to a file
    Logits(Logits),
    /// Measure how well a model predicts a text, and how far it is from another model
    Eval(Eval),
    /// Turn the text on standard input into a JSON list of token ids
    Tokenize(Tokenize),
    /// Turn token ids into text
    Detokenize(Detokenize),
    /// Print the prompt that a chat template makes of messages
    RenderChat(RenderChat),
    /// Write a checkpoint of a published shape with random weights, to try and to measure
    Synth(Synth),
    /// Write a model again in fewer bytes: its matrices as int8 or nf4
    Pack(Pack),
    /// Check that a packed model is, byte for byte, what was written
    Verify(Verify),
    /// Download a repository of the Hugging Face Hub into its cache, or bring it up to date
    Pull(Pull),
    /// Show the models in the Hub's cache
    List(List),
    /// Print a script that completes commands in a shell
    #[command(
        after_help = "Example:\n  layerstream completions bash > ~/.local/share/bash-completion/completions/layerstream"
    )]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Args)]
#[command(after_help = "\
Text goes to standard output as it comes, everything else to standard error. The first Ctrl-C ends
the answer, the second ends the program.

With --json, one object for one prompt:
  text, ids, finish             the answer; finish is eos, stop, length, context or interrupted
  prompt_tokens, new_tokens     how many
  seconds, first_token_seconds  from the start of the first pass, the model already open
  steady_seconds_per_token      of the tokens after the first, whose pass fills the memory for weights
  tokens_per_second             new tokens / seconds
  passes                        sweeps over all weights
  bytes_read, gb_per_second     from disk; a GB is 10^9 bytes
  bytes_checked                 compared with their checksums, with --check
  disk_wait_seconds             that the processor waited for the disk
  reader, huge_pages            how the disk was read, and whether into 2 MiB pages
  peak_rss_bytes, ram_bytes     the most memory the process had, and the budget
  model, device                 what ran, and where
For several prompts, `outputs` is a list of {text, ids, finish, prompt_tokens, new_tokens}; the
rest is of all together.

Examples:
  layerstream generate ./model \"The capital of France is\" --ram 4GiB
  layerstream generate ./model --chat \"Tell me a story.\" --temperature 0.8 --seed 7 --stats
  layerstream generate ./model --json < prompt.txt
  layerstream generate ./model \"One prompt\" \"Another one\"    (they share every pass)")]
pub struct Generate {
    #[command(flatten)]
    pub model: Model,
    /// What to continue; several share every pass. `-`, or none where standard input is not a terminal: standard input
    /// (without its last line break)
    #[arg(value_name = "PROMPT", conflicts_with = "ids")]
    pub prompts: Vec<String>,
    /// Token ids to continue, instead of text; may be given several times
    #[arg(long, value_name = "1,2,3")]
    pub ids: Vec<Ids>,
    /// A file with a prompt on each line, as it is or as a JSON string
    #[arg(long, value_name = "FILE", conflicts_with = "ids")]
    pub prompts_file: Option<PathBuf>,
    /// Put each prompt as a user's message through the model's chat template
    #[arg(long, conflicts_with = "ids")]
    pub chat: bool,
    /// A system message before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Cut each prompt to its first N tokens
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_length: Option<usize>,
    #[command(flatten)]
    pub answer: Answer,
    /// Print one JSON object at the end instead of text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Print a table of counts and times to standard error at the end
    #[arg(long, help_heading = "Output")]
    pub stats: bool,
    #[command(flatten)]
    pub seeing: Seeing,
    #[command(flatten)]
    pub resources: Resources,
}

#[derive(Args)]
#[command(after_help = "\
While chatting:
  /reset          forget the conversation
  /system TEXT    begin a new conversation with this system message
  /quit           leave (so does Ctrl-D); Ctrl-C ends an answer

Where standard input is not a terminal, each of its lines is a turn.")]
pub struct Chat {
    #[command(flatten)]
    pub model: Model,
    /// A system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub answer: Answer,
    /// Print a table of counts and times to standard error after each answer
    #[arg(long, help_heading = "Output")]
    pub stats: bool,
    #[command(flatten)]
    pub seeing: Seeing,
    #[command(flatten)]
    pub resources: Resources,
}

#[derive(Args)]
#[command(after_help = "Example:\n  layerstream plan ./Llama-3.1-70B --ram 8GiB --context 8192")]
pub struct Plan {
    #[command(flatten)]
    pub model: Model,
    /// Sequences that run together
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    pub sequences: usize,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub resources: Resources,
}

#[derive(Args)]
pub struct Inspect {
    #[command(flatten)]
    pub model: Model,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Families {
    /// Print one JSON list
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Example:\n  layerstream logits ./model --ids 1,2,3 --out logits.safetensors")]
pub struct Logits {
    #[command(flatten)]
    pub model: Model,
    /// The tokens
    #[arg(long, value_name = "1,2,3", required = true)]
    pub ids: Ids,
    /// Where to write `logits`, float32 [tokens, vocabulary], in safetensors format
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub seeing: Seeing,
    #[command(flatten)]
    pub resources: Resources,
}

#[derive(Args)]
#[command(after_help = "\
The text is cut into windows of --context tokens that begin anew. Every token but the first is
predicted once, in the first window that has it. With --against, both models stream through the same
windows, and each has half of --ram and of --vram, or of what these are by default.

With --json, one object; logarithms are natural:
  model, tokens, predicted      what ran; tokens of the text, and of them predicted: all but the first
  windows, window, stride       how many windows, of how many tokens, how far apart
  mean_nll, perplexity          the mean of -ln p(token), and its exponential
  against                       with --against: model (that of --against, the reference), mean_nll,
                                perplexity (the reference's own), mean_kl and max_kl of KL(P||Q) with
                                P of the reference and Q of MODEL, over the whole vocabulary, and
                                top1_agreement, the part of positions where both find the same token
                                most probable
  worst                         positions with the largest kl, or without --against the largest nll:
                                position (in the text's tokens, from 0), id, text, nll, kl, predicted
                                (the id that MODEL found most probable), predicted_text
  seconds                       all passes, the models already open

Examples:
  layerstream eval ./model --text wiki.txt --ram 4GiB
  layerstream eval ./model-nf4 --text wiki.txt --against ./model --context 2048 --json")]
pub struct Eval {
    #[command(flatten)]
    pub model: Model,
    /// A text in UTF-8
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// A model with the same vocabulary, to compare with
    #[arg(long, value_name = "MODEL2")]
    pub against: Option<PathBuf>,
    /// How far windows are apart, in tokens; less than --context gives every token that much more before it, for more passes
    /// [default: 1 less than --context]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub stride: Option<usize>,
    /// How many of the worst positions to show
    #[arg(long, value_name = "N", default_value = "10")]
    pub worst: usize,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub resources: Resources,
}

#[derive(Args)]
#[command(after_help = "Example:\n  printf 'Hello there' | layerstream tokenize ./model")]
pub struct Tokenize {
    #[command(flatten)]
    pub model: Model,
    /// Leave out the tokens that the tokenizer puts around a text
    #[arg(long)]
    pub no_special: bool,
}

#[derive(Args)]
pub struct Detokenize {
    #[command(flatten)]
    pub model: Model,
    /// The tokens
    #[arg(long, value_name = "1,2,3", required = true)]
    pub ids: Ids,
    /// Leave out special tokens
    #[arg(long)]
    pub skip_special: bool,
}

#[derive(Args)]
pub struct RenderChat {
    #[command(flatten)]
    pub model: Model,
    /// A JSON list of messages, each with `role` and `content`
    #[arg(long, value_name = "FILE.json")]
    pub messages: PathBuf,
    /// A JSON list of tools, as JSON schemas of functions
    #[arg(long, value_name = "FILE.json")]
    pub tools: Option<PathBuf>,
    /// End after the last message, without the beginning of an answer
    #[arg(long)]
    pub no_generation_prompt: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  layerstream synth --like llama-3.1-70b --sparse --out /tmp/70b     (141 GB that take no room)
  layerstream synth --like llama-3.1-8b --layers 8 --out /tmp/small")]
pub struct Synth {
    /// A published model whose shape to take
    #[arg(long, value_name = "NAME", required_unless_present = "config", conflicts_with = "config", value_parser = presets())]
    pub like: Option<String>,
    /// A config.json whose shape to take
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The directory to write, which must be empty or not be there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Another number of layers
    #[arg(long, value_name = "N", value_parser = positive)]
    pub layers: Option<usize>,
    /// Zeros that take no room on disk, at any size
    #[arg(long)]
    pub sparse: bool,
    /// Equal seeds give equal weights
    #[arg(long, value_name = "S", default_value = "0")]
    pub seed: u64,
    /// bf16, f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = dtype)]
    pub dtype: Dtype,
}

#[derive(Args)]
#[command(after_help = "\
Matrices (and experts) are packed; norms, biases, routers, and embedding and head if it is not lossless,
are copied. Whatever
ends a run (kill, a full disk, loss of power), the same command goes on where it stopped, and nothing
is deleted that is not safe. The result is a directory like any other. docs/packing.md has the formats.

Examples:
  layerstream pack ./Llama-3.1-8B --to nf4 --out ./Llama-3.1-8B-nf4
  layerstream pack ./Llama-3.1-70B --to int8 --out ./70b-int8 --delete-original
  layerstream verify ./70b-int8")]
pub struct Pack {
    #[command(flatten)]
    pub model: Model,
    /// int8 (8 bits and a scale for each block), nf4 (4 bits, as in QLoRA), or lossless (bf16, every bit of it)
    #[arg(long, value_name = "ENCODING")]
    pub to: PackTo,
    /// The directory to write, which must be empty, not be there, or hold what an earlier run began
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Numbers that share a scale, for int8: a power of two from 64 to 2048 (default: 128)
    #[arg(long, value_name = "N", value_parser = block)]
    pub block: Option<u16>,
    /// For nf4: scales of one byte each
    #[arg(long)]
    pub double_quant: bool,
    /// Pack the output head, too (lossless does without being asked)
    #[arg(long)]
    pub head: bool,
    /// Delete each file of MODEL as soon as all that came from it is packed, synced and read back; of links, such as in
    /// the Hub's cache, what they lead to as well, unless other snapshots have it, too
    #[arg(long)]
    pub delete_original: bool,
    /// Memory for rows on their way
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub ram: u64,
    /// Threads (default: two for each core, so that one reads or writes while another computes)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// For tests: end the process at this operation on files
    #[arg(long, value_name = "N", hide = true)]
    pub abort_at: Option<u64>,
    /// For tests: write every operation on files there, before it is done
    #[arg(long, value_name = "FILE", hide = true)]
    pub steps_to: Option<PathBuf>,
}

/// What `pack` makes.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum PackTo {
    Int8,
    Nf4,
    Lossless,
}

#[derive(Args)]
pub struct Verify {
    /// What `layerstream pack` wrote
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(Args)]
#[command(after_help = "\
Only what is needed is downloaded: configuration, tokenizer, chat template, and one form of the
weights. It goes on where an earlier download was interrupted, and prints the directory at the end.

Examples:
  layerstream pull Qwen/Qwen3-8B
  layerstream pull org/name-GGUF --files '*Q4_K_M.gguf'")]
pub struct Pull {
    /// org/name or org/name@revision
    #[arg(value_name = "MODEL")]
    pub repo: PathBuf,
    /// A branch, a tag or a commit
    #[arg(long, value_name = "NAME")]
    pub revision: Option<String>,
    /// Weights to download in place of the usual ones; `*` stands for any text
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    pub files: Vec<String>,
    #[command(flatten)]
    pub hub: Hub,
}

#[derive(Args)]
pub struct List {
    /// Print one JSON list
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Model {
    /// Directory with a Hugging Face checkpoint, or a repository of the Hub (org/name)
    #[arg(value_name = "MODEL")]
    pub path: PathBuf,
    #[command(flatten)]
    pub hub: Hub,
}

/// How to reach the Hugging Face Hub.
#[derive(Args)]
pub struct Hub {
    /// Access token for gated and private repositories (default: HF_TOKEN, or the one that `hf auth login` stored)
    #[arg(long, value_name = "TOKEN", help_heading = "Hub")]
    pub hf_token: Option<String>,
}

/// How an answer is chosen and where it ends.
#[derive(Args)]
#[command(next_help_heading = "Answer (defaults: the model's generation_config.json)")]
pub struct Answer {
    /// The most tokens to add
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_new_tokens: Option<usize>,
    /// 0 always takes the most probable token; higher is more varied
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Choose among the K most probable tokens; 0: among all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the most probable tokens that together reach this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Choose among tokens at least this fraction as probable as the most probable one
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Above 1: make tokens that occurred less probable
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Equal seeds give equal answers
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Text at which to end; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on after the model's end token
    #[arg(long)]
    pub ignore_eos: bool,
}

impl Answer {
    /// What is asked for, over the model's defaults.
    pub fn over(&self, defaults: GenerateOptions) -> GenerateOptions {
        let mut options = defaults;
        let sampling = &mut options.sampling;
        set(&mut options.max_new_tokens, self.max_new_tokens);
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        set(&mut sampling.seed, self.seed);
        options.stop.extend_from_slice(&self.stop);
        if self.ignore_eos {
            options.eos.clear();
        }
        options
    }
}

fn set<T: Copy>(value: &mut T, asked: Option<T>) {
    *value = asked.unwrap_or(*value);
}

/// Where the time goes.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct Seeing {
    /// Print where the time went to standard error at the end, by kind of step and by layer
    #[arg(long)]
    pub profile: bool,
    /// Write a timeline of reads, copies and steps, for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
}

/// Memory, disk and processor.
#[derive(Args)]
#[command(next_help_heading = "Memory, disk and processor")]
pub struct Resources {
    /// Hard limit on memory for weights, context and activations, such as 4GiB [default: half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub ram: Option<u64>,
    /// The most tokens of a sequence, prompt and answer together [default: what is needed; for
    /// plan and chat 4096, or what the model was made for if less]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub context: Option<usize>,
    /// Where to compute: auto, cpu, or cuda:N, the NVIDIA GPU of that number
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub device: Device,
    /// Hard limit on memory of the GPU, the driver's own share included [default: 90 % of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub vram: Option<u64>,
    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// How to read: uring, pread or buffered [default: the first that works]
    #[arg(long, value_name = "READER", value_parser = reader)]
    pub reader: Option<ReaderKind>,
    /// Size of one read, such as 4MiB [default: measured]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub chunk: Option<u64>,
    /// Reads in flight for each drive [default: measured]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub depth: Option<usize>,
    /// A directory with the same files on another drive, to be read in parallel; may be given several times
    #[arg(long, value_name = "DIR")]
    pub replica: Vec<PathBuf>,
    /// Compare what is streamed with the checksums of `layerstream pack`, and stop at bytes that are not those it wrote
    #[arg(long)]
    pub check: bool,
}

impl Resources {
    /// How to open a model for so many sequences, which need `context` tokens where no number was given.
    pub fn options(&self, context: Option<usize>, sequences: usize) -> Options {
        Options {
            ram: self.ram,
            context: self.context.or(context),
            sequences,
            all_logits: false,
            disk: DiskOptions {
                reader: self.reader,
                chunk_bytes: self.chunk.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
                depth: self.depth,
                ..DiskOptions::default()
            },
            replicas: self.replica.clone(),
            check: self.check,
            threads: self.threads,
            device: self.device,
            vram: self.vram,
            ..Options::default()
        }
    }
}

fn device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|e: crate::Error| e.to_string())
}

fn reader(text: &str) -> Result<ReaderKind, String> {
    text.parse().map_err(|e: crate::Error| e.to_string())
}

fn block(text: &str) -> Result<u16, String> {
    let sizes = [64, 128, 256, 512, 1024, 2048];
    text.parse().ok().filter(|n| sizes.contains(n)).ok_or_else(|| format!("expected one of {sizes:?}"))
}

fn dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "bf16" => Ok(Dtype::Bf16),
        "f16" => Ok(Dtype::F16),
        "f32" => Ok(Dtype::F32),
        _ => Err("expected bf16, f16 or f32".into()),
    }
}

/// Names live as long as the program, which is what clap asks of them.
fn presets() -> PossibleValuesParser {
    PossibleValuesParser::new(Spec::presets().into_iter().map(|name| &*name.leak()))
}

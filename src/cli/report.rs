//! What a call of the generator did, as a JSON object for programs and as a table for people.

use std::path::Path;

use serde::Serialize;

use crate::disk::ReaderKind;
use crate::generate::{Finish, GenerateStats, Output};
use crate::memory::peak_resident;
use crate::model::Model;

use super::table::{Table, count, data, memory, rate, seconds};

/// What became of one prompt.
#[derive(Debug, Serialize)]
pub struct Answer {
    pub text: String,
    pub ids: Vec<u32>,
    pub finish: Option<Finish>,
    pub prompt_tokens: usize,
    pub new_tokens: usize,
}

impl Answer {
    pub fn new(output: Output, prompt_tokens: usize) -> Answer {
        let new_tokens = output.ids.len();
        Answer { text: output.text, ids: output.ids, finish: output.finish, prompt_tokens, new_tokens }
    }
}

/// Counts and times of all prompts of a call together.
#[derive(Debug, Serialize)]
pub struct Costs {
    seconds: f64,
    first_token_seconds: f64,
    /// Null for a single token.
    steady_seconds_per_token: Option<f64>,
    tokens_per_second: f64,
    passes: u64,
    bytes_read: u64,
    bytes_checked: u64,
    gb_per_second: f64,
    disk_wait_seconds: f64,
    reader: String,
    huge_pages: bool,
    peak_rss_bytes: u64,
    ram_bytes: u64,
    /// Of a model with experts: bytes of those that passes used, and the share that was in memory still.
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
    model: String,
    device: String,
    vram_bytes: Option<u64>,
    /// The same by the driver's count, when the model had been opened; what others took in that time is in it.
    vram_measured_bytes: Option<u64>,
    #[serde(skip)]
    processor: String,
    #[serde(skip)]
    tokens: (usize, usize),
    #[serde(skip)]
    disk: String,
}

#[derive(Debug, Serialize)]
struct Experts {
    bytes_used: u64,
    bytes_read: u64,
    hit_rate: f64,
    cache_bytes: usize,
}

/// One answer is told flat; of several, each on its own.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Report {
    One {
        #[serde(flatten)]
        answer: Answer,
        #[serde(flatten)]
        costs: Costs,
    },
    Many {
        outputs: Vec<Answer>,
        prompt_tokens: usize,
        new_tokens: usize,
        #[serde(flatten)]
        costs: Costs,
    },
}

impl Report {
    pub fn new(mut answers: Vec<Answer>, costs: Costs) -> Report {
        match answers.pop() {
            Some(answer) if answers.is_empty() => Report::One { answer, costs },
            last => {
                answers.extend(last);
                let (prompt_tokens, new_tokens) = costs.tokens;
                Report::Many { outputs: answers, prompt_tokens, new_tokens, costs }
            }
        }
    }
}

impl Costs {
    pub fn new(model: &Model, path: &Path, stats: GenerateStats) -> Costs {
        let stream = model.stream_stats();
        let per_second = |n: f64| if stats.seconds > 0.0 { n / stats.seconds } else { 0.0 };
        let readers: Vec<ReaderKind> = stream.drives.iter().map(|drive| drive.reader).collect();
        let reader = readers.iter().map(ReaderKind::to_string).collect::<Vec<_>>().join("+");
        let huge_pages = stream.huge_bytes > 0 && stream.huge_bytes == stream.ring_bytes;
        let depth = stream.drives.first().map_or(0, |drive| drive.depth);
        let pages = if huge_pages { "2 MiB pages" } else { "4 KiB pages" };
        Costs {
            seconds: stats.seconds,
            first_token_seconds: stats.first_token_seconds,
            steady_seconds_per_token: stats.steady_seconds_per_token,
            tokens_per_second: per_second(stats.new_tokens as f64),
            passes: stats.passes,
            bytes_read: stats.bytes_read,
            bytes_checked: stream.bytes_checked + model.expert_stats().map_or(0, |experts| experts.bytes_checked),
            gb_per_second: per_second(stats.bytes_read as f64) / 1e9,
            disk_wait_seconds: stats.disk_wait_seconds,
            disk: match stream.ring_bytes {
                0 => format!("{reader}; all weights stay in memory"),
                _ => format!("{reader}, {depth} × {} in flight, {pages}", memory(stream.chunk_bytes as u64)),
            },
            reader,
            huge_pages,
            peak_rss_bytes: peak_resident(),
            ram_bytes: model.plan().ram,
            experts: model.expert_stats().map(|experts| Experts {
                bytes_used: experts.bytes_used,
                bytes_read: experts.bytes_read,
                hit_rate: experts.hit_rate().unwrap_or(0.0),
                cache_bytes: experts.memory_bytes,
            }),
            model: path.display().to_string(),
            device: model.processor().to_string(),
            vram_bytes: model.plan().gpu.as_ref().map(|gpu| gpu.total()),
            vram_measured_bytes: model.vram_taken(),
            processor: model.processor().describe(),
            tokens: (stats.prompt_tokens, stats.new_tokens),
        }
    }

    /// For `--stats`.
    pub fn table(&self) -> Table {
        let (prompt, new) = self.tokens;
        let mut table = Table::default();
        table
            .row("prompt", count(prompt as u64, "token"))
            .row("answer", count(new as u64, "token"))
            .row("time", format!("{}, first token after {}", seconds(self.seconds), seconds(self.first_token_seconds)))
            .row("speed", format!("{:.2} tokens/s, {}", self.tokens_per_second, passes(self.passes)))
            .row("read", format!("{} from disk, {}", data(self.bytes_read), rate(self.gb_per_second * 1e9)))
            .row("waited", format!("{} for the disk", seconds(self.disk_wait_seconds)))
            .row("reader", &self.disk);
        if self.bytes_checked > 0 {
            table.row("checked", format!("{}, as they were written", data(self.bytes_checked)));
        }
        if let Some(experts) = &self.experts {
            let hits = format!("{:.0} % of {} from memory", 100.0 * experts.hit_rate, data(experts.bytes_used));
            table.row("experts", format!("{hits}, cache {}", memory(experts.cache_bytes as u64)));
        }
        table
            .row("memory", format!("peak {}, budget {}", memory(self.peak_rss_bytes), memory(self.ram_bytes)))
            .row("device", &self.processor);
        if let Some(bytes) = self.vram_bytes {
            let measured = self.vram_measured_bytes.map(|bytes| format!(", {} by the driver's count", memory(bytes)));
            table.row("GPU memory", memory(bytes) + &measured.unwrap_or_default());
        }
        table
    }
}

fn passes(n: u64) -> String {
    if n == 1 { "1 pass".into() } else { format!("{n} passes") }
}

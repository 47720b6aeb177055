//! `plan`: where the memory would go and how long a token would take, from the plan, a quick look at the disk and a
//! quick look at the processor. No model is run.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::backend::cpu::{Columns, Cpu, Finish, Scales, Tile};
use crate::disk::measure;
use crate::error::Result;
use crate::hub::Need;
use crate::model::Outline;
use crate::plan::{Plan, Tier};
use crate::program::{self, Program};

use super::args;
use super::hub;
use super::output;
use super::table::{Table, count, data, memory, rate, seconds};

/// How long each of the two measurements takes, roughly.
const LOOK: Duration = Duration::from_millis(500);

pub fn run(args: &args::Plan) -> Result<()> {
    let options = args.resources.options(None, args.sequences);
    let outline = Outline::new(&hub::local(&args.model, Need::Model)?, &options)?;
    let (plan, program) = (outline.plan(), outline.program());
    let disk = measure(outline.source(), &options.disk, LOOK)?;
    let multiply = multiply_speed(program, options.threads)?;
    let report = Report::new(args.model.path.display().to_string(), program, plan, disk, multiply);
    if args.json { output::json(&report) } else { output::print(&report.table().to_string()) }
}

#[derive(Serialize)]
struct Report {
    model: String,
    family: &'static str,
    context: usize,
    sequences: usize,
    /// Tokens of a prompt that share a pass.
    tokens_per_pass: usize,
    bytes_per_pass: u64,
    disk_bytes_per_pass: u64,
    tiers: Tiers,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
    memory: Memory,
    disk_bytes_per_second: f64,
    multiply_bytes_per_second: f64,
    seconds_per_token: f64,
}

#[derive(Serialize)]
struct Tiers {
    host: Share,
    disk: Share,
}

/// Weights that a pass uses as its tokens choose.
#[derive(Serialize)]
struct Experts {
    bytes: u64,
    bytes_per_token: u64,
    tiles: usize,
}

#[derive(Serialize)]
struct Share {
    tiles: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Memory {
    ram_bytes: u64,
    floor_bytes: u64,
    host_tiles: usize,
    ring: usize,
    expert_cache: usize,
    kv_cache: usize,
    activations: usize,
    scratch: usize,
    norms_and_biases: usize,
    total: usize,
}

impl Report {
    fn new(model: String, program: &Program, plan: &Plan, disk: f64, multiply: f64) -> Report {
        let share = |tier| {
            let tiles: Vec<_> = plan.tiles.iter().filter(|tile| tile.tier == tier).collect();
            Share { tiles: tiles.len(), bytes: tiles.iter().map(|tile| tile.span.len).sum() }
        };
        Report {
            model,
            family: program.family,
            context: plan.context,
            sequences: plan.sequences,
            tokens_per_pass: plan.rows,
            bytes_per_pass: plan.pass_bytes(),
            disk_bytes_per_pass: plan.disk_bytes(),
            tiers: Tiers { host: share(Tier::Host), disk: share(Tier::Disk) },
            experts: (plan.experts.bytes > 0).then_some(Experts {
                bytes: plan.experts.bytes,
                bytes_per_token: plan.experts.token_bytes,
                tiles: plan.experts.tiles.len(),
            }),
            memory: Memory {
                ram_bytes: plan.ram,
                floor_bytes: plan.floor,
                host_tiles: plan.memory.host,
                ring: plan.memory.ring,
                expert_cache: plan.memory.experts,
                kv_cache: plan.memory.kv,
                activations: plan.memory.activations,
                scratch: plan.memory.scratch,
                norms_and_biases: plan.memory.vectors,
                total: plan.memory.total(),
            },
            disk_bytes_per_second: disk,
            multiply_bytes_per_second: multiply,
            seconds_per_token: plan.seconds_per_pass(disk, multiply),
        }
    }

    fn table(&self) -> Table {
        let bound = match self.disk_bytes_per_pass as f64 / self.disk_bytes_per_second {
            reading if reading >= self.seconds_per_token => "the disk is the limit",
            _ => "the processor is the limit",
        };
        let percent = 100 * self.tiers.host.bytes / self.bytes_per_pass.max(1);
        let tier = |share: &Share| format!("{} in {}", data(share.bytes), count(share.tiles as u64, "tile"));
        let mut table = Table::default();
        table
            .row("model", format!("{} ({})", self.model, self.family))
            .row(
                "context",
                format!("{} × {}", count(self.sequences as u64, "sequence"), count(self.context as u64, "token")),
            )
            .row("", "")
            .row("weights in a pass", data(self.bytes_per_pass))
            .row("  kept in memory", format!("{} ({percent} %)", tier(&self.tiers.host)))
            .row("  read every pass", tier(&self.tiers.disk));
        if let Some(experts) = &self.experts {
            let all = format!("of {} in {}", data(experts.bytes), count(experts.tiles as u64, "tile"));
            table.row("  experts of a token", format!("{} {all}", data(experts.bytes_per_token)));
        }
        table
            .row("", "")
            .row("budget", format!("{} (at least {})", memory(self.memory.ram_bytes), memory(self.memory.floor_bytes)))
            .row("  weights", memory(self.memory.host_tiles as u64))
            .row("  ring", memory(self.memory.ring as u64))
            .row("  experts", memory(self.memory.expert_cache as u64))
            .row("  KV cache", memory(self.memory.kv_cache as u64))
            .row(
                "  activations",
                format!(
                    "{} ({} in a pass)",
                    memory(self.memory.activations as u64),
                    count(self.tokens_per_pass as u64, "token")
                ),
            )
            .row("  scratch", memory(self.memory.scratch as u64))
            .row("  norms and biases", memory(self.memory.norms_and_biases as u64))
            .row("  total", memory(self.memory.total as u64))
            .row("", "")
            .row("disk, measured", rate(self.disk_bytes_per_second))
            .row("multiply, measured", rate(self.multiply_bytes_per_second))
            .row("a token takes", format!("{} ({bound})", seconds(self.seconds_per_token)));
        table
    }
}

/// Bytes of weights that the processor multiplies with one token in a second: the model's largest matrix, or some rows
/// of it, over a stretch of memory that no cache holds.
fn multiply_speed(program: &Program, threads: Option<usize>) -> Result<f64> {
    const STRETCH: usize = 64 << 20;
    let Some(matrix) = program.matrices.iter().max_by_key(|matrix| matrix.bytes()) else { return Ok(f64::INFINITY) };
    let (k, encoding) = (matrix.stored_cols(), matrix.encoding);
    let rows = (STRETCH / 8 / matrix.row_bytes()).clamp(1, matrix.stored_rows());
    let tile = rows * matrix.row_bytes();
    let blocks = |scales: &program::Scales| rows.div_ceil(scales.row_block) * k.div_ceil(scales.col_block);
    let factors = vec![1.0; matrix.scales.as_ref().map_or(0, blocks)];
    let scales = matrix.scales.map(|program::Scales { row_block, col_block, .. }| Scales {
        values: &factors,
        row_block,
        col_block,
        first_row: 0,
    });
    // These bytes are small numbers in all encodings; zeros would be one page, always cached.
    let weights = vec![0x3c; tile * STRETCH.div_ceil(tile)];
    let (x, mut out) = (vec![1.0; k], vec![0.0; rows]);
    let mut cpu = Cpu::new(threads)?;
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < LOOK {
        for bytes in weights.chunks_exact(tile) {
            let columns = Columns { data: &mut out, stride: rows, first: 0 };
            cpu.matmul(Tile { bytes, encoding, k, scales }, &x, columns, Finish::default());
        }
        bytes += weights.len();
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

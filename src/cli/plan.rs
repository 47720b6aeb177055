//! `plan`: where the memory would go and how long a token would take, from the plan and quick looks at the disk and at the
//! processor or the GPU. No model is run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::backend::cpu::{Columns, Cpu, Finish, GroupedTile, Inputs, Scales, Tile};
use crate::error::Result;
use crate::hub::Need;
use crate::model::Outline;
use crate::plan::{Gpu, Tier};
use crate::program::{Groups, Program};
use crate::stream;

use super::args;
use super::hub;
use super::inspect::encodings;
use super::output;
use super::table::{Table, count, data, memory, rate, seconds};

/// How long each of the two measurements takes, roughly.
const LOOK: Duration = Duration::from_millis(500);

pub fn run(args: &args::Plan) -> Result<()> {
    let options = args.resources.options(None, args.sequences);
    let outline = Outline::new(&hub::local(&args.model, Need::Model)?, &options)?;
    let program = outline.program();
    let plan = outline.plan();
    let tiles = plan.tiles.iter().map(|tile| tile.span);
    let disk = stream::measure(outline.source(), tiles, plan.memory.ring, &options.disk, LOOK)?;
    let speeds = match outline.processor().measure(plan, LOOK)? {
        Some((copy, multiply)) => Speeds { disk, copy: Some(copy), multiply },
        None => Speeds { disk, copy: None, multiply: multiply_speed(program, options.threads)? },
    };
    let report = Report::new(args.model.path.display().to_string(), &outline, speeds);
    if args.json { output::json(&report) } else { output::print(&report.table().to_string()) }
}

/// Bytes per second.
struct Speeds {
    disk: f64,
    /// To the GPU that computes, if one does.
    copy: Option<f64>,
    multiply: f64,
}

#[derive(Serialize)]
struct Report {
    model: String,
    family: &'static str,
    /// What would compute.
    device: String,
    context: usize,
    sequences: usize,
    /// Tokens of a prompt that share a pass.
    tokens_per_pass: usize,
    bytes_per_pass: u64,
    /// Bytes of matrices by encoding.
    encodings: BTreeMap<&'static str, u64>,
    disk_bytes_per_pass: u64,
    /// To the GPU, at the end of the context: null where there is none.
    copied_bytes: Option<u64>,
    tiers: Tiers,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
    memory: Memory,
    /// Null where the processor computes.
    gpu_memory: Option<GpuMemory>,
    disk_bytes_per_second: f64,
    /// To the GPU: null where there is none.
    copy_bytes_per_second: Option<f64>,
    multiply_bytes_per_second: f64,
    seconds_per_token: f64,
    #[serde(skip)]
    kv_is_copied: bool,
    #[serde(skip)]
    processor: String,
}

#[derive(Serialize)]
struct Tiers {
    device: Share,
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

#[derive(Serialize)]
struct GpuMemory {
    vram_bytes: u64,
    floor_bytes: u64,
    /// What the driver and the kernels take.
    context: u64,
    /// What the driver takes for page tables of page-locked memory.
    page_tables: u64,
    tiles: usize,
    ring: usize,
    expert_cache: usize,
    kv_cache: usize,
    /// Activations, norms and biases, and what a pass brings along.
    activations: usize,
    total: u64,
}

impl GpuMemory {
    fn new(gpu: &Gpu) -> GpuMemory {
        GpuMemory {
            vram_bytes: gpu.vram,
            floor_bytes: gpu.floor,
            context: gpu.context,
            page_tables: gpu.tables,
            tiles: gpu.tiles,
            ring: gpu.ring,
            expert_cache: gpu.experts,
            kv_cache: gpu.layout.kv_len,
            activations: gpu.layout.fixed,
            total: gpu.total(),
        }
    }
}

impl Report {
    fn new(model: String, outline: &Outline, speeds: Speeds) -> Report {
        let (plan, Speeds { disk, copy, multiply }) = (outline.plan(), speeds);
        let share = |tier| {
            let tiles: Vec<_> = plan.tiles.iter().filter(|tile| tile.tier == tier).collect();
            Share { tiles: tiles.len(), bytes: tiles.iter().map(|tile| tile.span.len).sum() }
        };
        Report {
            model,
            family: outline.program().family,
            device: outline.processor().to_string(),
            context: plan.context,
            sequences: plan.sequences,
            tokens_per_pass: plan.rows,
            bytes_per_pass: plan.pass_bytes(),
            encodings: outline.program().encodings(),
            disk_bytes_per_pass: plan.disk_bytes(),
            copied_bytes: plan.gpu.as_ref().map(|_| plan.copied_bytes()),
            tiers: Tiers { device: share(Tier::Device), host: share(Tier::Host), disk: share(Tier::Disk) },
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
            gpu_memory: plan.gpu.as_ref().map(GpuMemory::new),
            disk_bytes_per_second: disk,
            copy_bytes_per_second: copy,
            multiply_bytes_per_second: multiply,
            seconds_per_token: plan.seconds_per_pass(disk, copy.unwrap_or(f64::INFINITY), multiply),
            kv_is_copied: plan.gpu.as_ref().is_some_and(|gpu| gpu.kv_copied > 0),
            processor: outline.processor().describe(),
        }
    }

    fn table(&self) -> Table {
        let bound = match self.disk_bytes_per_pass as f64 / self.disk_bytes_per_second {
            reading if reading >= self.seconds_per_token => "the disk is the limit",
            _ => match self.copied_bytes.zip(self.copy_bytes_per_second) {
                Some((bytes, copy)) if bytes as f64 / copy >= self.seconds_per_token => {
                    "copies to the GPU are the limit"
                }
                Some(_) => "the GPU is the limit",
                None => "the processor is the limit",
            },
        };
        let percent = |share: &Share| 100 * share.bytes / self.bytes_per_pass.max(1);
        let tier = |share: &Share| format!("{} in {}", data(share.bytes), count(share.tiles as u64, "tile"));
        let mut table = Table::default();
        table
            .row("model", format!("{} ({})", self.model, self.family))
            .row("device", &self.processor)
            .row(
                "context",
                format!("{} × {}", count(self.sequences as u64, "sequence"), count(self.context as u64, "token")),
            )
            .row("", "")
            .row("weights in a pass", data(self.bytes_per_pass))
            .row("  matrices", encodings(&self.encodings));
        if self.gpu_memory.is_some() {
            let device = &self.tiers.device;
            table.row("  kept on the GPU", format!("{} ({} %)", tier(device), percent(device)));
        }
        let host = &self.tiers.host;
        table
            .row("  kept in memory", format!("{} ({} %)", tier(host), percent(host)))
            .row("  read every pass", tier(&self.tiers.disk));
        if let Some(bytes) = self.copied_bytes {
            let kv = if self.kv_is_copied { ", keys and values of a full context among them" } else { "" };
            table.row("  copied every pass", format!("{}{kv}", data(bytes)));
        }
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
            .row("", "");
        if let Some(gpu) = &self.gpu_memory {
            table
                .row("GPU budget", format!("{} (at least {})", memory(gpu.vram_bytes), memory(gpu.floor_bytes)))
                .row("  weights", memory(gpu.tiles as u64))
                .row("  ring", memory(gpu.ring as u64))
                .row("  experts", memory(gpu.expert_cache as u64))
                .row("  KV cache", memory(gpu.kv_cache as u64))
                .row("  activations", memory(gpu.activations as u64))
                .row("  driver", memory(gpu.context + gpu.page_tables))
                .row("  total", memory(gpu.total))
                .row("", "");
        }
        if let Some(copy) = self.copy_bytes_per_second {
            table.row("copies, measured", rate(copy));
        }
        table
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
    let grouped = matrix.groups.is_some() && matrix.tensor.transposed;
    let blocks = |rows_of: usize, cols_of: usize| rows.div_ceil(rows_of) * k.div_ceil(cols_of);
    let block = match (&matrix.scales, &matrix.groups) {
        (Some(scales), _) => Some((scales.row_block, scales.col_block)),
        (_, Some(groups)) if !grouped => Some((groups.rows, groups.cols)),
        _ => None,
    };
    let factors = vec![1.0; if grouped { k } else { block.map_or(0, |(rows, cols)| blocks(rows, cols)) }];
    let any_order = !grouped && matrix.groups.as_ref().is_some_and(Groups::in_any_order);
    let order = vec![0; if any_order { k } else { 0 }];
    let scales = block.map(|(row_block, col_block)| Scales {
        values: &factors,
        zeros: &[],
        row_block,
        col_block,
        index: &order,
        first_row: 0,
    });
    // These bytes are small numbers in all encodings; zeros would be one page, always cached.
    let weights = vec![0x3c; tile * STRETCH.div_ceil(tile)];
    // Of a transposed matrix, what lies along a stored row are outputs.
    let inputs = if grouped { rows * encoding.inputs() } else { k };
    let outputs = if grouped { k } else { rows };
    let (x, mut out, index) = (vec![1.0; inputs], vec![0.0; outputs], vec![0; inputs]);
    let mut cpu = Cpu::new(threads)?;
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < LOOK {
        for bytes in weights.chunks_exact(tile) {
            let columns = Columns { data: &mut out, stride: outputs, first: 0 };
            if grouped {
                let (scales, zeros, index) = (&factors, &factors, &index);
                let w = GroupedTile { bytes, encoding, outputs, scales, zeros, index };
                cpu.matmul_grouped(w, Inputs { data: &x, stride: inputs, first: 0 }, columns, Finish::default());
            } else {
                cpu.matmul(Tile { bytes, encoding, k, scales }, &x, columns, Finish::default());
            }
        }
        bytes += weights.len();
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

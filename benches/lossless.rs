//! The two ends of lossless coding: exponents in three bits with escapes, as `pack --to lossless` writes them and the multiply
//! decodes them, and exponents by entropy coding: Huffman's, as zstd has it, whose decoder is among the fastest there are.
//!
//! `cargo bench --bench lossless -- [MODEL …]`: matrices of bf16 that a packed model has; without MODEL, those of the demo
//! model, and normally distributed ones. Prints bytes relative to bf16, and billions of weights a second on one thread:
//! decoded and multiplied with one token for what the multiply decodes, decoded to bytes and no more for zstd. Without MODEL,
//! the table is written, with the machine, to `benches/results/<date>-<processor>/`.

#[allow(dead_code, reason = "what the benchmarks of passes share with each other")]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use layerstream::backend::cpu::{Columns, Cpu, Finish, Isa, Tile};
use layerstream::checkpoint::{Checkpoint, Dtype, Tensor};
use layerstream::encoding::{Encoding, Packed};
use serde_json::{Value, json};

use common::{Result, machine, write_results};

/// Exponents that are compressed at once: as much as a tile has.
const PIECE: usize = 4 << 20;
/// Every way takes its turn so often; the fastest counts.
const ROUNDS: usize = 5;

fn main() -> Result {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing to test here: `cargo bench --bench lossless` measures"); // cargo test runs this, too
        return Ok(());
    }
    let mut models: Vec<PathBuf> =
        std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let usual = models.is_empty();
    if usual {
        models = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("demo"), normal()?];
    }
    let rows = models.iter().map(|model| compare(model)).collect::<Result<Vec<_>>>()?.concat();
    let mut table = String::from("| model | matrices | how | bytes | G weights/s |\n| --- | --- | --- | --- | --- |\n");
    for Row { model, matrices, how, bytes, speed } in &rows {
        table += &format!("| {model} | {matrices} | {how} | {bytes:.4} | {speed:.2} |\n");
    }
    println!("{table}");
    // Of models that others do not have, nobody could make the figures again.
    if usual {
        let machine = machine();
        let head = format!("# Lossless coding, two ends\n\n`cargo bench --bench lossless`; {machine}\n\n");
        let rows: Vec<Value> = rows.iter().map(Row::record).collect();
        let record = json!({"machine": machine, "rounds": ROUNDS, "rows": rows});
        println!("written to {}", write_results("lossless", &record, &(head + &table))?.display());
    }
    Ok(())
}

/// One way to store the matrices of a model: bytes relative to bf16, and billions of weights a second.
#[derive(Clone)]
struct Row {
    model: String,
    matrices: usize,
    how: String,
    bytes: f64,
    speed: f64,
}

impl Row {
    fn record(&self) -> Value {
        let Row { model, matrices, how, bytes, speed } = self;
        json!({"model": model, "matrices": matrices, "how": how, "bytes": bytes, "gweights_per_second": speed})
    }
}

/// A layer with normally distributed weights, as wide as a model of 8 billion.
fn normal() -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("normal");
    if !dir.join("config.json").exists() {
        let config = Path::new(env!("CARGO_TARGET_TMPDIR")).join("normal.json");
        let shape = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
            "hidden_act": "silu", "torch_dtype": "bfloat16",
        });
        fs::write(&config, shape.to_string())?;
        layerstream(&["synth".as_ref(), "--config".as_ref(), &config, "--out".as_ref(), &dir])?;
    }
    Ok(dir)
}

fn layerstream(arguments: &[&Path]) -> Result {
    let done = Command::new(env!("CARGO_BIN_EXE_layerstream")).args(arguments).output()?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into()) }
}

/// A matrix as it was, and packed.
struct Matrix {
    columns: usize,
    plain: Vec<u8>,
    packed: Vec<u8>,
    to: Packed,
    /// The exponents, compressed piece by piece.
    huffman: Vec<Vec<u8>>,
}

fn compare(model: &Path) -> Result<Vec<Row>> {
    let out = tempfile::tempdir()?;
    layerstream(&["pack".as_ref(), model, "--to".as_ref(), "lossless".as_ref(), "--out".as_ref(), out.path()])?;
    let (before, after) = (Checkpoint::open(model)?, Checkpoint::open(out.path())?);
    let packed = after.tensors().filter_map(|tensor| match tensor.dtype {
        Dtype::Packed(to) => Some((tensor, to)),
        _ => None,
    });
    let matrices = packed.map(|(tensor, to)| matrix(&before, &after, tensor, to)).collect::<Result<Vec<_>>>()?;
    let weights: usize = matrices.iter().map(|matrix| matrix.plain.len() / 2).sum();
    let bytes = |of: &dyn Fn(&Matrix) -> usize| matrices.iter().map(of).sum::<usize>() as f64 / (2 * weights) as f64;
    let huffman = |matrix: &Matrix| matrix.plain.len() / 2 + matrix.huffman.iter().map(Vec::len).sum::<usize>();

    let mut rows = Vec::new();
    for isa in Isa::available() {
        let mut cpu = Cpu::with_isa(Some(1), isa)?;
        let plain = fastest(|| matrices.iter().for_each(|m| multiply(&mut cpu, &m.plain, Encoding::Bf16, m.columns)));
        let coded = fastest(|| {
            matrices.iter().for_each(|m| multiply(&mut cpu, &m.packed, Encoding::Packed(m.to), m.columns));
        });
        rows.push((format!("bf16, multiplied, {isa}"), 1.0, plain));
        rows.push((format!("lossless, multiplied, {isa}"), bytes(&|matrix| matrix.packed.len()), coded));
    }
    let mut exponents = vec![0; PIECE];
    let unpacked = fastest(|| {
        for piece in matrices.iter().flat_map(|matrix| &matrix.huffman) {
            zstd::bulk::decompress_to_buffer(piece, &mut exponents).expect("what zstd wrote");
        }
    });
    rows.push(("entropy coded (zstd), exponents decoded".into(), bytes(&huffman), unpacked));
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    let row = |(how, bytes, time): (String, f64, Duration)| Row {
        model: name.to_string(),
        matrices: matrices.len(),
        how,
        bytes,
        speed: weights as f64 / time.as_secs_f64() / 1e9,
    };
    Ok(rows.into_iter().map(row).collect())
}

fn matrix(before: &Checkpoint, after: &Checkpoint, tensor: &Tensor, to: Packed) -> Result<Matrix> {
    let [plain, packed] = [(before, before.require(&tensor.name)?), (after, tensor)]
        .map(|(checkpoint, tensor)| checkpoint.read(tensor, usize::MAX));
    let plain = plain?;
    let exponents: Vec<u8> = plain.as_chunks().0.iter().map(|bytes| (u16::from_le_bytes(*bytes) >> 7) as u8).collect();
    let huffman = exponents.chunks(PIECE).map(huffman).collect::<Result<_>>()?;
    Ok(Matrix { columns: tensor.shape[tensor.shape.len() - 1], plain, packed: packed?, to, huffman })
}

/// In so small a window, zstd hardly finds anything twice: it codes one exponent after another.
fn huffman(exponents: &[u8]) -> Result<Vec<u8>> {
    use zstd::zstd_safe::CParameter;
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    compressor.set_parameter(CParameter::WindowLog(10))?;
    compressor.set_parameter(CParameter::MinMatch(7))?;
    Ok(compressor.compress(exponents)?)
}

/// The product of a matrix with one token.
fn multiply(cpu: &mut Cpu, bytes: &[u8], encoding: Encoding, k: usize) {
    let tile = Tile { bytes, encoding, k, scales: None };
    let (x, mut out) = (vec![0.5; k], vec![0.0; tile.rows()]);
    let stride = out.len();
    cpu.matmul(tile, &x, Columns { data: &mut out, stride, first: 0 }, Finish::default());
    std::hint::black_box(out);
}

fn fastest(mut run: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..ROUNDS).map(time).min().expect("rounds")
}

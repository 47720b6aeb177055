//! The CPU's kernels by themselves: one-token products with weights that come from memory, prompt blocks, attention.
//! `cargo bench --bench cpu -- FILTER`; criterion's throughput is bytes of weights per second for `decode` and
//! multiply-adds per second (half of FLOP/s) for the others.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use layerstream::backend::cpu::{Activation, Attention, Columns, Cpu, Finish, Isa, Scales, Sequence, Tile};
use layerstream::encoding::Encoding;
use std::hint::black_box;
use std::time::Duration;

/// More weights than any cache holds.
const WEIGHTS: usize = 512 << 20;
const TILE: usize = 8 << 20;

/// Numbers of ordinary size; which ones does not matter to the time.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 2_654_435_761 % 1000) as f32 / 1000.0 - 0.5).collect()
}

/// Bytes that are ordinary numbers in every type.
fn weights(len: usize) -> Vec<u8> {
    (0..len).map(|i| if i % 2 == 1 { 0x3c + (i / 2 % 3) as u8 } else { (i * 31) as u8 }).collect()
}

fn cpus() -> Vec<Cpu> {
    let best = [Some(1), None].map(|threads| Cpu::new(threads).unwrap());
    let others = Isa::available().skip(1).map(|isa| Cpu::with_isa(Some(1), isa).unwrap());
    best.into_iter().chain(others).collect()
}

fn name(cpu: &Cpu) -> String {
    format!("{}x{}", cpu.isa(), cpu.threads())
}

fn decode(c: &mut Criterion) {
    let bytes = weights(WEIGHTS);
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(TILE as u64)).sample_size(50).measurement_time(Duration::from_secs(2));
    for cpu in &mut cpus() {
        for (float, k, n) in [
            (Encoding::Bf16, 4096, 1),
            (Encoding::Bf16, 8192, 1),
            (Encoding::Bf16, 28672, 1),
            (Encoding::Bf16, 4096, 2),
            (Encoding::Bf16, 4096, 4),
            (Encoding::F16, 4096, 1),
            (Encoding::F32, 4096, 1),
        ] {
            let rows = TILE / (k * float.bytes(1));
            let (x, mut out) = (numbers(n * k), vec![0.0; n * rows]);
            let mut tiles = bytes.chunks_exact(rows * k * float.bytes(1)).cycle();
            group.bench_function(BenchmarkId::new(name(cpu), format!("{float:?}/k{k}/n{n}")), |b| {
                b.iter(|| {
                    let tile = Tile { bytes: tiles.next().unwrap(), encoding: float, k, scales: None };
                    let columns = Columns { data: &mut out, stride: rows, first: 0 };
                    cpu.matmul(tile, black_box(&x), columns, Finish::default());
                })
            });
        }
    }
}

/// Bytes as they are stored, of every encoding.
fn encodings(c: &mut Criterion) {
    let bytes = weights(WEIGHTS);
    let (k, factors) = (4096, vec![1.0; 1 << 20]);
    let mut group = c.benchmark_group("encodings");
    group.throughput(Throughput::Bytes(TILE as u64)).sample_size(20).measurement_time(Duration::from_secs(1));
    for cpu in &mut cpus() {
        for encoding in Encoding::ALL {
            let rows = TILE / encoding.bytes(k);
            let scales =
                Scales { values: &factors, zeros: &[], row_block: 128, col_block: 128, index: &[], first_row: 0 };
            let scales = (!encoding.is_complete()).then_some(scales);
            for n in [1, 4] {
                let (x, mut out) = (numbers(n * k), vec![0.0; n * rows]);
                let mut tiles = bytes.chunks_exact(rows * encoding.bytes(k)).cycle();
                group.bench_function(BenchmarkId::new(name(cpu), format!("{encoding}/n{n}")), |b| {
                    b.iter(|| {
                        let tile = Tile { bytes: tiles.next().unwrap(), encoding, k, scales };
                        let columns = Columns { data: &mut out, stride: rows, first: 0 };
                        cpu.matmul(tile, black_box(&x), columns, Finish::default());
                    })
                });
            }
        }
    }
}

fn prefill(c: &mut Criterion) {
    let bytes = weights(TILE);
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    for cpu in &mut cpus() {
        for (k, n) in [
            (4096, 4),
            (4096, 6),
            (4096, 8),
            (4096, 16),
            (4096, 32),
            (4096, 128),
            (4096, 512),
            (14336, 512),
            (1024, 512),
        ] {
            let rows = TILE / (k * 2);
            let (x, mut out) = (numbers(n * k), vec![0.0; n * rows]);
            group.throughput(Throughput::Elements((n * k * rows) as u64));
            group.bench_function(BenchmarkId::new(name(cpu), format!("k{k}/n{n}")), |b| {
                b.iter(|| {
                    let tile = Tile { bytes: &bytes[..rows * k * 2], encoding: Encoding::Bf16, k, scales: None };
                    let columns = Columns { data: &mut out, stride: rows, first: 0 };
                    cpu.matmul(tile, black_box(&x), columns, Finish::default());
                })
            });
        }
    }
}

fn attention(c: &mut Criterion) {
    let (heads, kv_heads, head_dim, context) = (32, 8, 128, 4096);
    let mut group = c.benchmark_group("attention");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    let (keys, values) = (numbers(kv_heads * context * head_dim), numbers(kv_heads * context * head_dim));
    for cpu in &mut cpus() {
        for n in [1, 4, 128, 512] {
            let width = heads * head_dim;
            let scale = 1.0 / (head_dim as f32).sqrt();
            let shape = Attention {
                heads,
                kv_heads,
                key_dim: head_dim,
                value_dim: head_dim,
                q_stride: width,
                scale,
                window: None,
                chunk: None,
                soft_cap: None,
                sinks: None,
                slopes: None,
                bias_factor: None,
            };
            let (q, mut out) = (numbers(n * width), vec![0.0; n * width]);
            let sequence = Sequence { rows: 0..n, start: context - n, keys: &keys, values: &values };
            // Scores and sums.
            let seen: usize = (0..n).map(|t| context - t).sum();
            group.throughput(Throughput::Elements((2 * heads * head_dim * seen) as u64));
            group.bench_function(BenchmarkId::new(name(cpu), format!("context{context}/n{n}")), |b| {
                b.iter(|| cpu.attention(black_box(&q), std::slice::from_ref(&sequence), shape, &mut out))
            });
        }
    }
}

fn silu(c: &mut Criterion) {
    let mut group = c.benchmark_group("silu");
    for cpu in &mut cpus() {
        let n = 14336;
        let (mut gate, up) = (numbers(n), numbers(n));
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(name(cpu), |b| b.iter(|| cpu.glu(Activation::Silu, black_box(&mut gate), &up)));
    }
}

criterion_group!(benches, decode, encodings, prefill, attention, silu);
criterion_main!(benches);

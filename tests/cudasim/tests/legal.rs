//! Programs that use the driver as they should run to their end under every seed, with the same results.

use common::driver as cu;
use common::pipeline::{self, Forgets};
use common::{Program, passes, run_if_asked};

use layerstream_cudasim::fingerprint::fingerprint;
use layerstream_kernels::launch::gemm;
use layerstream_kernels::params::{GemmParams, Weights};

mod common;

const PROGRAMS: &[Program] = &[
    ("pipeline", || {
        cu::open(0).unwrap();
        assert_eq!(pipeline::run(Forgets::Nothing).unwrap(), pipeline::expected());
        cu::close(0).unwrap();
    }),
    ("without arithmetic", || {
        cu::open(0).unwrap();
        // The kernel that collects does not run; its output is zero.
        assert!(pipeline::run(Forgets::Nothing).unwrap().iter().all(|&byte| byte == 0));
        cu::close(0).unwrap();
    }),
    ("late copies", late_copies),
    ("default stream", default_stream),
    ("times", times),
    ("again", again),
    ("cards", cards),
    ("round trip", round_trip),
    ("long pass", long_pass),
    ("products", products),
];

const ROWS: usize = 20;
const K: usize = 1024;

/// The bytes of a tile of float32 weights.
fn weights(tile: usize) -> Vec<u8> {
    (0..ROWS * K * 4).map(|i| (i / 4096 * 5 + tile * 3) as u8 & 63).collect()
}

/// Two tiles of one matrix, each multiplied with a row of activations.
fn products() {
    cu::open(0).unwrap();
    let stream = cu::stream().unwrap();
    let module = cu::load(&layerstream_cudasim::FATBIN).unwrap();
    let (place, x, out) = (cu::alloc(ROWS * K * 4).unwrap(), cu::alloc(K * 4).unwrap(), cu::alloc(ROWS * 8).unwrap());
    cu::upload(x, &vec![0; K * 4]).unwrap();
    for tile in 0..2 {
        cu::upload(place, &weights(tile)).unwrap();
        cu::synchronize(cu::DEFAULT).unwrap();
        let w = Weights { data: place as *const _, first_row: (tile * ROWS) as i32, ..Weights::default() };
        let (m, n, k) = (1, ROWS as i32, K as i32);
        let (x, out) = (x as *const _, out as *mut f32);
        let params = GemmParams { w, x, out, x_stride: K as i64, out_stride: 64, m, n, k, ..GemmParams::default() };
        let launch = gemm::decode(gemm::Encoding::F32, &params);
        let function = cu::function(module, launch.kernel).unwrap();
        cu::launch(function, &launch, &params, stream).unwrap();
        cu::synchronize(stream).unwrap();
    }
    assert!(cu::download(out, ROWS * 8).unwrap().iter().all(|&byte| byte == 0));
    [place, x, out].into_iter().for_each(|memory| cu::free(memory).unwrap());
    cu::unload(module).unwrap();
    cu::destroy_stream(stream).unwrap();
}

/// Tiles of many sizes through a ring on a card that is much larger than what is used of it.
fn long_pass() {
    const RING: u64 = 32 << 20;
    cu::open(0).unwrap();
    let (copy, compute) = (cu::stream().unwrap(), cu::stream().unwrap());
    let module = cu::load(&layerstream_cudasim::FATBIN).unwrap();
    let function = cu::function(module, "peak_read").unwrap();
    let untouched = cu::alloc(3 << 30).unwrap();
    let (host, ring, out) =
        (cu::host(2 << 20).unwrap(), cu::alloc(RING as usize).unwrap(), cu::alloc(1 << 10).unwrap());
    let (arrived, released) = (cu::event().unwrap(), cu::event().unwrap());
    let mut at = 0;
    for tile in 0..3000u64 {
        let len = (1 << 20) + tile * 7919 % 4096 * 16;
        at = if at + len > RING { 0 } else { at };
        // Every fourth tile waits for all before it: more than a ring's worth is never under way.
        if tile % 4 == 0 {
            cu::record(released, compute).unwrap();
            cu::wait(copy, released).unwrap();
            cu::synchronize_event(released).unwrap();
        }
        cu::upload_async(ring + at, &host[..len as usize], copy).unwrap();
        cu::record(arrived, copy).unwrap();
        cu::wait(compute, arrived).unwrap();
        let (mut launch, params) = pipeline::copying(ring + at, out, len as usize);
        launch.kernel = "peak_read";
        cu::launch(function, &launch, &params, compute).unwrap();
        at += len;
    }
    cu::synchronize_all().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 160 << 10, "{kib} KiB for a ring of 32 MiB");
    [untouched, ring, out].into_iter().for_each(|memory| cu::free(memory).unwrap());
    cu::free_host(host).unwrap();
    [arrived, released].into_iter().for_each(|event| cu::destroy_event(event).unwrap());
    cu::unload(module).unwrap();
    [copy, compute].into_iter().for_each(|stream| cu::destroy_stream(stream).unwrap());
}

/// Nothing runs before somebody waits, as far as the host can see.
fn late_copies() {
    cu::open(0).unwrap();
    let stream = cu::stream().unwrap();
    let (host, memory) = (cu::host(100).unwrap(), cu::alloc(100).unwrap());
    cu::fill_async(memory, 1, 100, stream).unwrap();
    cu::download_async(host, memory, stream).unwrap();
    assert_eq!(host, [0xff; 100]);
    assert_eq!(cu::query(stream), Err(600));
    assert_eq!(host, [0xff; 100]);
    while cu::query(stream).is_err() {}
    assert_eq!(host, [1; 100]);
    cu::free(memory).unwrap();
    cu::free_host(host).unwrap();
    cu::destroy_stream(stream).unwrap();
}

/// The default stream and those that are not apart from it wait for each other.
fn default_stream() {
    cu::open(0).unwrap();
    let (one, other) = (cu::blocking_stream().unwrap(), cu::blocking_stream().unwrap());
    let memory = cu::alloc(64).unwrap();
    cu::upload(memory, &[1; 64]).unwrap();
    cu::fill_async(memory, 2, 32, one).unwrap();
    assert_eq!(cu::download(memory, 64).unwrap(), [[2; 32], [1; 32]].concat());
    cu::fill_async(memory, 3, 64, one).unwrap();
    cu::fill_async(memory, 4, 16, cu::DEFAULT).unwrap();
    cu::copy_async(memory + 16, memory, 16, other).unwrap();
    cu::synchronize(other).unwrap();
    let expected = [[4; 32], [3; 32]].concat();
    assert_eq!(cu::download(memory, 64).unwrap(), expected);
    cu::free(memory).unwrap();
    cu::destroy_stream(one).unwrap();
    cu::destroy_stream(other).unwrap();
}

/// The time between events is that of the work between them.
fn times() {
    cu::open(0).unwrap();
    let stream = cu::stream().unwrap();
    let (host, memory) = (cu::host(1 << 20).unwrap(), cu::alloc(1 << 20).unwrap());
    let events: Vec<_> = (0..3).map(|_| cu::event().unwrap()).collect();
    assert_eq!(cu::elapsed(events[0], events[1]), Err(400));
    cu::record(events[0], stream).unwrap();
    cu::upload_async(memory, &host[..1 << 10], stream).unwrap();
    cu::record(events[1], stream).unwrap();
    cu::upload_async(memory, host, stream).unwrap();
    cu::record(events[2], stream).unwrap();
    cu::synchronize_event(events[2]).unwrap();
    let short = cu::elapsed(events[0], events[1]).unwrap();
    let long = cu::elapsed(events[1], events[2]).unwrap();
    assert!(short > 0.0 && long > short, "{short} {long}");
    events.into_iter().for_each(|event| cu::destroy_event(event).unwrap());
    cu::free(memory).unwrap();
    cu::free_host(host).unwrap();
    cu::destroy_stream(stream).unwrap();
}

/// Streams that come and go, a context that is made again, memory registered in pieces.
fn again() {
    for round in 0..20u8 {
        cu::open(0).unwrap();
        let host = vec![round; 3000];
        cu::register(&host[..1000]).unwrap();
        assert_eq!(cu::register(&host[999..]), Err(712));
        cu::register(&host[1000..]).unwrap();
        let (stream, memory) = (cu::stream().unwrap(), cu::alloc(3000).unwrap());
        cu::upload_async(memory, &host[..500], stream).unwrap();
        cu::upload_async(memory + 500, &host[1000..], stream).unwrap();
        cu::synchronize(stream).unwrap();
        assert_eq!(cu::download(memory, 2500).unwrap(), host[..2500]);
        assert_eq!(cu::download(memory + 2500, 500).unwrap(), [0xff; 500]);
        assert_eq!(cu::unregister(&host[1..]), Err(713));
        cu::unregister(&host[..1000]).unwrap();
        cu::unregister(&host[1000..]).unwrap();
        cu::free(memory).unwrap();
        cu::destroy_stream(stream).unwrap();
        cu::close(0).unwrap();
    }
}

/// Several cards, with memory of their own.
fn cards() {
    assert_eq!(cu::count(), Ok(3));
    assert_eq!(cu::open(3), Err(101));
    for card in 0..3 {
        cu::open(card).unwrap();
        assert_eq!(cu::memory().unwrap(), (15 << 20, 16 << 20));
        let memory = cu::alloc(10 << 20).unwrap();
        assert_eq!(cu::memory().unwrap(), (5 << 20, 16 << 20));
        cu::free(memory).unwrap();
    }
}

/// Through page-locked memory to the host and back, all of it queued at once.
fn round_trip() {
    cu::open(0).unwrap();
    let (one, other, moved) = (cu::stream().unwrap(), cu::stream().unwrap(), cu::event().unwrap());
    let (host, from, to) = (cu::host(5000).unwrap(), cu::alloc(5000).unwrap(), cu::alloc(5000).unwrap());
    for round in 0..5u8 {
        cu::fill_async(from, round, 5000, one).unwrap();
        cu::download_async(host, from, one).unwrap();
        cu::record(moved, one).unwrap();
        cu::wait(other, moved).unwrap();
        cu::upload_async(to, host, other).unwrap();
        cu::record(moved, other).unwrap();
        cu::wait(one, moved).unwrap();
    }
    cu::synchronize(other).unwrap();
    assert_eq!(cu::download(to, 5000).unwrap(), [4; 5000]);
    cu::synchronize_all().unwrap();
    cu::free(from).unwrap();
    cu::free(to).unwrap();
    cu::free_host(host).unwrap();
    cu::destroy_event(moved).unwrap();
    cu::destroy_stream(one).unwrap();
    cu::destroy_stream(other).unwrap();
}

#[test]
fn programs() {
    run_if_asked(PROGRAMS);
}

/// With each of these seeds.
fn under_seeds(program: &str, seeds: std::ops::Range<u32>) {
    for seed in seeds {
        passes(program, &[("SEED", &seed.to_string())]);
    }
}

#[test]
fn a_pipeline_gives_the_same_under_200_seeds() {
    under_seeds("pipeline", 0..200);
}

#[test]
fn copies_come_as_late_as_is_legal() {
    passes("late copies", &[]);
}

#[test]
fn the_default_stream_waits_as_a_driver_does() {
    under_seeds("default stream", 0..8);
}

#[test]
fn events_tell_the_time() {
    under_seeds("times", 0..8);
}

#[test]
fn everything_can_be_made_again() {
    under_seeds("again", 0..8);
}

#[test]
fn memory_can_go_to_the_host_and_back() {
    under_seeds("round trip", 0..8);
}

#[test]
fn cards_are_told_apart() {
    passes("cards", &[("DEVICES", "3"), ("VRAM", "16777216")]);
}

#[test]
fn without_arithmetic_order_is_still_checked_and_copies_still_copy() {
    let report = tempfile::NamedTempFile::new().unwrap();
    let path = report.path().to_str().unwrap();
    passes("without arithmetic", &[("ARITHMETIC", "0"), ("REPORT", path), ("VRAM", "16777216")]);
    let report = std::fs::read_to_string(path).unwrap();
    let tiles = format!("\"bytes\": {}", 12 * pipeline::TILE);
    assert_eq!(report.matches(&tiles).count(), 2, "{report}");
    // The context and one page, and the page tables of what is page-locked.
    let vram = format!("\"peak_vram\": {}", (3 << 20) + 122_880 / 512);
    for line in ["\"misuse\": null", "\"peak_copy\": 12", &vram, "\"peak_pinned\": 122880"] {
        assert!(report.contains(line), "{line}\n{report}");
    }
}

#[test]
fn a_large_card_takes_the_memory_that_is_used_of_it() {
    passes("long pass", &[("ARITHMETIC", "0"), ("SEED", "2")]);
}

#[test]
fn a_trace_has_every_tile_in_order_with_its_bytes() {
    let expected: String = (0..2)
        .map(|tile| format!("gemm_f32_m8 {} 20 1024 81920 {:016x}\n", tile * ROWS, fingerprint(&weights(tile))))
        .collect();
    for arithmetic in ["0", "1"] {
        let trace = tempfile::NamedTempFile::new().unwrap();
        passes("products", &[("ARITHMETIC", arithmetic), ("TRACE", trace.path().to_str().unwrap())]);
        assert_eq!(std::fs::read_to_string(trace.path()).unwrap(), expected);
    }
}

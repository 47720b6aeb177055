//! Programs that use the driver wrongly, in a way that a GPU often forgives: each is caught, and told what it did.

use common::driver as cu;
use common::pipeline::{self, Forgets, copying};
use common::{Program, is_caught, passes, run_if_asked, start};

mod common;

/// A context, a stream, and 4096 bytes of device memory.
fn begin() -> (cu::Stream, u64) {
    cu::open(0).unwrap();
    (cu::stream().unwrap(), cu::alloc(4096).unwrap())
}

fn peak_copy() -> cu::Function {
    cu::function(cu::load(&layerstream_cudasim::FATBIN).unwrap(), "peak_copy").unwrap()
}

fn forgets(what: Forgets) {
    cu::open(0).unwrap();
    // Where the driver cannot know what the host does, the bytes show it.
    let right = pipeline::run(what).unwrap() == pipeline::expected();
    cu::close(0).unwrap();
    if !right {
        std::process::exit(WRONG_BYTES);
    }
}

const WRONG_BYTES: i32 = 3;

const PROGRAMS: &[Program] = &[
    ("forgets nothing", || forgets(Forgets::Nothing)),
    ("forgets the arrival", || forgets(Forgets::Arrival)),
    ("forgets the release", || forgets(Forgets::Release)),
    ("forgets the slot", || forgets(Forgets::Slot)),
    ("forgets the result", || forgets(Forgets::Result)),
    ("forgets the last", || forgets(Forgets::Last)),
    ("waits too early", || {
        // The wait takes what was recorded last when it is called, which is nothing yet.
        let (stream, memory) = begin();
        let (other, event, host) = (cu::stream().unwrap(), cu::event().unwrap(), cu::host(100).unwrap());
        cu::wait(other, event).unwrap();
        cu::upload_async(memory, host, stream).unwrap();
        cu::record(event, stream).unwrap();
        cu::fill_async(memory, 0, 100, other).unwrap();
        cu::synchronize_all().unwrap();
    }),
    ("waits for an old record", || {
        let (stream, memory) = begin();
        let (other, event) = (cu::stream().unwrap(), cu::event().unwrap());
        cu::record(event, stream).unwrap();
        cu::wait(other, event).unwrap();
        cu::fill_async(memory, 1, 100, stream).unwrap();
        cu::record(event, stream).unwrap();
        cu::copy_async(memory + 200, memory, 100, other).unwrap();
        cu::synchronize_all().unwrap();
    }),
    ("trusts the default stream", || {
        // A copy from pageable memory may be under way when the call returns, and this stream does not wait for it.
        let (stream, memory) = begin();
        cu::upload(memory, &[1; 100]).unwrap();
        cu::copy_async(memory + 200, memory, 100, stream).unwrap();
        cu::synchronize(stream).unwrap();
    }),
    ("reads before a kernel wrote", || {
        let (stream, memory) = begin();
        let (launch, params) = copying(memory, memory + 1024, 1024);
        cu::launch(peak_copy(), &launch, &params, stream).unwrap();
        cu::download(memory + 2047, 10).unwrap();
    }),
    ("frees early", || {
        let (stream, memory) = begin();
        let (launch, params) = copying(memory, memory + 1024, 1024);
        cu::launch(peak_copy(), &launch, &params, stream).unwrap();
        cu::free(memory).unwrap();
    }),
    ("frees twice", || {
        let (_, memory) = begin();
        cu::free(memory).unwrap();
        cu::free(memory).unwrap();
    }),
    ("frees the middle", || cu::free(begin().1 + 8).unwrap()),
    ("unregisters early", || {
        let (stream, memory) = begin();
        let host = vec![1; 4096];
        cu::register(&host).unwrap();
        cu::upload_async(memory, &host, stream).unwrap();
        cu::unregister(&host).unwrap();
    }),
    ("frees host memory early", || {
        let (stream, memory) = begin();
        let host = cu::host(4096).unwrap();
        cu::download_async(host, memory, stream).unwrap();
        cu::free_host(host).unwrap();
    }),
    ("copies pageable memory", || {
        let (stream, memory) = begin();
        cu::upload_async(memory, &[1; 100], stream).unwrap();
    }),
    ("copies beyond what is registered", || {
        let (stream, memory) = begin();
        let host = vec![1; 4096];
        cu::register(&host[..4095]).unwrap();
        cu::upload_async(memory, &host, stream).unwrap();
    }),
    ("downloads to pageable memory", || {
        let (stream, memory) = begin();
        cu::download_async(&mut [1; 100], memory, stream).unwrap();
    }),
    ("copies beyond the end", || cu::upload(begin().1 + 4000, &[1; 97]).unwrap()),
    ("copies to nowhere", || {
        begin();
        cu::upload(0, &[1; 97]).unwrap();
    }),
    ("copies to freed memory", || {
        let (stream, memory) = begin();
        cu::free(memory).unwrap();
        cu::fill_async(memory, 0, 10, stream).unwrap();
    }),
    ("launches with null", || launches(|memory| copying(memory, 0, 64))),
    ("launches with an unknown address", || launches(|memory| copying(64, memory, 64))),
    ("launches beyond the end", || launches(|memory| copying(memory, memory + 2048, 2064))),
    ("launches on freed memory", || {
        launches(|memory| {
            cu::free(memory).unwrap();
            copying(memory, memory + 2048, 64)
        });
    }),
    ("unloads early", || {
        let (stream, memory) = begin();
        let module = cu::load(&layerstream_cudasim::FATBIN).unwrap();
        let (launch, params) = copying(memory, memory + 1024, 1024);
        cu::launch(cu::function(module, "peak_copy").unwrap(), &launch, &params, stream).unwrap();
        cu::unload(module).unwrap();
    }),
    ("waits for a destroyed event", || {
        let ((stream, _), event) = (begin(), cu::event().unwrap());
        cu::destroy_event(event).unwrap();
        cu::wait(stream, event).unwrap();
    }),
    ("uses a destroyed stream", || {
        let (stream, _) = begin();
        cu::destroy_stream(stream).unwrap();
        cu::synchronize(stream).unwrap();
    }),
    ("never waits", || {
        // Nobody asks for either of these, and all that was made is given back.
        cu::open(0).unwrap();
        let (one, other) = (cu::stream().unwrap(), cu::stream().unwrap());
        let memory = cu::alloc(100).unwrap();
        cu::fill_async(memory, 0, 100, one).unwrap();
        cu::fill_async(memory, 1, 100, other).unwrap();
        cu::destroy_stream(one).unwrap();
        cu::destroy_stream(other).unwrap();
        cu::free(memory).unwrap();
    }),
    ("leaks memory", || leaks(|| leave(cu::alloc(5 << 20).unwrap()))),
    ("leaks a stream", || leaks(|| leave(cu::stream().unwrap()))),
    ("leaks an event", || leaks(|| leave(cu::event().unwrap()))),
    ("leaks a module", || leaks(|| leave(cu::load(&layerstream_cudasim::FATBIN).unwrap()))),
    ("leaks host memory", || leaks(|| cu::host(4096).unwrap().fill(0))),
    ("leaks nothing", || leaks(|| ())),
    ("leaves a context with memory", || {
        begin();
        cu::close(0).unwrap();
    }),
];

fn leave<T>(_: T) {}

/// Makes something and forgets it; the process ends without more.
fn leaks(make: fn()) {
    cu::open(0).unwrap();
    make();
}

fn launches(params: fn(u64) -> (layerstream_kernels::launch::Launch, layerstream_kernels::params::PeakParams)) {
    let (stream, memory) = begin();
    let function = peak_copy();
    let (launch, params) = params(memory);
    cu::launch(function, &launch, &params, stream).unwrap();
    cu::synchronize(stream).unwrap();
}

#[test]
fn programs() {
    run_if_asked(PROGRAMS);
}

/// Under these seeds the whole range of moods is met.
const SEEDS: std::ops::Range<u32> = 0..12;

#[track_caller]
fn is_caught_always(program: &str, words: &str) {
    for seed in SEEDS {
        is_caught(program, &[("SEED", &seed.to_string())], words);
    }
}

#[test]
fn a_missing_wait_is_caught_under_every_seed() {
    for forgotten in ["arrival", "release", "last"] {
        is_caught_always(&format!("forgets the {forgotten}"), "nothing orders two operations");
    }
    is_caught_always("waits too early", "nothing orders two operations");
    is_caught_always("waits for an old record", "nothing orders two operations");
    is_caught_always("trusts the default stream", "pageable bytes");
    is_caught_always("reads before a kernel wrote", "`peak_copy`");
    passes("forgets nothing", &[]);
}

/// Only the order in which things happen shows what the host forgot: the lazy one, without a seed, always does.
#[test]
fn a_slot_reused_early_is_caught() {
    is_caught("forgets the slot", &[], "the host changed bytes that the copy of 8192 bytes");
    let caught = SEEDS.filter(|seed| {
        let output = start("forgets the slot", &[("SEED", &seed.to_string())]);
        output.status.code() == Some(layerstream_cudasim::EXIT_MISUSE)
    });
    assert!(caught.count() >= 6, "most seeds find it");
}

#[test]
fn a_result_read_early_is_not_there() {
    let output = start("forgets the result", &[]);
    assert_eq!(output.status.code(), Some(WRONG_BYTES), "{}", common::said(&output));
}

#[test]
fn memory_given_back_early_is_caught() {
    is_caught_always("frees early", "nobody has waited for `peak_copy`");
    is_caught_always("unregisters early", "nobody has waited for the copy of 4096 bytes");
    is_caught_always("frees host memory early", "nobody has waited for the copy of 4096 bytes");
    is_caught_always("unloads early", "nobody has waited for operation 1");
    is_caught_always("never waits", "nothing orders two operations");
    is_caught("frees twice", &[], "freed twice");
    is_caught("frees the middle", &[], "not where an allocation");
}

#[test]
fn asynchronous_copies_need_page_locked_memory() {
    for program in ["copies pageable memory", "copies beyond what is registered", "downloads to pageable memory"] {
        is_caught(program, &[], "not page-locked");
    }
}

#[test]
fn what_lies_outside_of_memory_is_caught() {
    is_caught("copies beyond the end", &[], "ends 1 bytes beyond the allocation of 4096 bytes");
    is_caught("copies to nowhere", &[], "no allocation");
    is_caught("copies to freed memory", &[], "which were freed");
    is_caught("launches with null", &[], "`out` is null");
    is_caught("launches with an unknown address", &[], "no allocation");
    is_caught("launches beyond the end", &[], "ends 16 bytes beyond");
    is_caught("launches on freed memory", &[], "which were freed");
}

#[test]
fn handles_that_are_gone_are_caught() {
    is_caught("waits for a destroyed event", &[], "no event, or was destroyed");
    is_caught("uses a destroyed stream", &[], "no stream, or was destroyed");
}

#[test]
fn leaks_are_caught_at_exit() {
    is_caught("leaks memory", &[], "1 allocations of device memory (5242880 bytes)");
    is_caught("leaks a stream", &[], "1 streams");
    is_caught("leaks an event", &[], "1 events");
    is_caught("leaks a module", &[], "1 modules");
    is_caught("leaks host memory", &[], "1 page-locked regions of host memory (4096 bytes)");
    is_caught("leaves a context with memory", &[], "1 allocations of device memory (4096 bytes), 1 streams");
    passes("leaks nothing", &[]);
}

#[test]
fn order_is_checked_without_arithmetic_too() {
    for forgotten in ["arrival", "release", "last"] {
        let program = format!("forgets the {forgotten}");
        is_caught(&program, &[("ARITHMETIC", "0")], "nothing orders two operations");
    }
}

#[test]
fn the_report_says_what_went_wrong() {
    let report = tempfile::NamedTempFile::new().unwrap();
    is_caught("frees twice", &[("REPORT", report.path().to_str().unwrap())], "freed twice");
    let report = std::fs::read_to_string(report.path()).unwrap();
    assert!(report.contains("\"misuse\": \"device memory at 0x"), "{report}");
}

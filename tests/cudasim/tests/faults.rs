//! What goes wrong without the program's doing: each fault comes as the code that a driver gives, when a driver gives it.

use common::driver as cu;
use common::{Program, passes, run_if_asked};

mod common;

const OUT_OF_MEMORY: i32 = 2;

const PROGRAMS: &[Program] = &[
    ("allocates", || {
        cu::open(0).unwrap();
        let kept = cu::alloc(1 << 20).unwrap();
        assert_eq!(cu::alloc(1 << 20), Err(OUT_OF_MEMORY));
        // Only that one.
        let other = cu::alloc(1 << 20).unwrap();
        cu::free(kept).unwrap();
        cu::free(other).unwrap();
    }),
    ("fills the card", || {
        cu::open(0).unwrap();
        let (free, total) = cu::memory().unwrap();
        assert_eq!((free, total), (8 << 20, 16 << 20));
        assert_eq!(cu::alloc(free + 1), Err(OUT_OF_MEMORY));
        let all = cu::alloc(free).unwrap();
        assert_eq!(cu::memory().unwrap(), (0, total));
        assert_eq!(cu::alloc(1), Err(OUT_OF_MEMORY));
        cu::free(all).unwrap();
        assert_eq!(cu::memory().unwrap(), (free, total));
    }),
    ("pins", || {
        cu::open(0).unwrap();
        let memory = [0; 100];
        cu::register(&memory).unwrap();
        assert_eq!(cu::host(100), Err(OUT_OF_MEMORY));
        cu::unregister(&memory).unwrap();
    }),
    ("no context", || assert_eq!(cu::open(0), Err(OUT_OF_MEMORY))),
    ("no device", || assert_eq!(cu::count(), Err(100))),
    ("no code", || {
        cu::open(0).unwrap();
        assert_eq!(cu::load(&layerstream_cudasim::FATBIN), Err(209));
    }),
    ("old driver", || {
        assert_eq!(cu::version(), 11_020);
        cu::open(0).unwrap();
        assert_eq!(cu::load(&layerstream_cudasim::FATBIN), Err(222));
    }),
    ("no image", || {
        cu::open(0).unwrap();
        assert_eq!(cu::load(&[0; 64]), Err(200));
        let module = cu::load(&layerstream_cudasim::FATBIN).unwrap();
        assert_eq!(cu::function(module, "no_such_kernel"), Err(500));
        cu::unload(module).unwrap();
    }),
    ("is refused", || {
        let (stream, memory, host) = begin();
        cu::upload_async(memory, host, stream).unwrap();
        assert_eq!(cu::upload_async(memory, host, stream), Err(OUT_OF_MEMORY));
        cu::upload_async(memory, host, stream).unwrap();
        cu::synchronize(stream).unwrap();
        cu::free(memory).unwrap();
        cu::free_host(host).unwrap();
        cu::destroy_stream(stream).unwrap();
    }),
    ("a copy fails", || fails_for_good(214)),
    ("is lost", || fails_for_good(999)),
    ("a kernel fails", || {
        let (stream, memory, _) = begin();
        let function = cu::function(cu::load(&layerstream_cudasim::FATBIN).unwrap(), "peak_copy").unwrap();
        let (launch, params) = common::pipeline::copying(memory, memory + 512, 512);
        cu::launch(function, &launch, &params, stream).unwrap();
        assert_eq!(cu::synchronize(stream), Err(719));
    }),
    ("too large a launch", || {
        let (stream, memory, _) = begin();
        let function = cu::function(cu::load(&layerstream_cudasim::FATBIN).unwrap(), "peak_copy").unwrap();
        let (mut launch, params) = common::pipeline::copying(memory, memory + 512, 512);
        launch.block[0] = 512;
        assert_eq!(cu::launch(function, &launch, &params, stream), Err(701));
        launch.block[0] = 2048;
        assert_eq!(cu::launch(function, &launch, &params, stream), Err(1));
        std::process::exit(KEPT);
    }),
];

/// Ended without giving anything back.
const KEPT: i32 = layerstream_cudasim::EXIT_MISUSE;

fn begin() -> (cu::Stream, u64, &'static mut [u8]) {
    cu::open(0).unwrap();
    (cu::stream().unwrap(), cu::alloc(4096).unwrap(), cu::host(1000).unwrap())
}

/// Queueing works; whoever waits hears of it, and so does everybody after that. Nothing can be given back then, and that
/// is no leak.
fn fails_for_good(code: i32) {
    let (stream, memory, host) = begin();
    let event = cu::event().unwrap();
    cu::upload_async(memory, host, stream).unwrap();
    cu::synchronize(stream).unwrap();
    cu::upload_async(memory, host, stream).unwrap();
    cu::record(event, stream).unwrap();
    assert_eq!(cu::synchronize_event(event), Err(code));
    assert_eq!(cu::query(stream), Err(code));
    assert_eq!(cu::upload_async(memory, host, stream), Err(code));
    assert_eq!(cu::alloc(10), Err(code));
    assert_eq!(cu::free(memory), Err(code));
    assert_eq!(cu::free_host(host), Err(code));
    assert_eq!(cu::memory(), Err(code));
    cu::close(0).unwrap();
    assert_eq!(cu::open(0), Err(code));
}

#[test]
fn programs() {
    run_if_asked(PROGRAMS);
}

#[test]
fn memory_runs_out_when_asked_to_and_when_it_is_full() {
    passes("allocates", &[("FAIL", "oom:2")]);
    passes("fills the card", &[("VRAM", "16777216"), ("CONTEXT", "2097152"), ("TAKEN", "6291456")]);
    passes("pins", &[("FAIL", "pin:2")]);
}

#[test]
fn a_context_needs_memory_that_others_may_have() {
    passes("no context", &[("FAIL", "context")]);
    passes("no context", &[("VRAM", "16777216"), ("CONTEXT", "2097152"), ("TAKEN", "16000000")]);
}

#[test]
fn cards_and_drivers_may_be_missing_or_too_old() {
    passes("no device", &[("DEVICES", "0")]);
    passes("no code", &[("CC", "6.1")]);
    passes("no code", &[("FAIL", "module:1")]);
    passes("old driver", &[("DRIVER", "11020")]);
    passes("no image", &[]);
}

#[test]
fn a_call_is_refused_and_the_next_is_not() {
    passes("is refused", &[("FAIL", "enqueue:2")]);
}

#[test]
fn what_fails_on_the_card_fails_for_good() {
    passes("a copy fails", &[("FAIL", "copy:2")]);
    passes("is lost", &[("FAIL", "lost:2")]);
    passes("a kernel fails", &[("FAIL", "kernel:1")]);
}

#[test]
fn launches_must_fit() {
    common::is_caught("too large a launch", &[], "left behind");
}

#[test]
fn a_setting_that_is_none_is_named() {
    let output = common::start("no device", &[("FAIL", "oom")]);
    assert!(!output.status.success());
    assert!(common::said(&output).contains("LAYERSTREAM_SIM_FAIL: `oom` is not one of"));
}

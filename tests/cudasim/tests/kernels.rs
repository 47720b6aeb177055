//! The checks of every kernel against float64, through the simulated driver: the path of the loader, the launch geometry,
//! and the table of what kernels read and write. While a kernel runs, every byte that the table leaves out is hidden from
//! it, so an entry that forgets something shows as a wrong result or as a write out of place.

use std::collections::HashMap;
use std::fmt;

use common::{Program, passes, run_if_asked};
use layerstream_kernels::check::{ALL, Check, Device};
use layerstream_kernels::driver::{Function, Gpu, Memory, Module, Stream};
use layerstream_kernels::every_check;
use layerstream_kernels::launch::Launch;

mod common;

/// Memory around each allocation that nothing may touch: its own neighbours in the card's memory.
const GUARD: usize = 256;

struct Simulated {
    gpu: Gpu,
    module: Module,
    stream: Stream,
    functions: HashMap<&'static str, Function>,
    allocations: HashMap<u64, Memory>,
}

impl Simulated {
    fn open() -> Simulated {
        let gpu = Gpu::open(0).expect("the simulated driver is in the path");
        // SAFETY: what the simulation takes for a fatbin.
        let module = unsafe { Module::load(&gpu, "all kernels", &layerstream_cudasim::FATBIN) }.unwrap();
        let stream = Stream::new(&gpu).unwrap();
        Simulated { gpu, module, stream, functions: HashMap::new(), allocations: HashMap::new() }
    }
}

impl fmt::Display for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated driver")
    }
}

impl Device for Simulated {
    fn alloc(&mut self, bytes: &[u8]) -> u64 {
        let mut memory = Memory::new(&self.gpu, GUARD + bytes.len() + GUARD).unwrap();
        memory.upload(GUARD, bytes).unwrap();
        let address = memory.address() + GUARD as u64;
        self.allocations.insert(address, memory);
        address
    }

    fn read(&mut self, address: u64, len: usize) -> Vec<u8> {
        self.allocations[&address].download(GUARD, len).unwrap()
    }

    fn launch(&mut self, launch: &Launch, params: &[u8]) -> Result<(), String> {
        let module = &self.module;
        let function = self.functions.entry(launch.kernel);
        let function = function.or_insert_with(|| module.function(launch.kernel).unwrap().expect("a kernel"));
        // SAFETY: checks pass the struct that belongs to the kernel; the launch ends before anything is freed.
        unsafe { self.stream.launch(function, launch, params)? };
        Ok(self.stream.synchronize()?)
    }

    fn clear(&mut self) {
        self.allocations.clear();
    }
}

/// Runs one check, named in the environment.
const PROGRAMS: &[Program] = &[("check", || {
    let name = std::env::var("LAYERSTREAM_SIM_CHECK").unwrap();
    let (_, check) = ALL.iter().find(|(known, _)| *known == name).expect("a check");
    check(&mut Check::new(&mut Simulated::open(), 1)).unwrap_or_else(|message| panic!("{message}"));
})];

#[test]
fn programs() {
    run_if_asked(PROGRAMS);
}

macro_rules! through_the_driver {
    ($($name:ident: $check:path;)*) => {$(
        mod $name {
            use super::passes;

            #[test]
            fn sm_75() {
                passes("check", &[("CHECK", stringify!($name)), ("CC", "7.5"), ("SEED", "1"), ("VERIFY", "1")]);
            }

            #[test]
            fn sm_80() {
                passes("check", &[("CHECK", stringify!($name)), ("CC", "8.6"), ("SEED", "0"), ("VERIFY", "1")]);
            }

            #[test]
            fn sm_90() {
                passes("check", &[("CHECK", stringify!($name)), ("CC", "9.0"), ("SEED", "2"), ("VERIFY", "1")]);
            }
        }
    )*};
}

every_check!(through_the_driver);

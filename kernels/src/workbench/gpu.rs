//! A GPU as a device for checks and benches: the kernels compiled by nvcc, memory with guard bytes around it.

use std::collections::HashMap;
use std::fmt;

use crate::check::{Device, Output};
use crate::driver::{Function, Gpu, Memory, Module, Stream};
use crate::launch::Launch;

/// Bytes before and after each allocation, checked after each launch.
const GUARD: usize = 256;
const POISON: u8 = 0xff;

/// Patterns up to this long are made on the CPU; longer runs of them are copied on the GPU.
const PATTERN: usize = 1 << 20;

/// A launch that is ready to go.
pub struct Step {
    pub function: Function,
    pub launch: Launch,
    pub params: Vec<u8>,
}

/// A GPU with our kernels, or with somebody else's in their place.
pub struct GpuDevice {
    pub gpu: Gpu,
    pub stream: Stream,
    name: String,
    /// Searched first, but not for naive twins.
    variant: Option<Module>,
    modules: Vec<Module>,
    functions: HashMap<String, Function>,
    allocations: Vec<(Memory, usize)>,
    /// Why memory could not be had: `alloc` cannot say it, the next launch does.
    failure: Option<String>,
}

#[cfg(feature = "device")]
fn load_all(gpu: &Gpu) -> Result<Vec<Module>, String> {
    // SAFETY: what nvcc made.
    let load = |(name, image)| unsafe { Module::load(gpu, &format!("{name}.cu"), image) };
    Ok(crate::fatbins().map(load).collect::<Result<_, _>>()?)
}

#[cfg(not(feature = "device"))]
fn load_all(_: &Gpu) -> Result<Vec<Module>, String> {
    Err("this workbench was built without the kernels for GPUs; build it with --features workbench,device".into())
}

impl GpuDevice {
    pub fn open(number: u32) -> Result<GpuDevice, String> {
        let gpu = Gpu::open(number)?;
        let modules = load_all(&gpu)?;
        let name = format!("{} (sm_{})", gpu.name()?, gpu.arch()?);
        GpuDevice::with(gpu, name, None, modules)
    }

    fn with(gpu: Gpu, name: String, variant: Option<Module>, modules: Vec<Module>) -> Result<GpuDevice, String> {
        let stream = Stream::new(&gpu)?;
        let (functions, allocations) = (HashMap::new(), Vec::new());
        Ok(GpuDevice { gpu, stream, name, variant, modules, functions, allocations, failure: None })
    }

    /// The same GPU and kernels, with memory and a stream of its own.
    pub fn another(&self) -> Result<GpuDevice, String> {
        GpuDevice::with(self.gpu.clone(), self.name.clone(), self.variant.clone(), self.modules.clone())
    }

    /// The same GPU, where kernels of this fatbin come before ours.
    ///
    /// # Safety
    /// `image` is a whole fatbin.
    pub unsafe fn with_variant(&self, file: &str, image: &[u8]) -> Result<GpuDevice, String> {
        // SAFETY: the caller's promise.
        let variant = unsafe { Module::load(&self.gpu, file, image)? };
        GpuDevice::with(self.gpu.clone(), format!("{}, {file}", self.name), Some(variant), self.modules.clone())
    }

    /// The kernel of this name.
    fn function(&mut self, name: &str) -> Result<Function, String> {
        if let Some(function) = self.functions.get(name) {
            return Ok(function.clone());
        }
        let variant = self.variant.iter().filter(|_| !name.starts_with("naive_"));
        for module in variant.chain(&self.modules) {
            if let Some(function) = module.function(name)? {
                self.functions.insert(name.into(), function.clone());
                return Ok(function);
            }
        }
        Err(format!("there is no kernel `{name}`"))
    }

    /// Launches with their kernels found. Fails also when memory for their arguments could not be had.
    pub fn resolve(&mut self, steps: &[(Launch, Vec<u8>)]) -> Result<Vec<Step>, String> {
        if let Some(message) = self.failure.take() {
            return Err(message);
        }
        let resolve = |(launch, params): &(Launch, Vec<u8>)| {
            Ok(Step { function: self.function(launch.kernel)?, launch: *launch, params: params.clone() })
        };
        steps.iter().map(resolve).collect()
    }

    /// Overwrites an output with NaN.
    pub fn forget(&mut self, output: Output) -> Result<(), String> {
        let found = self.allocations.iter_mut().find(|(memory, _)| memory.address() + GUARD as u64 == output.address);
        let (memory, len) = found.expect("an address that alloc has returned");
        Ok(memory.upload(GUARD, &vec![POISON; *len])?)
    }

    fn place(&mut self, len: usize) -> Result<&mut Memory, String> {
        let mut memory = Memory::new(&self.gpu, GUARD + len + GUARD)?;
        memory.upload(0, &[POISON; GUARD])?;
        memory.upload(GUARD + len, &[POISON; GUARD])?;
        self.allocations.push((memory, len));
        Ok(&mut self.allocations.last_mut().expect("just pushed").0)
    }

    fn check_guards(&self, kernel: &str) -> Result<(), String> {
        for (memory, len) in &self.allocations {
            let before = memory.download(0, GUARD)?;
            let after = memory.download(GUARD + len, GUARD)?;
            if let Some(at) = before.iter().rev().position(|&b| b != POISON) {
                return Err(format!("{kernel} wrote {} bytes before a buffer of {len} bytes", at + 1));
            }
            if let Some(at) = after.iter().position(|&b| b != POISON) {
                return Err(format!("{kernel} wrote {at} bytes beyond the end of a buffer of {len} bytes"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for GpuDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Device for GpuDevice {
    fn alloc(&mut self, bytes: &[u8]) -> u64 {
        let placed = self.place(bytes.len()).and_then(|memory| {
            memory.upload(GUARD, bytes)?;
            Ok(memory.address() + GUARD as u64)
        });
        placed.unwrap_or_else(|message| {
            self.failure = Some(message);
            0
        })
    }

    fn repeat(&mut self, pattern: &[u8], len: usize) -> Result<u64, String> {
        let memory = self.place(len)?;
        let whole = (PATTERN / pattern.len()).max(1) * pattern.len();
        let start: Vec<u8> = pattern.iter().copied().cycle().take(whole.min(len)).collect();
        memory.upload(GUARD, &start)?;
        // Doubling what there is keeps the period: each piece starts at a multiple of the pattern.
        let mut done = start.len();
        while done < len {
            let more = done.min(len - done);
            memory.copy_within(GUARD, GUARD + done, more)?;
            done += more;
        }
        Ok(memory.address() + GUARD as u64)
    }

    fn read(&mut self, address: u64, len: usize) -> Vec<u8> {
        let found = self.allocations.iter().find(|(memory, _)| memory.address() + GUARD as u64 == address);
        let (memory, _) = found.expect("an address that alloc has returned");
        // A device that is lost reads as NaN; the launch before has said so.
        memory.download(GUARD, len).unwrap_or_else(|_| vec![POISON; len])
    }

    fn launch(&mut self, launch: &Launch, params: &[u8]) -> Result<(), String> {
        if let Some(message) = self.failure.take() {
            return Err(message);
        }
        let function = self.function(launch.kernel)?;
        // SAFETY: checks pass the struct that belongs to the kernel, with pointers from `alloc`; the launch ends before
        // anything is freed.
        unsafe { self.stream.launch(&function, launch, params)? };
        self.stream.synchronize().map_err(|e| format!("{}: {e}", launch.kernel))?;
        self.check_guards(launch.kernel)
    }

    fn clear(&mut self) {
        self.allocations.clear();
        self.failure = None;
    }
}

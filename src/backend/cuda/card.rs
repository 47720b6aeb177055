//! A GPU that is ready: its kernels loaded, and how much of its memory that took. The only place that launches.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use layerstream_kernels::driver::{self, ErrorKind, Function, Gpu, Module, Stream};
use layerstream_kernels::launch::Launch;

use crate::error::{Error, Result};

/// The oldest generation for which there are kernels: compute capability 7.5.
const OLDEST: u32 = 75;

/// Every kernel that steps may launch, by the file it is in. All are found at the start, so that the driver loads them then.
const KERNELS: [(&str, &[&str]); 16] = [
    (
        "gemm",
        &[
            "gemm_f32_m8",
            "gemm_f32_m64",
            "gemm_f16_m8",
            "gemm_f16_m64",
            "gemm_bf16_m8",
            "gemm_bf16_m64",
            "gemm_fp8_m8",
            "gemm_fp8_m64",
            "gemm_int8_m8",
            "gemm_int8_m64",
            "gemm_nf4_m8",
            "gemm_nf4_m64",
            "gemm_nf4d_m8",
            "gemm_nf4d_m64",
            "gemm_lossless_m8",
            "gemm_lossless_m64",
            "gemm_fp4_m8",
            "gemm_fp4_m64",
            "gemm_int8z_m8",
            "gemm_int8z_m64",
            "gemm_offset8_m8",
            "gemm_offset8_m64",
            "gemm_offset4_m8",
            "gemm_offset4_m64",
            "gemm_mxfp4_m8",
            "gemm_mxfp4_m64",
            "gemm_q8_0_m8",
            "gemm_q8_0_m64",
            "gemm_q4_0_m8",
            "gemm_q4_0_m64",
            "gemm_q4_1_m8",
            "gemm_q4_1_m64",
            "gemm_q5_0_m8",
            "gemm_q5_0_m64",
            "gemm_q5_1_m8",
            "gemm_q5_1_m64",
            "gemm_q4_k_m8",
            "gemm_q4_k_m64",
            "gemm_q5_k_m8",
            "gemm_q5_k_m64",
            "gemm_q6_k_m8",
            "gemm_q6_k_m64",
        ],
    ),
    (
        "gemm_prefill",
        &[
            "gemm_prefill_f32_simt",
            "gemm_prefill_f16",
            "gemm_prefill_f16_simt",
            "gemm_prefill_bf16",
            "gemm_prefill_bf16_simt",
            "gemm_prefill_fp8",
            "gemm_prefill_fp8_simt",
            "gemm_prefill_int8",
            "gemm_prefill_int8_simt",
            "gemm_prefill_nf4",
            "gemm_prefill_nf4_simt",
            "gemm_prefill_nf4d",
            "gemm_prefill_nf4d_simt",
            "gemm_prefill_lossless",
            "gemm_prefill_lossless_simt",
            "gemm_prefill_fp4",
            "gemm_prefill_fp4_simt",
            "gemm_prefill_int8z",
            "gemm_prefill_int8z_simt",
            "gemm_prefill_offset8",
            "gemm_prefill_offset8_simt",
            "gemm_prefill_offset4",
            "gemm_prefill_offset4_simt",
            "gemm_prefill_mxfp4",
            "gemm_prefill_mxfp4_simt",
            "gemm_prefill_q8_0",
            "gemm_prefill_q8_0_simt",
            "gemm_prefill_q4_0",
            "gemm_prefill_q4_0_simt",
            "gemm_prefill_q4_1",
            "gemm_prefill_q4_1_simt",
            "gemm_prefill_q5_0",
            "gemm_prefill_q5_0_simt",
            "gemm_prefill_q5_1",
            "gemm_prefill_q5_1_simt",
            "gemm_prefill_q4_k",
            "gemm_prefill_q4_k_simt",
            "gemm_prefill_q5_k",
            "gemm_prefill_q5_k_simt",
            "gemm_prefill_q6_k",
            "gemm_prefill_q6_k_simt",
        ],
    ),
    ("norm", &["rms_norm", "rms_norm_heads", "layer_norm", "layer_norm_heads"]),
    ("rope", &["rope"]),
    (
        "convert",
        &[
            "convert",
            "convert_q8_0",
            "convert_q4_0",
            "convert_q4_1",
            "convert_q5_0",
            "convert_q5_1",
            "convert_q4_k",
            "convert_q5_k",
            "convert_q6_k",
            "convert_lossless",
        ],
    ),
    (
        "attention_prefill",
        &[
            "attention_prefill_bf16_128",
            "attention_prefill_bf16_256",
            "attention_prefill_f16_128",
            "attention_prefill_f16_256",
            "attention_prefill_simt",
        ],
    ),
    (
        "attention_decode",
        &[
            "attention_decode_bf16_128",
            "attention_decode_bf16_256",
            "attention_decode_f16_128",
            "attention_decode_f16_256",
            "attention_decode_simt",
            "attention_combine",
        ],
    ),
    ("mlp", &["glu", "activate"]),
    ("moe", &["route", "expert_lists", "sum_experts"]),
    ("rows", &["scale_rows"]),
    (
        "lengths",
        &[
            "row_lengths_f32",
            "row_lengths_f16",
            "row_lengths_bf16",
            "row_lengths_fp8",
            "row_lengths_int8",
            "row_lengths_nf4",
            "row_lengths_nf4d",
            "row_lengths_lossless",
            "row_lengths_fp4",
            "row_lengths_int8z",
            "row_lengths_offset8",
            "row_lengths_offset4",
            "row_lengths_q8_0",
            "row_lengths_q4_0",
            "row_lengths_q4_1",
            "row_lengths_q5_0",
            "row_lengths_q5_1",
            "row_lengths_q4_k",
            "row_lengths_q5_k",
            "row_lengths_q6_k",
        ],
    ),
    (
        "transposed",
        &[
            "gemm_transposed_m8",
            "gemm_transposed_m32",
            "gemm_transposed_gptq4_m8",
            "gemm_transposed_gptq4_m32",
            "gemm_transposed_gptq8_m8",
            "gemm_transposed_gptq8_m32",
            "gemm_transposed_awq4_m8",
            "gemm_transposed_awq4_m32",
        ],
    ),
    ("factors", &["factors"]),
    ("gated_add", &["gated_add"]),
    ("recurrent", &["convolve", "delta_rule_128", "delta_rule_256"]),
    ("sample", &["soft_cap"]),
];

/// A failure of the driver as this library tells it, with what to do. (Not `From`: that would make `?` ambiguous wherever
/// there is this feature.)
pub fn failed(error: driver::Error) -> Error {
    let advice = match error.kind() {
        ErrorKind::NoDriver => "; install NVIDIA's driver, or compute on the processor (--device cpu)",
        ErrorKind::DriverTooOld => "; update NVIDIA's driver, or compute on the processor (--device cpu)",
        ErrorKind::NoDevice => "; `nvidia-smi -L` lists those there are, and CUDA_VISIBLE_DEVICES hides some",
        ErrorKind::GpuTooOld => "; it needs compute capability 7.5 or later; compute on the processor (--device cpu)",
        ErrorKind::OutOfMemory => "; another program may have taken it; give less (--vram, --ram), or end that program",
        ErrorKind::Lost => "; the GPU is of no use to this process any more: start again, and look into dmesg",
        ErrorKind::Other => "",
    };
    Error::Device(format!("{error}{advice}"))
}

/// A GPU with its kernels, as one model or plan sees it.
pub struct Card {
    kernels: Arc<Kernels>,
    /// Bytes of its memory that were free when this was opened.
    free: u64,
    pub gpu: Gpu,
}

/// What is loaded once for all that use a GPU at the same time: that takes longer than a small model.
struct Kernels {
    functions: HashMap<&'static str, Function>,
    name: String,
    /// Bytes of the GPU's memory that the context and the kernels took.
    taken: u64,
    gpu: Gpu,
}

/// Those that somebody uses, by the number of the GPU.
static LOADED: Mutex<BTreeMap<u32, Weak<Kernels>>> = Mutex::new(BTreeMap::new());

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kernels.name)
    }
}

impl Card {
    /// Opens GPU `number` and loads the kernels, unless somebody in this process has them open already.
    ///
    /// # Errors
    /// [`Error::Device`]: no driver or one that is too old, no such GPU or one that is too old, no memory for the context.
    pub fn open(number: u32) -> Result<Card> {
        // Held while they load, so that nobody else loads them again meanwhile.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let kernels = match loaded.get(&number).and_then(Weak::upgrade) {
            Some(kernels) => kernels,
            None => {
                let kernels = Arc::new(Kernels::load(number)?);
                loaded.insert(number, Arc::downgrade(&kernels));
                kernels
            }
        };
        drop(loaded);
        let gpu = kernels.gpu.clone();
        gpu.make_current().map_err(failed)?;
        // Others may have taken or freed some since.
        let (free, _) = gpu.memory().map_err(failed)?;
        Ok(Card { kernels, free: free as u64, gpu })
    }

    /// What to call it.
    pub fn name(&self) -> &str {
        &self.kernels.name
    }

    /// Bytes of its memory that the context and the kernels take ([`Gpu::context_bytes`]).
    pub fn context_bytes(&self) -> u64 {
        self.kernels.taken
    }

    /// Bytes that are free beside it.
    pub fn free_bytes(&self) -> u64 {
        self.free
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// `params` is the parameter struct of the kernel, and its addresses are valid for what the kernel does with them until
    /// it has ended.
    pub unsafe fn launch<P: Copy>(&self, stream: &Stream, launch: &Launch, params: &P) -> Result<()> {
        let function = &self.kernels.functions[launch.kernel];
        // SAFETY: a struct of params.h is plain data; padding is read as bytes that nobody interprets.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const *params).cast::<u8>(), size_of::<P>()) };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(function, launch, bytes) }.map_err(failed)
    }
}

impl Kernels {
    fn load(number: u32) -> Result<Kernels> {
        let gpu = Gpu::open(number).map_err(failed)?;
        let arch = gpu.arch().map_err(failed)?;
        let name = format!("{} (cuda:{number}, sm_{arch})", gpu.name().map_err(failed)?);
        if arch < OLDEST {
            let (major, minor) = (arch / 10, arch % 10);
            return Err(Error::Device(format!(
                "{name} has compute capability {major}.{minor}, at least 7.5 is needed; compute on the processor \
                 (--device cpu)"
            )));
        }
        let mut functions = HashMap::new();
        for (file, kernels) in KERNELS {
            let image = layerstream_kernels::fatbins().find(|(name, _)| *name == file);
            let (_, image) = image.expect("every file of kernels is embedded");
            // SAFETY: what nvcc made, whole.
            let module = unsafe { Module::load(&gpu, file, image) }.map_err(failed)?;
            for kernel in kernels {
                let function = module.function(kernel).map_err(failed)?;
                functions.insert(*kernel, function.expect("every kernel is in its file"));
            }
        }
        // For a stream's queue a driver takes memory, too, which the next one has again: a model has two.
        let streams = [Stream::new(&gpu).map_err(failed)?, Stream::new(&gpu).map_err(failed)?];
        let taken = gpu.context_bytes().map_err(failed)?;
        drop(streams);
        Ok(Kernels { functions, name, taken, gpu })
    }
}

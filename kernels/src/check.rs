//! Every kernel against float64, on anything that can launch kernels: the host build in tests, a GPU where there is one.
//!
//! A check makes inputs, runs the kernel and its naive twin on the device, computes the truth in float64, and holds the
//! kernel to twice the error of the twin. `Check` is what it works with; see kernels/README.md for how to write one.

use std::fmt::Display;

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::launch::Launch;
use crate::params::Dtype;

pub mod attention;
pub mod convert;
pub mod factors;
pub mod gated_add;
pub mod gemm;
pub mod gemm_prefill;
mod gguf;
pub mod lengths;
pub mod lossless;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod peak;
mod ragged;
pub mod recurrent;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod transposed;
mod weights;

/// Every check and what it is called: a line each. `make kernel-mutants` runs, for a file `x.cu`, those with x in their
/// names. Calls the macro `$with` with all lines.
#[macro_export]
macro_rules! every_check {
    ($with:ident) => {
        $with! {
            norm_matches_float64: $crate::check::norm::check;
            gemm_matches_float64: $crate::check::gemm::check;
            gemm_rows_do_not_depend_on_their_neighbours: $crate::check::gemm::check_neighbours;
            rope_matches_float64: $crate::check::rope::check;
            convert_matches_float64: $crate::check::convert::check;
            convert_of_blocks_matches_float64: $crate::check::convert::check_blocks;
            convert_of_packed_numbers_is_exact: $crate::check::lossless::check_every_number;
            attention_prefill_matches_float64: $crate::check::attention::check_prefill;
            attention_decode_matches_float64: $crate::check::attention::check_decode;
            gemm_prefill_matches_float64: $crate::check::gemm_prefill::check;
            gemm_prefill_rows_do_not_depend_on_their_neighbours: $crate::check::gemm_prefill::check_neighbours;
            gemm_and_gemm_prefill_of_packed_numbers_have_their_bits: $crate::check::lossless::check_products;
            gemm_convert_and_lengths_of_damaged_rows_stay_inside: $crate::check::lossless::check_damaged;
            lengths_match_float64: $crate::check::lengths::check;
            transposed_matches_float64: $crate::check::transposed::check;
            transposed_products_do_not_depend_on_cuts: $crate::check::transposed::check_cuts;
            factors_match_float64: $crate::check::factors::check;
            rows_scaled_match_float64: $crate::check::rows::check;
            mlp_glu_matches_float64: $crate::check::mlp::check;
            mlp_activations_match_float64: $crate::check::mlp::check_activate;
            moe_route_matches_float64: $crate::check::moe::check_route;
            moe_expert_lists_are_right: $crate::check::moe::check_lists;
            moe_sum_matches_float64: $crate::check::moe::check_sum;
            moe_experts_of_a_row_do_not_depend_on_its_neighbours: $crate::check::moe::check_neighbours;
            sample_soft_cap_matches_float64: $crate::check::sample::check_soft_cap;
            sample_top_k_is_right: $crate::check::sample::check_top_k;
            gated_add_matches_float64: $crate::check::gated_add::check;
            recurrent_convolve_matches_float64: $crate::check::recurrent::check_convolve;
            recurrent_delta_rule_matches_float64: $crate::check::recurrent::check_delta_rule;
            peak_is_exact: $crate::check::peak::check;
        }
    };
}

/// A check, for every device that there may be.
pub type Checker = fn(&mut Check) -> Outcome;

macro_rules! table {
    ($($name:ident: $check:path;)*) => {
        /// Every check by name.
        pub const ALL: &[(&str, Checker)] = &[$((stringify!($name), $check)),*];
    };
}
every_check!(table);

/// Something with memory that can launch kernels.
pub trait Device: Display {
    /// Memory with these bytes, aligned to 16 at least; `clear` frees it.
    fn alloc(&mut self, bytes: &[u8]) -> u64;
    /// Memory of `len` bytes, filled with `pattern` over and over: for more than one would like to make or copy.
    fn repeat(&mut self, pattern: &[u8], len: usize) -> Result<u64, String> {
        Ok(self.alloc(&pattern.iter().copied().cycle().take(len).collect::<Vec<u8>>()))
    }
    /// The first `len` bytes of an allocation.
    fn read(&mut self, address: u64, len: usize) -> Vec<u8>;
    /// Runs a kernel to its end. Fails also when it wrote beside an allocation, where the device can tell.
    fn launch(&mut self, launch: &Launch, params: &[u8]) -> Result<(), String>;
    /// Frees all memory.
    fn clear(&mut self);
}

/// The sizes that every kernel is checked with: around 1, 8, 16, 32, 64 and 128.
pub const SIZES: [usize; 12] = [1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 129];

/// An output in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub address: u64,
    pub len: usize,
    pub dtype: Dtype,
}

impl Output {
    /// What lies there, exactly.
    pub fn read(self, device: &mut dyn Device) -> Vec<f64> {
        decode(&device.read(self.address, self.len * size(self.dtype)), self.dtype)
    }
}

/// A device, a source of numbers, and the case that runs (for messages).
pub struct Check<'a> {
    device: &'a mut dyn Device,
    pub rng: ChaCha8Rng,
    case: String,
}

pub type Outcome = Result<(), String>;

impl<'a> Check<'a> {
    /// The same seed gives the same inputs on every device.
    pub fn new(device: &'a mut dyn Device, seed: u64) -> Check<'a> {
        Check { device, rng: ChaCha8Rng::seed_from_u64(seed), case: String::new() }
    }

    /// Begins a case: frees the last one's memory and names this one in messages.
    pub fn case(&mut self, name: impl Display) {
        self.device.clear();
        self.case = name.to_string();
    }

    /// `len` numbers, roughly Gaussian with deviation 1.
    pub fn normal(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (0..4).map(|_| self.rng.random_range(-1.0f32..1.0)).sum::<f32>() * 0.866).collect()
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.random_range(0..choices.len())]
    }

    /// Uploads numbers as they are.
    pub fn input<T: Scalar>(&mut self, values: &[T]) -> *const T {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.bytes()).collect();
        self.device.alloc(&bytes) as *const T
    }

    /// Uploads numbers rounded to `dtype`; also returns what they then are.
    pub fn rounded(&mut self, values: &[f32], dtype: Dtype) -> (*const std::ffi::c_void, Vec<f64>) {
        let bytes: Vec<u8> = values.iter().flat_map(|&v| encode(v, dtype)).collect();
        let exact = decode(&bytes, dtype);
        (self.device.alloc(&bytes) as *const _, exact)
    }

    /// An output of `len` elements, filled with NaN: what the kernel does not write shows.
    pub fn output(&mut self, len: usize, dtype: Dtype) -> Output {
        let address = self.device.alloc(&vec![0xff; len * size(dtype)]);
        Output { address, len, dtype }
    }

    /// An output that starts out as `values`, for kernels that work in place.
    pub fn in_place(&mut self, values: &[f32]) -> Output {
        Output { address: self.input(values) as u64, len: values.len(), dtype: Dtype::DTYPE_F32 }
    }

    pub fn launch<P: Copy>(&mut self, launch: &Launch, params: &P) -> Outcome {
        // SAFETY: a parameter struct of params.h, plain data; padding is read as bytes that nobody interprets.
        let bytes = unsafe { std::slice::from_raw_parts((params as *const P).cast::<u8>(), size_of::<P>()) };
        self.device.launch(launch, bytes).map_err(|e| self.failure(&e))
    }

    /// What the kernel has written, exactly.
    pub fn read(&mut self, output: Output) -> Vec<f64> {
        output.read(self.device)
    }

    /// An output of 4-byte integers, which was declared as float32.
    pub fn read_ints(&mut self, output: Output) -> Vec<i32> {
        let bytes = self.device.read(output.address, output.len * 4);
        bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The gate: no element may be further from `truth` than twice the worst of the naive twin; the root of the mean
    /// square likewise. In a case of few elements the twin may be exact by luck: it counts as no better than two roundings
    /// to float32 and one to the output's dtype, at the largest magnitude. The twin must be near the truth itself, so that a
    /// device on which no kernel does anything passes nothing.
    pub fn gate(&self, what: &str, got: &[f64], naive: &[f64], truth: &[f64], dtype: Dtype) -> Outcome {
        let largest = truth.iter().fold(0.0f64, |m, t| m.max(t.abs()));
        let floor = (2.0 * unit_roundoff(Dtype::DTYPE_F32) + unit_roundoff(dtype)) * largest;
        self.gate_above(floor, what, got, naive, truth)
    }

    /// `gate`, where the twin counts as no better than `floor`: for results that are small beside what was rounded on the
    /// way, such as a sum of large terms.
    pub fn gate_above(&self, floor: f64, what: &str, got: &[f64], naive: &[f64], truth: &[f64]) -> Outcome {
        assert_eq!((got.len(), naive.len()), (truth.len(), truth.len()));
        if let Some(i) = truth.iter().position(|t| !t.is_finite()) {
            panic!("{}: the reference for {what} is {} at {i}", self.case, truth[i]);
        }
        let (worst, rms) = errors(got, truth);
        let (naive_worst, naive_rms) = errors(naive, truth);
        if !naive_worst.is_finite() {
            return Err(self.failure(&format!("{what}: the naive twin left something unwritten or not finite")));
        }
        let magnitude = (truth.iter().map(|t| t * t).sum::<f64>() / truth.len().max(1) as f64).sqrt();
        // Next to nothing may round to nothing.
        if magnitude > 1e-6 && naive_rms > (0.25 * magnitude).max(4.0 * floor) {
            let numbers = format!("rms {naive_rms:.3e} of numbers of {magnitude:.3e}, floor {floor:.3e}");
            return Err(self.failure(&format!("{what}: the naive twin is wrong: {numbers}")));
        }
        let (worst_limit, rms_limit) = (2.0 * naive_worst.max(floor), 2.0 * naive_rms.max(floor));
        // Written so that NaN fails.
        if worst <= worst_limit && rms <= rms_limit {
            return Ok(());
        }
        let fits = |i: usize| (got[i] - truth[i]).abs() <= worst_limit;
        let at = (0..truth.len()).find(|&i| !fits(i));
        let example = at.map(|i| format!("; element {i} is {}, should be {}", got[i], truth[i])).unwrap_or_default();
        let numbers = format!("worst error {worst:.3e} (twin {naive_worst:.3e}), rms {rms:.3e} (twin {naive_rms:.3e})");
        Err(self.failure(&format!("{what}: {numbers}, floor {floor:.3e}{example}")))
    }

    /// Bit equality, for promises that are about bits.
    pub fn same(&self, what: &str, a: &[f64], b: &[f64]) -> Outcome {
        let differs =
            (0..a.len().max(b.len())).find(|&i| a.get(i).map(|v| v.to_bits()) != b.get(i).map(|v| v.to_bits()));
        match differs {
            None => Ok(()),
            Some(i) => Err(self.failure(&format!("{what}: element {i} is {:?} and {:?}", a.get(i), b.get(i)))),
        }
    }

    /// What the reference leaves out (NaN in `truth`) must not have been written.
    pub fn unwritten(&self, what: &str, got: &[f64], truth: &[f64]) -> Outcome {
        match (0..truth.len()).find(|&i| truth[i].is_nan() && !got[i].is_nan()) {
            None => Ok(()),
            Some(i) => Err(self.failure(&format!("{what}: wrote {} at {i}, where nothing belongs", got[i]))),
        }
    }

    /// A message that says where it happened.
    pub fn failure(&self, message: &str) -> String {
        format!("{} on {}: {message}", self.case, self.device)
    }
}

/// Largest absolute error and root mean square error; NaN if anything is NaN.
fn errors(got: &[f64], truth: &[f64]) -> (f64, f64) {
    let differences = got.iter().zip(truth).map(|(g, t)| (g - t).abs());
    let worst = differences.clone().fold(0.0f64, |m, d| if d > m || d.is_nan() { d } else { m });
    let square: f64 = differences.map(|d| d * d).sum();
    (if square.is_nan() { f64::NAN } else { worst }, (square / truth.len().max(1) as f64).sqrt())
}

/// Half the distance from 1 to the next number.
pub fn unit_roundoff(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::DTYPE_F16 => 2f64.powi(-11),
        Dtype::DTYPE_BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

/// Bytes per element.
pub fn size(dtype: Dtype) -> usize {
    if dtype == Dtype::DTYPE_F32 { 4 } else { 2 }
}

fn encode(v: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::DTYPE_F16 => f16::from_f32(v).to_le_bytes().to_vec(),
        Dtype::DTYPE_BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    }
}

fn decode(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    let pair = |b: &[u8]| [b[0], b[1]];
    match dtype {
        Dtype::DTYPE_F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes(pair(b)).to_f64()).collect(),
        Dtype::DTYPE_BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(pair(b)).to_f64()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect(),
    }
}

/// A number that can be uploaded.
pub trait Scalar: Copy {
    fn bytes(self) -> impl Iterator<Item = u8>;
}

macro_rules! scalar {
    ($($t:ty),*) => {$(
        impl Scalar for $t {
            fn bytes(self) -> impl Iterator<Item = u8> {
                self.to_le_bytes().into_iter()
            }
        }
    )*};
}
scalar!(u8, i8, u16, i32, u32, f32);

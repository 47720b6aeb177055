//! What a launch reads and writes: for every kernel a function that turns its parameters into ranges of bytes.
//!
//! Ranges are exact to the row. Where the contents of an array decide (which rows a gather takes, where a sequence's keys
//! lie), the array is read when the launch runs, which is why kernels that make ids run even without arithmetic.

use layerstream_kernels::launch::Launch;
use layerstream_kernels::params::{Dtype, Vector};

use crate::memory::Memory;

mod attention;
mod elementwise;
mod experts;
mod gemm;
mod recurrent;
mod rope;
mod sample;

/// Bytes that a launch reads, or writes (and may read).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    pub write: bool,
}

/// The tile of a weight matrix that a product multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub start: u64,
    pub bytes: u64,
    pub first_row: i32,
    pub rows: i32,
    pub k: i32,
}

/// What a launch touches.
pub struct Touched {
    pub ranges: Vec<Range>,
    pub tile: Option<Tile>,
}

/// The ranges of one launch, as they are collected.
pub struct Touch<'a> {
    memory: &'a mut Memory,
    ranges: Vec<Range>,
    tile: Option<Tile>,
    problem: Option<String>,
}

/// Rows of bytes: how many, from one to the next, and how much of each.
#[derive(Clone, Copy)]
struct Rows {
    count: i64,
    stride: i64,
    width: i64,
}

impl Rows {
    /// In elements of `size` bytes.
    fn of(count: i32, stride: i64, width: i64, size: i64) -> Rows {
        Rows { count: count.into(), stride: stride * size, width: width * size }
    }

    /// Without space between rows.
    fn packed(count: i32, width: i64, size: i64) -> Rows {
        Rows::of(count, width, width, size)
    }

    fn one(len: i64) -> Rows {
        Rows { count: 1, stride: 0, width: len }
    }
}

/// Bytes of a number.
fn size(dtype: Dtype) -> i64 {
    if dtype == Dtype::DTYPE_F32 { 4 } else { 2 }
}

impl Touch<'_> {
    fn touch(&mut self, what: &str, address: u64, rows: Rows, write: bool) {
        if rows.count <= 0 || rows.width <= 0 {
            return;
        }
        if address == 0 {
            self.problem.get_or_insert_with(|| format!("`{what}` is null"));
            return;
        }
        let packed = rows.stride == rows.width;
        let (count, width) = if packed { (1, rows.count * rows.width) } else { (rows.count, rows.width) };
        for row in 0..count {
            let start = address.wrapping_add_signed(row * rows.stride);
            let end = start.wrapping_add_signed(width);
            match self.ranges.last_mut() {
                Some(last) if last.end == start && last.write == write => last.end = end,
                _ => self.ranges.push(Range { start, end, write }),
            }
        }
    }

    fn read<T>(&mut self, what: &str, address: *const T, rows: Rows) {
        self.touch(what, address as u64, rows, false);
    }

    fn write<T>(&mut self, what: &str, address: *mut T, rows: Rows) {
        self.touch(what, address as u64, rows, true);
    }

    /// What may be null.
    fn read_any<T>(&mut self, what: &str, address: *const T, rows: Rows) {
        if !address.is_null() {
            self.read(what, address, rows);
        }
    }

    fn write_any<T>(&mut self, what: &str, address: *mut T, rows: Rows) {
        if !address.is_null() {
            self.write(what, address, rows);
        }
    }

    fn vector(&mut self, what: &str, vector: &Vector, first: i64, len: i64) {
        let size = size(vector.dtype);
        if !vector.data.is_null() {
            self.touch(what, (vector.data as u64).wrapping_add_signed(first * size), Rows::one(len * size), false);
        }
    }

    /// Reads an array of plain structs or numbers that decides what else is touched.
    fn fetch<T: Copy>(&mut self, what: &str, address: *const T, count: i64) -> Vec<T> {
        let bytes = count.max(0) * size_of::<T>() as i64;
        self.read(what, address, Rows::one(bytes));
        let inside = self.memory.device(address as u64, bytes as u64).map(|_| ());
        if let Err(problem) = inside {
            self.problem.get_or_insert_with(|| format!("`{what}` {problem}"));
            return Vec::new();
        }
        // SAFETY: inside of a live allocation, whose bytes anybody may read; unaligned reads of plain data.
        (0..count.max(0) as usize).map(|i| unsafe { address.add(i).read_unaligned() }).collect()
    }
}

/// Reads the parameters of a kernel.
fn params<P: Copy>(bytes: &[u8]) -> P {
    assert_eq!(bytes.len(), size_of::<P>(), "the registry and params.h agree about sizes");
    // SAFETY: the length was checked; the structs of params.h are plain data, whose enums are newtypes of integers.
    unsafe { bytes.as_ptr().cast::<P>().read_unaligned() }
}

/// All that a launch touches.
///
/// # Errors
/// A null pointer where a kernel takes none, a kernel that this table does not know, or deciding arrays outside of memory.
pub fn ranges(launch: &Launch, bytes: &[u8], memory: &mut Memory) -> Result<Touched, String> {
    let mut touch = Touch { memory, ranges: Vec::new(), tile: None, problem: None };
    let t = &mut touch;
    let kernel = launch.kernel.strip_prefix("naive_").unwrap_or(launch.kernel);
    match kernel {
        "rms_norm" | "rms_norm_heads" | "layer_norm" | "layer_norm_heads" => elementwise::norm(&params(bytes), t),
        "convert" => elementwise::convert(&params(bytes), t),
        _ if kernel.starts_with("convert_") => elementwise::convert_blocks(kernel, &params(bytes), t),
        "glu" => elementwise::glu(&params(bytes), t),
        "activate" => elementwise::activate(&params(bytes), t),
        "scale_rows" => elementwise::scale_rows(&params(bytes), t),
        "gated_add" => elementwise::gated_add(&params(bytes), t),
        "peak_copy" | "peak_read" | "peak_mma" => elementwise::peak(launch, &params(bytes), t),
        "rope" => rope::rope(&params(bytes), t),
        "attention" => attention::naive(&params(bytes), t),
        "attention_combine" => attention::combine(&params(bytes), t),
        _ if kernel.starts_with("attention_decode_") => attention::decode(&params(bytes), t),
        _ if kernel.starts_with("attention_prefill_") => attention::prefill(&params(bytes), t),
        _ if kernel.starts_with("gemm_prefill_") => gemm::prefill(kernel, &params(bytes), t),
        _ if kernel.starts_with("gemm_transposed") => gemm::transposed(kernel, &params(bytes), t),
        "factors" => gemm::factors(&params(bytes), t),
        _ if kernel.starts_with("row_lengths_") => gemm::lengths(kernel, &params(bytes), t),
        _ if kernel.starts_with("gemm_") => gemm::decode(kernel, &params(bytes), t),
        "convolve" => recurrent::convolve(&params(bytes), t),
        _ if kernel.starts_with("delta_rule") => recurrent::delta_rule(&params(bytes), t),
        "route" => experts::route(&params(bytes), t),
        "expert_lists" => experts::lists(&params(bytes), t),
        "sum_experts" => experts::sum(&params(bytes), t),
        "soft_cap" => sample::soft_cap(&params(bytes), t),
        "argmax_pieces" | "top_k_pieces" => sample::pieces(&params(bytes), t),
        "argmax" | "top_k" if kernel == launch.kernel => sample::top_k(&params(bytes), t),
        "top_k" => sample::naive(&params(bytes), t),
        _ => return Err("is not in the table of what kernels read and write (tests/cudasim/src/access.rs)".into()),
    }
    match touch.problem {
        Some(problem) => Err(problem),
        None => Ok(Touched { ranges: touch.ranges, tile: touch.tile }),
    }
}

/// Whether a kernel makes numbers that decide what others do, so that it runs without arithmetic too.
pub fn makes_ids(kernel: &str) -> bool {
    let kernel = kernel.strip_prefix("naive_").unwrap_or(kernel);
    matches!(kernel, "route" | "expert_lists" | "argmax_pieces" | "argmax" | "top_k_pieces" | "top_k")
}

#[cfg(test)]
mod tests {
    use layerstream_kernels::host::Kernel;

    /// A kernel that the table does not know would end every program that launches it.
    #[test]
    fn every_kernel_is_in_the_table() {
        let mut memory = super::Memory::default();
        for kernel in Kernel::all().filter(|kernel| !kernel.name().starts_with("selftest")) {
            let launch = super::Launch::linear(kernel.name(), 1, 32);
            let nothing = vec![0; kernel.params_bytes()];
            if let Err(problem) = super::ranges(&launch, &nothing, &mut memory) {
                assert!(!problem.contains("not in the table"), "{}: {problem}", kernel.name());
            }
        }
    }
}

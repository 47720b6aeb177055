//! Products as launches: which kernels multiply by a matrix, and what they are given. What they read of activations is
//! rounded to the 16 bits that they multiply, unless the weights are float32, or stored as their transpose, which the
//! multiply in float32 is for.

use std::ops::Range;

use layerstream_kernels::driver::Stream;
use layerstream_kernels::launch::gemm::MAX_DECODE_ROWS;
use layerstream_kernels::launch::transposed::{self, Stored};
use layerstream_kernels::launch::{gemm, gemm_prefill, lengths};
use layerstream_kernels::params::{
    ConvertParams, Dtype, GemmParams, PrefillParams, RowLengthsParams, TransposedParams, Vector,
};

use super::card::Card;
use super::notes::{Batch, Phase, Run};
use super::steps::{Queue, Steps, float, kernel_dtype};
use super::weights;
use crate::checkpoint;
use crate::encoding::Encoding;
use crate::error::Result;
use crate::plan::Tile;
use crate::plan::device::operand;
use crate::program::{Buffer, Matrix, Product, Program};

/// What of a product has no kernel.
pub fn unsupported(matrix: &Matrix) -> Option<String> {
    let known = match matrix.tensor.transposed {
        true => stored(matrix.encoding).is_some(),
        false => weights::form(matrix).is_some(),
    };
    (!known).then(|| format!("{} weights stored like `{}`", matrix.encoding, matrix.tensor.name))
}

/// A product with one tile of a matrix.
pub struct TileProduct<'a> {
    pub matrix: &'a Matrix,
    /// The tile's stored rows, where they are, and where their exponents are, if they have any.
    pub stored: &'a Range<usize>,
    pub address: u64,
    pub exponents: Option<u64>,
    pub input: Buffer,
    pub output: Buffer,
    /// The column of the output where row 0 of the matrix goes.
    pub first: usize,
    pub add: bool,
    /// Of row 0 of the matrix and those after it.
    pub bias: Vector,
    pub scale: f32,
    pub normalise_rows: bool,
}

/// What the stored rows of a matrix that is stored as its transpose are made of.
fn stored(encoding: Encoding) -> Option<Stored> {
    match encoding {
        Encoding::Gptq4 => Some(Stored::Gptq4),
        Encoding::Gptq8 => Some(Stored::Gptq8),
        Encoding::Awq4 => Some(Stored::Awq4),
        other => float(other).map(|_| Stored::Numbers),
    }
}

/// `vector` as it would be if `before` more numbers came first.
fn preceded(vector: Vector, before: usize) -> Vector {
    let data = if vector.data.is_null() { 0 } else { vector.data as u64 - 4 * before as u64 };
    Vector { data: data as *const _, ..vector }
}

impl Steps {
    /// Queues the products of a tile, which is at `address`: each phase's rows with its own kernels; of a tile of factors, that
    /// they are taken in.
    #[expect(clippy::too_many_arguments, reason = "all of what a product is")]
    pub fn multiply(
        &mut self,
        card: &Card,
        stream: &Stream,
        program: &Program,
        batch: &Batch,
        product: &Product,
        tile: &Tile,
        address: u64,
    ) -> Result<()> {
        let (rows, runs) = self.rows(batch);
        if rows == 0 {
            return Ok(());
        }
        let (queue, matrix) = (Queue { card, stream }, &program.matrices[product.matrix.0]);
        if let Some(part) = tile.factors {
            return self.take_factors(&queue, matrix, part, &tile.rows, address);
        }
        let what = TileProduct {
            matrix,
            stored: &tile.rows,
            address,
            exponents: None,
            input: product.input,
            output: product.output,
            first: product.first,
            add: product.add,
            bias: self.vector(product.bias),
            scale: product.scale,
            normalise_rows: product.normalise_rows,
        };
        self.multiply_tile(&queue, program, &what, rows, runs)
    }

    /// Queues the product of the first `rows` rows of a buffer with a tile; they are of the phases that `runs` says.
    pub fn multiply_tile(
        &mut self,
        queue: &Queue,
        program: &Program,
        what: &TileProduct,
        rows: usize,
        runs: &[Run],
    ) -> Result<()> {
        let TileProduct { matrix, stored, input, output, .. } = *what;
        if matrix.tensor.transposed {
            return self.multiply_transposed(queue, what, rows);
        }
        let (x, x_bytes) = self.operand(queue, program, input, operand(matrix), rows)?;
        let (encoding, w) = self.weights(what);
        let before = matrix.first_row;
        let (n, k) = (stored.len() as i32, matrix.cols as i32);
        let lengths = match what.normalise_rows {
            true => self.at(self.layout.lengths) - 4 * before as u64,
            false => 0,
        };
        if what.normalise_rows {
            let params = RowLengthsParams { w, lengths: lengths as *mut f32, n, k };
            queue.launch(&lengths::row_lengths(encoding, &params), &params)?;
        }
        let out = (self.changed(output) + 4 * what.first as u64 - 4 * before as u64) as *mut f32;
        let gemm = GemmParams {
            w,
            x: x as *const _,
            out,
            residual: if what.add { out } else { std::ptr::null() },
            bias: preceded(what.bias, before),
            lengths: lengths as *const f32,
            x_stride: self.stride(input),
            out_stride: self.stride(output),
            m: rows as i32,
            n,
            k,
            scale: what.scale,
        };
        queue.product(encoding, &gemm, x_bytes, runs)
    }

    /// What some stored rows, each the weights of one input for all outputs, add to a product. The first of them begin it.
    /// Rows of both phases have the same bits here.
    fn multiply_transposed(&mut self, queue: &Queue, what: &TileProduct, rows: usize) -> Result<()> {
        let TileProduct { matrix, stored: rows_of_tile, address, input, output, .. } = *what;
        let begins = rows_of_tile.start == 0;
        let inputs = matrix.encoding.inputs();
        let first_input = rows_of_tile.start * inputs;
        let params = TransposedParams {
            w: address as *const _,
            x: (self.wide(input) + 4 * first_input as u64) as *const f32,
            out: (self.changed(output) + 4 * what.first as u64) as *mut f32,
            bias: if begins { what.bias } else { Vector::default() },
            x_stride: self.stride(input),
            out_stride: self.stride(output),
            m: rows as i32,
            n: matrix.rows as i32,
            k: (rows_of_tile.len() * inputs) as i32,
            first_input: first_input as i32,
            add: i32::from(what.add || !begins),
            factor: what.scale,
            dtype: float(matrix.encoding).unwrap_or(Dtype::DTYPE_F32),
            ..self.group_factors(matrix, first_input)
        };
        let stored = stored(matrix.encoding).expect("programs are checked before they run");
        queue.launch(&transposed::product(stored, &params), &params)
    }

    /// The factors of groups of inputs, if the matrix has any, for inputs from this one on.
    fn group_factors(&self, matrix: &Matrix, first_input: usize) -> TransposedParams {
        let Some(groups) = &matrix.groups else { return TransposedParams::default() };
        let tables = &self.layout.factors;
        let index = if groups.in_any_order() { self.at(tables.index) + 4 * first_input as u64 } else { 0 };
        TransposedParams {
            scale: self.at(tables.scales) as *const f32,
            zero: self.at(tables.zeros) as *const f32,
            index: index as *const i32,
            group_size: groups.cols as i32,
            groups: (groups.count / matrix.rows) as i32,
            ..TransposedParams::default()
        }
    }

    /// The input of a product as its operands, made if need be: address, and bytes of an element.
    fn operand(
        &mut self,
        queue: &Queue,
        program: &Program,
        buffer: Buffer,
        dtype: checkpoint::Dtype,
        rows: usize,
    ) -> Result<(u64, u64)> {
        if dtype == checkpoint::Dtype::F32 {
            return Ok((self.wide(buffer), 4));
        }
        let at = self.at(self.room(buffer).operand.expect("the plan gives operands to what products read"));
        if self.operands[buffer.0] != Some(dtype) {
            queue.convert(&ConvertParams {
                in_: self.wide(buffer) as *const _,
                ids: std::ptr::null(),
                out: at as *mut _,
                in_stride: self.stride(buffer),
                out_stride: self.stride(buffer),
                rows: rows as i32,
                cols: program.buffers[buffer.0] as i32,
                in_dtype: Dtype::DTYPE_F32,
                out_dtype: kernel_dtype(dtype),
                scale: 1.0,
            })?;
            self.operands[buffer.0] = Some(dtype);
        }
        Ok((at, dtype.size() as u64))
    }
}

impl Queue<'_> {
    /// A product, which `all` describes from its first row on, with numbers of `x_bytes` to multiply: each phase's rows with
    /// its own kernels.
    pub fn product(&self, encoding: gemm::Encoding, all: &GemmParams, x_bytes: u64, runs: &[Run]) -> Result<()> {
        let (x, out) = (all.x as u64, all.out as u64);
        for run in runs {
            let at_once = if run.phase == Phase::Answer { MAX_DECODE_ROWS } else { run.rows.len() };
            for first in run.rows.clone().step_by(at_once) {
                let out = (out + 4 * (first as i64 * all.out_stride) as u64) as *mut f32;
                let gemm = GemmParams {
                    x: (x + (first as i64 * all.x_stride) as u64 * x_bytes) as *const _,
                    out,
                    residual: if all.residual.is_null() { all.residual } else { out },
                    m: at_once.min(run.rows.end - first) as i32,
                    ..*all
                };
                match run.phase {
                    Phase::Answer => self.launch(&gemm::decode(encoding, &gemm), &gemm)?,
                    Phase::Prompt => {
                        let params = PrefillParams {
                            product: gemm,
                            gather: std::ptr::null(),
                            out16: std::ptr::null_mut(),
                            out16_dtype: Dtype::DTYPE_F32,
                        };
                        self.launch(&gemm_prefill::prefill(encoding, &params), &params)?;
                    }
                }
            }
        }
        Ok(())
    }
}

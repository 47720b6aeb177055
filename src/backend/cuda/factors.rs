//! The factors of one matrix at a time: they arrive as tiles before those of the matrix, a kernel makes float32 of them, and they
//! serve the products of the matrix until those of the next one come.

use std::ops::Range;

use layerstream_kernels::launch::factors::factors;
use layerstream_kernels::params::{Dtype, FactorParams, FactorRole};

use super::steps::{Queue, Steps, float};
use crate::disk::gather::Gather;
use crate::error::Result;
use crate::program::{Matrix, Program, Role};

impl Steps {
    /// Queues what takes in some elements of one part of a matrix's factors, which are at `address`.
    pub(super) fn take_factors(
        &self,
        queue: &Queue,
        matrix: &Matrix,
        part: usize,
        elements: &Range<usize>,
        address: u64,
    ) -> Result<()> {
        let groups = matrix.groups.as_ref().expect("a matrix with factors");
        let tables = &self.layout.factors;
        let table = |at: usize| self.at(at) as *mut std::ffi::c_void;
        let all = FactorParams {
            in_: address as *const _,
            first: elements.start as i32,
            count: elements.len() as i32,
            outputs: groups.count as i32,
            repeat: 1,
            divisor: 1.0,
            ..FactorParams::default()
        };
        let scales = FactorParams { out: table(tables.scales), ..all };
        let zeros = FactorParams { out: table(tables.zeros), ..all };
        let words = |at: usize| FactorParams {
            out: table(at),
            outputs: groups.parts[part].elements() as i32,
            role: FactorRole::FACTOR_WORDS,
            ..all
        };
        let params = match groups.parts[part].role {
            Role::Scales { encoding, repeat, divisor } => FactorParams {
                role: FactorRole::FACTOR_SCALES,
                dtype: float(encoding).unwrap_or(Dtype::DTYPE_F32),
                repeat: repeat as i32,
                divisor,
                ..scales
            },
            Role::CodedScales { repeat, block, offset } => FactorParams {
                role: FactorRole::FACTOR_CODED_SCALES,
                codebook: table(tables.codebook) as *const f32,
                block_scales: table(tables.block_scales) as *const f32,
                repeat: repeat as i32,
                block: block as i32,
                offset,
                ..scales
            },
            Role::Codebook => words(tables.codebook),
            Role::BlockScales => words(tables.block_scales),
            Role::GroupIndex => words(tables.index),
            Role::GptqZeros { bits, less_one } => FactorParams {
                role: FactorRole::FACTOR_GPTQ_ZEROS,
                bits: bits as i32,
                more: i32::from(less_one),
                ..zeros
            },
            Role::AwqZeros => FactorParams { role: FactorRole::FACTOR_AWQ_ZEROS, ..zeros },
            Role::RowZeros { bits, rows, repeat } => FactorParams {
                role: FactorRole::FACTOR_ROW_ZEROS,
                bits: bits as i32,
                rows: rows as i32,
                repeat: repeat as i32,
                ..zeros
            },
            Role::ByteZeros { repeat } => {
                FactorParams { role: FactorRole::FACTOR_BYTE_ZEROS, repeat: repeat as i32, ..zeros }
            }
        };
        queue.launch(&factors(&params), &params)
    }
}

/// Reads the groups of all columns, where a matrix has them in any order: what is wrong with them, a kernel could not say. (Those
/// of experts are looked at when they are copied.)
///
/// # Errors
/// A column that is in no group, a read that fails.
pub fn check_indexes(program: &Program, gather: &Gather) -> Result<()> {
    for matrix in &program.matrices {
        let parts = matrix.groups.iter().flat_map(|groups| &groups.parts);
        for part in parts.filter(|part| part.role == Role::GroupIndex) {
            let mut bytes = vec![0; part.tensor.span.len as usize];
            gather.read_at(&mut [(part.tensor.span, bytes.as_mut_slice())])?;
            matrix.check_index(part, 0, &bytes)?;
        }
    }
    Ok(())
}

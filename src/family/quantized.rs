//! Matrices of checkpoints that were quantised beforehand, as they lie there: which tensors hold the codes and the factors of
//! a matrix, and what shapes they must have. Whether a matrix is quantised, its tensors say: where the method left a module
//! as it was, there is an ordinary weight.

use std::ops::Range;

use super::builder::Builder;
use super::quantization::{Gptq, Integers, Quantization, ScaleFor};
use crate::checkpoint::{Dtype, Tensor};
use crate::encoding::{Encoding, FP4, NF4};
use crate::error::{Error, Result};
use crate::program::{Groups, Matrix, Part, Role};

/// Types that scales can have.
const FLOATS: &[Dtype] = &[Dtype::F16, Dtype::Bf16, Dtype::F32];

/// A matrix that is looked for.
struct Wanted<'a> {
    /// The name that it would have if it were not quantised.
    name: &'a str,
    /// The same without `.weight`.
    stem: &'a str,
    all: usize,
    part: &'a Range<usize>,
    cols: usize,
}

impl Wanted<'_> {
    fn sibling(&self, ending: &str) -> String {
        format!("{}.{ending}", self.stem)
    }
}

impl Builder<'_> {
    /// Some rows of a matrix of `all` rows, if it is quantised in a form that is not a type of the tensor `name` itself.
    ///
    /// # Errors
    /// Tensors that are missing, or of other shapes and types than the configuration says; what no kernel multiplies.
    pub(super) fn quantized(&self, name: &str, all: usize, part: &Range<usize>, cols: usize) -> Result<Option<Matrix>> {
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        let wanted = Wanted { name, stem, all, part, cols };
        match &self.quantization {
            Quantization::None | Quantization::Factors { .. } => Ok(None),
            Quantization::Bitsandbytes => self.bitsandbytes(&wanted),
            Quantization::Integers(options) => self.integers(&wanted, options),
            Quantization::Gptq(options) => self.words(&wanted, |builder| builder.gptq(&wanted, *options)),
            Quantization::Awq { group } => self.words(&wanted, |builder| builder.awq(&wanted, *group)),
        }
    }

    /// A matrix of bitsandbytes, unless it was left as it was.
    fn bitsandbytes(&self, wanted: &Wanted) -> Result<Option<Matrix>> {
        let Wanted { name, all, cols, .. } = *wanted;
        for (kind, encoding, numbers) in [("nf4", Encoding::Nf4, NF4), ("fp4", Encoding::Fp4, FP4)] {
            if let Some(state) = self.checkpoint.get(&format!("{name}.quant_state.bitsandbytes__{kind}")) {
                return self.four_bits(wanted, state, encoding, numbers).map(Some);
            }
        }
        let maxima = wanted.sibling("SCB");
        if self.checkpoint.get(&maxima).is_none() {
            return Ok(None);
        }
        if let Some(format) = self.checkpoint.get(&wanted.sibling("weight_format"))
            && self.checkpoint.read(format, 1)?.first().is_some_and(|format| *format != 0)
        {
            return Err(self.unsupported(format, "other than 0, rows one after the other,"));
        }
        let tensor = self.typed(name, &[all, cols], &[Dtype::I8])?;
        let maxima = self.typed(&maxima, &[all], &[Dtype::F32])?;
        let role = Role::Scales { encoding: Encoding::F32, repeat: 1, divisor: 127.0 };
        let groups = Groups { parts: vec![Part { role, tensor: maxima }], count: all, rows: 1, cols };
        Ok(Some(in_rows(tensor, Encoding::Int8, wanted, groups)))
    }

    /// NF4 or FP4: blocks of numbers run over the matrix row by row, and may begin and end anywhere in a row.
    fn four_bits(&self, wanted: &Wanted, state: &Tensor, encoding: Encoding, numbers: [f32; 16]) -> Result<Matrix> {
        let Wanted { name, all, cols, .. } = *wanted;
        let State { shape, blocksize: block, nested_blocksize, nested_offset } = self.quant_state(state)?;
        if shape != [all, cols] {
            let problem = format!("it is of a matrix of shape {shape:?}, but config.json makes it {:?}", [all, cols]);
            return Err(self.contradicts(state, problem));
        }
        let map = format!("{name}.quant_map");
        if self.checkpoint.get(&map).is_some() {
            let map = self.typed(&map, &[16], &[Dtype::F32])?;
            let found = self.checkpoint.read(&map, 64)?;
            let found = found.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number));
            if !found.zip(numbers).all(|(found, number)| (found - number).abs() <= 1e-6) {
                return Err(self.unsupported(&map, &format!("with other numbers than those of {encoding}")));
            }
        }
        // Its type is what the tool was told to store bytes as.
        let tensor = self.checkpoint.require(name)?.clone();
        if tensor.span.len != (all * cols).div_ceil(2) as u64 || tensor.transposed {
            let problem = format!("it has {} bytes for {all} × {cols} numbers of 4 bits", tensor.span.len);
            return Err(self.contradicts(&tensor, problem));
        }
        let how = format!("in blocks of {block} numbers of rows of {cols}");
        let (mut groups, repeat) = in_blocks(all, cols, block).ok_or_else(|| self.unsupported(&tensor, &how))?;
        let blocks = (all * cols).div_ceil(block);
        let absmax = format!("{name}.absmax");
        groups.parts = match nested_blocksize {
            None => {
                let tensor = self.typed(&absmax, &[blocks], &[Dtype::F32])?;
                vec![Part { role: Role::Scales { encoding: Encoding::F32, repeat, divisor: 1.0 }, tensor }]
            }
            Some(nested) => {
                let part = |role, ending: &str, len: usize, dtype| -> Result<Part> {
                    Ok(Part { role, tensor: self.typed(&format!("{name}.{ending}"), &[len], &[dtype])? })
                };
                let coded = Role::CodedScales { repeat, block: nested, offset: nested_offset };
                vec![
                    part(Role::Codebook, "nested_quant_map", 256, Dtype::F32)?,
                    part(Role::BlockScales, "nested_absmax", blocks.div_ceil(nested), Dtype::F32)?,
                    part(coded, "absmax", blocks, Dtype::U8)?,
                ]
            }
        };
        Ok(in_rows(tensor, encoding, wanted, groups))
    }

    /// What bitsandbytes says of a matrix of 4 bits, in a tensor of JSON.
    fn quant_state(&self, tensor: &Tensor) -> Result<State> {
        let json = self.checkpoint.read(tensor, MOST_STATE)?;
        let state: State =
            serde_json::from_slice(&json).map_err(|e| self.contradicts(tensor, format!("is no state: {e}")))?;
        if state.blocksize == 0 || state.nested_blocksize == Some(0) || !state.nested_offset.is_finite() {
            return Err(
                self.contradicts(tensor, format!("says something impossible: {}", String::from_utf8_lossy(&json)))
            );
        }
        Ok(state)
    }

    fn contradicts(&self, tensor: &Tensor, problem: String) -> Error {
        let path = self.checkpoint.file_path(tensor.span.file).to_path_buf();
        Error::Tensor { path, tensor: tensor.name.clone(), problem }
    }

    /// Integers of compressed-tensors, unless the matrix was left as it was.
    fn integers(&self, wanted: &Wanted, options: &[Integers]) -> Result<Option<Matrix>> {
        let Wanted { name, all, cols, .. } = *wanted;
        let packed = wanted.sibling("weight_packed");
        let (tensor, bits) = match (self.checkpoint.get(&packed), self.checkpoint.get(name)) {
            (Some(words), _) => {
                match options.iter().find(|o| o.packed && words.shape == [all, (cols * o.bits).div_ceil(32)]) {
                    Some(fits) => (self.typed(&packed, &words.shape.clone(), &[Dtype::I32])?, fits.bits),
                    None => {
                        let widths: Vec<_> = options.iter().map(|o| [all, (cols * o.bits).div_ceil(32)]).collect();
                        let problem = format!("its shape is {:?}, but config.json makes it {widths:?}", words.shape);
                        return Err(self.contradicts(words, problem));
                    }
                }
            }
            (None, Some(plain)) if plain.dtype == Dtype::I8 => (self.typed(name, &[all, cols], &[Dtype::I8])?, 8),
            (None, Some(_)) => return Ok(None),
            (None, None) => return self.checkpoint.require(&packed).map(|_| None),
        };
        let is_packed = tensor.dtype == Dtype::I32;
        let ways: Vec<_> =
            options.iter().filter(|o| o.packed == is_packed && (o.bits == bits || !is_packed)).copied().collect();
        let way = self.integer_way(wanted, &ways, &tensor)?;
        let shape = wanted.sibling("weight_shape");
        if let Some(shape) = self.checkpoint.get(&shape) {
            self.same_shape(shape, [all, cols])?;
        }
        let per_word = 32 / bits;
        if is_packed && !cols.is_multiple_of(per_word) {
            return Err(self.unsupported(&tensor, &format!("with rows of {cols} numbers, which do not fill words,")));
        }
        let encoding = match (is_packed, bits) {
            (true, 4) => Encoding::Offset4,
            (true, _) => Encoding::Offset8,
            (false, _) => Encoding::Int8,
        };
        let mut groups = self.integer_groups(wanted, way, &tensor)?;
        if let (ScaleFor::Group(size), Some(index)) = (way.scale, self.group_index(wanted)?) {
            if groups.cols != size.min(cols) {
                return Err(self.unsupported(&index.tensor, &format!("with groups of {size} columns in any order")));
            }
            groups.parts.insert(0, index);
        }
        Ok(Some(in_rows(tensor, encoding, wanted, groups)))
    }

    /// In which of these ways the integers of a matrix are meant: where there are several, as its scales and zeros say.
    fn integer_way(&self, wanted: &Wanted, ways: &[Integers], of: &Tensor) -> Result<Integers> {
        let Wanted { all, cols, .. } = *wanted;
        match ways {
            [] => return Err(self.unsupported(of, "which no group of the `quantization_config` explains,")),
            [way, others @ ..] if others.iter().all(|other| other == way) => return Ok(*way),
            _ => {}
        }
        let scale = self.checkpoint.require(&wanted.sibling("weight_scale"))?;
        let has_zeros = self.checkpoint.get(&wanted.sibling("weight_zero_point")).is_some();
        let fits = |way: &&Integers| match way.scale {
            ScaleFor::All => scale.shape.iter().product::<usize>() == 1,
            ScaleFor::Row => scale.shape == [all, 1],
            ScaleFor::Group(size) => cols.is_multiple_of(size) && scale.shape == [all, cols / size],
        };
        let fitting = || ways.iter().filter(fits);
        // Some files have zeros of symmetric matrices, too.
        let way = fitting().find(|way| way.symmetric != has_zeros).or_else(|| fitting().find(|way| way.symmetric));
        way.copied().ok_or_else(|| {
            let zeros = if has_zeros { "with zeros" } else { "without zeros" };
            let problem = format!(
                "its shape is {:?}, {zeros}, which is none of the {} ways that the `quantization_config` has for {:?}",
                scale.shape,
                ways.len(),
                [all, cols]
            );
            self.contradicts(scale, problem)
        })
    }

    /// Which group every column is in, where compressed-tensors says so; -1 says that groups are runs of columns.
    fn group_index(&self, wanted: &Wanted) -> Result<Option<Part>> {
        let name = wanted.sibling("weight_g_idx");
        if self.checkpoint.get(&name).is_none() {
            return Ok(None);
        }
        let tensor = self.typed(&name, &[wanted.cols], &[Dtype::I32])?;
        let runs = self.checkpoint.read(&tensor, 4)? == (-1i32).to_le_bytes();
        Ok((!runs).then_some(Part { role: Role::GroupIndex, tensor }))
    }

    /// Scales and zeros of integers.
    fn integer_groups(&self, wanted: &Wanted, way: Integers, of: &Tensor) -> Result<Groups> {
        let Wanted { all, cols, .. } = *wanted;
        let name = wanted.sibling("weight_scale");
        let (mut groups, repeat, shape) = match way.scale {
            ScaleFor::All => {
                let shape = self.checkpoint.require(&name)?.shape.clone();
                (
                    Groups { parts: Vec::new(), count: 1, rows: all, cols },
                    1,
                    if shape.is_empty() { shape } else { vec![1] },
                )
            }
            ScaleFor::Row => (Groups { parts: Vec::new(), count: all, rows: 1, cols }, 1, vec![all, 1]),
            ScaleFor::Group(size) => {
                let fits = cols.is_multiple_of(size).then(|| in_blocks(all, cols, size)).flatten();
                let how = format!("in groups of {size} of rows of {cols} numbers");
                let (groups, repeat) = fits.ok_or_else(|| self.unsupported(of, &how))?;
                (groups, repeat, vec![all, cols / size])
            }
        };
        groups.parts.push(self.scales_part(&name, &shape, repeat)?);
        if !way.symmetric {
            let name = wanted.sibling("weight_zero_point");
            let across = shape.get(1).copied().unwrap_or(1);
            let rows = if way.scale == ScaleFor::All { 1 } else { all };
            let bits = way.bits as u32;
            let part = match self.checkpoint.require(&name)?.dtype {
                Dtype::I32 => {
                    let words = [rows.div_ceil(32 / way.bits), across];
                    Part {
                        role: Role::RowZeros { bits, rows, repeat },
                        tensor: self.typed(&name, &words, &[Dtype::I32])?,
                    }
                }
                _ => Part { role: Role::ByteZeros { repeat }, tensor: self.typed(&name, &shape, &[Dtype::I8])? },
            };
            groups.parts.push(part);
        }
        Ok(groups)
    }

    /// Refuses a tensor of two numbers that are not this shape.
    fn same_shape(&self, tensor: &Tensor, shape: [usize; 2]) -> Result<()> {
        let bytes = self.checkpoint.read(tensor, 16)?;
        let found: Vec<_> = match tensor.dtype {
            Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|n| i64::from_le_bytes(*n)).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|n| i64::from(i32::from_le_bytes(*n))).collect(),
        };
        if found != shape.map(|size| size as i64) {
            let problem = format!("it says that the shape is {found:?}, but config.json makes it {shape:?}");
            return Err(self.contradicts(tensor, problem));
        }
        Ok(())
    }

    /// Whether a projection is stored as its transpose.
    pub(super) fn lies_in_columns(&self, name: &str) -> bool {
        let in_words = matches!(self.quantization, Quantization::Gptq(_) | Quantization::Awq { .. })
            && self.checkpoint.get(&format!("{name}.qweight")).is_some();
        in_words || self.checkpoint.get(&format!("{name}.weight")).is_some_and(|tensor| tensor.transposed)
    }

    /// A matrix in words, unless the method left it as it was.
    fn words(&self, wanted: &Wanted, matrix: impl FnOnce(&Self) -> Result<Matrix>) -> Result<Option<Matrix>> {
        let words = wanted.sibling("qweight");
        if self.checkpoint.get(&words).is_none() && self.checkpoint.get(wanted.name).is_some() {
            return Ok(None);
        }
        let tensor = self.checkpoint.require(&words)?;
        if wanted.part.len() != wanted.all {
            return Err(self.unsupported(tensor, "with its rows and columns swapped, of which a part is needed"));
        }
        matrix(self).map(Some)
    }

    fn gptq(&self, wanted: &Wanted, options: Gptq) -> Result<Matrix> {
        let Wanted { all, cols, .. } = *wanted;
        let Gptq { bits, ordered, symmetric, .. } = options;
        let (encoding, per_word) = if bits == 4 { (Encoding::Gptq4, 8) } else { (Encoding::Gptq8, 4) };
        self.whole_words(wanted, per_word, &[all, cols])?;
        let tensor = self.typed(&wanted.sibling("qweight"), &[cols / per_word, all], &[Dtype::I32])?;
        let group = options.group.unwrap_or(cols);
        let count = cols.div_ceil(group);
        let scales = self.scales_part(&wanted.sibling("scales"), &[count, all], 1)?;
        let zeros = self.typed(&wanted.sibling("qzeros"), &[count, all / per_word], &[Dtype::I32])?;
        let middle = if bits == 4 { [0x88; 4] } else { [0x80; 4] };
        // Some files of the format `gptq_v2` are called `gptq`. Symmetric zeros are all the middle, so they tell.
        let less_one = options.less_one && !(symmetric && self.checkpoint.read(&zeros, 4)? == middle);
        let zeros = Part { role: Role::GptqZeros { bits: bits as u32, less_one }, tensor: zeros };
        let mut parts = vec![scales, zeros];
        let index = wanted.sibling("g_idx");
        if ordered || self.checkpoint.get(&index).is_some() {
            parts.insert(0, Part { role: Role::GroupIndex, tensor: self.typed(&index, &[cols], &[Dtype::I32])? });
        }
        Ok(transposed(tensor, encoding, wanted, Groups { parts, count: count * all, rows: 1, cols: group }))
    }

    fn awq(&self, wanted: &Wanted, group: Option<usize>) -> Result<Matrix> {
        let Wanted { all, cols, .. } = *wanted;
        self.whole_words(wanted, 8, &[all])?;
        let tensor = self.typed(&wanted.sibling("qweight"), &[cols, all / 8], &[Dtype::I32])?;
        let group = group.unwrap_or(cols);
        let count = cols.div_ceil(group);
        let scales = self.scales_part(&wanted.sibling("scales"), &[count, all], 1)?;
        let zeros = self.typed(&wanted.sibling("qzeros"), &[count, all / 8], &[Dtype::I32])?;
        let parts = vec![scales, Part { role: Role::AwqZeros, tensor: zeros }];
        Ok(transposed(tensor, Encoding::Awq4, wanted, Groups { parts, count: count * all, rows: 1, cols: group }))
    }

    /// Refuses sizes that do not fill words.
    fn whole_words(&self, wanted: &Wanted, per_word: usize, sizes: &[usize]) -> Result<()> {
        let Wanted { all, cols, .. } = wanted;
        match sizes.iter().all(|size| size.is_multiple_of(per_word)) {
            true => Ok(()),
            false => Err(self.unsupported(
                self.checkpoint.require(&wanted.sibling("qweight"))?,
                &format!("for a matrix of {all} × {cols}, which does not fill words of {per_word} numbers,"),
            )),
        }
    }

    /// Scales, each for `repeat` groups.
    fn scales_part(&self, name: &str, shape: &[usize], repeat: usize) -> Result<Part> {
        let tensor = self.typed(name, shape, FLOATS)?;
        let encoding = Encoding::of(tensor.dtype).expect("a float");
        Ok(Part { role: Role::Scales { encoding, repeat, divisor: 1.0 }, tensor })
    }

    /// A tensor of this shape and one of these types.
    fn typed(&self, name: &str, shape: &[usize], dtypes: &[Dtype]) -> Result<Tensor> {
        let tensor = self.shaped(name, shape)?;
        if !dtypes.contains(&tensor.dtype) || tensor.transposed {
            let expected: Vec<_> = dtypes.iter().map(|dtype| dtype.name()).collect();
            let how = format!("of type {} (it should be {})", tensor.dtype, expected.join(" or "));
            return Err(self.unsupported(tensor, &how));
        }
        Ok(tensor.clone())
    }
}

/// What bitsandbytes says of a matrix of 4 bits.
#[derive(serde::Deserialize)]
struct State {
    shape: Vec<usize>,
    blocksize: usize,
    /// Where scales are quantised themselves.
    nested_blocksize: Option<usize>,
    #[serde(default)]
    nested_offset: f32,
}

/// The most bytes that a state can have.
const MOST_STATE: usize = 4096;

/// Groups, without their parts yet, for blocks of so many numbers that follow each other in a matrix, row by row; and how
/// many groups one of them is. Kernels want groups of whole vectors that divide rows, so a block may be several. `None` if
/// that cannot be.
fn in_blocks(rows: usize, cols: usize, block: usize) -> Option<(Groups, usize)> {
    if block.is_multiple_of(cols) {
        let rows_of = block / cols;
        return Some((Groups { parts: Vec::new(), count: rows.div_ceil(rows_of), rows: rows_of, cols }, 1));
    }
    let largest = 1 << block.trailing_zeros().min(cols.trailing_zeros());
    let groups = Groups { parts: Vec::new(), count: rows * (cols / largest), rows: 1, cols: largest };
    (largest >= 16).then_some((groups, block / largest))
}

/// Some rows of a matrix that is stored row by row.
fn in_rows(tensor: Tensor, encoding: Encoding, wanted: &Wanted, groups: Groups) -> Matrix {
    let (first_row, rows) = (wanted.part.start, wanted.part.len());
    Matrix { tensor, first_row, rows, cols: wanted.cols, encoding, scales: None, groups: Some(groups) }
}

/// A whole matrix that is stored as its transpose.
fn transposed(tensor: Tensor, encoding: Encoding, wanted: &Wanted, groups: Groups) -> Matrix {
    let tensor = Tensor { transposed: true, ..tensor };
    Matrix { tensor, first_row: 0, rows: wanted.all, cols: wanted.cols, encoding, scales: None, groups: Some(groups) }
}

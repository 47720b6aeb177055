//! Matrices of checkpoints that were quantised beforehand, as they lie there: which tensors hold the codes and the factors of
//! a matrix, and what shapes they must have. Whether a matrix is quantised, its tensors say: where the method left a module
//! as it was, there is an ordinary weight.

use std::ops::Range;

use super::builder::Builder;
use super::quantization::{Gptq, Quantization};
use crate::checkpoint::{Dtype, Tensor};
use crate::encoding::Encoding;
use crate::error::Result;
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
    pub(super) fn quantized(
        &mut self,
        name: &str,
        all: usize,
        part: &Range<usize>,
        cols: usize,
    ) -> Result<Option<Matrix>> {
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        let wanted = Wanted { name, stem, all, part, cols };
        match self.quantization {
            Quantization::None | Quantization::Factors { .. } => Ok(None),
            Quantization::Gptq(options) => self.words(&wanted, |builder| builder.gptq(&wanted, options)),
            Quantization::Awq { group } => self.words(&wanted, |builder| builder.awq(&wanted, group)),
        }
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
        Ok(Part { role: Role::Scales { encoding, repeat }, tensor })
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

/// A whole matrix that is stored as its transpose.
fn transposed(tensor: Tensor, encoding: Encoding, wanted: &Wanted, groups: Groups) -> Matrix {
    let tensor = Tensor { transposed: true, ..tensor };
    Matrix { tensor, first_row: 0, rows: wanted.all, cols: wanted.cols, encoding, scales: None, groups: Some(groups) }
}

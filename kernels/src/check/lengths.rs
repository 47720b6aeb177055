//! lengths.cu against float64: the Euclidean lengths of rows of weights, in every encoding.

use super::weights::{FORMS, Form, random_tile};
use super::{Check, Outcome, SIZES};
use crate::launch::Launch;
use crate::launch::gemm::Encoding;
use crate::launch::lengths::{naive, row_lengths};
use crate::params::{Dtype, RowLengthsParams, Weights};

/// Every encoding, every number of rows, short and long ones; rows of zeroes.
pub fn check(check: &mut Check) -> Outcome {
    for form in FORMS {
        for n in SIZES {
            let ragged = check.pick(&SIZES);
            let k = check.pick(&[ragged, 64, 320, 2304]);
            case(check, form, n, k)?;
        }
    }
    check.case("lengths of rows of zeroes");
    let zeroes = Weights { data: check.input(&vec![0u16; 9 * 40]).cast(), ..Weights::default() };
    let got = run(check, row_lengths, Encoding::Bf16, zeroes, 9, 40)?;
    match got.iter().all(|length| *length == f64::from(1e-12f32)) {
        true => Ok(()),
        false => Err(check.failure(&format!("they are not 1e-12 but {got:?}"))),
    }
}

fn case(check: &mut Check, form: Form, n: usize, k: usize) -> Outcome {
    let k = form.columns(k);
    let first = check.pick(&[0, 1, 5, 130]);
    check.case(format!("{form:?} lengths of {n} rows of {k}, the first is {first}"));
    let (w, numbers) = random_tile(check, form, first, n, k);
    let got = run(check, row_lengths, form.encoding(), w, n, k)?;
    let twin = run(check, naive, form.encoding(), w, n, k)?;
    let mut truth = vec![f64::NAN; first];
    truth.extend(numbers.chunks(k).map(|row| row.iter().map(|w| w * w).sum::<f64>().sqrt()));
    check.unwritten("lengths", &got, &truth)?;
    check.gate("lengths", &got[first..], &twin[first..], &truth[first..], Dtype::DTYPE_F32)
}

type Choose = fn(Encoding, &RowLengthsParams) -> Launch;

fn run(
    check: &mut Check,
    launch: Choose,
    encoding: Encoding,
    w: Weights,
    n: usize,
    k: usize,
) -> Result<Vec<f64>, String> {
    let out = check.output(w.first_row as usize + n, Dtype::DTYPE_F32);
    let params = RowLengthsParams { w, lengths: out.address as *mut f32, n: n as i32, k: k as i32 };
    check.launch(&launch(encoding, &params), &params)?;
    Ok(check.read(out))
}

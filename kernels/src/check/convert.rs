//! convert.cu against float64: every pair of dtypes, exactly, for a product of two numbers has one correct rounding; and
//! blocks of GGUF.

use super::{Check, Outcome, SIZES, gguf};
use crate::launch::Launch;
use crate::launch::convert::{convert, convert_blocks, naive_convert, naive_convert_blocks};
use crate::launch::gemm::Encoding;
use crate::params::{ConvertParams, Dtype};

/// Every size as the row's length, every pair of dtypes, rows in order and picked, aligned and not.
pub fn check(check: &mut Check) -> Outcome {
    let dtypes = [Dtype::DTYPE_F32, Dtype::DTYPE_F16, Dtype::DTYPE_BF16];
    for (i, cols) in SIZES.into_iter().chain([128, 512, 1023]).enumerate() {
        for (j, from) in dtypes.into_iter().enumerate() {
            for (k, to) in dtypes.into_iter().enumerate() {
                let rows = [1, 2, 7, 33][(i + j + k) % 4];
                // 8 keeps rows of every dtype on 16 bytes, 1 does not.
                let gap = if cols % 8 == 0 { [0, 8, 1][(i + j) % 3] } else { 3 };
                case(check, rows, cols, gap, from, to, (i + k) % 2 == 0)?;
            }
        }
    }
    Ok(())
}

fn case(check: &mut Check, rows: usize, cols: usize, gap: usize, from: Dtype, to: Dtype, picked: bool) -> Outcome {
    check.case(format!("convert {rows} rows of {cols} (+{gap}) from {from:?} to {to:?}, picked: {picked}"));
    let (stride, table) = (cols + gap, if picked { 5 } else { rows });
    let values = check.normal(table * stride);
    let (address, exact) = check.rounded(&values, from);
    let ids: Vec<i32> = (0..rows as i32).map(|r| if picked { (r * 3 + 1) % 5 } else { r }).collect();
    let mut run = |launch: fn(&ConvertParams) -> Launch| -> Result<Vec<f64>, String> {
        let out = check.output(rows * stride, to);
        let params = ConvertParams {
            in_: address,
            ids: if picked { check.input(&ids) } else { std::ptr::null() },
            out: out.address as *mut _,
            in_stride: stride as i64,
            out_stride: stride as i64,
            rows: rows as i32,
            cols: cols as i32,
            in_dtype: from,
            out_dtype: to,
            scale: 0.625,
        };
        check.launch(&launch(&params), &params)?;
        Ok(check.read(out))
    };
    let got = run(convert)?;
    let naive = run(naive_convert)?;
    check.same("the naive twin", &got, &naive)?;
    let mut truth = vec![f64::NAN; rows * stride];
    for (row, id) in ids.iter().enumerate() {
        for i in 0..cols {
            truth[row * stride + i] = exact[*id as usize * stride + i] * 0.625;
        }
    }
    check.unwritten("out", &got, &truth)?;
    let written: Vec<usize> = (0..truth.len()).filter(|&i| !truth[i].is_nan()).collect();
    let pick = |from: &[f64]| written.iter().map(|&i| from[i]).collect::<Vec<_>>();
    check.gate("out", &pick(&got), &pick(&naive), &pick(&truth), to)
}

/// Every encoding of blocks, every dtype, rows in order and picked.
pub fn check_blocks(check: &mut Check) -> Outcome {
    use Encoding::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    for encoding in [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K] {
        for (i, to) in [Dtype::DTYPE_F32, Dtype::DTYPE_F16, Dtype::DTYPE_BF16].into_iter().enumerate() {
            for blocks in [1, 3, 9] {
                blocks_case(check, encoding, [1, 7, 33][i], blocks * encoding.multiple(), to, blocks == 3)?;
            }
        }
    }
    Ok(())
}

fn blocks_case(check: &mut Check, encoding: Encoding, rows: usize, cols: usize, to: Dtype, picked: bool) -> Outcome {
    check.case(format!("convert {rows} rows of {cols} from {encoding:?} to {to:?}, picked: {picked}"));
    let (stride, table) = (cols + check.pick(&[0, 8, 1]), if picked { 5 } else { rows });
    let (bytes, numbers) = gguf::random(check, encoding, table * cols);
    let ids: Vec<i32> = (0..rows as i32).map(|r| if picked { (r * 3 + 1) % 5 } else { r }).collect();
    let mut run = |launch: fn(Encoding, &ConvertParams) -> Launch| -> Result<Vec<f64>, String> {
        let out = check.output(rows * stride, to);
        let params = ConvertParams {
            in_: check.input(&bytes).cast(),
            ids: if picked { check.input(&ids) } else { std::ptr::null() },
            out: out.address as *mut _,
            out_stride: stride as i64,
            rows: rows as i32,
            cols: cols as i32,
            out_dtype: to,
            scale: 0.625,
            ..ConvertParams::default()
        };
        check.launch(&launch(encoding, &params), &params)?;
        Ok(check.read(out))
    };
    let got = run(convert_blocks)?;
    let naive = run(naive_convert_blocks)?;
    check.same("the naive twin", &got, &naive)?;
    let mut truth = vec![f64::NAN; rows * stride];
    for (row, id) in ids.iter().enumerate() {
        for i in 0..cols {
            truth[row * stride + i] = numbers[*id as usize * cols + i] * 0.625;
        }
    }
    check.unwritten("out", &got, &truth)?;
    let written: Vec<usize> = (0..truth.len()).filter(|&i| !truth[i].is_nan()).collect();
    let pick = |from: &[f64]| written.iter().map(|&i| from[i]).collect::<Vec<_>>();
    check.gate("out", &pick(&got), &pick(&naive), &pick(&truth), to)
}

//! Products with matrices that are stored as their transposes, against float64.

use layerstream::backend::cpu::{Columns, Finish, Inputs, Mode, Tile};

use super::{Matrix, Random, TOKENS, bits, cpus, floats, rms_error};

/// A matrix stored as its transpose, `[inputs, outputs]`: against float64, and the same bits from every instruction set and
/// whatever tiles it comes in.
#[test]
fn transposed_matmul_is_accurate_and_the_same_however_it_is_cut() {
    let mut random = Random(11);
    let mut cpus = cpus();
    for (i, (n, inputs)) in TOKENS.iter().flat_map(|&n| [1, 3, 4, 17, 130].map(|k| (n, k))).enumerate() {
        let (outputs, float) = ([1, 15, 16, 40, 333, 8200][i % 6], floats()[i % 3]);
        let w = Matrix::random(&mut random, float, inputs, outputs);
        let x = random.numbers(n * inputs);
        let bias = (i % 2 == 0).then(|| random.numbers(outputs));
        let before = random.numbers(n * outputs);
        let mut exact = Vec::new();
        for (x, before) in x.chunks(inputs).zip(before.chunks(outputs)) {
            for o in 0..outputs {
                let start = bias.as_ref().map_or(0.0, |bias| bias[o]) as f64 + before[o] as f64;
                exact.push(
                    x.iter().enumerate().map(|(k, x)| w.values[k * outputs + o] as f64 * *x as f64).sum::<f64>()
                        + start,
                );
            }
        }
        let mut first: Option<Vec<f32>> = None;
        for cpu in &mut cpus {
            for rows in [inputs, 1, 3, 5] {
                let mut out = before.clone();
                for (t, bytes) in w.tile().bytes.chunks(rows * w.tile().row_bytes()).enumerate() {
                    let x = Inputs { data: &x, stride: inputs, first: t * rows };
                    let bias = bias.as_deref().filter(|_| t == 0);
                    let columns = Columns { data: &mut out, stride: outputs, first: 0 };
                    let finish = Finish { bias, mode: Mode::Add, ..Finish::default() };
                    cpu.matmul_transposed(Tile { bytes, ..w.tile() }, x, columns, finish);
                }
                let error = rms_error(&out, &exact);
                assert!(
                    error <= 1e-6 * (inputs as f64).sqrt(),
                    "{n} tokens, {inputs}×{outputs} {float:?}: error {error:e}"
                );
                assert_eq!(
                    bits(&out),
                    bits(first.get_or_insert_with(|| out.clone())),
                    "{n} tokens, {rows} rows a tile"
                );
            }
        }
        let x = Inputs { data: &x, stride: inputs, first: 0 };
        let mut multiply = |data: &mut [f32], stride, first, scale, mode| {
            let finish = Finish { scale, mode, ..Finish::default() };
            cpus[0].matmul_transposed(w.tile(), x, Columns { data, stride, first }, finish);
        };
        let mut stored = vec![f32::NAN; n * outputs];
        multiply(&mut stored, outputs, 0, 1.0, Mode::Store);
        let mut added = vec![0.0; n * outputs];
        multiply(&mut added, outputs, 0, 1.0, Mode::Add);
        assert_eq!(bits(&stored), bits(&added));
        // Some columns of wider rows, and a factor that rounds nothing.
        let mut wide = vec![7.0; n * (outputs + 3)];
        multiply(&mut wide, outputs + 3, 2, 0.5, Mode::Store);
        for (wide, stored) in wide.chunks(outputs + 3).zip(stored.chunks(outputs)) {
            assert!(wide[..2] == [7.0; 2] && wide[outputs + 2] == 7.0);
            let halves: Vec<_> = stored.iter().map(|x| 0.5 * x).collect();
            assert_eq!(bits(&wide[2..outputs + 2]), bits(&halves));
        }
    }
}

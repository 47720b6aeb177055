//! The exponential, and the activation function made of it.

use super::isa::{F32x16, Isa, Kernel, LANES};
use super::workers::Workers;

/// Elements that a thread takes at once.
const PIECE: usize = 4096;

/// eˣ, within 1 ulp of the true value wherever that is a normal number; 0 far below, ∞ above, NaN for NaN.
///
/// x = n·ln 2 + r with whole n and |r| ≤ ln 2 / 2; eʳ by its Taylor series to the seventh power, whose remainder is
/// below a tenth of an ulp.
#[inline(always)]
pub(super) fn exp<V: F32x16>(x: V) -> V {
    // ln 2 in two parts: the first has few enough bits that its product with n is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - LN2_HIGH as f64) as f32;
    // Adding and subtracting 1.5·2²³ rounds to a whole number.
    let whole = V::splat(12_582_912.0);
    let x = V::splat(-105.0).max(x);
    let x = V::splat(90.0).min(x);
    let n = x.mul_add(V::splat(std::f32::consts::LOG2_E), whole).sub(whole);
    let r = n.mul_add(V::splat(-LN2_HIGH), x);
    let r = n.mul_add(V::splat(-LN2_LOW), r);
    let mut p = V::splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, V::splat(coefficient));
    }
    p.scale_by_power_of_two(n)
}

pub(super) fn silu_mul(isa: Isa, workers: &mut Workers, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "a gate for every number");
    workers.rows(gate, PIECE, |i, gate| {
        let up = &up[i * PIECE..i * PIECE + gate.len()];
        isa.run(SiluMul { gate, up });
    });
}

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let (gates, gate_rest) = self.gate.as_chunks_mut::<LANES>();
        let (ups, up_rest) = self.up.as_chunks::<LANES>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            silu(V::load(gate)).mul(V::load(up)).store(gate);
        }
        silu(V::load_part(gate_rest)).mul(V::load_part(up_rest)).store_part(gate_rest);
    }
}

#[inline(always)]
fn silu<V: F32x16>(x: V) -> V {
    x.div(V::splat(1.0).add(exp(V::zero().sub(x))))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn run<V: F32x16>(self) {
            for chunk in self.0.as_chunks_mut::<LANES>().0 {
                exp(V::load(chunk)).store(chunk);
            }
        }
    }

    #[test]
    fn exp_is_within_an_ulp() {
        let xs: Vec<f32> = (-1_050_000..=900_000).map(|i| i as f32 / 10_000.0).collect();
        for isa in Isa::available() {
            let mut values = xs.clone();
            values.resize(xs.len().next_multiple_of(LANES), 0.0);
            isa.run(Exp(&mut values));
            let mut worst = 0.0f64;
            for (x, value) in xs.iter().zip(&values) {
                let exact = f64::from(*x).exp();
                if exact > f64::from(f32::MAX) {
                    assert!(*value >= f32::MAX, "exp({x}) = {value}");
                    continue;
                }
                let nearest = exact as f32;
                let ulp = f64::from(nearest.next_up()) - f64::from(nearest);
                worst = worst.max((f64::from(*value) - exact).abs() / ulp);
            }
            assert!(worst <= 1.0, "{isa}: {worst} ulp");
        }
    }

    #[test]
    fn exp_knows_the_extremes() {
        for isa in Isa::available() {
            let mut values = [0.0; LANES];
            values[..6].copy_from_slice(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -1e30, 1e30, -0.0]);
            isa.run(Exp(&mut values));
            assert!(values[2].is_nan());
            values[2] = 0.0;
            assert_eq!(values[..6], [0.0, f32::INFINITY, 0.0, 0.0, f32::INFINITY, 1.0], "{isa}");
        }
    }
}

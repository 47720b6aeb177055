//! Functions that the processor does not have, sixteen at a time: the exponential, and what is made of it.

use super::isa::F32x16;

/// eˣ, within 1 ulp of the true value wherever that is a normal number; 0 far below, ∞ above, NaN for NaN.
///
/// x = n·ln 2 + r with whole n and |r| ≤ ln 2 / 2; eʳ by its Taylor series to the seventh power, whose remainder is
/// below a tenth of an ulp.
#[inline(always)]
pub(super) fn exp<V: F32x16>(x: V) -> V {
    let x = V::splat(-105.0).max(x);
    let x = V::splat(90.0).min(x);
    let (n, r) = reduce(x);
    let mut p = V::splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, V::splat(coefficient));
    }
    p.scale_by_power_of_two(n)
}

/// x = n·ln 2 + r with whole n and |r| ≤ ln 2 / 2, for |x| up to about a hundred.
#[inline(always)]
fn reduce<V: F32x16>(x: V) -> (V, V) {
    // ln 2 in two parts: the first has few enough bits that its product with n is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - LN2_HIGH as f64) as f32;
    // Adding and subtracting 1.5·2²³ rounds to a whole number.
    let whole = V::splat(12_582_912.0);
    let n = x.mul_add(V::splat(std::f32::consts::LOG2_E), whole).sub(whole);
    let r = n.mul_add(V::splat(-LN2_HIGH), x);
    (n, n.mul_add(V::splat(-LN2_LOW), r))
}

/// The hyperbolic tangent, within 4 ulp: t / (t + 2) with t = e²ˣ − 1, which is computed without e²ˣ, so that small x lose
/// nothing. NaN for NaN.
#[inline(always)]
pub(super) fn tanh<V: F32x16>(x: V) -> V {
    // Beyond 10 the result is ±1.
    let x = V::splat(-10.0).max(x);
    let x = V::splat(10.0).min(x);
    let (n, r) = reduce(x.add(x));
    // eʳ − 1 by its Taylor series.
    let mut p = V::splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
        p = p.mul_add(r, V::splat(coefficient));
    }
    let power = V::splat(1.0).scale_by_power_of_two(n);
    let t = p.mul(r).mul_add(power, power.sub(V::splat(1.0)));
    t.div(t.add(V::splat(2.0)))
}

/// 1 − Φ(t), the upper tail of the normal distribution, for t from 0 to 14, within 1e-6 of its value; 0 at 15.
///
/// e^(−t²/2) times a polynomial in s = 1 / (1 + t/4), which was fitted to (1 − Φ(t)) · e^(t²/2) / s on Chebyshev nodes.
#[inline(always)]
pub(super) fn normal_tail<V: F32x16>(t: V) -> V {
    #[allow(clippy::excessive_precision)] // as fitted
    const COEFFICIENTS: [f32; 10] = [
        0.015383603340984783,
        -0.05634546429625253,
        0.036615254973985066,
        0.04831808337823918,
        -0.0036779593598375675,
        0.09537556828021065,
        0.06901163609135758,
        0.09615086467439876,
        0.09941662312542134,
        0.09975179218780739,
    ];
    let s = V::splat(1.0).div(t.mul_add(V::splat(0.25), V::splat(1.0)));
    let mut p = V::splat(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        p = p.mul_add(s, V::splat(*coefficient));
    }
    // t² in two parts: its rounding alone would cost 50 ulp of the exponential at the far end.
    let minus_half = t.mul(V::splat(-0.5));
    let square = t.mul(minus_half);
    let rest = t.mul_add(minus_half, V::zero().sub(square));
    let e = exp(square);
    e.mul_add(rest, e).mul(p).mul(s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::isa::{Isa, Kernel, LANES};

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

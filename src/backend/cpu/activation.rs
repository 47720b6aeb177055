//! Activation functions, alone and between the two products of a gated MLP, and the soft cap on logits.

use super::functions::{exp, normal_tail, tanh};
use super::isa::{F32x16, Isa, Kernel, LANES};
use super::workers::Workers;
use crate::program::Activation;

/// Elements that a thread takes at once.
const PIECE: usize = 4096;

pub(super) fn glu(isa: Isa, workers: &mut Workers, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "a gate for every number");
    workers.rows(gate, PIECE, |i, gate| {
        let up = Some(&up[i * PIECE..i * PIECE + gate.len()]);
        isa.run(Activate { activation, x: gate, up });
    });
}

pub(super) fn clamped_glu(isa: Isa, workers: &mut Workers, alpha: f32, limit: f32, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "a gate for every number");
    workers.rows(gate, PIECE, |i, gate| {
        let up = &up[i * PIECE..i * PIECE + gate.len()];
        isa.run(Clamped { alpha, limit, gate, up });
    });
}

pub(super) fn activate(isa: Isa, workers: &mut Workers, activation: Activation, x: &mut [f32]) {
    workers.rows(x, PIECE, |_, x| isa.run(Activate { activation, x, up: None }));
}

pub(super) fn soft_cap(isa: Isa, workers: &mut Workers, x: &mut [f32], cap: f32) {
    workers.rows(x, PIECE, |_, x| isa.run(SoftCap { x, cap }));
}

/// `x = activation(x)`, or that times `up`.
struct Activate<'a> {
    activation: Activation,
    x: &'a mut [f32],
    up: Option<&'a [f32]>,
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        match self.activation {
            Activation::Silu => self.with::<V, Silu>(),
            Activation::Gelu => self.with::<V, Gelu>(),
            Activation::GeluTanh => self.with::<V, GeluTanh>(),
            Activation::Relu => self.with::<V, Relu>(),
            Activation::Sigmoid => self.with::<V, Sigmoid>(),
        }
    }
}

impl Activate<'_> {
    #[inline(always)]
    fn with<V: F32x16, F: Function>(self) {
        let (xs, x_rest) = self.x.as_chunks_mut::<LANES>();
        match self.up {
            Some(up) => {
                let (ups, up_rest) = up.as_chunks::<LANES>();
                for (x, up) in xs.iter_mut().zip(ups) {
                    F::of(V::load(x)).mul(V::load(up)).store(x);
                }
                F::of(V::load_part(x_rest)).mul(V::load_part(up_rest)).store_part(x_rest);
            }
            None => {
                for x in xs {
                    F::of(V::load(x)).store(x);
                }
                F::of(V::load_part(x_rest)).store_part(x_rest);
            }
        }
    }
}

/// An activation at compile time.
trait Function {
    fn of<V: F32x16>(x: V) -> V;
}

struct Silu;
struct Gelu;
struct GeluTanh;
struct Relu;
struct Sigmoid;

impl Function for Silu {
    #[inline(always)]
    fn of<V: F32x16>(x: V) -> V {
        x.div(V::splat(1.0).add(exp(V::zero().sub(x))))
    }
}

impl Function for Gelu {
    /// x·Φ(x) as max(x, 0) − |x|·(1 − Φ(|x|)): nothing cancels on the negative side.
    #[inline(always)]
    fn of<V: F32x16>(x: V) -> V {
        let minus = V::zero().sub(x);
        // At 15 the tail is 0 in float32.
        let t = V::splat(15.0).min(minus.max(x));
        V::zero().max(x).sub(t.mul(normal_tail(t)))
    }
}

impl Function for GeluTanh {
    /// (1 + tanh u) / 2 = 1 / (1 + e⁻²ᵘ)
    #[inline(always)]
    fn of<V: F32x16>(x: V) -> V {
        const MINUS_TWICE: f32 = (-2.0 * 0.797_884_560_802_865_4_f64) as f32; // −2·√(2/π)
        let cube = x.mul(x).mul(V::splat(0.044715)).mul(x);
        let u = x.add(cube).mul(V::splat(MINUS_TWICE));
        x.div(V::splat(1.0).add(exp(u)))
    }
}

impl Function for Relu {
    #[inline(always)]
    fn of<V: F32x16>(x: V) -> V {
        V::zero().max(x)
    }
}

struct Clamped<'a> {
    alpha: f32,
    limit: f32,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for Clamped<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let (limit, least) = (V::splat(self.limit), V::splat(-self.limit));
        let (minus_alpha, one) = (V::splat(-self.alpha), V::splat(1.0));
        let of = |gate: V, up: V| {
            let gate = limit.min(gate);
            let up = least.max(limit.min(up));
            gate.div(one.add(exp(gate.mul(minus_alpha)))).mul(up.add(one))
        };
        let (gates, gate_rest) = self.gate.as_chunks_mut::<LANES>();
        let (ups, up_rest) = self.up.as_chunks::<LANES>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            of(V::load(gate), V::load(up)).store(gate);
        }
        of(V::load_part(gate_rest), V::load_part(up_rest)).store_part(gate_rest);
    }
}

impl Function for Sigmoid {
    #[inline(always)]
    fn of<V: F32x16>(x: V) -> V {
        V::splat(1.0).div(V::splat(1.0).add(exp(V::zero().sub(x))))
    }
}

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let cap = V::splat(self.cap);
        let (xs, rest) = self.x.as_chunks_mut::<LANES>();
        for x in xs {
            tanh(V::load(x).div(cap)).mul(cap).store(x);
        }
        tanh(V::load_part(rest).div(cap)).mul(cap).store_part(rest);
    }
}

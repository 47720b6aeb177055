//! Norms, rotation, activations and the simple work on rows, against float64.

use layerstream::backend::cpu::{Activation, Cpu, Heads, Mode, Norm, NormKind, Rope, RopeStyle, Runs};

use super::{Random, bits, cpus};

fn rms(weight: &[f32], eps: f32) -> Norm<'_> {
    Norm { kind: NormKind::Rms, weight: Some(weight), bias: None, offset: 0.0, eps }
}

#[test]
fn rms_norm_is_accurate_and_the_same_on_every_instruction_set() {
    let mut random = Random(3);
    for (n, width) in [(1, 1), (3, 40), (7, 333), (33, 1000), (2, 4096), (12, 8192)] {
        let x = random.numbers(n * width);
        let weight = random.numbers(width);
        for unit_offset in [false, true] {
            let offset = if unit_offset { 1.0 } else { 0.0 };
            let norm = Norm { offset, ..rms(&weight, 1e-5) };
            let results: Vec<Vec<f32>> = cpus()
                .iter_mut()
                .map(|cpu| {
                    let mut out = vec![0.0; n * width];
                    cpu.norm(&x, width, norm, &mut out, Mode::Store);
                    out
                })
                .collect();
            for (x, out) in x.chunks(width).zip(results[0].chunks(width)) {
                let mean = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / width as f64;
                for ((x, w), out) in x.iter().zip(&weight).zip(out) {
                    let w = *w as f64 + if unit_offset { 1.0 } else { 0.0 };
                    let exact = *x as f64 / (mean + 1e-5).sqrt() * w;
                    assert!((*out as f64 - exact).abs() <= 4e-7 * exact.abs() + 1e-9, "{out} {exact}");
                }
            }
            assert!(results.iter().all(|result| bits(result) == bits(&results[0])));
        }
    }
}

#[test]
fn head_norm_is_rms_norm_of_every_head() {
    let mut random = Random(4);
    let heads = Heads { count: 3, dim: 24, stride: 100 };
    let weight = random.numbers(24);
    let norm = rms(&weight, 1e-6);
    let before = random.numbers(4 * 100 + 72);
    for cpu in &mut cpus() {
        let mut after = before.clone();
        cpu.head_norm(&mut after, heads, norm);
        for (before, after) in before.chunks(100).zip(after.chunks(100)) {
            let mut expected = vec![0.0; 72];
            cpu.norm(&before[..72], 24, norm, &mut expected, Mode::Store);
            assert_eq!(after[..72], expected);
            assert_eq!(after[72..], before[72..]);
        }
    }
}

#[test]
fn rope_turns_pairs() {
    let mut random = Random(5);
    let (n, heads, rotary_dim) = (5, Heads { count: 2, dim: 16, stride: 40 }, 12);
    let angles: Vec<f32> = random.numbers(n * 6).iter().map(|a| a * 100.0).collect();
    let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
    let before = random.numbers(n * 40);
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for cpu in &mut cpus() {
            let mut after = before.clone();
            cpu.rope(&mut after, heads, Rope { cos: &cos, sin: &sin, start: 0, rotary_dim, style });
            let mut expected = before.clone();
            for t in 0..n {
                for head in 0..2 {
                    for i in 0..6 {
                        let (a, b) = match style {
                            RopeStyle::Half => (i, i + 6),
                            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                        };
                        let (a, b) = (t * 40 + head * 16 + a, t * 40 + head * 16 + b);
                        let (c, s) = (cos[t * 6 + i], sin[t * 6 + i]);
                        expected[a] = before[a] * c - before[b] * s;
                        expected[b] = before[b] * c + before[a] * s;
                    }
                }
            }
            assert_eq!(bits(&after), bits(&expected), "{style:?}");
        }
    }
}

#[test]
fn silu_is_accurate_everywhere() {
    let mut gate: Vec<f32> = (-120_000..120_000).map(|i| i as f32 / 1000.0).collect();
    gate.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40, 0.0, -0.0, 3e38, -3e38]);
    let up: Vec<f32> = Random(6).numbers(gate.len());
    let mut results = Vec::new();
    for cpu in &mut cpus() {
        let mut out = gate.clone();
        cpu.glu(Activation::Silu, &mut out, &up);
        for ((x, up), out) in gate.iter().zip(&up).zip(&out) {
            let exact = *x as f64 / (1.0 + (-*x as f64).exp()) * *up as f64;
            if x.is_nan() || *x == f32::NEG_INFINITY {
                // -inf / (1 + inf) is NaN in Hugging Face's float32 too.
                assert!(out.is_nan(), "silu({x}) * {up} = {out}");
            } else if x.is_infinite() {
                assert_eq!(*out, up * f32::INFINITY);
            } else {
                let allowed = 3e-7 * exact.abs() + 1e-36;
                assert!((*out as f64 - exact).abs() <= allowed, "silu({x}) * {up} = {out}, not {exact}");
            }
        }
        results.push(bits(&out));
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn layer_norm_is_accurate_and_the_same_on_every_instruction_set() {
    let mut random = Random(12);
    for (n, width) in [(1, 1), (3, 40), (7, 333), (33, 1000), (2, 4096)] {
        // A mean far from zero, which a sum of squares alone would drown in.
        let x: Vec<f32> = random.numbers(n * width).iter().map(|x| x + 100.0).collect();
        let (weight, bias) = (random.numbers(width), random.numbers(width));
        for (weight, bias) in [(Some(&weight), Some(&bias)), (Some(&weight), None), (None, None)] {
            let (weight, bias) = (weight.map(Vec::as_slice), bias.map(Vec::as_slice));
            let norm = Norm { kind: NormKind::Layer, weight, bias, offset: 0.0, eps: 1e-5 };
            let results: Vec<Vec<f32>> = cpus()
                .iter_mut()
                .map(|cpu| {
                    let mut out = vec![2.0; n * width];
                    cpu.norm(&x, width, norm, &mut out, Mode::Add);
                    out
                })
                .collect();
            for (x, out) in x.chunks(width).zip(results[0].chunks(width)) {
                let mean = x.iter().map(|x| *x as f64).sum::<f64>() / width as f64;
                let variance = x.iter().map(|x| (*x as f64 - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, (x, out)) in x.iter().zip(out).enumerate() {
                    let normalised = (*x as f64 - mean) / (variance + 1e-5).sqrt();
                    let weight = weight.map_or(1.0, |weight| weight[i] as f64);
                    let exact = 2.0 + normalised * weight + bias.map_or(0.0, |bias| bias[i] as f64);
                    // The mean of numbers around 100 is known to about 1e-5, and the spread is about 0.6.
                    assert!((*out as f64 - exact).abs() <= 4e-5, "{out} {exact}");
                }
            }
            assert!(results.iter().all(|result| bits(result) == bits(&results[0])));
        }
    }
}

#[test]
fn heads_may_have_weights_and_biases_of_their_own() {
    let mut random = Random(13);
    let heads = Heads { count: 3, dim: 20, stride: 64 };
    let (weight, bias) = (random.numbers(60), random.numbers(60));
    let norm = Norm { kind: NormKind::Layer, weight: Some(&weight), bias: Some(&bias), offset: 1.0, eps: 1e-5 };
    let before = random.numbers(5 * 64);
    for cpu in &mut cpus() {
        let mut after = before.clone();
        cpu.head_norm(&mut after, heads, norm);
        for (before, after) in before.chunks(64).zip(after.chunks(64)) {
            for head in 0..3 {
                let own = head * 20..(head + 1) * 20;
                let norm = Norm { weight: Some(&weight[own.clone()]), bias: Some(&bias[own.clone()]), ..norm };
                let mut expected = vec![0.0; 20];
                cpu.norm(&before[own.clone()], 20, norm, &mut expected, Mode::Store);
                assert_eq!(after[own], expected);
            }
            assert_eq!(after[60..], before[60..]);
        }
    }
}

#[test]
fn a_rotation_may_begin_inside_of_a_head() {
    let (heads, before) = (Heads { count: 1, dim: 8, stride: 8 }, Random(14).numbers(8));
    let (cos, sin) = ([0.6, 0.0], [0.8, 1.0]);
    let mut after = before.clone();
    let rope = Rope { cos: &cos, sin: &sin, start: 3, rotary_dim: 4, style: RopeStyle::Interleaved };
    Cpu::new(Some(1)).unwrap().rope(&mut after, heads, rope);
    let turned = [
        before[3] * 0.6 - before[4] * 0.8,
        before[4] * 0.6 + before[3] * 0.8,
        before[5] * 0.0 - before[6],
        before[6] * 0.0 + before[5],
    ];
    assert_eq!(after, [&before[..3], &turned, &before[7..]].concat());
}

/// The normal distribution: its density integrated from x down (Simpson), with the tail beyond 16 taken as nothing.
fn upper_tail(x: f64) -> f64 {
    let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let (n, end) = (2000, x + 16.0);
    let h = (end - x) / n as f64;
    let inner: f64 = (1..n).map(|i| density(x + i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    (density(x) + inner + density(end)) * h / 3.0
}

#[test]
fn every_activation_is_accurate() {
    let xs: Vec<f32> = (-1500..=1500).map(|i| i as f32 / 100.0).chain([-60.0, 60.0, 1e-30, -1e-30, 0.0]).collect();
    let exact = |activation, x: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu if x < 0.0 => x * upper_tail(-x),
        Activation::Gelu => x * (1.0 - upper_tail(x)),
        Activation::GeluTanh => {
            x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).exp())
        }
        Activation::Relu => x.max(0.0),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    };
    let up = Random(15).numbers(xs.len());
    use Activation::{Gelu, GeluTanh, Relu, Sigmoid, Silu};
    for activation in [Silu, Gelu, GeluTanh, Relu, Sigmoid] {
        let mut first = None;
        for cpu in &mut cpus() {
            let (mut alone, mut gated) = (xs.clone(), xs.clone());
            cpu.activate(activation, &mut alone);
            cpu.glu(activation, &mut gated, &up);
            for (i, x) in xs.iter().enumerate() {
                let exact = exact(activation, *x as f64);
                // Far down the tail the rounding of the exponent shows, which grows like x³ in the approximation.
                let allowed = (2e-6 + 4e-8 * (*x as f64).abs().powi(3)) * exact.abs() + 1e-20;
                assert!((alone[i] as f64 - exact).abs() <= allowed, "{activation:?}({x}) = {}, not {exact}", alone[i]);
                assert_eq!(gated[i].to_bits(), (alone[i] * up[i]).to_bits(), "{activation:?}({x}) gated");
            }
            assert_eq!(&bits(&alone), first.get_or_insert_with(|| bits(&alone)), "{:?}", cpu.isa());
        }
    }
}

/// The clamped gate: beyond its limits nothing grows, and below the gate's only the sigmoid acts.
#[test]
fn a_clamped_gate_is_accurate() {
    let gate: Vec<f32> = (-400..=400).map(|i| i as f32 / 40.0).collect();
    let up = Random(19).numbers(gate.len()).iter().map(|u| 12.0 * u).collect::<Vec<_>>();
    for (alpha, limit) in [(1.702, 7.0), (1.0, 1.5)] {
        let mut first = None;
        for cpu in &mut cpus() {
            let mut out = gate.clone();
            cpu.clamped_glu(alpha, limit, &mut out, &up);
            for ((g, u), out) in gate.iter().zip(&up).zip(&out) {
                let (g, u) = (g.min(limit) as f64, u.clamp(-limit, limit) as f64);
                let exact = g / (1.0 + (-alpha as f64 * g).exp()) * (u + 1.0);
                assert!((*out as f64 - exact).abs() <= 2e-6 * (exact.abs() + 1e-3), "{g}, {u}: {out}, not {exact}");
            }
            assert_eq!(&bits(&out), first.get_or_insert_with(|| bits(&out)), "{:?}", cpu.isa());
        }
    }
}

#[test]
fn activations_know_the_extremes() {
    for cpu in &mut cpus() {
        for activation in [Activation::Gelu, Activation::Relu] {
            let mut x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38, -3e38];
            cpu.activate(activation, &mut x);
            assert_eq!(x[..2], [f32::INFINITY, 0.0], "{activation:?}");
            assert!(x[2].is_nan() && x[3] == 3e38 && x[4] == 0.0, "{activation:?} {x:?}");
        }
    }
}

#[test]
fn a_soft_cap_is_accurate_also_where_it_hardly_acts() {
    let xs: Vec<f32> = (-4000..=4000).map(|i| (i as f32 / 50.0).powi(3) / 10.0).chain([1e-20, -1e-20]).collect();
    for cap in [1.0, 5.0, 30.0] {
        let mut first = None;
        for cpu in &mut cpus() {
            let mut out = xs.clone();
            cpu.soft_cap(&mut out, cap);
            for (x, out) in xs.iter().zip(&out) {
                let exact = (*x as f64 / cap as f64).tanh() * cap as f64;
                assert!((*out as f64 - exact).abs() <= 6e-7 * exact.abs(), "{out} {exact}");
            }
            assert_eq!(&bits(&out), first.get_or_insert_with(|| bits(&out)), "{:?}", cpu.isa());
        }
    }
}

#[test]
fn rows_are_made_of_runs_and_scaled() {
    let x: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let mut cpu = Cpu::new(Some(2)).unwrap();
    let mut out = vec![0.0; 8];
    cpu.rearrange(&x, 12, Runs { first: 1, run: 2, stride: 6 }, &mut out, 4);
    assert_eq!(out, [1.0, 2.0, 7.0, 8.0, 13.0, 14.0, 19.0, 20.0]);
    cpu.scale_rows(&mut out, 4, &[2.0, -1.0]);
    assert_eq!(out, [2.0, 4.0, 14.0, 16.0, -13.0, -14.0, -19.0, -20.0]);
}

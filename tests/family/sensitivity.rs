//! That the golden cases would see a mistake: every case's program is spoilt in every way that applies to it, one at a time
//! (a bias dropped, gate and up exchanged, a window off by one, pairs of the other kind, …), and the result must be far
//! from the reference. `cargo test --test family sensitive -- --nocapture` lists what was done to which family.

use std::collections::{BTreeMap, BTreeSet};

use layerstream::checkpoint::Checkpoint;
use layerstream::program::{Activation, Buffer, Dynamic, NormKind, Program, RopeStyle, Step, VectorId};
use layerstream::text::TextSide;
use layerstream::{Model, Options, Outline};

use super::mixtures;
use super::reference::{GATE, Prompt, case, cases, logits, nmse, prompts};

/// How far beyond the gate a mistake must be seen.
const MARGIN: f64 = 100.0;

/// What can be done to a program: the kind of mistake, what it was done to, and the result.
pub struct Spoilt {
    kind: &'static str,
    what: String,
    program: Program,
}

/// Collects changed copies of a program.
pub struct Mutations<'a> {
    pub program: &'a Program,
    all: Vec<Spoilt>,
}

impl Mutations<'_> {
    /// Changes every step that `change` knows how to; nothing if there is none.
    pub fn steps(&mut self, kind: &'static str, what: impl Into<String>, change: impl Fn(&mut Step) -> bool) {
        let mut program = self.program.clone();
        let changed = program.steps.iter_mut().fold(false, |any, step| change(step) | any);
        if changed {
            self.all.push(Spoilt { kind, what: what.into(), program });
        }
    }

    /// Leaves out every step of a kind.
    pub fn without(&mut self, kind: &'static str, is: impl Fn(&Step) -> bool) {
        let mut program = self.program.clone();
        program.steps.retain(|step| !is(step));
        if program.steps.len() < self.program.steps.len() {
            self.all.push(Spoilt { kind, what: String::new(), program });
        }
    }

    /// Changes the whole program, if `change` knows how to.
    pub fn program(&mut self, kind: &'static str, change: impl Fn(&mut Program) -> bool) {
        let mut program = self.program.clone();
        if change(&mut program) {
            self.all.push(Spoilt { kind, what: String::new(), program });
        }
    }

    fn ropes(&mut self, kind: &'static str, change: impl Fn(&mut layerstream::program::Rope) -> bool) {
        for (i, _) in self.program.ropes.iter().enumerate() {
            let mut program = self.program.clone();
            if change(&mut program.ropes[i]) {
                self.all.push(Spoilt { kind, what: format!("rope {i}"), program });
            }
        }
    }

    /// What a vector is, with its layer's number taken out.
    fn role(&self, vector: VectorId) -> String {
        let name = &self.program.vectors[vector.0].name;
        name.split('.').map(|part| if part.parse::<usize>().is_ok() { "N" } else { part }).collect::<Vec<_>>().join(".")
    }

    /// The roles of all vectors that `of` finds in steps.
    fn roles(&self, of: impl Fn(&Step) -> Option<VectorId>) -> BTreeSet<String> {
        self.program.steps.iter().filter_map(of).map(|vector| self.role(vector)).collect()
    }
}

/// Takes an option away; whether it was there.
fn take<T>(option: &mut Option<T>) -> bool {
    option.take().is_some()
}

fn mutations(program: &Program) -> Vec<Spoilt> {
    let mut all = Mutations { program, all: Vec::new() };
    vectors(&mut all);
    projections(&mut all);
    rotations(&mut all);
    attention(&mut all);
    mixtures::mistakes(&mut all);
    all.all
}

fn vectors(all: &mut Mutations) {
    let norm_of = |step: &Step| match step {
        Step::Norm { norm, .. } | Step::HeadNorm { norm, .. } => Some(*norm),
        _ => None,
    };
    let bias_of = |step: &Step| match step {
        Step::MatMul(product) => product.bias,
        _ => None,
    };
    let role = |all: &Mutations, vector: Option<VectorId>, role: &str| vector.is_some_and(|v| all.role(v) == role);
    for name in all.roles(bias_of) {
        let roles: Vec<bool> = (0..all.program.vectors.len()).map(|v| role(all, Some(VectorId(v)), &name)).collect();
        all.steps("bias dropped", &name, |step| match step {
            Step::MatMul(product) if product.bias.is_some_and(|bias| roles[bias.0]) => take(&mut product.bias),
            _ => false,
        });
    }
    for name in all.roles(|step| norm_of(step).and_then(|norm| norm.bias)) {
        let roles: Vec<bool> = (0..all.program.vectors.len()).map(|v| role(all, Some(VectorId(v)), &name)).collect();
        all.steps("norm's bias dropped", &name, |step| match step {
            Step::Norm { norm, .. } if norm.bias.is_some_and(|bias| roles[bias.0]) => take(&mut norm.bias),
            _ => false,
        });
    }
    for name in all.roles(|step| norm_of(step).and_then(|norm| norm.weight)) {
        let roles: Vec<bool> = (0..all.program.vectors.len()).map(|v| role(all, Some(VectorId(v)), &name)).collect();
        all.steps("norm's weight dropped", &name, |step| match step {
            Step::Norm { norm, .. } | Step::HeadNorm { norm, .. } if norm.weight.is_some_and(|w| roles[w.0]) => {
                take(&mut norm.weight)
            }
            _ => false,
        });
    }
    all.steps("norm's offset dropped", "", |step| match step {
        Step::Norm { norm, .. } | Step::HeadNorm { norm, .. } if norm.offset != 0.0 => {
            norm.offset = 0.0;
            true
        }
        _ => false,
    });
    all.steps("norm of the other kind", "", |step| match step {
        Step::Norm { norm, .. } => {
            norm.kind = if norm.kind == NormKind::Rms { NormKind::Layer } else { NormKind::Rms };
            true
        }
        _ => false,
    });
    all.without("norm of heads left out", |step| matches!(step, Step::HeadNorm { .. }));
}

fn projections(all: &mut Mutations) {
    let gated: Vec<(Buffer, Buffer)> = all
        .program
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Glu { gate, up, .. } => Some((*gate, *up)),
            _ => None,
        })
        .collect();
    all.steps("gate and up exchanged", "", |step| match step {
        Step::MatMul(product) => {
            let other = gated.iter().find_map(|(gate, up)| match product.output {
                output if output == *gate => Some(*up),
                output if output == *up => Some(*gate),
                _ => None,
            });
            product.output = other.unwrap_or(product.output);
            other.is_some()
        }
        _ => false,
    });
    all.steps("keys and values exchanged", "", |step| match step {
        Step::Append { keys, values, .. } => {
            std::mem::swap(keys, values);
            true
        }
        _ => false,
    });
    all.steps("packed rows taken in order", "", |step| match step {
        Step::Rearrange { run, stride, .. } if run != stride => {
            *stride = *run;
            true
        }
        _ => false,
    });
    all.steps("another activation", "", |step| match step {
        Step::Glu { activation, .. } | Step::Activate { activation, .. } => {
            *activation = if *activation == Activation::Silu { Activation::Gelu } else { Activation::Silu };
            true
        }
        _ => false,
    });
    all.steps("factor on a product left out", "", |step| match step {
        Step::MatMul(product) if product.scale != 1.0 => {
            product.scale = 1.0;
            true
        }
        _ => false,
    });
    all.steps("factor on embeddings left out", "", |step| match step {
        Step::Embed { scale, .. } if *scale != 1.0 => {
            *scale = 1.0;
            true
        }
        _ => false,
    });
    all.steps("head's rows not normalised", "", |step| match step {
        Step::MatMul(product) => std::mem::take(&mut product.normalise_rows),
        _ => false,
    });
    all.without("soft cap on logits left out", |step| matches!(step, Step::SoftCap { .. }));
}

fn rotations(all: &mut Mutations) {
    all.ropes("pairs of the other kind", |rope| {
        rope.style = if rope.style == RopeStyle::Half { RopeStyle::Interleaved } else { RopeStyle::Half };
        true
    });
    all.ropes("half as many dimensions turn", |rope| {
        // Those left out must turn by half a radian at least over the longest prompt.
        let noticed = rope.inv_freq.get(rope.inv_freq.len().div_ceil(2)).is_some_and(|fastest| fastest * 70.0 > 0.5);
        rope.inv_freq.truncate(rope.inv_freq.len().div_ceil(2));
        if let Some(Dynamic::Long { inv_freq, .. }) = &mut rope.dynamic {
            inv_freq.truncate(rope.inv_freq.len());
        }
        !matches!(rope.dynamic, Some(Dynamic::Ntk { .. } | Dynamic::NtkOfPrompt { .. }))
            && rope.inv_freq.len() > 1
            && noticed
    });
    all.ropes("frequencies that ignore the length", |rope| take(&mut rope.dynamic));
    all.ropes("factor on cosines left out", |rope| std::mem::replace(&mut rope.attention_factor, 1.0) != 1.0);
    all.ropes("frequencies twice as high", |rope| {
        rope.inv_freq.iter_mut().for_each(|freq| *freq *= 2.0);
        if let Some(Dynamic::Long { inv_freq, .. }) = &mut rope.dynamic {
            inv_freq.iter_mut().for_each(|freq| *freq *= 2.0);
        }
        true
    });
    all.without("rotation left out", |step| matches!(step, Step::Rope { .. }));
    if all.program.ropes.len() > 1 {
        all.steps("rotations exchanged", "", |step| match step {
            Step::Rope { rope, .. } => {
                rope.0 = 1 - rope.0;
                true
            }
            _ => false,
        });
    }
    all.without("queries not scaled by position", |step| matches!(step, Step::ScaleQueries { .. }));
}

fn attention(all: &mut Mutations) {
    all.steps("window off by one", "", |step| match step {
        Step::Attend { attention, .. } => match &mut attention.window {
            Some(window) => {
                *window += 1;
                *window < 64
            }
            None => false,
        },
        _ => false,
    });
    all.steps("window left out", "", |step| match step {
        Step::Attend { attention, .. } => attention.window.take().is_some_and(|window| window < 64),
        _ => false,
    });
    if all.all.iter().any(|spoilt| spoilt.kind == "window left out") {
        all.steps("window on the other layers", "", |step| match step {
            Step::Attend { attention, .. } if attention.window.is_none() => {
                attention.window = Some(16);
                true
            }
            _ => false,
        });
    }
    all.steps("another scale of scores", "", |step| match step {
        Step::Attend { attention, .. } => {
            attention.scale *= 1.25;
            true
        }
        _ => false,
    });
    all.steps("soft cap on scores left out", "", |step| match step {
        Step::Attend { attention, .. } => take(&mut attention.soft_cap),
        _ => false,
    });
    all.steps("slopes left out", "", |step| match step {
        Step::Attend { attention, .. } => take(&mut attention.slopes),
        _ => false,
    });
    all.steps("slopes in another order", "", |step| match step {
        Step::Attend { attention, .. } => attention.slopes.as_mut().is_some_and(|slopes| {
            slopes.reverse();
            true
        }),
        _ => false,
    });
}

/// How far a program is from the reference, at worst, on the medium and the long prompt.
fn error(name: &str, program: &Program, prompts: &[Prompt]) -> f64 {
    let options =
        Options { ram: Some(64 << 20), context: Some(192), all_logits: true, threads: Some(1), ..Options::default() };
    let checkpoint = Checkpoint::open(&case(name)).unwrap();
    let text = TextSide::open(checkpoint.dir()).unwrap();
    let outline = Outline::with_program(checkpoint, program.clone(), &options).unwrap();
    let mut model = Model::start(outline, text, &options).unwrap();
    let worst = |worst: f64, prompt: &Prompt| {
        let error = nmse(&logits(&mut model, &prompt.ids), &prompt.logits);
        // What is not a number is far from everything.
        worst.max(if error.is_nan() { f64::INFINITY } else { error })
    };
    prompts[1..].iter().fold(0.0, worst)
}

#[test]
fn cases_are_sensitive_to_every_mistake_that_applies_to_them() {
    let mut families: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
    let mut unseen = Vec::new();
    for name in &cases() {
        let outline = Outline::new(&case(name), &Options { ram: Some(64 << 20), ..Options::default() }).unwrap();
        let (program, prompts) = (outline.program(), prompts(&case(name)));
        assert!(error(name, program, &prompts) <= GATE, "{name} unspoilt");
        for Spoilt { kind, what, program } in mutations(program) {
            let error = error(name, &program, &prompts);
            let least = families.entry(program.family).or_default().entry(kind).or_insert(f64::INFINITY);
            *least = least.min(error);
            if error < MARGIN * GATE {
                unseen.push(format!("{name}: {kind} {what}: {error:.1e}"));
            }
        }
    }
    for (family, kinds) in &families {
        let kinds: Vec<String> = kinds.iter().map(|(kind, error)| format!("{kind} ({error:.0e})")).collect();
        println!("{family}: {}", kinds.join(", "));
    }
    assert!(unseen.is_empty(), "mistakes that cases do not see:\n{}", unseen.join("\n"));
    for (family, kinds) in &families {
        // Where keys and values come from one vector, they are one buffer.
        let latent = family.starts_with("deepseek");
        let keys = if latent { "rotation left out" } else { "keys and values exchanged" };
        // Some have experts and nothing beside them.
        let experts = "experts with another activation";
        let activation = if kinds.contains_key(experts) { experts } else { "another activation" };
        let always = ["norm's weight dropped", keys, activation, "another scale of scores"];
        assert!(always.iter().all(|kind| kinds.contains_key(kind)), "{kinds:?}");
    }
}

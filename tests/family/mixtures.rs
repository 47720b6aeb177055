//! Mistakes in mixtures of experts, in layers with a state, and in what came with the families that have them: more of what
//! `sensitivity` does to every golden program.

use layerstream::program::{Activation, Gating, Packing, Scores, Step, Weigh};

use super::sensitivity::Mutations;

pub fn mistakes(all: &mut Mutations) {
    routing(all);
    experts(all);
    attention(all);
    states(all);
}

fn routing(all: &mut Mutations) {
    all.steps("routing renormalised or not", "", |step| match step {
        Step::Route { routing, .. } => {
            routing.renormalise = !routing.renormalise;
            true
        }
        _ => false,
    });
    all.steps("an expert fewer for every token", "", |step| match step {
        Step::Route { routing, .. } if routing.top_k > 1 => {
            routing.top_k -= 1;
            true
        }
        _ => false,
    });
    all.steps("routing by the other function", "", |step| match step {
        Step::Route { routing, .. } => {
            routing.scores = if routing.scores == Scores::Softmax { Scores::Sigmoid } else { Scores::Softmax };
            // Of one expert, renormalised, the weight is 1 either way.
            routing.top_k > 1 || !routing.renormalise
        }
        _ => false,
    });
    all.steps("factor on routing left out", "", |step| match step {
        Step::Route { routing, .. } => std::mem::replace(&mut routing.scale, 1.0) != 1.0,
        _ => false,
    });
    all.steps("groups of experts left out", "", |step| match step {
        Step::Route { routing, .. } => {
            let groups = std::mem::replace(&mut routing.groups, 1);
            std::mem::replace(&mut routing.top_groups, 1) < groups
        }
        _ => false,
    });
    all.steps("groups judged by another number of their best", "", |step| match step {
        Step::Route { routing, .. } if routing.top_groups < routing.groups => {
            routing.group_best = 3 - routing.group_best;
            true
        }
        _ => false,
    });
    all.steps("correction of routing left out", "", |step| match step {
        Step::Route { routing, .. } => routing.correction.take().is_some(),
        _ => false,
    });
}

fn experts(all: &mut Mutations) {
    all.program("another expert's weights", |program| {
        program.experts.iter_mut().for_each(|layer| layer.experts.rotate_left(1));
        !program.experts.is_empty()
    });
    all.program("one matrix of another expert", |program| {
        for layer in &mut program.experts {
            let [a, b] = &mut layer.experts[..2] else { unreachable!("at least two") };
            std::mem::swap(a.matrices.last_mut().unwrap(), b.matrices.last_mut().unwrap());
        }
        !program.experts.is_empty()
    });
    all.program("an expert's gate and up exchanged", |program| {
        let expert = program.experts.iter_mut().flat_map(|layer| &mut layer.experts);
        let swapped = expert.filter(|expert| expert.matrices.len() == 3).map(|expert| expert.matrices.swap(0, 1));
        swapped.count() > 0
    });
    all.steps("gate and up packed in the other way", "", |step| match step {
        Step::Experts(experts) => experts.packed.as_mut().is_some_and(|(_, packing)| {
            *packing = if *packing == Packing::Halves { Packing::Pairs } else { Packing::Halves };
            true
        }),
        _ => false,
    });
    all.steps("router's weight in the other place", "", |step| match step {
        Step::Experts(experts) => {
            experts.weigh = if experts.weigh == Weigh::Input { Weigh::Output } else { Weigh::Input };
            true
        }
        _ => false,
    });
    for part in 0..2 {
        all.steps("biases of experts left out", format!("product {part}"), |step| match step {
            Step::Experts(experts) => experts.biases.get_mut(part).is_some_and(|bias| bias.take().is_some()),
            _ => false,
        });
    }
    all.steps("clamp of experts left out", "", |step| match step {
        Step::Experts(experts) => match &mut experts.gating {
            Gating::Clamped { limit, .. } => {
                *limit = 1e9;
                true
            }
            Gating::Plain(_) => false,
        },
        _ => false,
    });
    all.steps("experts with another activation", "", |step| match step {
        Step::Experts(experts) => {
            experts.gating = match experts.gating {
                Gating::Plain(Activation::Silu) | Gating::Clamped { .. } => Gating::Plain(Activation::Gelu),
                Gating::Plain(_) => Gating::Plain(Activation::Silu),
            };
            true
        }
        _ => false,
    });
    all.without("factor on the shared expert left out", |step| matches!(step, Step::GateRows { .. }));
    all.without("shared expert left out", |step| matches!(step, Step::Add { .. }));
}

fn attention(all: &mut Mutations) {
    all.steps("sinks left out", "", |step| match step {
        Step::Attend { attention, .. } => attention.sinks.take().is_some(),
        _ => false,
    });
    all.steps("chunks left out", "", |step| match step {
        Step::Attend { attention, .. } => attention.chunk.take().is_some(),
        _ => false,
    });
    all.steps("chunks of another size", "", |step| match step {
        Step::Attend { attention, .. } => attention.chunk.as_mut().is_some_and(|chunk| {
            *chunk += 1;
            true
        }),
        _ => false,
    });
    all.steps("rotation of the wrong end", "", |step| match step {
        Step::Rope { start, .. } => std::mem::take(start) != 0,
        _ => false,
    });
}

fn states(all: &mut Mutations) {
    all.without("convolution left out", |step| matches!(step, Step::Convolve { .. }));
    all.steps("decay and write exchanged", "", |step| match step {
        Step::DeltaRule(rule) => {
            std::mem::swap(&mut rule.decay, &mut rule.write);
            true
        }
        _ => false,
    });
    all.steps("vectors of the decay exchanged", "", |step| match step {
        Step::DeltaRule(rule) => {
            std::mem::swap(&mut rule.log_decay, &mut rule.decay_bias);
            true
        }
        _ => false,
    });
    all.steps("parts joined in another order", "", |step| match step {
        Step::Join { parts, .. } => {
            parts.swap(0, 1);
            true
        }
        _ => false,
    });
}

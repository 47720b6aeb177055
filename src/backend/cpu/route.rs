//! The router: from logits to the experts of each token, and from there to the tokens of each expert.

use crate::program::{Routing, Scores};

/// Who chose whom: the tokens of each expert, in order, with what the expert counts for them.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Expert e has the places from `bounds[e]` to `bounds[e + 1]`.
    bounds: Vec<usize>,
    rows: Vec<usize>,
    weights: Vec<f32>,
    /// Pairs of a row's experts, `[rows, top_k]`.
    ids: Vec<usize>,
    of_row: Vec<f32>,
    choice: Choice,
}

/// Memory to choose in.
#[derive(Debug, Default)]
struct Choice {
    scores: Vec<f64>,
    choices: Vec<f64>,
    order: Vec<usize>,
    open: Vec<bool>,
}

impl Chosen {
    /// Chooses for every row of `logits`, `[rows, experts]`.
    pub fn choose(&mut self, logits: &[f32], experts: usize, correction: Option<&[f32]>, routing: &Routing) {
        self.ids.clear();
        self.of_row.clear();
        for logits in logits.chunks_exact(experts) {
            self.choice.row(logits, correction, routing, &mut self.ids, &mut self.of_row);
        }
        self.bounds.clear();
        self.bounds.resize(experts + 1, 0);
        self.ids.iter().for_each(|&id| self.bounds[id + 1] += 1);
        (0..experts).for_each(|e| self.bounds[e + 1] += self.bounds[e]);
        self.rows.clear();
        self.rows.resize(self.ids.len(), 0);
        self.weights.clear();
        self.weights.resize(self.ids.len(), 0.0);
        // Where the next row of each expert goes.
        let next = &mut self.choice.order;
        next.clear();
        next.extend(&self.bounds[..experts]);
        for (pair, (&id, &weight)) in self.ids.iter().zip(&self.of_row).enumerate() {
            (self.rows[next[id]], self.weights[next[id]]) = (pair / routing.top_k, weight);
            next[id] += 1;
        }
    }

    /// The experts with at least one row, rising.
    pub fn experts(&self) -> impl Iterator<Item = usize> {
        self.bounds.windows(2).enumerate().filter(|(_, ends)| ends[0] < ends[1]).map(|(expert, _)| expert)
    }

    /// The rows of an expert, rising, and its weight for each.
    pub fn of(&self, expert: usize) -> (&[usize], &[f32]) {
        let places = self.bounds[expert]..self.bounds[expert + 1];
        (&self.rows[places.clone()], &self.weights[places])
    }
}

impl Choice {
    /// Appends one row's experts, rising, and their weights. Computed in float64: what is chosen should not hang on how a
    /// sum was rounded.
    fn row(
        &mut self,
        logits: &[f32],
        correction: Option<&[f32]>,
        routing: &Routing,
        ids: &mut Vec<usize>,
        weights: &mut Vec<f32>,
    ) {
        let experts = logits.len();
        let value = |logit: &f32| if logit.is_nan() { f64::NEG_INFINITY } else { f64::from(*logit) };
        self.scores.clear();
        match routing.scores {
            Scores::Sigmoid => self.scores.extend(logits.iter().map(|logit| 1.0 / (1.0 + (-value(logit)).exp()))),
            Scores::Softmax => {
                let most = logits.iter().map(value).fold(f64::NEG_INFINITY, f64::max);
                // Of logits that are all −∞, none is better than another.
                let most = if most.is_finite() { most } else { 0.0 };
                self.scores.extend(logits.iter().map(|logit| (value(logit) - most).exp()));
                let sum: f64 = self.scores.iter().sum();
                self.scores.iter_mut().for_each(|score| *score /= sum.max(f64::MIN_POSITIVE));
            }
        }
        self.choices.clear();
        self.choices.extend((0..experts).map(|e| self.scores[e] + correction.map_or(0.0, |c| f64::from(c[e]))));
        self.open_groups(routing);

        let (choices, open, order) = (&self.choices, &self.open, &mut self.order);
        let group = experts / routing.groups;
        order.clear();
        order.extend((0..experts).filter(|e| open[e / group]));
        // Stable: among equals the lower number stays first.
        order.sort_by(|a, b| choices[*b].total_cmp(&choices[*a]));
        order.truncate(routing.top_k);
        order.sort_unstable();
        let sum: f64 = order.iter().map(|&e| self.scores[e]).sum();
        let scale = f64::from(routing.scale) / if routing.renormalise { sum + 1e-20 } else { 1.0 };
        ids.extend(&*order);
        weights.extend(order.iter().map(|&e| (self.scores[e] * scale) as f32));
    }

    /// Marks the best groups.
    fn open_groups(&mut self, routing: &Routing) {
        self.open.clear();
        self.open.resize(routing.groups, routing.top_groups == routing.groups);
        if routing.top_groups == routing.groups {
            return;
        }
        let size = self.choices.len() / routing.groups;
        let mut best: Vec<_> = (0..routing.groups)
            .map(|group| {
                let mut choices = self.choices[group * size..(group + 1) * size].to_vec();
                choices.sort_by(|a, b| b.total_cmp(a));
                (group, choices[..routing.group_best].iter().sum::<f64>())
            })
            .collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1));
        best[..routing.top_groups].iter().for_each(|(group, _)| self.open[*group] = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row's experts and weights, as the lists by expert say.
    fn chosen(logits: &[f32], experts: usize, correction: Option<&[f32]>, routing: &Routing) -> Vec<Vec<(usize, f32)>> {
        let mut chosen = Chosen::default();
        // What an earlier pass left behind must not matter.
        chosen.choose(&vec![1.0; 7 * experts], experts, None, &Routing::softmax(experts));
        chosen.choose(logits, experts, correction, routing);
        let mut rows = vec![Vec::new(); logits.len() / experts];
        for expert in chosen.experts() {
            let (of, weights) = chosen.of(expert);
            assert!(of.is_sorted());
            of.iter().zip(weights).for_each(|(row, weight)| rows[*row].push((expert, *weight)));
        }
        rows
    }

    fn near(found: &[(usize, f32)], expected: &[(usize, f32)]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-6, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn softmax_takes_the_largest_in_rising_order() {
        let ln = |x: f32| x.ln();
        // Probabilities 1/8, 1/2, 1/4, 1/8, and the same ones turned.
        let logits = [ln(1.0), ln(4.0), ln(2.0), ln(1.0), ln(4.0), ln(2.0), ln(1.0), ln(1.0)];
        let rows = chosen(&logits, 4, None, &Routing::softmax(3));
        near(&rows[0], &[(0, 0.125), (1, 0.5), (2, 0.25)]);
        near(&rows[1], &[(0, 0.5), (1, 0.25), (2, 0.125)]);
        let rows = chosen(&logits, 4, None, &Routing { renormalise: true, scale: 3.0, ..Routing::softmax(2) });
        near(&rows[0], &[(1, 2.0), (2, 1.0)]);
        near(&rows[1], &[(0, 2.0), (1, 1.0)]);
    }

    #[test]
    fn sigmoid_with_correction_chooses_by_the_sum_and_weighs_by_the_score() {
        let routing = Routing { scores: Scores::Sigmoid, ..Routing::softmax(2) };
        let logits = [0.0, 3.0f32.ln(), 0.0, -3.0f32.ln()];
        near(&chosen(&logits, 4, None, &routing)[0], &[(0, 0.5), (1, 0.75)]);
        near(&chosen(&logits, 4, Some(&[0.0, -1.0, 0.0, 1.0]), &routing)[0], &[(0, 0.5), (3, 0.25)]);
    }

    /// The best expert is in a group that is not among the best: with one best the first, with two the second.
    #[test]
    fn groups_are_judged_by_their_best() {
        let logits = [2.0, -9.0, 1.5, 1.0, 0.0, 0.5];
        let routing = Routing { groups: 3, scores: Scores::Sigmoid, ..Routing::softmax(2) };
        let ids =
            |routing: &Routing| chosen(&logits, 6, None, routing)[0].iter().map(|pair| pair.0).collect::<Vec<_>>();
        assert_eq!(ids(&Routing { top_groups: 3, ..routing.clone() }), [0, 2]);
        assert_eq!(ids(&Routing { top_groups: 1, ..routing.clone() }), [0, 1]);
        assert_eq!(ids(&Routing { top_groups: 1, group_best: 2, ..routing.clone() }), [2, 3]);
        assert_eq!(ids(&Routing { top_groups: 2, group_best: 2, ..routing }), [2, 3]);
    }

    #[test]
    fn ties_and_broken_numbers_still_choose() {
        let routing = Routing::softmax(2);
        for logits in [[1.0; 4], [f32::NAN; 4], [f32::NEG_INFINITY; 4]] {
            let rows = chosen(&logits, 4, None, &routing);
            assert_eq!(rows[0].iter().map(|pair| pair.0).collect::<Vec<_>>(), [0, 1], "{logits:?}");
        }
        let rows = chosen(&[f32::NAN, 0.0, f32::INFINITY, 1.0], 4, None, &routing);
        assert_eq!(rows[0].len(), 2);
        let rows = chosen(&[f32::NAN, 0.0, -1.0, f32::NEG_INFINITY], 4, None, &routing);
        assert_eq!(rows[0].iter().map(|pair| pair.0).collect::<Vec<_>>(), [1, 2]);
    }
}

//! From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, in the order and with the definitions
//! of transformers' generation. Temperature 0 is greedy: the first of the largest logits.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;

use crate::error::{Error, Result};

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred, prompt included; 1 changes nothing
    /// (Keskar et al., 2019, arXiv:1909.05858).
    pub repetition_penalty: f32,
    /// The same seed gives the same tokens; sequence `i` of a call draws from a stream of its own.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Refuses values that mean nothing.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: f32, expected: &str| {
            Err(Error::Request(format!("{name} is {value}; expected {expected}")))
        };
        match self {
            s if !(s.temperature >= 0.0 && s.temperature.is_finite()) => {
                wrong("temperature", s.temperature, "0 (greedy) or more")
            }
            s if !(s.top_p > 0.0 && s.top_p <= 1.0) => wrong("top-p", s.top_p, "more than 0 and at most 1"),
            s if !(0.0..=1.0).contains(&s.min_p) => wrong("min-p", s.min_p, "0 to 1"),
            s if !(s.repetition_penalty > 0.0 && s.repetition_penalty.is_finite()) => {
                wrong("the repetition penalty", s.repetition_penalty, "more than 0")
            }
            _ => Ok(()),
        }
    }
}

/// Draws the tokens of one sequence.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha12Rng,
    /// Tokens that occurred, one bit each.
    seen: Vec<u64>,
    /// Candidates, by falling logit; kept between calls so that nothing is allocated.
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
    probability: f32,
}

impl Sampler {
    /// For the `index`-th sequence of a call, over `vocab` tokens.
    pub fn new(sampling: Sampling, index: u64, vocab: usize) -> Sampler {
        let mut rng = ChaCha12Rng::seed_from_u64(sampling.seed);
        rng.set_stream(index);
        let seen = vec![0; if sampling.repetition_penalty == 1.0 { 0 } else { vocab.div_ceil(64) }];
        let candidates = Vec::with_capacity(if sampling.temperature == 0.0 { 0 } else { vocab });
        Sampler { sampling, rng, seen, candidates }
    }

    /// Notes that `id` occurred. Ids outside the vocabulary are not penalised.
    pub fn observe(&mut self, id: u32) {
        if let Some(word) = self.seen.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }

    /// Chooses the next token from one row of logits, which it changes.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        self.penalise(logits);
        if self.sampling.temperature == 0.0 {
            return greedy(logits);
        }
        self.keep_top_k(logits);
        self.probabilities();
        self.keep_top_p();
        self.keep_min_p();
        self.draw()
    }

    fn penalise(&self, logits: &mut [f32]) {
        let penalty = self.sampling.repetition_penalty;
        for (logits, seen) in logits.chunks_mut(64).zip(&self.seen) {
            for (bit, logit) in logits.iter_mut().enumerate().filter(|(bit, _)| seen >> bit & 1 == 1) {
                debug_assert!(bit < 64);
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// The candidates at this temperature, largest first; equal logits in order of their ids.
    fn keep_top_k(&mut self, logits: &[f32]) {
        let temperature = self.sampling.temperature;
        let candidate = |(id, logit): (usize, &f32)| {
            // A model that gives NaN is broken, but its user still gets tokens, not a panic.
            let logit = if logit.is_nan() { f32::NEG_INFINITY } else { *logit / temperature };
            Candidate { id: id as u32, logit, probability: 0.0 }
        };
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(candidate));
        let order = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
        let keep = self.sampling.top_k;
        if keep > 0 && keep < self.candidates.len() {
            self.candidates.select_nth_unstable_by(keep - 1, order);
            self.candidates.truncate(keep);
        }
        self.candidates.sort_unstable_by(order);
    }

    /// Softmax over the candidates.
    fn probabilities(&mut self) {
        let largest = self.candidates[0].logit;
        for candidate in &mut self.candidates {
            candidate.probability = (candidate.logit - largest).exp();
        }
        let sum: f32 = self.candidates.iter().map(|candidate| candidate.probability).sum();
        for candidate in &mut self.candidates {
            candidate.probability /= sum;
        }
    }

    fn keep_top_p(&mut self) {
        if self.sampling.top_p >= 1.0 {
            return;
        }
        let mut sum = 0.0;
        let reaches = self.candidates.iter().position(|candidate| {
            sum += candidate.probability;
            sum >= self.sampling.top_p
        });
        self.candidates.truncate(reaches.map_or(self.candidates.len(), |last| last + 1));
    }

    fn keep_min_p(&mut self) {
        let least = self.sampling.min_p * self.candidates[0].probability;
        let keep = self.candidates.iter().take_while(|candidate| candidate.probability >= least).count();
        self.candidates.truncate(keep.max(1));
    }

    fn draw(&mut self) -> u32 {
        let sum: f32 = self.candidates.iter().map(|candidate| candidate.probability).sum();
        let mut left = uniform(&mut self.rng) * sum;
        for candidate in &self.candidates {
            left -= candidate.probability;
            if left < 0.0 {
                return candidate.id;
            }
        }
        self.candidates[self.candidates.len() - 1].id
    }
}

/// The first of the largest logits; NaN never wins.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0 as u32
}

/// A number in [0, 1) with 24 random bits, all that a float32 can tell apart.
fn uniform(rng: &mut impl Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling, 0, 8)
    }

    /// How often each of eight tokens is drawn.
    fn frequencies(sampling: Sampling, logits: [f32; 8]) -> [f64; 8] {
        const DRAWS: usize = 20_000;
        let mut sampler = sampler(sampling);
        let mut counts = [0.0; 8];
        for _ in 0..DRAWS {
            counts[sampler.sample(&mut logits.clone()) as usize] += 1.0 / DRAWS as f64;
        }
        counts
    }

    const LOGITS: [f32; 8] = [2.0, 1.0, 0.0, -1.0, 1.5, -3.0, 0.5, 2.0];

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_never_nan() {
        assert_eq!(greedy(&LOGITS), 0);
        assert_eq!(greedy(&[f32::NAN, 1.0, 3.0, f32::NAN, 3.0]), 2);
        assert_eq!(greedy(&[f32::NAN, f32::NAN]), 0);
    }

    #[test]
    fn plain_sampling_follows_the_softmax() {
        let sum: f64 = LOGITS.iter().map(|l| (*l as f64 / 0.7).exp()).sum();
        let counts = frequencies(Sampling { temperature: 0.7, ..Sampling::default() }, LOGITS);
        for (count, logit) in counts.iter().zip(LOGITS) {
            assert!((count - (logit as f64 / 0.7).exp() / sum).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_where_they_say() {
        let kept = |sampling: Sampling| -> Vec<usize> {
            let counts = frequencies(Sampling { temperature: 1.0, ..sampling }, LOGITS);
            (0..8).filter(|i| counts[*i] > 0.0).collect()
        };
        assert_eq!(kept(Sampling { top_k: 3, ..Sampling::default() }), [0, 4, 7]);
        // The softmax is 0.31, 0.31 (ids 0 and 7), 0.19 (4), 0.11 (1), …
        assert_eq!(kept(Sampling { top_p: 0.5, ..Sampling::default() }), [0, 7]);
        assert_eq!(kept(Sampling { top_p: 0.65, ..Sampling::default() }), [0, 4, 7]);
        assert_eq!(kept(Sampling { min_p: 0.5, ..Sampling::default() }), [0, 4, 7]);
        assert_eq!(kept(Sampling { min_p: 1.0, ..Sampling::default() }), [0, 7]);
    }

    #[test]
    fn the_repetition_penalty_touches_only_what_occurred() {
        let mut sampler = sampler(Sampling { repetition_penalty: 2.0, ..Sampling::default() });
        sampler.observe(0);
        sampler.observe(3);
        sampler.observe(1000);
        let mut logits = LOGITS;
        assert_eq!(sampler.sample(&mut logits), 7);
        assert_eq!(logits, [1.0, 1.0, 0.0, -2.0, 1.5, -3.0, 0.5, 2.0]);
    }

    #[test]
    fn a_seed_gives_the_same_tokens_and_sequences_differ() {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let draw = |index| -> Vec<u32> {
            let mut sampler = Sampler::new(sampling.clone(), index, 8);
            (0..32).map(|_| sampler.sample(&mut LOGITS.clone())).collect()
        };
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        let bad = [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { min_p: 1.5, ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
        ];
        for sampling in bad {
            assert!(sampling.check().is_err(), "{sampling:?}");
        }
        assert!(Sampling::default().check().is_ok());
    }
}

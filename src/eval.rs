//! How good a model is, measured on a text: how probable it finds what comes next (perplexity), and how far its predictions
//! are from those of another model with the same vocabulary, such as the one that it was packed from. Both models stream;
//! nothing is kept but a few sums.

use std::ops::Range;
use std::time::Instant;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::Model;

/// How a text is cut, and how much is told.
#[derive(Clone, Copy, Debug)]
pub struct EvalOptions {
    /// Tokens of a window. The text is cut into windows that begin anew, each with no memory of those before it.
    pub window: usize,
    /// How far each window begins after the one before it: less than `window`. Every token but the first is predicted exactly
    /// once, in the first window that has it; all but those of the first window have at least `window − stride` tokens
    /// before them.
    pub stride: usize,
    /// How many of the worst positions to keep.
    pub worst: usize,
}

/// What came out. Logarithms are natural.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens that were predicted: all but the first.
    pub predicted: usize,
    pub windows: usize,
    pub window: usize,
    pub stride: usize,
    /// The mean of −ln p(token).
    pub mean_nll: f64,
    /// `exp(mean_nll)`
    pub perplexity: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Comparison>,
    /// The positions with the largest divergence, or without another model, with the least probable tokens; worst first.
    pub worst: Vec<Position>,
    pub seconds: f64,
}

/// How far the model is from another one, the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Of the reference.
    pub mean_nll: f64,
    /// Of the reference.
    pub perplexity: f64,
    /// The mean of KL(P‖Q) = Σ P·(ln P − ln Q) over the whole vocabulary, where P is what the reference predicts and Q what the
    /// model does.
    pub mean_kl: f64,
    pub max_kl: f64,
    /// The part of positions at which both find the same token most probable.
    pub top1_agreement: f64,
}

/// One predicted token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Position {
    /// Its place in the text's tokens, from 0.
    pub position: usize,
    pub id: u32,
    /// −ln p(token)
    pub nll: f64,
    /// KL(P‖Q), where there is a reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// What the model found most probable.
    pub predicted: u32,
}

impl Position {
    /// What positions are ranked by.
    fn badness(&self) -> f64 {
        self.kl.unwrap_or(self.nll)
    }
}

/// Runs `model`, and the reference beside it, over the tokens of a text. Both must have been opened with
/// [`Options::all_logits`](crate::Options::all_logits) and a context of at least one window, or of the text if that is
/// shorter. `progress` is told how many of `ids` are done.
///
/// ```
/// use layerstream::eval::{EvalOptions, evaluate};
/// use layerstream::{Model, Options};
///
/// let options = Options { ram: Some(32 << 20), context: Some(32), all_logits: true, ..Options::default() };
/// let mut model = Model::open("demo", &options)?;
/// let ids = model.encode("What is the capital of France? Paris")?;
/// let options = EvalOptions { window: 32, stride: 31, worst: 3 };
/// let found = evaluate(&mut model, None, &ids, &options, |_| {})?;
/// assert!(found.perplexity > 1.0 && found.predicted == ids.len() - 1);
/// # Ok::<(), layerstream::Error>(())
/// ```
///
/// # Errors
/// Less than two tokens, windows of less than two tokens or that leave tokens out, models whose vocabularies are of different
/// sizes, logits that are no numbers, and those of [`Model::logits`].
pub fn evaluate(
    model: &mut Model,
    mut against: Option<&mut Model>,
    ids: &[u32],
    options: &EvalOptions,
    mut progress: impl FnMut(usize),
) -> Result<Evaluation> {
    let EvalOptions { window, stride, worst } = *options;
    let windows = windows(ids.len(), window, stride)?;
    let vocab = model.program().vocab;
    if let Some(other) = against.as_deref().map(|other| other.program().vocab).filter(|other| *other != vocab) {
        return Err(Error::Request(format!(
            "the models cannot be compared: one has logits for {vocab} tokens, the other for {other}"
        )));
    }
    let started = Instant::now();
    let mut sums = Sums { worst, ..Sums::default() };
    let mut row = Row::default();
    let rows = against.as_deref().map_or(usize::MAX, |other| other.plan().rows).min(model.plan().rows);
    for (tokens, new) in &windows {
        let window = &ids[tokens.clone()];
        for start in (0..window.len()).step_by(rows) {
            let part = start..window.len().min(start + rows);
            let found = model.logits_of(window, part.clone())?;
            let expected = against.as_deref_mut().map(|other| other.logits_of(window, part.clone())).transpose()?;
            for (i, at) in part.enumerate() {
                let position = tokens.start + at + 1;
                if !new.contains(&position) {
                    continue;
                }
                let of = i * vocab..(i + 1) * vocab;
                let expected = expected.map(|logits| &logits[of.clone()]);
                sums.add(row.score(position, ids[position], &found[of.clone()], expected)?);
            }
        }
        progress(new.end);
    }
    Ok(sums.finish(ids.len(), &windows, options, started.elapsed().as_secs_f64()))
}

/// The tokens of each window, and which of them are predicted in it.
type Window = (Range<usize>, Range<usize>);

fn windows(tokens: usize, window: usize, stride: usize) -> Result<Vec<Window>> {
    if tokens < 2 {
        let found = if tokens == 1 { "1 token" } else { "no tokens" };
        return Err(Error::Request(format!("the text has {found}; there is nothing to predict with less than 2")));
    }
    if window < 2 || stride == 0 || stride >= window {
        return Err(Error::Request(format!(
            "windows of {window} tokens, {stride} apart, cannot predict every token: expected at least 2 tokens, and a \
             stride of at least 1 and less than the window"
        )));
    }
    let mut all: Vec<Window> = Vec::new();
    let (mut start, mut predicted) = (0, 1);
    while predicted < tokens {
        let end = tokens.min(start + window);
        all.push((start..end, predicted..end));
        predicted = end;
        start += stride;
    }
    Ok(all)
}

/// Room for the probabilities of one position.
#[derive(Default)]
struct Row {
    found: Vec<f64>,
    expected: Vec<f64>,
}

/// What one position adds to the sums.
struct Scored {
    position: Position,
    /// −ln p(token) of the reference, and whether both find the same token most probable.
    reference: Option<(f64, bool)>,
}

impl Row {
    fn score(&mut self, position: usize, id: u32, found: &[f32], expected: Option<&[f32]>) -> Result<Scored> {
        let predicted = log_softmax(found, &mut self.found, position)?;
        let nll = -self.found[id as usize];
        let mut scored = Scored { position: Position { position, id, nll, kl: None, predicted }, reference: None };
        if let Some(expected) = expected {
            let top = log_softmax(expected, &mut self.expected, position)?;
            let terms = self.expected.iter().zip(&self.found).map(|(p, q)| p.exp() * (p - q));
            scored.position.kl = Some(terms.sum());
            scored.reference = Some((-self.expected[id as usize], top == predicted));
        }
        Ok(scored)
    }
}

/// Logarithms of the softmax, in float64; returns the most probable token, of equals the first.
fn log_softmax(logits: &[f32], out: &mut Vec<f64>, position: usize) -> Result<u32> {
    if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
        return Err(Error::Request(format!(
            "the logit of token {id} at position {} is {}: the model does not compute numbers here",
            position - 1,
            logits[id]
        )));
    }
    let mut top = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[top] {
            top = i;
        }
    }
    let largest = f64::from(logits[top]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    let log_sum = sum.ln();
    out.clear();
    // The largest first: beside it the logarithm might not show.
    out.extend(logits.iter().map(|logit| f64::from(*logit) - largest - log_sum));
    Ok(top as u32)
}

#[derive(Default)]
struct Sums {
    count: usize,
    nll: f64,
    reference_nll: f64,
    kl: f64,
    max_kl: f64,
    agreed: usize,
    compared: bool,
    /// How many to keep, and the worst so far, worst first.
    worst: usize,
    kept: Vec<Position>,
}

impl Sums {
    fn add(&mut self, scored: Scored) {
        let Scored { position, reference } = scored;
        self.count += 1;
        self.nll += position.nll;
        if let (Some(kl), Some((nll, agreed))) = (position.kl, reference) {
            self.compared = true;
            self.kl += kl;
            self.max_kl = self.max_kl.max(kl);
            self.reference_nll += nll;
            self.agreed += usize::from(agreed);
        }
        let place = self.kept.partition_point(|kept| kept.badness() >= position.badness());
        self.kept.insert(place, position);
        self.kept.truncate(self.worst);
    }

    fn finish(self, tokens: usize, windows: &[Window], options: &EvalOptions, seconds: f64) -> Evaluation {
        let mean = |sum: f64| sum / self.count as f64;
        let against = self.compared.then(|| Comparison {
            mean_nll: mean(self.reference_nll),
            perplexity: mean(self.reference_nll).exp(),
            mean_kl: mean(self.kl),
            max_kl: self.max_kl,
            top1_agreement: mean(self.agreed as f64),
        });
        Evaluation {
            tokens,
            predicted: self.count,
            windows: windows.len(),
            window: options.window,
            stride: options.stride,
            mean_nll: mean(self.nll),
            perplexity: mean(self.nll).exp(),
            against,
            worst: self.kept,
            seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_predicted_once() {
        for tokens in 2..40 {
            for window in 2..12 {
                for stride in 1..window {
                    let windows = windows(tokens, window, stride).unwrap();
                    let predicted: Vec<usize> = windows.iter().flat_map(|(_, new)| new.clone()).collect();
                    assert_eq!(predicted, (1..tokens).collect::<Vec<_>>(), "{tokens} {window} {stride}");
                    for (number, (all, new)) in windows.iter().enumerate() {
                        assert!(all.len() <= window && all.start == number * stride);
                        assert!(all.start < new.start && new.end == all.end, "the one before it is there");
                        assert!(number == 0 || new.start - all.start >= window - stride);
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_cut() {
        for (tokens, window, stride) in [(0, 8, 7), (1, 8, 7), (9, 1, 1), (9, 8, 8), (9, 8, 0)] {
            assert!(windows(tokens, window, stride).is_err(), "{tokens} {window} {stride}");
        }
    }

    #[test]
    fn large_logits_are_no_infinities() {
        let mut out = Vec::new();
        assert_eq!(log_softmax(&[3e38, -3e38, 3e38], &mut out, 1).unwrap(), 0);
        assert!((out[0] - 0.5f64.ln()).abs() < 1e-12 && out[1] < -1e38);
        assert!(log_softmax(&[0.0, f32::NAN], &mut out, 1).is_err());
    }
}

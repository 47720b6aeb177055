//! `eval`: perplexity and divergence against a float64 computation that is written differently, on logits of the reference
//! implementations and on those that the model gives; whatever the windows and the budget are.

#[path = "reference/changed.rs"]
mod changed;
#[allow(dead_code, reason = "these tests use some of it")]
mod reference;

use std::path::Path;

use layerstream::eval::{EvalOptions, Evaluation, evaluate};
use layerstream::{Model, Options};
use serde_json::json;

use changed::changed;
use reference::{case, logits, prompts};

fn open(model: &Path, ram: u64) -> Model {
    let options = Options { ram: Some(ram), context: Some(128), all_logits: true, ..Options::default() };
    Model::open(model, &options).unwrap()
}

fn options(window: usize, stride: usize) -> EvalOptions {
    EvalOptions { window, stride, worst: 5 }
}

/// The probabilities of every token, straight from the definition.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let powers: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn close(found: f64, expected: f64, tolerance: f64) {
    let error = (found - expected).abs() / expected.abs().max(1e-12);
    assert!(error <= tolerance, "{found} against {expected}: {error:e}");
}

#[test]
fn perplexity_is_that_of_the_references_logits() {
    for name in ["llama31_gqa", "gemma2", "mixtral"] {
        let case = case(name);
        for prompt in &prompts(&case) {
            let vocab = prompt.logits.len() / prompt.ids.len();
            let next = prompt.ids.iter().skip(1);
            let nll: f64 =
                prompt.logits.chunks_exact(vocab).zip(next).map(|(row, id)| -softmax(row)[*id as usize].ln()).sum();
            let expected = (nll / (prompt.ids.len() - 1) as f64).exp();
            let found = evaluate(&mut open(&case, 64 << 20), None, &prompt.ids, &options(128, 127), |_| {}).unwrap();
            // The gate of the logits is an NMSE of 1e-6, which is 1e-3 of their spread.
            close(found.perplexity, expected, 1e-3);
            assert_eq!((found.predicted, found.windows), (prompt.ids.len() - 1, 1));
            assert!(found.against.is_none() && found.worst.iter().all(|position| position.kl.is_none()));
        }
    }
}

/// A case, and the same weights under another configuration.
fn pair() -> (std::path::PathBuf, tempfile::TempDir) {
    let case = case("llama31_gqa");
    let other = changed(&case, json!({"rms_norm_eps": 0.3}));
    (case, other)
}

/// What `evaluate` should give, one window after the other, from whole rows of probabilities.
fn by_hand(model: &mut Model, other: &mut Model, ids: &[u32], window: usize, stride: usize) -> [f64; 5] {
    let vocab = model.program().vocab;
    let [mut nll, mut other_nll, mut kl, mut max, mut same] = [0.0, 0.0, 0.0, 0.0f64, 0.0];
    let mut position = 1;
    let mut start = 0;
    while position < ids.len() {
        let part = &ids[start..ids.len().min(start + window)];
        let [q, p] = [&mut *model, &mut *other].map(|model| logits(model, part));
        while position < start + part.len() {
            let row = (position - 1 - start) * vocab..(position - start) * vocab;
            let (q, p) = (&q[row.clone()], &p[row]);
            let top = |row: &[f32]| (0..vocab).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            same += f64::from(u8::from(top(q) == top(p)));
            let (q, p) = (softmax(q), softmax(p));
            nll -= q[ids[position] as usize].ln();
            other_nll -= p[ids[position] as usize].ln();
            let here: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            kl += here;
            max = max.max(here);
            position += 1;
        }
        start += stride;
    }
    let count = (ids.len() - 1) as f64;
    [nll / count, other_nll / count, kl / count, max, same / count]
}

#[test]
fn divergence_is_that_of_its_definition() {
    let (case, changed) = pair();
    let ids = &prompts(&case)[2].ids;
    for (window, stride) in [(128, 127), (40, 39), (33, 8), (2, 1)] {
        let [mut model, mut other] = [case.as_path(), changed.path()].map(|path| open(path, 64 << 20));
        let [nll, other_nll, kl, max, same] = by_hand(&mut model, &mut other, ids, window, stride);
        let mut done = 0;
        let found = evaluate(&mut model, Some(&mut other), ids, &options(window, stride), |now| done = now).unwrap();
        let against = found.against.unwrap();
        close(found.mean_nll, nll, 1e-12);
        close(against.mean_nll, other_nll, 1e-12);
        close(against.perplexity, other_nll.exp(), 1e-11);
        close(against.mean_kl, kl, 1e-10);
        close(against.max_kl, max, 1e-10);
        close(against.top1_agreement, same, 1e-12);
        assert!(kl > 1e-4 && same < 1.0, "the two must differ for this to say anything");
        assert_eq!((done, found.predicted), (ids.len(), ids.len() - 1));
        // Worst first, and the first of them is the largest of all.
        assert_eq!(found.worst.len(), 5);
        assert!(found.worst.is_sorted_by(|a, b| a.kl >= b.kl));
        close(found.worst[0].kl.unwrap(), max, 1e-10);
        assert!(found.worst.iter().all(|worst| ids[worst.position] == worst.id));
    }
}

/// All that does not tell the time.
fn timeless(found: Evaluation) -> Evaluation {
    Evaluation { seconds: 0.0, ..found }
}

#[test]
fn nothing_depends_on_the_budget() {
    let (case, changed) = pair();
    let ids = &prompts(&case)[2].ids;
    let run = |ram: [u64; 2]| {
        let [mut model, mut other] = [open(&case, ram[0]), open(changed.path(), ram[1])];
        timeless(evaluate(&mut model, Some(&mut other), ids, &options(50, 30), |_| {}).unwrap())
    };
    let (small, large) = (4 << 20, 256 << 20);
    let expected = run([large, large]);
    assert_eq!(run([small, large]), expected);
    assert_eq!(run([large, small]), expected);
}

#[test]
fn a_model_is_no_distance_from_itself() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let [mut model, mut same] = [open(&demo, 32 << 20), open(&demo, 16 << 20)];
    let ids = model.encode("What is the capital of France? Paris").unwrap();
    let found = evaluate(&mut model, Some(&mut same), &ids, &options(128, 127), |_| {}).unwrap();
    let against = found.against.unwrap();
    assert_eq!((against.mean_kl, against.max_kl, against.top1_agreement), (0.0, 0.0, 1.0));
    assert_eq!(against.perplexity.to_bits(), found.perplexity.to_bits());
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let case = case("llama31_gqa");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let [mut model, mut other] = [open(&case, 64 << 20), open(&demo, 32 << 20)];
    assert_ne!(model.program().vocab, other.program().vocab);
    let error = evaluate(&mut model, Some(&mut other), &[1, 2, 3], &options(8, 7), |_| {}).unwrap_err();
    assert!(error.to_string().contains("cannot be compared"), "{error}");
    for ids in [&[][..], &[1]] {
        let error = evaluate(&mut model, None, ids, &options(8, 7), |_| {}).unwrap_err();
        assert!(error.to_string().contains("less than 2"), "{error}");
    }
    let error = evaluate(&mut model, None, &[1, 2, 3], &options(8, 8), |_| {}).unwrap_err();
    assert!(error.to_string().contains("stride"), "{error}");
    let mut plain = Model::open(&demo, &Options { ram: Some(32 << 20), ..Options::default() }).unwrap();
    let error = evaluate(&mut plain, None, &[1, 2, 3], &options(8, 7), |_| {}).unwrap_err();
    assert!(error.to_string().contains("all_logits"), "{error}");
}

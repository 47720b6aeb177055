//! Sequences that grow beyond the length at which their rotation changes: the tokens are those that a computation of the
//! whole sequence from its beginning gives.

use layerstream::{GenerateOptions, Model, Options};
use serde_json::json;

use super::config::Changed;
use super::reference::{case, prompts};

fn greedy(model: &mut Model, ids: &[u32], new: usize) -> Vec<u32> {
    let options = GenerateOptions { max_new_tokens: new, ..GenerateOptions::default() };
    model.generate(vec![ids.to_vec()], &options).unwrap().outputs().unwrap().remove(0).ids
}

/// Continues from `from` tokens of the longest prompt, token by token out of the cache, and each time from the beginning.
fn check(model: &mut Model, case_name: &str, from: usize) {
    let ids = &prompts(&case(case_name))[2].ids[..from];
    let found = greedy(model, ids, 14);
    let mut all = ids.to_vec();
    for _ in 0..14 {
        let next = greedy(model, &all, 1);
        all.extend(next);
    }
    assert_eq!(found, all[from..]);
}

fn options() -> Options {
    Options { ram: Some(64 << 20), context: Some(128), ..Options::default() }
}

/// LongRoPE: the original computes everything again when a sequence grows beyond the original length (56 here).
#[test]
fn a_sequence_that_outgrows_its_short_frequencies_is_computed_again() {
    let mut model = Model::open(case("phi4_mini"), &options()).unwrap();
    for from in [43, 50, 55, 56, 57] {
        check(&mut model, "phi4_mini", from);
    }
}

/// InternLM turns cached keys anew at every step. With one layer, keys and values do not depend on any rotation before
/// theirs, so this is the same as computing everything again.
#[test]
fn keys_that_are_cached_unrotated_follow_the_frequencies() {
    let changed = Changed::new("internlm1")
        .set("num_hidden_layers", json!(1))
        .set("max_position_embeddings", json!(48))
        .set("rotary", json!({"base": 100, "type": "dynamic", "scaling_factor": 8.0}));
    for rows in [64 << 20, 1 << 30] {
        let mut model = Model::open(changed.path(), &Options { ram: Some(rows), ..options() }).unwrap();
        for from in [40, 48, 60] {
            check(&mut model, "internlm1", from);
        }
    }
}

/// For a prompt alone it is the same rotation, whichever side of the cache it is on.
#[test]
fn keys_that_are_cached_unrotated_give_a_prompt_the_same_logits() {
    let turned = Changed::new("internlm1")
        .set("max_position_embeddings", json!(48))
        .set("rotary", json!({"base": 10000, "type": "dynamic", "scaling_factor": 2.0}));
    let rotated = Changed::new("internlm1")
        .set("max_position_embeddings", json!(48))
        .set("rope_scaling", json!({"type": "dynamic", "factor": 2.0}));
    let ids = &prompts(&case("internlm1"))[2].ids;
    let logits = |changed: &Changed| {
        let options = Options { all_logits: true, ..options() };
        super::reference::logits(&mut Model::open(changed.path(), &options).unwrap(), ids)
    };
    assert_eq!(logits(&turned), logits(&rotated));
}

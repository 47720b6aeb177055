//! Sequences of layers that keep a state: what a call left behind serves a call that goes on exactly there, and no other.

use layerstream::{GenerateOptions, Model, Options};

use super::reference::{case, prompts};

#[test]
fn a_state_is_gone_on_with_or_not_used() {
    let prompt = &prompts(&case("qwen3_next"))[1];
    let options = Options { context: Some(192), ram: Some(64 << 20), ..Options::default() };
    let mut model = Model::open(case("qwen3_next"), &options).unwrap();
    let greedy = |tokens| GenerateOptions { max_new_tokens: tokens, ..GenerateOptions::default() };
    let run = |model: &mut Model, ids: Vec<u32>, tokens| {
        model.generate(vec![ids], &greedy(tokens)).unwrap().outputs().unwrap().remove(0).ids
    };
    assert_eq!(run(&mut model, prompt.ids.clone(), 4), prompt.greedy[..4]);

    // On with the answer: the state has seen all but its last token.
    let longer: Vec<u32> = prompt.ids.iter().chain(&prompt.greedy[..4]).copied().collect();
    assert_eq!(run(&mut model, longer, 4), prompt.greedy[4..8]);

    // A part of what the state has seen: it cannot go back.
    assert_eq!(run(&mut model, prompt.ids.clone(), 12), prompt.greedy);
    let mut other = prompt.ids.clone();
    other.truncate(20);
    let again = run(&mut model, other.clone(), 5);
    let mut fresh = Model::open(case("qwen3_next"), &options).unwrap();
    assert_eq!(run(&mut fresh, other, 5), again);
}

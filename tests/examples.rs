//! The examples run, and the family that one of them adds computes what it should: where every layer rotates, bit for bit
//! what the built-in Llama does, and where none does, what Llama does with rotations by nothing.

#[path = "../examples/batch.rs"]
mod batch;
#[path = "reference/changed.rs"]
mod changed;
#[path = "../examples/family.rs"]
#[allow(dead_code, reason = "its main is for models that are not here")]
mod family;
#[path = "../examples/generate.rs"]
mod generate;
#[path = "../examples/logits.rs"]
mod logits;
#[allow(dead_code, reason = "these tests use some of it")]
mod reference;
#[path = "../examples/stream.rs"]
mod stream;

use std::fs;
use std::path::Path;

use layerstream::family::{Builder, Config, Family, Projection};
use layerstream::program::{Buffer, Program, Step};
use layerstream::{GenerateOptions, Model, Options};
use serde_json::{Value, json};

use changed::changed;
use reference::{GATE, case, nmse, prompts};

#[test]
fn they_run() {
    for example in [generate::main, stream::main, batch::main, logits::main] {
        example().unwrap();
    }
}

/// Logits of the case's last prompt, which is longer than anything it depends on.
fn logits_of(model: &Path, families: Vec<Family>, ram: u64) -> Vec<f32> {
    let options = Options { ram: Some(ram), context: Some(192), all_logits: true, families, ..Options::default() };
    reference::logits(&mut Model::open(model, &options).unwrap(), &prompts(&case("llama31_gqa"))[2].ids)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_family_of_ones_own() {
    let llama = case("llama31_gqa");
    let config: Value = serde_json::from_slice(&fs::read(llama.join("config.json")).unwrap()).unwrap();
    let count = config["num_hidden_layers"].as_u64().unwrap() as usize;
    assert!(count > 1, "the mixed case below needs two layers");
    let smollm3 = |rotates: Vec<usize>| {
        changed(&llama, json!({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": rotates}))
    };
    let own = |rotates: Vec<usize>, ram| logits_of(smollm3(rotates).path(), vec![family::SMOLLM3], ram);

    // All layers rotate: the reference's logits, and the built-in family's bits, streamed and resident.
    let expected = logits_of(&llama, Vec::new(), 1 << 30);
    for ram in [8 << 20, 1 << 30] {
        let found = own(vec![1; count], ram);
        assert!(bits(&found) == bits(&expected), "bits differ at ram {ram}");
        assert!(nmse(&found, &prompts(&llama)[2].logits) <= GATE);
    }

    // None does: as rotating by angles that are 0 to a float32.
    let still = changed(&llama, json!({"rope_scaling": {"rope_type": "linear", "factor": 1e37}}));
    let none = own(vec![0; count], 1 << 30);
    assert!(bits(&none) == bits(&logits_of(still.path(), Vec::new(), 1 << 30)));

    // One of them: neither of the two.
    let mut mixed = vec![1; count];
    mixed[count - 1] = 0;
    let mixed = own(mixed, 1 << 30);
    assert!(nmse(&mixed, &expected) > 1e3 * GATE && nmse(&mixed, &none) > 1e3 * GATE);

    // It generates through the public API.
    let model = smollm3(vec![1; count]);
    let options = Options { ram: Some(8 << 20), families: vec![family::SMOLLM3], ..Options::default() };
    let mut model = Model::open(model.path(), &options).unwrap();
    assert_eq!(model.program().family, "smollm3");
    let prompt = &prompts(&llama)[0];
    let greedy = GenerateOptions { max_new_tokens: prompt.greedy.len(), ..GenerateOptions::default() };
    let outputs = model.generate(vec![prompt.ids.clone()], &greedy).unwrap().outputs().unwrap();
    assert_eq!(outputs[0].ids, prompt.greedy);
}

/// Opens the case with a family of its own class, and gives the error that it must end with.
#[track_caller]
fn refused(build: fn(&Config, Builder) -> layerstream::Result<Program>) -> String {
    let own = Family { name: "own", architectures: &["LlamaForCausalLM"], special: "", build };
    let options = Options { ram: Some(64 << 20), families: vec![own], ..Options::default() };
    match Model::open(case("llama31_gqa"), &options) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn programs_that_do_not_hold_together_are_refused() {
    let error = refused(|config, mut b| {
        let (hidden, vocab) = (config.size("hidden_size")?, config.size("vocab_size")?);
        let [residual, logits] = [hidden, vocab].map(|width| b.buffer(width));
        let embedding = b.table("model.embed_tokens.weight", vocab, hidden)?;
        b.step(Step::Embed { output: residual, scale: 1.0 });
        b.step(Step::Add { input: Buffer(7), output: residual });
        Ok(b.finish(vocab, 64, embedding, logits))
    });
    assert!(error.contains("family `own`") && error.contains("step 1") && error.contains("no Buffer(7)"), "{error}");

    let error = refused(|config, mut b| {
        let (hidden, vocab) = (config.size("hidden_size")?, config.size("vocab_size")?);
        let [residual, logits] = [hidden, vocab].map(|width| b.buffer(width));
        let embedding = b.table("model.embed_tokens.weight", vocab, hidden)?;
        b.step(Step::Embed { output: residual, scale: 1.0 });
        Ok(b.finish(vocab, 64, embedding, logits))
    });
    assert!(error.contains("`Select`"), "{error}");

    let error = refused(|config, mut b| {
        let (hidden, vocab) = (config.size("hidden_size")?, config.size("vocab_size")?);
        let [residual, narrow] = [hidden, hidden - 1].map(|width| b.buffer(width));
        let embedding = b.table("model.embed_tokens.weight", vocab, hidden)?;
        b.step(Step::Embed { output: residual, scale: 1.0 });
        b.project(Projection::new("model.layers.0.self_attn.o_proj", hidden, hidden, residual, narrow))?;
        Ok(b.finish(vocab, 64, embedding, narrow))
    });
    assert!(error.contains("do not fit a width"), "{error}");
}

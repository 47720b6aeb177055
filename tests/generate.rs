//! Generation as a library user sees it: what ends a sequence, what is shared between calls and neighbours, what an
//! interruption leaves behind, and what is refused.

use std::path::{Path, PathBuf};

use layerstream::{Error, Finish, GenerateOptions, Model, Options, Output, Sampling};

const QUESTION: &str = "How does layer streaming work?";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// The demo model in little memory, so that it streams.
fn options() -> Options {
    Options { ram: Some(12 << 20), context: Some(256), ..Options::default() }
}

/// The smallest budget that does, as the refusal of a smaller one names it.
fn floor() -> u64 {
    let Err(error) = Model::open(demo(), &Options { ram: Some(1 << 20), ..options() }) else { panic!("too small") };
    let text = error.to_string();
    let mib = text.split("at least ").nth(1).and_then(|rest| rest.split(' ').next()).expect(&text);
    mib.parse::<u64>().unwrap() << 20
}

fn open(options: &Options) -> Model {
    Model::open(demo(), options).unwrap()
}

fn run(model: &mut Model, prompts: &[&str], options: &GenerateOptions) -> Vec<Output> {
    let prompts = prompts.iter().map(|prompt| model.encode(prompt).unwrap()).collect();
    model.generate(prompts, options).unwrap().outputs().unwrap()
}

fn refusal(model: &mut Model, prompts: Vec<Vec<u32>>, options: &GenerateOptions) -> String {
    match model.generate(prompts, options) {
        Err(error @ Error::Request(_)) => error.to_string(),
        Err(other) => panic!("an unexpected kind of error: {other:?}"),
        Ok(mut generation) => match generation.outputs() {
            Err(error @ Error::Request(_)) => error.to_string(),
            other => panic!("not refused: {other:?}"),
        },
    }
}

#[test]
fn every_way_to_end_is_told_apart() {
    let mut model = open(&options());
    let defaults = model.defaults().clone();
    let finish = |model: &mut Model, options: &GenerateOptions| run(model, &[QUESTION], options).remove(0);

    let whole = finish(&mut model, &defaults);
    assert_eq!(whole.finish, Some(Finish::Eos));
    assert!(defaults.eos.contains(whole.ids.last().unwrap()));

    let short = finish(&mut model, &GenerateOptions { max_new_tokens: 5, ..defaults.clone() });
    assert_eq!((short.finish, short.ids.len()), (Some(Finish::Length), 5));
    assert_eq!(short.ids, whole.ids[..5]);

    let stop = whole.text.split(' ').nth(6).unwrap().to_string();
    let stopped = finish(&mut model, &GenerateOptions { stop: vec![stop.clone()], ..defaults.clone() });
    assert_eq!(stopped.finish, Some(Finish::Stop));
    assert_eq!(stopped.text, whole.text.split_once(&stop).unwrap().0);

    let none = finish(&mut model, &GenerateOptions { max_new_tokens: 0, ..defaults.clone() });
    assert_eq!((none.finish, none.ids.len()), (None, 0), "nothing was asked for, so nothing comes");

    let prompt = model.encode(QUESTION).unwrap().len();
    let mut narrow = open(&Options { context: Some(prompt + 10), ..options() });
    let full = finish(&mut narrow, &defaults);
    // Ten tokens find room in the cache; the eleventh is chosen but cannot be followed.
    assert_eq!((full.finish, full.ids.len()), (Some(Finish::Context), 11));
    assert_eq!(full.ids, whole.ids[..11]);
}

#[test]
fn neighbours_share_passes_and_change_nothing() {
    let questions = [QUESTION, "What is 27 + 58?", "What is the capital of France?"];
    let mut model = open(&Options { sequences: 3, ..options() });
    let defaults = model.defaults().clone();
    let prompts = questions.iter().map(|question| model.encode(question).unwrap()).collect();
    let mut generation = model.generate(prompts, &defaults).unwrap();
    let together = generation.outputs().unwrap();
    let stats = generation.stats();
    let longest = together.iter().map(|output| output.ids.len()).max().unwrap();
    assert_eq!(stats.passes, longest as u64, "the longest answer sets the number of passes");
    assert_eq!(stats.new_tokens, together.iter().map(|output| output.ids.len()).sum::<usize>());
    for (question, together) in questions.iter().zip(together) {
        assert_eq!(run(&mut model, &[question], &defaults), [together], "{question}");
    }
}

#[test]
fn a_prompt_that_goes_on_from_an_earlier_one_gives_what_a_fresh_model_gives() {
    let mut model = open(&options());
    let defaults = model.defaults().clone();
    let first = run(&mut model, &[QUESTION], &defaults).remove(0);
    let longer = [model.encode(QUESTION).unwrap(), first.ids[..20].to_vec()].concat();
    let greedy = GenerateOptions { max_new_tokens: 30, ..defaults };
    let again = model.generate(vec![longer.clone()], &greedy).unwrap().outputs().unwrap();
    let fresh = open(&options()).generate(vec![longer], &greedy).unwrap().outputs().unwrap();
    assert_eq!(again, fresh);
}

#[test]
fn an_interruption_ends_the_answer_and_the_model_goes_on() {
    let mut model = open(&options());
    let defaults = model.defaults().clone();
    let whole = run(&mut model, &[QUESTION], &defaults).remove(0);
    let stop = model.stop_flag();
    let prompt = model.encode(QUESTION).unwrap();
    let mut text = String::new();
    let mut finish = None;
    for (index, token) in model.generate(vec![prompt], &defaults).unwrap().enumerate() {
        let token = token.unwrap();
        text += &token.text;
        finish = token.finish;
        if index == 3 {
            stop.stop();
        }
    }
    assert_eq!(finish, Some(Finish::Interrupted));
    assert!(whole.text.starts_with(&text) && text.len() < whole.text.len(), "{text:?}");
    assert_eq!(run(&mut model, &[QUESTION], &defaults), [whole], "and the next call is as good as the first");
}

/// The demo's tokenizer beside a model whose vocabulary is another: some of its tokens have no text.
#[test]
fn tokens_without_text_are_given_without_text() {
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/yi");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), dir.path().join(file)).unwrap();
    }
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(demo().join("tokenizer.json")).unwrap()).unwrap();
    // So small that most of the model's tokens are outside it.
    tokenizer["model"]["merges"] = serde_json::json!([]);
    tokenizer["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 100);
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut model = Model::open(dir.path(), &Options { ram: Some(64 << 20), context: Some(64), ..options() }).unwrap();
    let known = model.text().tokenizer().unwrap().vocab_size() as u32;
    let greedy = GenerateOptions { max_new_tokens: 40, ..GenerateOptions::default() };
    let output = model.generate(vec![vec![7, 8, 9]], &greedy).unwrap().outputs().unwrap().remove(0);
    assert_eq!(output.ids.len(), 40);
    assert!(output.ids.iter().any(|id| *id >= known), "the case must have such tokens: {:?}", output.ids);
}

#[test]
fn a_generation_that_is_dropped_half_way_leaves_a_model_that_works() {
    let mut model = open(&options());
    let defaults = model.defaults().clone();
    let whole = run(&mut model, &[QUESTION], &defaults);
    let prompt = model.encode(QUESTION).unwrap();
    drop(model.generate(vec![prompt], &defaults).unwrap().nth(2));
    assert_eq!(run(&mut model, &[QUESTION], &defaults), whole);
}

#[test]
fn sampling_depends_on_the_seed_alone() {
    let sampling = |seed| Sampling { temperature: 1.5, top_k: 50, top_p: 0.95, seed, ..Sampling::default() };
    let answer = |ram: u64, seed| {
        let mut model = open(&Options { ram: Some(ram), ..options() });
        let options = GenerateOptions { max_new_tokens: 40, sampling: sampling(seed), ..GenerateOptions::default() };
        run(&mut model, &["Tell me"], &options).remove(0).ids
    };
    assert_eq!(answer(12 << 20, 1), answer(1 << 30, 1));
    assert_ne!(answer(12 << 20, 1), answer(12 << 20, 2));
}

#[test]
fn a_long_prompt_is_taken_in_blocks_with_the_same_result() {
    // 200 tokens in a budget that carries few rows at a time, and in one that carries all.
    let ids: Vec<u32> = (0..200).map(|i| 7 + i * 3 % 900).collect();
    let greedy = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let answer = |ram: u64| {
        let mut model = open(&Options { ram: Some(ram), ..options() });
        let outputs = model.generate(vec![ids.clone()], &greedy).unwrap().outputs().unwrap();
        (model.plan().rows, outputs)
    };
    let ((few, narrow), (many, wide)) = (answer(floor()), answer(1 << 30));
    assert!(few < 200 && many >= 200, "{few} and {many} rows");
    assert_eq!(narrow, wide);
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_the_reason() {
    let mut model = open(&options());
    let greedy = GenerateOptions::default();
    assert!(refusal(&mut model, vec![vec![]], &greedy).contains("empty"));
    assert!(refusal(&mut model, vec![vec![1; 257]], &greedy).contains("257 tokens"));
    assert!(refusal(&mut model, vec![vec![5000]], &greedy).contains("5000"));
    assert!(refusal(&mut model, vec![vec![1], vec![2]], &greedy).contains("2 prompts"));
    let hot = GenerateOptions { sampling: Sampling { temperature: -1.0, ..Sampling::default() }, ..greedy.clone() };
    assert!(refusal(&mut model, vec![vec![1]], &hot).contains("temperature"));
    let stop = GenerateOptions { stop: vec![String::new()], ..greedy };
    assert!(refusal(&mut model, vec![vec![1]], &stop).contains("stop string"));
    let error = model.logits(&[1, 2], |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("all_logits"), "{error}");
}

#[test]
fn a_budget_below_the_floor_names_the_floor() {
    let open = |ram: u64| Model::open(demo(), &Options { ram: Some(ram), ..options() }).map(|_| ());
    assert!(matches!(open(floor() - (1 << 20)), Err(Error::Budget(_))));
    assert!(open(floor()).is_ok());
}

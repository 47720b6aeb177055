//! Several prompts that share every pass over the weights, which costs about as much as one.
//!
//! ```sh
//! cargo run --release --example batch
//! ```

use layerstream::{GenerateOptions, Model, Options, Result};

pub fn main() -> Result<()> {
    let questions = ["What is 27 + 58?", "What is the capital of France?", "What is the capital of Japan?"];
    let (ram, context) = (Some(32 << 20), Some(256));
    let options = Options { ram, context, sequences: questions.len(), ..Options::default() };
    let mut model = Model::open("demo", &options)?;

    let prompts = questions.iter().map(|question| model.encode(question)).collect::<Result<Vec<_>>>()?;
    let options = GenerateOptions { max_new_tokens: 20, ..model.defaults().clone() };
    let mut generation = model.generate(prompts, &options)?;
    for (question, output) in questions.iter().zip(generation.outputs()?) {
        println!("{question}{}", output.text);
    }
    println!("{} passes for {} new tokens", generation.stats().passes, generation.stats().new_tokens);
    Ok(())
}

//! The words of an answer as they come, and what they cost.
//!
//! ```sh
//! cargo run --release --example stream
//! ```

use std::io::Write;

use layerstream::{GenerateOptions, Model, Options, Result, Sampling};

pub fn main() -> Result<()> {
    let mut model = Model::open("demo", &Options { ram: Some(32 << 20), ..Options::default() })?;
    let prompt = model.encode("How does layer streaming work?")?;

    let sampling = Sampling { temperature: 0.5, seed: 7, ..model.defaults().sampling.clone() };
    let options = GenerateOptions { max_new_tokens: 40, sampling, ..model.defaults().clone() };
    let mut generation = model.generate(vec![prompt], &options)?;
    for token in &mut generation {
        print!("{}", token?.text);
        // A terminal shows a line when it is complete, unless it is told.
        let _ = std::io::stdout().flush();
    }

    let stats = generation.stats();
    println!("\n{} tokens in {:.2} s, {} bytes from disk", stats.new_tokens, stats.seconds, stats.bytes_read);
    Ok(())
}

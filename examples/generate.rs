//! A question to a chat model, and its answer.
//!
//! ```sh
//! cargo run --release --example generate
//! ```

use layerstream::{Model, Options, Result};
use serde_json::json;

pub fn main() -> Result<()> {
    // A directory, a GGUF file, or a repository of the Hugging Face Hub: "Qwen/Qwen3-8B". At most 32 MiB of it are in memory.
    let mut model = Model::open("demo", &Options { ram: Some(32 << 20), ..Options::default() })?;

    let prompt = model.encode_chat(&json!([{"role": "user", "content": "What is the capital of France?"}]))?;
    let options = model.defaults().clone();
    let outputs = model.generate(vec![prompt], &options)?.outputs()?;

    println!("{} ({:?})", outputs[0].text, outputs[0].finish);
    Ok(())
}

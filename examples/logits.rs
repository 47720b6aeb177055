//! How probable each token of a text is, from the logits at every position.
//!
//! ```sh
//! cargo run --release --example logits
//! ```

use layerstream::{Model, Options, Result};

pub fn main() -> Result<()> {
    let options = Options { ram: Some(32 << 20), context: Some(64), all_logits: true, ..Options::default() };
    let mut model = Model::open("demo", &options)?;
    let ids = model.encode("What is the capital of France? Paris")?;
    let vocab = model.program().vocab;

    // Rows come in runs, as many as a pass carries; the row of a token is about the one after it.
    let mut rows: Vec<Vec<f32>> = Vec::new();
    model.logits(&ids, |run| {
        rows.extend(run.chunks_exact(vocab).map(<[f32]>::to_vec));
        Ok(())
    })?;

    let tokenizer = model.text().tokenizer()?;
    for (row, next) in rows.iter().zip(&ids[1..]) {
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        let probability = f64::from(row[*next as usize]).exp() / sum;
        println!("{:>6.2} % {:?}", 100.0 * probability, tokenizer.decode(&[*next], false)?);
    }
    Ok(())
}

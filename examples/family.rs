//! A family of one's own. SmolLM3 is Llama, except that every fourth layer does not rotate its queries and keys
//! (<https://huggingface.co/HuggingFaceTB/SmolLM3-3B>). No family of this crate is like that, so its program is written
//! here, step by step, and then streams like any other.
//!
//! ```sh
//! cargo run --release --example family -- HuggingFaceTB/SmolLM3-3B "Gravity is"
//! ```

use std::io::Write;

use layerstream::family::{Builder, Config, Family, NormStyle, Projection, Rotation};
use layerstream::program::{Activation, Attention, KvShape, NormKind, Product, Program, Step};
use layerstream::{GenerateOptions, Model, Options, Result};

/// What a program says in `Options::families` to open models of this class.
pub const SMOLLM3: Family = Family {
    name: "smollm3",
    architectures: &["SmolLM3ForCausalLM"],
    special: "every fourth layer does not rotate",
    build,
};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "HuggingFaceTB/SmolLM3-3B".into());
    let prompt = args.next().unwrap_or_else(|| "Gravity is".into());
    let mut model = Model::open(model, &Options { families: vec![SMOLLM3], ..Options::default() })?;
    let prompt = model.encode(&prompt)?;
    let options = GenerateOptions { max_new_tokens: 100, ..model.defaults().clone() };
    for token in model.generate(vec![prompt], &options)? {
        print!("{}", token?.text);
        let _ = std::io::stdout().flush();
    }
    println!();
    Ok(())
}

fn build(config: &Config, mut b: Builder) -> Result<Program> {
    // What would change the result and is not done here is refused by name.
    for option in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        config.require(option, false)?;
    }
    let (hidden, inner, vocab) =
        (config.size("hidden_size")?, config.size("intermediate_size")?, config.size("vocab_size")?);
    let (heads, kv_heads) = (config.count("num_attention_heads")?, config.count("num_key_value_heads")?);
    let (layers, positions) = (config.count("num_hidden_layers")?, config.size("max_position_embeddings")?);
    let dim = config.optional_size("head_dim")?.unwrap_or(hidden / heads);
    let (queries, keys) = (heads * dim, kv_heads * dim);
    let style =
        NormStyle { kind: NormKind::Rms, eps: config.number("norm_eps", 1e-6)? as f32, offset: 0.0, bias: false };
    // For each layer 1 if it rotates, whatever the name says.
    let interval = config.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let listed = config.indices("no_rope_layers")?.filter(|list| !list.is_empty());
    let rotates = listed.unwrap_or_else(|| (1..=layers).map(|layer| usize::from(layer % interval != 0)).collect());
    if rotates.len() != layers {
        return Err(config.problem(format!("`no_rope_layers` has {} entries for {layers} layers", rotates.len())));
    }

    let rope = b.rope(Rotation { theta: 2_000_000.0, ..Rotation::new(dim, positions) }.read(config)?);
    let [residual, normed, selected, last] = [(); 4].map(|()| b.buffer(hidden));
    let [q, k, v, attended] = [queries, keys, keys, queries].map(|width| b.buffer(width));
    let [gate, up, logits] = [inner, inner, vocab].map(|width| b.buffer(width));

    let embedding = b.table("model.embed_tokens.weight", vocab, hidden)?;
    b.step(Step::Embed { output: residual, scale: 1.0 });
    for (layer, rotates) in rotates.into_iter().enumerate() {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let norm = b.norm(&name("input_layernorm"), &[hidden], style)?;
        b.step(Step::Norm { norm, input: residual, output: normed, add: false });
        for (part, rows, output) in [("q_proj", queries, q), ("k_proj", keys, k), ("v_proj", keys, v)] {
            b.project(Projection::new(&name(&format!("self_attn.{part}")), rows, hidden, normed, output))?;
        }
        for buffer in [q, k].into_iter().filter(|_| rotates != 0) {
            b.step(Step::Rope { buffer, rope, head_dim: dim, start: 0 });
        }
        let cache = b.kv(KvShape { heads: kv_heads, key_dim: dim, value_dim: dim });
        b.step(Step::Append { layer: cache, keys: k, values: v });
        let attention = Attention::new(1.0 / (dim as f32).sqrt());
        b.step(Step::Attend { layer: cache, queries: q, output: attended, attention });
        let output = name("self_attn.o_proj");
        b.project(Projection { add: true, ..Projection::new(&output, hidden, queries, attended, residual) })?;

        let norm = b.norm(&name("post_attention_layernorm"), &[hidden], style)?;
        b.step(Step::Norm { norm, input: residual, output: normed, add: false });
        b.project(Projection::new(&name("mlp.gate_proj"), inner, hidden, normed, gate))?;
        b.project(Projection::new(&name("mlp.up_proj"), inner, hidden, normed, up))?;
        b.step(Step::Glu { activation: Activation::Silu, gate, up });
        b.project(Projection { add: true, ..Projection::new(&name("mlp.down_proj"), hidden, inner, gate, residual) })?;
    }
    // Only the rows whose logits are asked for go on.
    b.step(Step::Select { input: residual, output: selected });
    let norm = b.norm("model.norm", &[hidden], style)?;
    b.step(Step::Norm { norm, input: selected, output: last, add: false });
    let head = match config.flag("tie_word_embeddings", true)? {
        true => embedding.clone(),
        false => b.matrix("lm_head.weight", vocab, hidden)?,
    };
    let head = b.stream(head);
    b.multiply(Product::new(head, last, logits))?;
    Ok(b.finish(vocab, positions, embedding, logits))
}

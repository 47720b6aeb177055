//! `synth`: writes a checkpoint of a published shape, with a progress bar.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Result;
use crate::synth::{Options, Spec, write};

use super::args;
use super::output::tell;
use super::table::data;

pub fn run(args: &args::Synth) -> Result<()> {
    let spec = match (&args.like, &args.config) {
        (Some(name), _) => Spec::preset(name)?,
        (None, Some(path)) => Spec::read(path)?,
        (None, None) => unreachable!("one of the two is required"),
    };
    let spec = match args.layers {
        Some(layers) => spec.with_layers(layers)?,
        None => spec,
    };
    let options = Options { sparse: args.sparse, seed: args.seed, dtype: args.dtype };
    let style = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("a valid template").progress_chars("##-");
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut total = 0;
    let written = write(&spec, &args.out, &options, &mut |done, all| {
        total = all;
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    written?;
    let room = if args.sparse { ", nearly none of it on disk" } else { "" };
    tell(format!("{}: {} of weights{room}\n", args.out.display(), data(total)));
    Ok(())
}

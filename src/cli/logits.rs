//! `logits`: the logits of every position, streamed into a safetensors file as passes give them.

use serde_json::json;

use crate::error::{Error, Result};
use crate::hub::Need;
use crate::model::{Model, Options};

use super::args;
use super::hub;
use super::interrupt::{Reaction, on_next};
use super::output::WholeFile;
use super::profile::Seeing;
use super::progress::Status;

pub fn run(args: &args::Logits) -> Result<()> {
    let ids = &args.ids.0;
    if ids.is_empty() {
        return Err(Error::Request("there are no token ids to give logits for".into()));
    }
    let seeing = Seeing::begin(&args.seeing)?;
    let resources = args.resources.options(Some(ids.len()), 1);
    let options = Options { all_logits: true, recorder: seeing.recorder(), ..resources };
    let mut model = Model::open(hub::local(&args.model, Need::Model)?, &options)?;
    // From here on Ctrl-C is an error that takes the file away again.
    on_next(Reaction::Stop(model.stop_flag()));
    let mut file = WholeFile::create(&args.out)?;
    file.write(&header(ids.len(), model.program().vocab))?;
    let status = Status::watch(model.progress());
    model.logits(ids, |rows| file.write(bytemuck::cast_slice(rows)))?;
    drop(status);
    seeing.end(&model)?;
    file.finish()
}

/// Length and JSON of a safetensors file with one tensor; what follows is aligned to 8 bytes.
fn header(tokens: usize, vocab: usize) -> Vec<u8> {
    let bytes = tokens as u64 * vocab as u64 * size_of::<f32>() as u64;
    let json = json!({"logits": {"dtype": "F32", "shape": [tokens, vocab], "data_offsets": [0, bytes]}}).to_string();
    let padded = json.len().next_multiple_of(8);
    [&(padded as u64).to_le_bytes()[..], format!("{json:padded$}").as_bytes()].concat()
}

// The format is little-endian, and so is every machine this runs on.
const _: () = assert!(cfg!(target_endian = "little"));

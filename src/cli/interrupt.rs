//! Ctrl-C (and SIGTERM, SIGHUP): the first asks what is running to end, the second ends the program at once.

use std::mem::replace;
use std::sync::{Mutex, PoisonError};

use crate::engine::StopFlag;
use crate::error::{Error, Result};
use crate::hub::HubProgress;

use super::output::tell;

/// What a shell reports for a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

/// What the next Ctrl-C does. The one after it ends the program, unless something else is asked for meanwhile.
pub enum Reaction {
    Exit,
    Stop(StopFlag),
    StopDownload(HubProgress),
    /// For programs that wait for a person: says how to leave.
    Say(&'static str),
}

static NEXT: Mutex<Reaction> = Mutex::new(Reaction::Exit);

/// To be called once, before anything else.
pub fn install() -> Result<()> {
    ctrlc::set_handler(react).map_err(|e| Error::Request(format!("cannot listen for Ctrl-C: {e}")))
}

/// Sets what the next Ctrl-C does.
pub fn on_next(reaction: Reaction) {
    *NEXT.lock().unwrap_or_else(PoisonError::into_inner) = reaction;
}

fn react() {
    match replace(&mut *NEXT.lock().unwrap_or_else(PoisonError::into_inner), Reaction::Exit) {
        Reaction::Exit => std::process::exit(EXIT_CODE.into()),
        Reaction::Stop(flag) => flag.stop(),
        Reaction::StopDownload(progress) => progress.stop(),
        Reaction::Say(hint) => tell(hint),
    }
}

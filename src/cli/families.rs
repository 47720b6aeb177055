//! `families`: what can be run, as the code itself has it.

use crate::error::Result;
use crate::family;

use super::args;
use super::output;

pub fn run(args: &args::Families) -> Result<()> {
    match args.json {
        true => output::json(&family::supported().collect::<Vec<_>>()),
        false => output::print(&family::table()),
    }
}

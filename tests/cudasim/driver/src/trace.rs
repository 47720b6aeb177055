//! A line for each matrix product: which tile of which matrix it was given, and what lay there. For tests that want to see
//! every tile delivered once, in order, with the right bytes, when there is no arithmetic whose result would show it.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::access::Tile;

pub struct Trace(File);

impl Trace {
    pub fn create(path: &Path) -> Result<Trace, String> {
        let file = File::create(path).map_err(|e| format!("the trace cannot be written to {}: {e}", path.display()))?;
        Ok(Trace(file))
    }

    /// Writes kernel, first row, rows, elements of a row, bytes, and their fingerprint in hexadecimal, with spaces between.
    pub fn product(&self, kernel: &str, tile: &Tile, fingerprint: u64) {
        let Tile { bytes, first_row, rows, k, .. } = tile;
        let line = format!("{kernel} {first_row} {rows} {k} {bytes} {fingerprint:016x}\n");
        if let Err(e) = (&self.0).write_all(line.as_bytes()) {
            eprintln!("cudasim: the trace cannot be written: {e}");
        }
    }
}

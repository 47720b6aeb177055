//! Checksums of weights, compared with what is streamed: bytes that a drive, a cable or a copy has changed are an error,
//! not a strange answer. Checksums are of runs of bytes, and tiles are cut elsewhere, so a run's checksum goes on from tile
//! to tile.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::Source;
use crate::checkpoint::Span;
use crate::error::{Error, Result};

/// What the bytes of the files of a [`Source`] must be.
#[derive(Debug)]
pub struct Checksums {
    /// For each file, in the order of offsets.
    files: Vec<Vec<CheckedRun>>,
}

/// A run of bytes of one tensor.
#[derive(Clone, Debug)]
pub struct CheckedRun {
    /// From the start of the file, in bytes.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
    /// XXH3 of 128 bits.
    pub sum: u128,
    /// The name that an error tells.
    pub tensor: Arc<str>,
}

impl Checksums {
    /// From the runs of each file, in any order.
    pub fn new(mut files: Vec<Vec<CheckedRun>>) -> Checksums {
        files.iter_mut().for_each(|runs| runs.sort_by_key(|run| run.offset));
        Checksums { files }
    }
}

/// Follows the tiles that are streamed.
pub(crate) struct Checker {
    sums: Arc<Checksums>,
    paths: Vec<PathBuf>,
    /// Runs of which some tiles were seen, from their start on: by file and offset, what comes next, and the checksum so far.
    begun: HashMap<(usize, u64), (u64, Box<Xxh3>)>,
    bytes: u64,
}

impl Checker {
    /// Nothing, if a source has no checksums.
    pub(crate) fn of(source: &Source) -> Option<Checker> {
        let sums = Arc::clone(source.checksums.as_ref()?);
        Some(Checker { sums, paths: source.files.clone(), begun: HashMap::new(), bytes: 0 })
    }

    /// Bytes of runs that were found to be right.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes of a span that was streamed, after what came before it in its runs. A run whose beginning was not seen, since
    /// that stays on a GPU, is let pass.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a run has ended and is not what it should be.
    pub(crate) fn streamed(&mut self, span: Span, bytes: &[u8]) -> Result<()> {
        let (file, end) = (span.file.0 as usize, span.offset + span.len);
        let sums = Arc::clone(&self.sums);
        let runs = sums.files.get(file).map_or(&[][..], Vec::as_slice);
        let first = runs.partition_point(|run| run.offset + run.len <= span.offset);
        for run in runs[first..].iter().take_while(|run| run.offset < end) {
            let (from, to) = (span.offset.max(run.offset), end.min(run.offset + run.len));
            let piece = &bytes[(from - span.offset) as usize..(to - span.offset) as usize];
            self.go_on(file, run, from, piece)?;
        }
        Ok(())
    }

    fn go_on(&mut self, file: usize, run: &CheckedRun, from: u64, piece: &[u8]) -> Result<()> {
        let key = (file, run.offset);
        if from == run.offset {
            self.begun.insert(key, (from, Box::new(Xxh3::new())));
        }
        let Some((next, sum)) = self.begun.get_mut(&key).filter(|(next, _)| *next == from) else { return Ok(()) };
        sum.update(piece);
        *next += piece.len() as u64;
        if *next < run.offset + run.len {
            return Ok(());
        }
        let found = sum.digest128();
        self.begun.remove(&key);
        if found != run.sum {
            let CheckedRun { offset, len, .. } = run;
            let problem = format!(
                "the {len} bytes at offset {offset} are not those that were written: `layerstream verify` finds all such \
                 places; pack or copy the model again, and see to the drive"
            );
            return Err(Error::Tensor { path: self.paths[file].clone(), tensor: run.tensor.to_string(), problem });
        }
        self.bytes += run.len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_128;

    use super::*;
    use crate::checkpoint::FileId;

    /// A file of runs of these lengths, cut into tiles at these places.
    fn check(lens: &[usize], cuts: &[usize], flipped: Option<usize>) -> (Result<()>, u64, u64) {
        let total: usize = lens.iter().sum();
        let mut bytes: Vec<u8> = (0..total).map(|i| (i * 31 + i / 256) as u8).collect();
        let mut runs = Vec::new();
        for len in lens {
            let offset = runs.last().map_or(0, |run: &CheckedRun| run.offset + run.len);
            let sum = xxh3_128(&bytes[offset as usize..][..*len]);
            runs.push(CheckedRun { offset, len: *len as u64, sum, tensor: format!("at {offset}").into() });
        }
        runs.reverse();
        if let Some(at) = flipped {
            bytes[at] ^= 1;
        }
        let checksums = Some(Arc::new(Checksums::new(vec![runs])));
        let source = Source { files: vec!["file".into()], replicas: vec![], checksums };
        let mut checker = Checker::of(&source).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % total).chain([0, total]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        // Two passes.
        let tiles: Vec<[usize; 2]> = cuts.windows(2).map(|pair| [pair[0], pair[1]]).collect();
        let all = (0..2).flat_map(|_| &tiles).try_for_each(|&[from, to]| {
            let span = Span { file: FileId(0), offset: from as u64, len: (to - from) as u64 };
            checker.streamed(span, &bytes[from..to])
        });
        (all, checker.bytes(), total as u64)
    }

    proptest! {
        #[test]
        fn however_tiles_are_cut_all_is_checked_and_a_flipped_bit_is_found(
            lens in prop::collection::vec(1usize..600, 1..8),
            cuts in prop::collection::vec(0usize..5000, 0..12),
            at in 0usize..5000,
        ) {
            let (all, checked, total) = check(&lens, &cuts, None);
            prop_assert!(all.is_ok());
            prop_assert_eq!(checked, 2 * total);
            let at = at % total as usize;
            let error = check(&lens, &cuts, Some(at)).0.unwrap_err().to_string();
            let starts = lens.iter().scan(0, |start, len| Some(std::mem::replace(start, *start + len)));
            let run = starts.take_while(|start| *start <= at).last().unwrap();
            prop_assert!(error.contains(&format!("`at {run}`")), "{}", error);
        }
    }

    #[test]
    fn a_run_whose_beginning_is_not_streamed_is_let_pass() {
        let run = CheckedRun { offset: 0, len: 10, sum: 1, tensor: "x".into() };
        let source = Source {
            files: vec!["file".into()],
            checksums: Some(Arc::new(Checksums::new(vec![vec![run]]))),
            ..Source::default()
        };
        let mut checker = Checker::of(&source).unwrap();
        checker.streamed(Span { file: FileId(0), offset: 4, len: 6 }, &[0; 6]).unwrap();
        assert_eq!(checker.bytes(), 0);
    }
}

//! Small reads at arbitrary places, such as the embedding rows of a prompt, done while the deep queue of streamed
//! chunks goes on. They go through the page cache: rows are far smaller than a direct read's block allows to waste, and
//! the rows of common tokens are wanted again and again.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::Advice;

use super::Source;
use crate::checkpoint::Span;
use crate::error::{Error, Result};

/// The files of a source, open for small reads at arbitrary places.
pub(crate) struct Gather {
    files: Vec<(PathBuf, File)>,
}

impl Gather {
    pub(crate) fn open(source: &Source) -> Result<Gather> {
        let open = |path: &PathBuf| {
            let file = File::open(path).map_err(Error::io(path, "open"))?;
            // Read-ahead would fetch neighbours that nobody wants. Advice only: a refusal costs time, not bytes.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
            Ok((path.clone(), file))
        };
        Ok(Gather { files: source.files.iter().map(open).collect::<Result<_>>()? })
    }

    /// Fills every buffer from the start of its span (`buffer.len() == span.len`). All reads are in flight at once, since
    /// each one may have to wait behind a whole queue of chunks.
    ///
    /// # Errors
    /// [`Error::Read`] with the file, offset and length of a read that failed or met the end of the file.
    pub(crate) fn read_at(&self, reads: &mut [(Span, &mut [u8])]) -> Result<()> {
        if reads.len() > 1 {
            for (span, _) in &*reads {
                let (_, file) = &self.files[span.file.0 as usize];
                // Starts reading and does not wait. Advice only: without it the reads below go one by one.
                let _ = rustix::fs::fadvise(file, span.offset, NonZeroU64::new(span.len), Advice::WillNeed);
            }
        }
        reads.iter_mut().try_for_each(|(span, buffer)| self.read_one(*span, buffer))
    }

    fn read_one(&self, span: Span, buffer: &mut [u8]) -> Result<()> {
        assert_eq!(buffer.len() as u64, span.len, "a buffer is as long as its span");
        let (path, file) = &self.files[span.file.0 as usize];
        let failed = |source| Error::Read { path: path.clone(), offset: span.offset, len: span.len, source };
        file.read_exact_at(buffer, span.offset).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::checkpoint::FileId;

    fn fixture(len: usize) -> (tempfile::NamedTempFile, Vec<u8>, Gather) {
        let bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let gather = Gather::open(&Source { files: vec![file.path().into()], ..Source::default() }).unwrap();
        (file, bytes, gather)
    }

    #[test]
    fn rows_at_any_place_arrive_in_their_buffers() {
        let (_file, bytes, gather) = fixture(1_000_003);
        for count in [0, 1, 2, 300] {
            let places: Vec<_> = (0..count).map(|i| (i * 3331, 1 + i % 97)).collect();
            let mut rows: Vec<_> = places.iter().map(|&(_, len)| vec![0; len]).collect();
            let spans = places.iter().map(|&(at, len)| Span { file: FileId(0), offset: at as u64, len: len as u64 });
            let mut reads: Vec<_> = spans.zip(&mut rows).map(|(span, row)| (span, row.as_mut_slice())).collect();
            gather.read_at(&mut reads).unwrap();
            for ((at, len), row) in places.into_iter().zip(rows) {
                assert_eq!(row, bytes[at..at + len]);
            }
        }
    }

    #[test]
    fn row_beyond_the_end_is_an_error_that_names_it() {
        let (file, _, gather) = fixture(1000);
        let (mut good, mut bad) = (vec![0; 10], vec![0; 10]);
        let span = |offset| Span { file: FileId(0), offset, len: 10 };
        let error = gather.read_at(&mut [(span(0), &mut good), (span(995), &mut bad)]).unwrap_err();
        assert!(matches!(&error, Error::Read { path, offset: 995, len: 10, .. } if path == file.path()), "{error}");
    }
}

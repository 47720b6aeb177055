//! Alignment: direct reads start, end and land on multiples of the file system's block, tensors do not. A span is
//! therefore read from its start rounded down to its end rounded up, in chunks of nearly equal size.

use crate::checkpoint::Span;

/// The least alignment used, for whatever the file system allows: a memory page.
pub(crate) const MIN_ALIGN: usize = 4096;

/// The aligned run of bytes that encloses a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Enclosing {
    /// Offset in the file, a multiple of the alignment.
    pub offset: u64,
    /// Bytes, a multiple of the alignment; may reach past the end of the file.
    pub len: usize,
    /// Where in this run the span begins.
    pub skip: usize,
}

/// Rounds the start of `span` down and its end up to multiples of `align`.
pub(crate) fn enclose(span: Span, align: usize) -> Enclosing {
    let block = align as u64;
    let offset = span.offset - span.offset % block;
    let end = (span.offset + span.len).next_multiple_of(block);
    Enclosing { offset, len: (end - offset) as usize, skip: (span.offset - offset) as usize }
}

/// The size of the chunks in which `len` bytes are read: at most `chunk`, all equal but the last, multiples of `align`.
/// Equal chunks rather than full ones and a crumb: a crumb takes as much of the queue as a full chunk.
pub(crate) fn chunk_size(len: usize, chunk: usize, align: usize) -> usize {
    len.div_ceil(len.div_ceil(chunk).max(1)).next_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::FileId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn enclosing_run_is_aligned_and_tight(offset in 0u64..1 << 40, len in 1u64..1 << 30, shift in 9u32..17) {
            let align = 1usize << shift;
            let span = Span { file: FileId(0), offset, len };
            let run = enclose(span, align);
            prop_assert_eq!(run.offset % align as u64, 0);
            prop_assert_eq!(run.len % align, 0);
            prop_assert_eq!(run.offset + run.skip as u64, offset);
            prop_assert!(run.skip < align);
            let end = run.offset + run.len as u64;
            prop_assert!(offset + len <= end && end < offset + len + align as u64);
        }

        #[test]
        fn chunks_cover_and_stay_within_the_limit(blocks in 1usize..100_000, chunk_blocks in 1usize..4096) {
            let (len, chunk) = (blocks * 4096, chunk_blocks * 4096);
            let size = chunk_size(len, chunk, 4096);
            prop_assert!(size > 0 && size <= chunk && size.is_multiple_of(4096));
            // No more chunks than full ones would need.
            prop_assert!(len.div_ceil(size) <= len.div_ceil(chunk));
        }
    }
}

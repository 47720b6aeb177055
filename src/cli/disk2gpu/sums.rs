//! Checksums: what a file holds, told apart from what arrived of it. CRC-32, because pieces that arrive in any order can
//! be put together, and because everything else can compute it, too (`zlib.crc32` in Python, `gzip -l`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc32fast::Hasher;

use crate::engine::StopFlag;
use crate::error::{Error, Result};

use super::work::Piece;

/// Bytes summed at once.
const BLOCK: usize = 1 << 20;

/// The CRC-32 of `len` bytes that `fill` brings, block by block, from the offset that it is told.
pub fn crc_of(len: u64, stop: &StopFlag, mut fill: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<u32> {
    let (mut hasher, mut block) = (Hasher::new(), vec![0; BLOCK]);
    for at in (0..len).step_by(BLOCK) {
        super::check(stop)?;
        let block = &mut block[..BLOCK.min((len - at) as usize)];
        fill(at, block)?;
        hasher.update(block);
    }
    Ok(hasher.finalize())
}

/// The CRC-32 of the first `len` bytes of a file, read in the plainest way there is.
pub fn crc_of_file(path: &Path, len: u64, stop: &StopFlag) -> Result<u32> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    crc_of(len, stop, |at, into| file.read_exact_at(into, at).map_err(Error::io(path, "read")))
}

/// The CRC-32 of each of `files` files, from those of their pieces, which come in the order of their offsets within each
/// file.
pub fn join(pieces: &[Piece], sums: &[u32], files: usize) -> Vec<u32> {
    let mut whole = vec![Hasher::new(); files];
    for (piece, &sum) in pieces.iter().zip(sums) {
        whole[piece.file].combine(&Hasher::new_with_initial_len(sum, piece.bytes as u64));
    }
    whole.into_iter().map(Hasher::finalize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_pieces_make_the_sum_of_the_file() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| ((i * i) >> 3) as u8).collect();
        let piece = |file, offset: usize, bytes| Piece { file, offset: offset as u64, len: 4096, bytes };
        // Two files that take turns.
        let pieces = [piece(0, 0, 4096), piece(1, 0, 100), piece(0, 4096, 4096), piece(0, 8192, 1808)];
        let sums: Vec<u32> = pieces.iter().map(|p| crc32fast::hash(&bytes[p.offset as usize..][..p.bytes])).collect();
        let expected = [crc32fast::hash(&bytes), crc32fast::hash(&bytes[..100])];
        assert_eq!(join(&pieces, &sums, 2), expected);
    }
}

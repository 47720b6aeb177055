//! A summary of bytes that is much faster to make than a copy of them: eight of every 4096, and the last eight. Tests have
//! this file too, to compare what they expect with what a trace says.

/// The fingerprint of some bytes.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    // SAFETY: a slice can be read.
    unsafe { fingerprint_at(bytes.as_ptr() as u64, bytes.len() as u64) }
}

/// The fingerprint of the bytes at an address.
///
/// # Safety
/// They can be read. Somebody may be writing them, which is what this finds.
pub unsafe fn fingerprint_at(address: u64, len: u64) -> u64 {
    // SAFETY: the caller's promise; `at` is less than `len`.
    let byte = |at: u64| unsafe { ((address + at) as *const u8).read_volatile() };
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |word: u64| hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    if len < 8 {
        (0..len).for_each(|at| add(byte(at).into()));
    } else {
        let word = |at: u64| u64::from_le_bytes(std::array::from_fn(|i| byte(at + i as u64)));
        (0..len - 7).step_by(4096).for_each(|at| add(word(at)));
        add(word(len - 8));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_changes_is_seen() {
        let mut bytes = vec![0u8; 20_000];
        let before = fingerprint(&bytes);
        for at in [0, 4096, 8199, 16_384, 19_999] {
            bytes[at] = 1;
            assert_ne!(fingerprint(&bytes), before, "{at}");
            bytes[at] = 0;
        }
        assert_ne!(fingerprint(&bytes[..3]), fingerprint(&bytes[..4]));
        assert_eq!(fingerprint(&bytes), before);
    }
}

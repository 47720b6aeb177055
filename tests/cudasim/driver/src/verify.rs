//! Holds a launch to what the table says that its kernel touches: everything else is hidden from it while it runs.

use crate::access::Range;
use crate::memory::POISON;

/// Runs a kernel with all bytes poisoned that it should not read, and looks for what it wrote where it should not. What
/// it read of the poison shows in its results, which the checks of the kernels compare with float64.
///
/// `allocations` are start and length of all memory of the card.
pub fn held_to(
    ranges: &[Range],
    allocations: &[(u64, u64)],
    run: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    #[derive(Clone, Copy, PartialEq)]
    enum May {
        Nothing,
        Read,
        Write,
    }
    let mut kept = Vec::new();
    for &(start, len) in allocations {
        // SAFETY: a live allocation; no operation runs but this one.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, len as usize) };
        let before = bytes.to_vec();
        let mut may = vec![May::Nothing; len as usize];
        for range in ranges.iter().filter(|range| range.start >= start && range.start < start + len) {
            for at in &mut may[(range.start - start) as usize..(range.end - start) as usize] {
                if range.write || *at == May::Nothing {
                    *at = if range.write { May::Write } else { May::Read };
                }
            }
        }
        for (byte, may) in bytes.iter_mut().zip(&may) {
            if *may == May::Nothing {
                *byte = POISON;
            }
        }
        kept.push((bytes, before, may));
    }
    run()?;
    for (bytes, before, may) in kept {
        for (at, may) in may.iter().enumerate() {
            let expected = match may {
                May::Write => continue,
                May::Read => before[at],
                May::Nothing => POISON,
            };
            if bytes[at] != expected {
                let start = bytes.as_ptr() as usize;
                return Err(format!(
                    "wrote byte {at} of the allocation at {start:#x}, which its table entry leaves out"
                ));
            }
            bytes[at] = before[at];
        }
    }
    Ok(())
}

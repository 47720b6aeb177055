//! Values of arguments as people write them: sizes, lists of token ids.

use std::num::NonZeroUsize;
use std::str::FromStr;

use bytesize::ByteSize;

/// A number of bytes: `4GiB`, `1.5GB`, `300M`, `4096`.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || "expected a size such as 4GiB, 1.5GB or 300MiB".to_string();
    match text.trim().parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size.as_u64()),
        _ => Err(wrong()),
    }
}

/// A count of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse::<NonZeroUsize>().map(NonZeroUsize::get).map_err(|_| "expected a whole number of at least 1".into())
}

/// Token ids, separated by commas; the brackets and spaces of a JSON list do no harm.
#[derive(Clone, Debug, PartialEq)]
pub struct Ids(pub Vec<u32>);

impl FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Ids, String> {
        let list = text.trim();
        let list = list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).unwrap_or(list).trim();
        if list.is_empty() {
            return Ok(Ids(Vec::new()));
        }
        let id = |id: &str| {
            id.trim().parse().map_err(|_| format!("`{}` is not a token id; expected a list such as 1,2,3", id.trim()))
        };
        list.split(',').map(id).collect::<Result<_, _>>().map(Ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("4GiB"), Ok(4 << 30));
        assert_eq!(size("1.5GB"), Ok(1_500_000_000));
        assert_eq!(size("300 MiB"), Ok(300 << 20));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "0", "GiB", "-1GiB", "4XB", "1e30", "NaN", "4 4"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids() {
        assert_eq!("1,2,3".parse(), Ok(Ids(vec![1, 2, 3])));
        assert_eq!("[1, 2, 3]\n".parse(), Ok(Ids(vec![1, 2, 3])));
        assert_eq!("[]".parse(), Ok(Ids(vec![])));
        for wrong in ["1,,2", "1;2", "-1", "4294967296", "[1,2", "one"] {
            assert!(wrong.parse::<Ids>().is_err(), "{wrong}");
        }
    }
}

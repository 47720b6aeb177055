//! Whatever the bytes are: headers and indexes changed at random are judged without a panic, in time, and never
//! accepted with a range that is not theirs. What the format's own reader takes is taken.

use std::path::Path;
use std::time::{Duration, Instant};

use layerstream::checkpoint::{Tensor, parse_header, parse_index};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::{INDEX, SHARD_1, SHARD_2, entry, file, index};

/// What must hold of any header that was accepted.
fn check_accepted(tensors: &[Tensor], file_len: u64) {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name twice");
    let mut end = 0;
    for tensor in tensors.iter() {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!((elements * tensor.dtype.size()) as u64, tensor.span.len);
        assert!(tensor.span.offset + tensor.span.len <= file_len);
        if tensor.span.len > 0 {
            assert!(tensor.span.offset >= end, "overlap");
            end = tensor.span.offset + tensor.span.len;
        }
    }
}

/// A valid file of a few tensors of various types.
fn valid_file() -> impl Strategy<Value = Vec<u8>> {
    let dtype = prop::sample::select(vec![("U8", 1), ("BF16", 2), ("F32", 4), ("I64", 8)]);
    prop::collection::vec((dtype, prop::collection::vec(0u64..5, 0..4)), 0..6).prop_map(|tensors| {
        let mut at = 0;
        let entries: Vec<String> = tensors
            .iter()
            .enumerate()
            .map(|(i, ((dtype, size), shape))| {
                let start = at;
                at += size * shape.iter().product::<u64>();
                entry(&format!("model.layers.{i}.weight"), dtype, &format!("{shape:?}"), start, at)
            })
            .collect();
        file(&format!("{{{}}}", entries.join(",")), at as usize)
    })
}

/// One change to a file, at a place given as a fraction of its length.
#[derive(Clone, Debug)]
enum Change {
    Byte(f64, u8),
    Insert(f64, &'static str),
    Remove(f64, usize),
    Repeat(f64, usize),
    Truncate(f64),
    HeaderLength(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let tokens = vec![
        "-1",
        "9",
        "99999999999999999999",
        "1e9",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\u0000",
        "null",
        "F4",
        " ",
    ];
    let place = 0.0..1.0;
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (place.clone(), prop::sample::select(tokens)).prop_map(|(at, token)| Change::Insert(at, token)),
        (place.clone(), 1usize..80).prop_map(|(at, len)| Change::Remove(at, len)),
        (place.clone(), 1usize..80).prop_map(|(at, len)| Change::Repeat(at, len)),
        place.prop_map(Change::Truncate),
        any::<u64>().prop_map(|n| Change::HeaderLength(n >> (n % 64))),
    ]
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: f64, len: usize| (at * len as f64) as usize;
        let len = bytes.len();
        match *self {
            Change::Byte(at, byte) if len > 0 => bytes[place(at, len)] = byte,
            Change::Byte(..) => {}
            Change::Insert(at, token) => drop(bytes.splice(place(at, len)..place(at, len), token.bytes())),
            Change::Remove(at, n) => drop(bytes.drain(place(at, len)..(place(at, len) + n).min(len))),
            Change::Repeat(at, n) => {
                let piece = bytes[place(at, len)..(place(at, len) + n).min(len)].to_vec();
                drop(bytes.splice(place(at, len)..place(at, len), piece));
            }
            Change::Truncate(at) => bytes.truncate(place(at, len)),
            Change::HeaderLength(n) if len >= 8 => bytes[..8].copy_from_slice(&n.to_le_bytes()),
            Change::HeaderLength(_) => {}
        }
    }
}

/// Keeps the length of the header true after its text has changed, so that the change itself is what is judged.
fn fix_header_length(before: &[u8], after: &mut [u8]) {
    let old = u64::from_le_bytes(before[..8].try_into().unwrap());
    let new = (old + after.len() as u64).saturating_sub(before.len() as u64);
    after[..8].copy_from_slice(&new.to_le_bytes());
}

fn proptest_config() -> ProptestConfig {
    ProptestConfig {
        cases: 4096,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn any_change_to_a_valid_file_is_judged_in_time(
        original in valid_file(),
        changes in prop::collection::vec(change(), 1..5),
        fix in any::<bool>(),
    ) {
        let mut bytes = original.clone();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if fix && bytes.len() >= 8 {
            fix_header_length(&original, &mut bytes);
        }
        let start = Instant::now();
        let parsed = parse_header(Path::new("model.safetensors"), &bytes, bytes.len() as u64);
        prop_assert!(start.elapsed() < Duration::from_secs(1), "took {:?}", start.elapsed());
        let reference = safetensors::SafeTensors::deserialize(&bytes);
        match parsed {
            Ok(tensors) => {
                check_accepted(&tensors, bytes.len() as u64);
                if let Ok(reference) = reference {
                    prop_assert_eq!(tensors.len(), reference.len());
                }
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.starts_with("model.safetensors: ") && text.len() < 2000, "{}", text);
                // The format's own reader keeps one of several entries of a name, and knows types of under a byte.
                let entries = bytes.windows(7).filter(|window| window == b"\"dtype\"").count();
                let stricter = |len| entries > len || text.contains("`F4`") || text.contains("duplicate field");
                prop_assert!(reference.is_err() || stricter(reference.unwrap().len()), "the format's own reader takes it: {}", text);
            }
        }
    }

    #[test]
    fn any_change_to_an_index_is_judged(changes in prop::collection::vec(change(), 0..5)) {
        let mut bytes = index(&[("a", SHARD_1), ("b", SHARD_2), ("c", SHARD_1)]).into_bytes();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if let Ok(index) = parse_index(Path::new(INDEX), &bytes) {
            for (_, shard) in &index.weights {
                prop_assert!(!index.shards[*shard as usize].contains('/'));
            }
        }
    }
}

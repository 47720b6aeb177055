//! `pytorch_model.bin`: archives and pickles put together by hand. What opens, what is refused and in which words, and that
//! any bytes at all are judged without a panic.

use std::fs;
use std::path::Path;

use layerstream::checkpoint::{Checkpoint, Dtype, parse_pickle, parse_zip};
use proptest::prelude::*;

use crate::{directory, refused};

const FILE: &str = "pytorch_model.bin";

/// A pickle: opcodes one after another.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Pickle {
        Pickle(vec![0x80, 2])
    }

    fn raw(mut self, bytes: &[u8]) -> Pickle {
        self.0.extend(bytes);
        self
    }

    fn text(self, text: &str) -> Pickle {
        let len = (text.len() as u32).to_le_bytes();
        self.raw(b"X").raw(&len).raw(text.as_bytes())
    }

    fn int(self, n: i32) -> Pickle {
        self.raw(b"J").raw(&n.to_le_bytes())
    }

    fn ints(self, ns: &[i32]) -> Pickle {
        ns.iter().fold(self.raw(b"("), |pickle, n| pickle.int(*n)).raw(b"t")
    }

    fn global(self, module: &str, name: &str) -> Pickle {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    /// A view of a storage of `len` elements.
    fn tensor(self, class: &str, key: &str, len: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Pickle {
        let id = self.global("torch._utils", "_rebuild_tensor_v2").raw(b"((").text("storage").global("torch", class);
        let view = id.text(key).text("cpu").int(len).raw(b"tQ").int(offset).ints(shape).ints(strides);
        view.raw(b"\x89").global("collections", "OrderedDict").raw(b")RtR")
    }

    /// One entry of the dictionary.
    fn entry(self, name: &str, class: &str, key: &str, len: i32, offset: i32, view: (&[i32], &[i32])) -> Pickle {
        self.text(name).tensor(class, key, len, offset, view.0, view.1).raw(b"s")
    }

    fn end(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// A zip archive; `wide` writes every size and offset in 64 bits.
fn archive(entries: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let header = file.len() as u64;
        let (small, offset) = if wide { (u32::MAX, u32::MAX) } else { (data.len() as u32, header as u32) };
        let extra: Vec<u8> = match wide {
            true => {
                [&[1, 0, 24, 0][..], &[data.len() as u64, data.len() as u64, header].map(u64::to_le_bytes).concat()]
                    .concat()
            }
            false => Vec::new(),
        };
        file.extend(b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend((name.len() as u16).to_le_bytes());
        // Local headers pad: `FB`, five bytes.
        file.extend(9u16.to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(b"FB\x05\0ZZZZZ");
        file.extend(*data);
        directory.extend(b"PK\x01\x02\0\0\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0");
        directory.extend([small, small].map(u32::to_le_bytes).concat());
        directory.extend([name.len() as u16, extra.len() as u16, 0, 0, 0, 0, 0].map(u16::to_le_bytes).concat());
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
        directory.extend(extra);
    }
    let (start, count) = (file.len() as u64, entries.len() as u64);
    file.extend(&directory);
    let end = file.len() as u64;
    if wide {
        file.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend([count, count, directory.len() as u64, start].map(u64::to_le_bytes).concat());
        file.extend(b"PK\x06\x07\0\0\0\0");
        file.extend(end.to_le_bytes());
        file.extend(1u32.to_le_bytes());
    }
    let cut = |n: u64| if wide { u32::MAX } else { n as u32 };
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count as u16, count as u16].map(u16::to_le_bytes).concat());
    file.extend([cut(directory.len() as u64), cut(start)].map(u32::to_le_bytes).concat());
    file.extend([0, 0]);
    file
}

/// A checkpoint with this pickle and a storage `0` of 24 bytes.
fn open(pickle: &[u8]) -> layerstream::Result<Checkpoint> {
    let storage: Vec<u8> = (0..24).collect();
    let dir = directory(&[(FILE, &archive(&[("m/data.pkl", pickle), ("m/data/0", &storage)], false))]);
    Checkpoint::open(dir.path())
}

fn valid() -> Vec<u8> {
    let dict = Pickle::new().raw(b"}");
    let dict = dict.entry("a", "HalfStorage", "0", 12, 0, (&[3, 4], &[4, 1]));
    let dict = dict.entry("part", "HalfStorage", "0", 12, 4, (&[2, 4], &[4, 1]));
    let dict = dict.entry("t", "BFloat16Storage", "0", 12, 0, (&[4, 3], &[1, 4]));
    dict.entry("one", "FloatStorage", "0", 6, 5, (&[1], &[7])).text("step").int(3).raw(b"s").end()
}

#[test]
fn tensors_are_ranges_of_the_archive() {
    for wide in [false, true] {
        let storage: Vec<u8> = (0..24).collect();
        let bytes = archive(&[("x/data.pkl", &valid()), ("x/byteorder", b"little"), ("x/data/0", &storage)], wide);
        let dir = directory(&[(FILE, &bytes)]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let of = |name: &str| {
            let tensor = checkpoint.require(name).unwrap();
            let at = tensor.span.offset as usize;
            (tensor.dtype, tensor.shape.clone(), tensor.transposed, bytes[at..at + tensor.span.len as usize].to_vec())
        };
        assert_eq!(of("a"), (Dtype::F16, vec![3, 4], false, storage.clone()));
        assert_eq!(of("part"), (Dtype::F16, vec![2, 4], false, storage[8..].to_vec()));
        assert_eq!(of("t"), (Dtype::Bf16, vec![4, 3], true, storage.clone()));
        assert_eq!(of("one"), (Dtype::F32, vec![1], false, storage[20..].to_vec()));
        assert!(checkpoint.get("step").is_none());
    }
}

#[test]
fn a_file_named_directly_and_safetensors_first() {
    let storage = [0; 24];
    let bytes = archive(&[("x/data.pkl", &valid()), ("x/data/0", &storage)], false);
    let dir = directory(&[("weights.pt", &bytes), (FILE, &bytes), ("model.safetensors", &crate::vectors(&["s"]))]);
    assert!(Checkpoint::open(&dir.path().join("weights.pt")).unwrap().get("a").is_some());
    assert!(Checkpoint::open(dir.path()).unwrap().get("s").is_some());
}

#[test]
fn containers_metadata_and_parameters_are_understood() {
    let dict = Pickle::new().global("collections", "OrderedDict").raw(b")Rq\x05");
    let parameter = dict.text("p").global("torch._utils", "_rebuild_parameter").raw(b"(");
    let parameter = parameter.tensor("HalfStorage", "0", 12, 0, &[12], &[1]).raw(b"\x88");
    let parameter = parameter.global("collections", "OrderedDict").raw(b")RtRs");
    // Attributes, as a state dictionary has them, and the same tensor by another name through the memo.
    let named = parameter.raw(b"}").text("_metadata").raw(b"}sb").end();
    let tensors = parse_pickle(Path::new(FILE), &named).unwrap();
    assert_eq!((tensors.len(), tensors[0].name.as_str(), tensors[0].storage.as_str()), (1, "p", "0"));
}

#[test]
fn a_pickle_that_does_more_than_tensors_is_refused_by_name() {
    let start = || Pickle::new().raw(b"}").text("a");
    let not_run = |pickle: Pickle, parts: &[&str]| {
        refused(open(&pickle.end()), &[&[FILE, "nothing is ever run"], parts].concat());
    };
    not_run(start().global("os", "system").raw(b"(").text("true").raw(b"tRs"), &["the global `os.system`", "byte 9"]);
    not_run(start().global("builtins", "eval"), &["the global `builtins.eval`"]);
    not_run(start().text("torch").text("load").raw(b"\x93"), &["the global `torch.load`"]);
    not_run(start().global("torch._utils", "_rebuild_tensor_v2").raw(b"(tR"), &["a call (REDUCE)"]);
    not_run(start().global("torch", "FloatStorage").raw(b")R"), &["a call (REDUCE)"]);
    not_run(start().raw(b"(ios\nsystem\n"), &["the opcode INST"]);
    not_run(start().raw(b")\x81"), &["the opcode NEWOBJ"]);
    not_run(start().raw(b"\x82\x01"), &["the opcode EXT1"]);
    not_run(start().raw(b"Pid\n"), &["the opcode PERSID"]);
    not_run(start().raw(b"\xff"), &["the opcode 0xff"]);
    not_run(start().int(1).raw(b"Q"), &["a persistent id"]);
    not_run(start().int(1).raw(b")b"), &["attributes (BUILD)"]);
    not_run(start().raw(b"h\x09"), &["number 9"]);
    not_run(start().raw(b"00000"), &["finds nothing to work on"]);
    not_run(start().global(&"m".repeat(500), "\u{1b}[2J\n"), &["\\u{1b}[2J"]);
}

#[test]
fn a_pickle_that_holds_no_tensors_by_name() {
    refused(open(&Pickle::new().raw(b"}").end()), &["no tensors by name"]);
    refused(open(&Pickle::new().raw(b")").end()), &["no dictionary of tensors"]);
    refused(open(&Pickle::new().raw(b"}").0), &["ends too early"]);
    refused(open(b""), &["ends too early"]);
    let nested = Pickle::new().raw(b"}").text("state_dict").raw(b"}s").end();
    refused(open(&nested), &["`state_dict` in it is a dictionary", "torch.save"]);
    let twice = Pickle::new().raw(b"}").entry("a", "HalfStorage", "0", 1, 0, (&[1], &[1]));
    refused(open(&twice.entry("a", "HalfStorage", "0", 2, 1, (&[1], &[1])).end()), &["tensor `a`", "comes twice"]);
}

#[test]
fn tensors_that_are_not_inside_their_storage() {
    let one = |class: &str, key: &str, len: i32, offset: i32, shape: &[i32], strides: &[i32]| {
        open(&Pickle::new().raw(b"}").entry("w", class, key, len, offset, (shape, strides)).end())
    };
    refused(one("HalfStorage", "1", 12, 0, &[12], &[1]), &["tensor `w`", "storage `1`", "not in the archive"]);
    refused(one("HalfStorage", "0", 13, 0, &[12], &[1]), &["tensor `w`", "24 bytes", "13 elements of F16"]);
    refused(one("HalfStorage", "0", 12, 1, &[12], &[1]), &["tensor `w`", "[12] at 1", "12 elements"]);
    refused(one("HalfStorage", "0", 12, 0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 1]), &["tensor `w`"]);
    refused(one("HalfStorage", "0", 12, 0, &[2, 3], &[6, 2]), &["tensor `w`", "strides [6, 2]", "contiguous()"]);
    refused(one("HalfStorage", "0", 12, 0, &[3, 2, 2], &[1, 3, 6]), &["tensor `w`", "spread out"]);
    refused(one("HalfStorage", "0", 12, -1, &[1], &[1]), &["describe none"]);
    refused(one("HalfStorage", "0", 12, 0, &[-1], &[1]), &["describe none"]);
    refused(one("HalfStorage", "0", 12, 0, &[2, 6], &[1]), &["differ in length"]);
    refused(one("HalfStorage", "0", -1, 0, &[1], &[1]), &["describes no storage"]);
}

#[test]
fn files_that_are_no_archive_of_this_kind() {
    #[track_caller]
    fn with(bytes: &[u8], parts: &[&str]) {
        let dir = directory(&[(FILE, bytes)]);
        refused(Checkpoint::open(dir.path()), &[&[FILE], parts].concat());
    }
    let storage = [0; 24];
    let whole = archive(&[("m/data.pkl", &valid()), ("m/data/0", &storage)], false);
    with(b"", &["0 bytes", "not a zip archive"]);
    with(&whole[..whole.len() - 1], &["no directory at its end", "download it again"]);
    with(&whole[1..], &["not a zip archive that can be read"]);
    with(b"version https://git-lfs.github.com/spec/v1\n", &["Git LFS pointer"]);
    with(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80", &["before PyTorch 1.6", "torch.save"]);
    with(&archive(&[("m/version", b"3")], false), &["0 entries `…/data.pkl`"]);
    with(&archive(&[("m/data.pkl", b"."), ("m/data.pkl", b".")], false), &["two entries `m/data.pkl`"]);
    let big = archive(&[("m/data.pkl", &valid()), ("m/byteorder", b"big"), ("m/data/0", &storage)], false);
    with(&big, &["big-endian"]);

    let central = whole.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    let change = |at: usize, to: &[u8]| {
        let mut bytes = whole.clone();
        bytes[central + at..central + at + to.len()].copy_from_slice(to);
        bytes
    };
    with(&change(10, &[8, 0]), &["`m/data.pkl`", "compressed (method 8)"]);
    with(&change(8, &[9, 8]), &["`m/data.pkl`", "encrypted"]);
    with(&change(24, &[0xff; 4]), &["`m/data.pkl`", "64-bit"]);
    with(&change(20, &[1, 0, 0, 0]), &["`m/data.pkl`", "instead of"]);
    with(&change(42, &[0xf0, 0xff, 0, 0]), &["`m/data.pkl`", "past the entries"]);
    let second = central + 46 + "m/data.pkl".len();
    with(&change(second - central + 42, &[0; 4]), &["overlap"]);
}

fn changed(mut bytes: Vec<u8>, changes: &[(f64, u8)], keep: f64) -> Vec<u8> {
    for (at, byte) in changes {
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = *byte;
    }
    bytes.truncate((keep * bytes.len() as f64).ceil() as usize);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn any_change_to_an_archive_is_judged(
        changes in prop::collection::vec((0.0..1.0f64, any::<u8>()), 0..6),
        keep in prop_oneof![Just(1.0), 0.0..1.0f64],
        wide in any::<bool>(),
    ) {
        let whole = archive(&[("m/data.pkl", &valid()), ("m/data/0", &[7; 24])], wide);
        let bytes = changed(whole, &changes, keep);
        if let Ok(entries) = parse_zip(Path::new(FILE), &bytes) {
            let mut end = 0;
            for entry in entries {
                prop_assert!(entry.offset >= end && entry.offset + entry.len <= bytes.len() as u64);
                end = entry.offset + entry.len;
            }
        }
        let dir = directory(&[(FILE, &bytes)]);
        match Checkpoint::open(dir.path()) {
            Ok(checkpoint) => for tensor in checkpoint.tensors() {
                prop_assert!(tensor.span.offset + tensor.span.len <= bytes.len() as u64);
                prop_assert_eq!(tensor.shape.iter().product::<usize>() * tensor.dtype.size(), tensor.span.len as usize);
            },
            Err(error) => prop_assert!(error.to_string().len() < 2000),
        }
    }

    #[test]
    fn any_change_to_a_pickle_is_judged(
        changes in prop::collection::vec((0.0..1.0f64, any::<u8>()), 0..6),
        keep in prop_oneof![Just(1.0), 0.0..1.0f64],
    ) {
        if let Err(error) = parse_pickle(Path::new(FILE), &changed(valid(), &changes, keep)) {
            prop_assert!(error.to_string().len() < 2000);
        }
    }
}

/// Deep nesting, cycles, and one object many times cost what the pickle is long.
#[test]
fn a_pickle_that_grows_is_cheap() {
    let deep = Pickle::new().raw(b")").raw(&b"\x85".repeat(1_000_000)).end();
    refused(open(&deep), &["no dictionary"]);
    let cycle = Pickle::new().raw(b"}q\x00").text("self").raw(b"h\x00s").end();
    refused(open(&cycle), &["`self` in it is a dictionary"]);
    let doubling = Pickle::new().raw(b")").raw(&b"2\x86".repeat(1000)).end();
    refused(open(&doubling), &["no dictionary"]);
}

#[test]
fn a_shard_of_the_reference_checkpoints_holds_what_it_says() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/fmt_bin_tied_shared");
    let checkpoint = Checkpoint::open(&case).unwrap();
    let span = |name: &str| checkpoint.require(name).unwrap().span;
    assert_eq!(span("lm_head.weight"), span("model.embed_tokens.weight"));
    let mlp = |part: &str| span(&format!("model.layers.0.mlp.{part}_proj.weight"));
    assert_eq!(mlp("gate").offset + mlp("gate").len, mlp("up").offset);
    assert!(checkpoint.require("model.layers.1.self_attn.o_proj.weight").unwrap().transposed);
    assert_eq!(checkpoint.files()[0].len, fs::metadata(case.join(FILE)).unwrap().len());
}

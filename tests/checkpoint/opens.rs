//! What opens: single files, shards, the Hub's cache, the reference checkpoints, and in what time.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use layerstream::checkpoint::{Checkpoint, Dtype, FileId, parse_header};

use crate::{INDEX, SHARD_1, SHARD_2, directory, entry, file, index, refused, vectors};

#[test]
fn single_file_in_a_directory() {
    let header = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}   "#,
        entry("b", "BF16", "[3,2]", 8, 20),
        entry("a", "F32", "[2]", 0, 8),
        entry("empty", "I64", "[0,7]", 8, 8),
    );
    let dir = directory(&[("model.safetensors", &file(&header, 20))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let data = 8 + header.len() as u64;

    assert_eq!(checkpoint.dir(), dir.path());
    assert_eq!(checkpoint.files().len(), 1);
    assert_eq!(checkpoint.files()[0].path, dir.path().join("model.safetensors"));
    assert_eq!(checkpoint.files()[0].len, data + 20);
    assert_eq!(checkpoint.file_path(FileId(0)), dir.path().join("model.safetensors"));
    assert_eq!(checkpoint.bytes(), 20);
    let names: Vec<&str> = checkpoint.tensors().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "empty", "b"]);

    let b = checkpoint.require("b").unwrap();
    assert_eq!((b.dtype, &b.shape[..]), (Dtype::Bf16, &[3, 2][..]));
    assert_eq!((b.span.file, b.span.offset, b.span.len), (FileId(0), data + 8, 12));
    assert_eq!(checkpoint.get("empty").unwrap().span.len, 0);
    assert!(checkpoint.get("__metadata__").is_none());
}

#[test]
fn a_file_named_directly() {
    let dir = directory(&[("adapter.safetensors", &vectors(&["a"]))]);
    let checkpoint = Checkpoint::open(&dir.path().join("adapter.safetensors")).unwrap();
    assert_eq!(checkpoint.dir(), dir.path());
    assert!(checkpoint.get("a").is_some());
}

#[test]
fn shards_in_the_order_of_their_names() {
    let index = index(&[("c", SHARD_2), ("a", SHARD_1), ("b", SHARD_1)]);
    let dir = directory(&[
        (INDEX, index.as_bytes()),
        (SHARD_1, &vectors(&["b", "a"])),
        (SHARD_2, &vectors(&["c", "not in the index"])),
        ("model.safetensors", b"not looked at when there is an index"),
    ]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let order: Vec<_> = checkpoint.tensors().map(|t| (t.span.file.0, t.name.as_str())).collect();
    assert_eq!(order, [(0, "b"), (0, "a"), (1, "c"), (1, "not in the index")]);
    assert_eq!(checkpoint.file_path(FileId(1)), dir.path().join(SHARD_2));
    assert_eq!(checkpoint.bytes(), 64);
}

#[test]
fn the_cache_of_the_hub_is_a_tree_of_links() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123abcd"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let index = index(&[("a", SHARD_1), ("b", SHARD_2)]);
    for (name, blob, content) in
        [(INDEX, "aa", index.as_bytes()), (SHARD_1, "bb", &vectors(&["a"])), (SHARD_2, "cc", &vectors(&["b"]))]
    {
        fs::write(blobs.join(blob), content).unwrap();
        symlink(Path::new("../../blobs").join(blob), snapshot.join(name)).unwrap();
    }
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.file_path(FileId(1)), snapshot.join(SHARD_2), "links must not be resolved");
    assert!(Checkpoint::open(&snapshot.join(SHARD_1)).is_ok());

    let full = fs::read(blobs.join("cc")).unwrap();
    fs::write(blobs.join("cc"), &full[..full.len() - 1]).unwrap();
    let text = refused(Checkpoint::open(&snapshot), &[snapshot.join(SHARD_2).to_str().unwrap(), "1 are missing"]);
    assert!(!text.contains("blobs"), "{text}");

    fs::remove_file(blobs.join("cc")).unwrap();
    refused(Checkpoint::open(&snapshot), &[SHARD_2, "../../blobs/cc", "1 of the 2 shards", "missing"]);
    refused(Checkpoint::open(cache.path()), &["Hub's cache", "snapshots/"]);
    fs::remove_file(blobs.join("aa")).unwrap();
    refused(Checkpoint::open(&snapshot), &[INDEX, "../../blobs/aa", "does not exist"]);
}

#[test]
fn holes_and_trailing_bytes_are_harmless() {
    let header = format!("{{{},{}}}", entry("a", "U8", "[4]", 3, 7), entry("b", "U8", "[]", 64, 65));
    let dir = directory(&[("model.safetensors", &file(&header, 100))]);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().bytes(), 5);
}

#[test]
fn every_dtype_of_the_format_of_a_byte_or_more() {
    use safetensors::Dtype as Reference;
    let all = [
        (Dtype::Bool, Reference::BOOL),
        (Dtype::U8, Reference::U8),
        (Dtype::I8, Reference::I8),
        (Dtype::F8E4M3, Reference::F8_E4M3),
        (Dtype::F8E5M2, Reference::F8_E5M2),
        (Dtype::F8E4M3Fnuz, Reference::F8_E4M3FNUZ),
        (Dtype::F8E5M2Fnuz, Reference::F8_E5M2FNUZ),
        (Dtype::F8E8M0, Reference::F8_E8M0),
        (Dtype::I16, Reference::I16),
        (Dtype::U16, Reference::U16),
        (Dtype::F16, Reference::F16),
        (Dtype::Bf16, Reference::BF16),
        (Dtype::I32, Reference::I32),
        (Dtype::U32, Reference::U32),
        (Dtype::F32, Reference::F32),
        (Dtype::I64, Reference::I64),
        (Dtype::U64, Reference::U64),
        (Dtype::F64, Reference::F64),
        (Dtype::C64, Reference::C64),
    ];
    for (ours, reference) in all {
        assert_eq!(ours.to_string(), reference.to_string());
        assert_eq!(ours.size() * 8, reference.bitsize());
        let bytes = file(&format!("{{{}}}", entry("x", ours.name(), "[1]", 0, ours.size() as u64)), ours.size());
        assert_eq!(parse_header(Path::new("x"), &bytes, bytes.len() as u64).unwrap()[0].dtype, ours);
    }
}

#[test]
fn a_hundred_shards_open_in_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let mut map = Vec::new();
    for shard in 1..=100 {
        let file_name = format!("model-{shard:05}-of-00100.safetensors");
        let names: Vec<String> = (0..12).map(|i| format!("model.layers.{shard}.{i}.weight")).collect();
        let gigabyte = 1 << 30;
        let entries =
            names.iter().zip(0..).map(|(n, i)| entry(n, "U8", "[1073741824]", i * gigabyte, (i + 1) * gigabyte));
        let header = file(&format!("{{{}}}", entries.collect::<Vec<_>>().join(",")), 0);
        let path = dir.path().join(&file_name);
        fs::write(&path, &header).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(header.len() as u64 + 12 * gigabyte).unwrap();
        map.extend(names.into_iter().map(|name| (name, file_name.clone())));
    }
    let pairs: Vec<(&str, &str)> = map.iter().map(|(t, s)| (t.as_str(), s.as_str())).collect();
    fs::write(dir.path().join(INDEX), index(&pairs)).unwrap();

    let start = Instant::now();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let elapsed = start.elapsed();
    assert_eq!(checkpoint.bytes(), 1200 << 30);
    assert_eq!(checkpoint.files().len(), 100);
    println!("1200 GiB in 100 shards opened in {elapsed:?}");
    assert!(elapsed < Duration::from_millis(500), "opening took {elapsed:?}");
}

#[test]
fn reference_checkpoints_open_as_the_reference_reader_reads_them() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    let mut opened = 0;
    for case in golden.read_dir().into_iter().flatten().map(|case| case.unwrap().path()) {
        if !case.join("model.safetensors").exists() && !case.join(INDEX).exists() {
            continue;
        }
        let checkpoint = Checkpoint::open(&case).unwrap();
        for (file, id) in checkpoint.files().iter().zip(0..) {
            let bytes = fs::read(&file.path).unwrap();
            let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let ours: Vec<_> = checkpoint.tensors().filter(|t| t.span.file == FileId(id)).collect();
            assert_eq!(ours.len(), reference.len());
            for tensor in ours {
                let theirs = reference.tensor(&tensor.name).unwrap();
                let (start, len) = (tensor.span.offset as usize, tensor.span.len as usize);
                assert_eq!(tensor.shape, theirs.shape());
                assert_eq!(tensor.dtype.to_string(), theirs.dtype().to_string());
                assert_eq!(bytes[start..start + len], *theirs.data());
            }
        }
        opened += 1;
    }
    match opened {
        0 => eprintln!("SKIPPED: there are no reference checkpoints in {}", golden.display()),
        n => println!("{n} reference checkpoints"),
    }
}

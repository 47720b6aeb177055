//! Streaming as a caller sees it: the same bytes from every reader, pass after pass, and clear errors for files that are
//! missing, shorter than they should be, or cut while in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use layerstream::Error;
use layerstream::checkpoint::{FileId, Span};
use layerstream::disk::{DiskOptions, ReaderKind, Source, measure};
use layerstream::plan::Tier;
use layerstream::stream::{Conveyor, TileRead, resident_bytes, ring_floor};
use tempfile::TempDir;

const KINDS: [ReaderKind; 3] = [ReaderKind::Uring, ReaderKind::Pread, ReaderKind::Buffered];

/// Bytes in which every place looks different.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mix = |i: u64| {
        (i ^ seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    };
    (0..len as u64).map(|i| (mix(i) >> 56) as u8).collect()
}

/// A directory on the disk of the build, which the temporary directory often is not.
fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn tile(file: u32, offset: u64, len: u64) -> TileRead {
    TileRead { span: Span { file: FileId(file), offset, len }, tier: Tier::Disk }
}

fn source(files: Vec<PathBuf>) -> Source {
    Source { files, ..Source::default() }
}

fn options(reader: ReaderKind) -> DiskOptions {
    DiskOptions { reader: Some(reader), chunk_bytes: Some(128 << 10), depth: Some(6), ..DiskOptions::default() }
}

/// Streams `passes` passes and compares every tile with the bytes in `files`.
fn check(conveyor: &mut Conveyor, tiles: &[TileRead], files: &[Vec<u8>], passes: usize) {
    for (i, tile) in tiles.iter().cycle().take(tiles.len() * passes).enumerate() {
        let Span { file, offset, len } = tile.span;
        let got = conveyor.next().unwrap();
        assert!(*got == files[file.0 as usize][offset as usize..][..len as usize], "tile {i}: {tile:?}");
    }
}

/// Consecutive tiles of both files, from an unaligned start to the last byte, every third resident.
fn tiles_of(files: &[Vec<u8>], len: u64) -> Vec<TileRead> {
    let mut tiles = Vec::new();
    for (id, bytes) in files.iter().enumerate() {
        let mut offset = 3;
        while offset < bytes.len() as u64 {
            let len = len.min(bytes.len() as u64 - offset);
            tiles.push(TileRead {
                tier: if tiles.len() % 3 == 2 { Tier::Host } else { Tier::Disk },
                ..tile(id as u32, offset, len)
            });
            offset += len;
        }
    }
    tiles
}

#[test]
fn every_reader_gives_the_same_bytes() {
    let dir = directory();
    let bytes = vec![noise(5_000_001, 1), noise(1_234_567, 2)];
    let files: Vec<_> = bytes.iter().enumerate().map(|(i, b)| file(dir.path(), &format!("{i}"), b)).collect();
    for tile_len in [100_000, 777_777] {
        let tiles = tiles_of(&bytes, tile_len);
        for kind in KINDS {
            let mut conveyor = Conveyor::start(&source(files.clone()), tiles.clone(), 2 << 20, &options(kind)).unwrap();
            check(&mut conveyor, &tiles, &bytes, 3);
            let stats = conveyor.stats();
            assert_eq!(stats.drives[0].reader, kind);
            assert_eq!(stats.ring_bytes + stats.resident_bytes, resident_bytes(&tiles, 2 << 20, 4096));
        }
    }
}

#[test]
fn memory_file_systems_work_too() {
    if !Path::new("/dev/shm").is_dir() {
        return;
    }
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let bytes = vec![noise(3_000_001, 3)];
    let files = vec![file(dir.path(), "0", &bytes[0])];
    let tiles = tiles_of(&bytes, 300_000);
    let mut conveyor = Conveyor::start(&source(files), tiles.clone(), 2 << 20, &DiskOptions::default()).unwrap();
    check(&mut conveyor, &tiles, &bytes, 2);
}

/// A file of the kernel that refuses direct reads: reading falls back to the page cache, unless told not to.
#[test]
fn refused_direct_reads_fall_back_to_buffered_ones() {
    let path = PathBuf::from("/sys/kernel/btf/vmlinux");
    let Ok(bytes) = fs::read(&path) else { return };
    let bytes = vec![bytes];
    let tiles = tiles_of(&bytes, 1_000_000);
    let source = source(vec![path]);
    let mut conveyor = Conveyor::start(&source, tiles.clone(), 4 << 20, &DiskOptions::default()).unwrap();
    check(&mut conveyor, &tiles, &bytes, 2);
    assert_eq!(conveyor.stats().drives[0].reader, ReaderKind::Buffered);
    for kind in [ReaderKind::Uring, ReaderKind::Pread] {
        let error = Conveyor::start(&source, tiles.clone(), 4 << 20, &options(kind)).err().unwrap().to_string();
        assert!(error.contains(&format!("reader `{kind}` cannot run")) && error.contains("vmlinux"), "{error}");
    }
}

#[test]
fn replicas_are_read_in_parallel_and_give_the_same_bytes() {
    let (here, there) = (directory(), directory());
    let bytes = vec![noise(4_000_000, 4), noise(1_000_001, 5)];
    let on = |dir: &TempDir| -> Vec<_> {
        bytes.iter().enumerate().map(|(i, b)| file(dir.path(), &format!("{i}"), b)).collect()
    };
    let source = Source { files: on(&here), replicas: vec![on(&there)], checksums: None };
    let tiles = tiles_of(&bytes, 250_000);
    for kind in KINDS {
        let mut conveyor = Conveyor::start(&source, tiles.clone(), 4 << 20, &options(kind)).unwrap();
        check(&mut conveyor, &tiles, &bytes, 6);
        let stats = conveyor.stats();
        assert_eq!(stats.drives.len(), 2);
        assert_eq!(stats.drives.iter().map(|drive| drive.bytes_read).sum::<u64>(), stats.bytes_read);
    }
}

#[test]
fn replica_of_another_length_is_refused() {
    let dir = directory();
    let files = vec![file(dir.path(), "a", &noise(10_000, 6))];
    let replicas = vec![vec![file(dir.path(), "b", &noise(9_999, 6))]];
    let error =
        Conveyor::start(&Source { files, replicas, checksums: None }, vec![tile(0, 0, 10)], 0, &DiskOptions::default());
    let text = error.err().unwrap().to_string();
    assert!(text.contains("9999") && text.contains("10000"), "{text}");
}

/// Dropping the tile that is held and starting over gives the first tile again, at every point of a pass.
#[test]
fn rewind_starts_over() {
    let dir = directory();
    let bytes = vec![noise(3_000_000, 7)];
    let files = vec![file(dir.path(), "0", &bytes[0])];
    let tiles = tiles_of(&bytes, 500_000);
    for kind in KINDS {
        let mut conveyor = Conveyor::start(&source(files.clone()), tiles.clone(), 2 << 20, &options(kind)).unwrap();
        for taken in 0..=tiles.len() {
            check(&mut conveyor, &tiles[..taken], &bytes, 1);
            conveyor.rewind().unwrap();
        }
        check(&mut conveyor, &tiles, &bytes, 2);
    }
}

#[test]
fn file_cut_while_in_use_is_an_error_that_names_it() {
    let dir = directory();
    let bytes = vec![noise(16 << 20, 8)];
    let files = vec![file(dir.path(), "0", &bytes[0])];
    let tiles: Vec<_> = (0..16).map(|i| tile(0, i << 20, 1 << 20)).collect();
    for kind in KINDS {
        fs::write(&files[0], &bytes[0]).unwrap();
        let mut conveyor = Conveyor::start(&source(files.clone()), tiles.clone(), 2 << 20, &options(kind)).unwrap();
        check(&mut conveyor, &tiles[..2], &bytes, 1);
        fs::OpenOptions::new().write(true).open(&files[0]).unwrap().set_len((5 << 20) + 1234).unwrap();
        let error = (0..tiles.len()).find_map(|_| conveyor.next().err()).expect("the end of the file is gone");
        let Error::Read { path, offset, .. } = &error else { panic!("{error}") };
        assert_eq!(path, &files[0]);
        assert!(*offset + (128 << 10) > 5 << 20, "{error}");
        assert!(error.to_string().contains("cut while in use"), "{error}");
    }
}

#[test]
fn ring_below_the_floor_names_the_floor() {
    let dir = directory();
    let files = vec![file(dir.path(), "0", &noise(8 << 20, 9))];
    let tiles = vec![tile(0, 100, 5 << 20), tile(0, 4096, 4096)];
    let floor = ring_floor(&tiles, 4096);
    assert_eq!(floor, (5 << 20) + 4096);
    let error = Conveyor::start(&source(files.clone()), tiles.clone(), 4 << 20, &DiskOptions::default()).err().unwrap();
    assert!(matches!(&error, Error::Budget(text) if text.contains(&floor.to_string())), "{error}");
    assert!(Conveyor::start(&source(files), tiles, floor, &DiskOptions::default()).is_ok());
}

#[test]
fn impossible_requests_are_refused() {
    let dir = directory();
    let path = file(dir.path(), "0", &noise(10_000, 10));
    let start = |files: Vec<PathBuf>, tiles: Vec<TileRead>, options: DiskOptions| {
        Conveyor::start(&source(files), tiles, 2 << 20, &options).err().unwrap().to_string()
    };
    let default = DiskOptions::default;
    let gone = start(vec![dir.path().join("gone")], vec![tile(0, 0, 1)], default());
    assert!(gone.contains("gone") && gone.contains("No such file"), "{gone}");
    let folder = start(vec![dir.path().into()], vec![tile(0, 0, 1)], default());
    assert!(folder.contains("not a regular file"), "{folder}");
    let beyond = start(vec![path.clone()], vec![tile(0, 9_000, 1_001)], default());
    assert!(beyond.contains("10000 bytes long") && beyond.contains("offset 9000"), "{beyond}");
    let overflow = start(vec![path.clone()], vec![tile(0, u64::MAX, 2)], default());
    assert!(overflow.contains("10000 bytes long"), "{overflow}");
    assert!(start(vec![path.clone()], vec![tile(1, 0, 1)], default()).contains("file 1"));
    assert!(start(vec![path.clone()], vec![], default()).contains("no tiles"));
    let chunk = DiskOptions { chunk_bytes: Some(0), ..default() };
    assert!(start(vec![path.clone()], vec![tile(0, 0, 1)], chunk).contains("chunk of 0 bytes"));
    let depth = DiskOptions { depth: Some(0), ..default() };
    assert!(start(vec![path], vec![tile(0, 0, 1)], depth).contains("queue depth of 0"));
    assert!("mmap".parse::<ReaderKind>().unwrap_err().to_string().contains("uring, pread or buffered"));
}

#[test]
fn reader_names_round_trip() {
    for kind in KINDS {
        assert_eq!(kind.to_string().parse::<ReaderKind>().unwrap(), kind);
    }
}

#[test]
fn measuring_gives_a_speed() {
    let dir = directory();
    let large = file(dir.path(), "0", &noise(4 << 20, 11));
    let small = file(dir.path(), "1", &noise(100, 12));
    for kind in KINDS {
        for files in [vec![large.clone(), small.clone()], vec![small.clone()]] {
            let speed = measure(&source(files), &options(kind), Duration::from_millis(20)).unwrap();
            assert!(speed.is_finite() && speed > 0.0);
        }
    }
    let empty = file(dir.path(), "2", &[]);
    assert!(measure(&source(vec![empty]), &DiskOptions::default(), Duration::from_millis(1)).is_err());
}

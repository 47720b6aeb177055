//! The file format of SentencePiece: a protocol buffer (`ModelProto` of sentencepiece_model.proto), of which the few
//! fields that change what is encoded are read, by a reader that borrows from the file and allocates nothing else than
//! the list of pieces.
//!
//! A generated reader (prost) is declined: it needs a build step or a copy of its output, for some ten fields.

use std::path::Path;

use crate::{Error, Result};

use super::{Kind, Model, Piece, Spec};

/// A field's value.
enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// Reads `tokenizer.model`.
///
/// # Errors
/// If it is damaged, or has a part that would change the ids and is not implemented.
pub fn read(path: &Path, bytes: &[u8]) -> Result<Spec> {
    let damaged = |problem: String| Error::Text {
        path: path.to_path_buf(),
        problem: format!("not a SentencePiece model: {problem}; download it again"),
    };
    let spec = spec(bytes).map_err(damaged)?;
    let unsupported = |what: String| Error::Unsupported { path: path.to_path_buf(), what };
    match spec {
        Ok(spec) => Ok(spec),
        Err(what) => Err(unsupported(what)),
    }
}

/// The outer error is damage, the inner one what is not supported.
fn spec(bytes: &[u8]) -> Result<Result<Spec, String>, String> {
    let mut spec = Spec::default();
    let mut model_type = 1;
    let mut unsupported = None;
    let mut rest = bytes;
    while let Some((number, value)) = field(&mut rest)? {
        match (number, value) {
            (1, Value::Bytes(bytes)) => {
                let piece = piece(bytes).map_err(|e| format!("piece {}: {e}", spec.pieces.len()))?;
                spec.pieces.push(piece);
            }
            (2, Value::Bytes(mut trainer)) => {
                while let Some((number, value)) = field(&mut trainer)? {
                    match (number, value) {
                        (3, Value::Varint(kind)) => model_type = kind,
                        (24, Value::Varint(1)) => unsupported = Some("treat_whitespace_as_suffix"),
                        (35, Value::Varint(flag)) => spec.byte_fallback = flag != 0,
                        (44, Value::Bytes(bytes)) => spec.unknown_surface = text(bytes)?.to_owned(),
                        _ => {}
                    }
                }
            }
            (3, Value::Bytes(mut normalizer)) => {
                while let Some((number, value)) = field(&mut normalizer)? {
                    match (number, value) {
                        (2, Value::Bytes(bytes)) => spec.charsmap = bytes.to_vec(),
                        (3, Value::Varint(flag)) => spec.dummy_prefix = flag != 0,
                        (4, Value::Varint(flag)) => spec.remove_extra_spaces = flag != 0,
                        (5, Value::Varint(flag)) => spec.escape_spaces = flag != 0,
                        _ => {}
                    }
                }
            }
            (5, Value::Bytes(mut denormalizer)) => {
                while let Some((number, value)) = field(&mut denormalizer)? {
                    if let (2, Value::Bytes([_, ..])) = (number, value) {
                        unsupported = Some("a denormalizer");
                    }
                }
            }
            _ => {}
        }
    }
    spec.model = match model_type {
        1 => Model::Unigram,
        2 => Model::Bpe,
        _ => return Ok(Err(format!("the SentencePiece model type {model_type} (1 is unigram, 2 is BPE)"))),
    };
    Ok(unsupported.map_or(Ok(spec), |what| Err(format!("a SentencePiece model with {what}"))))
}

fn piece(mut bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    while let Some((number, value)) = field(&mut bytes)? {
        match (number, value) {
            (1, Value::Bytes(bytes)) => piece.text = text(bytes)?.to_owned(),
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(kind)) => piece.kind = Kind::new(kind).ok_or_else(|| format!("its type is {kind}"))?,
            _ => {}
        }
    }
    Ok(piece)
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a text in it is not UTF-8".to_owned())
}

/// Takes the number and the value of the next field; `None` at the end.
fn field<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u64, Value<'a>)>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Value::Fixed64)?,
        2 => {
            let len = varint(bytes)?;
            Value::Bytes(take(bytes, len)?)
        }
        5 => Value::Fixed32(u32::from_le_bytes(take(bytes, 4)?.try_into().expect("four bytes"))),
        wire => return Err(format!("a field has the wire type {wire}")),
    };
    Ok(Some((key >> 3, value)))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("a number in it has more than ten bytes".into())
}

fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Result<&'a [u8], String> {
    let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len());
    let (taken, rest) = bytes.split_at(len.ok_or("it ends in the middle of a field")?);
    *bytes = rest;
    Ok(taken)
}

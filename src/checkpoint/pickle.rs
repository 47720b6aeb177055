//! The pickle of a `torch.save` archive: a program for a small stack machine that builds a dictionary from names to tensors
//! (opcodes as in CPython's `pickletools`, protocols 2 to 5). The machine here can build tensors, and the containers they
//! come in, and nothing else. Names of Python objects are compared with a list and looked up nowhere; an opcode or a name
//! that is not on the list is refused by name.
//!
//! General readers of pickles (`serde-pickle`, `pickled`) are not used: they know neither persistent ids, which is how
//! storages are named, nor calls of `_rebuild_tensor_v2`, which is how tensors are made.
//!
//! Containers lie in one list and refer to each other by number, so that cycles and depth cost nothing. Every opcode
//! makes at most one container, out of what is on the stack, so memory is bounded by a multiple of the pickle's length.

use std::collections::HashMap;
use std::path::Path;

use super::Dtype;
use super::words::{checkpoint_error, excerpt, tensor_error};
use crate::error::{Error, Result};

/// A tensor as a pickle describes it: a view of a storage.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickledTensor {
    pub name: String,
    pub dtype: Dtype,
    /// The name of the storage: of the archive's entry `data/<storage>`.
    pub storage: String,
    /// Elements in the storage.
    pub storage_len: u64,
    /// Elements before the first.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// In elements.
    pub strides: Vec<u64>,
}

/// Interprets a pickle that holds a dictionary from names to tensors, in its order; entries that are no tensors are left
/// out. `path` is for errors only. Public for the fuzzer.
///
/// # Errors
/// [`Error::Checkpoint`] and [`Error::Tensor`]: an opcode or a name that is not needed for tensors (both are named, with
/// the place), an end in the middle, something other than such a dictionary, sizes that are no sizes.
#[doc(hidden)]
pub fn parse_pickle(path: &Path, bytes: &[u8]) -> Result<Vec<PickledTensor>> {
    let mut machine = Machine { path, bytes, at: 0, stack: Vec::new(), memo: HashMap::new(), nodes: Vec::new() };
    while !machine.step()? {}
    machine.result()
}

/// More dimensions than any weight has.
const MAX_DIMENSIONS: usize = 8;

/// A value on the stack. Whatever has parts lies in [`Machine::nodes`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value<'a> {
    Mark,
    None,
    Bool,
    Int(i64),
    Text(&'a str),
    /// A number or bytes that no tensor is made of.
    Other,
    Name(Name),
    Node(u32),
}

/// The Python objects that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Name {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Storage(Dtype),
}

impl Name {
    fn of(module: &str, name: &str) -> Option<Name> {
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Name::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Name::RebuildParameter,
            ("collections", "OrderedDict") => Name::OrderedDict,
            ("torch", "FloatStorage") => Name::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Name::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Name::Storage(Dtype::Bf16),
            ("torch", "DoubleStorage") => Name::Storage(Dtype::F64),
            ("torch", "LongStorage") => Name::Storage(Dtype::I64),
            ("torch", "IntStorage") => Name::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Name::Storage(Dtype::I16),
            ("torch", "CharStorage") => Name::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Name::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Name::Storage(Dtype::Bool),
            _ => return None,
        })
    }
}

#[derive(Clone, Debug)]
enum Node<'a> {
    Tuple(Vec<Value<'a>>),
    List,
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage {
        dtype: Dtype,
        key: &'a str,
        len: u64,
    },
    /// A view of the storage with this number.
    Tensor {
        storage: u32,
        offset: u64,
        shape: Vec<u64>,
        strides: Vec<u64>,
    },
}

struct Machine<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
    stack: Vec<Value<'a>>,
    memo: HashMap<u32, Value<'a>>,
    nodes: Vec<Node<'a>>,
}

impl<'a> Machine<'a> {
    /// One opcode; true when it was the last.
    fn step(&mut self) -> Result<bool> {
        let place = self.at;
        let [op] = self.take()?;
        match op {
            // PROTO, FRAME: what they announce is checked by what follows.
            0x80 => _ = self.take::<1>()?,
            0x95 => _ = self.take::<8>()?,
            b'.' => return Ok(true),
            b'(' => self.stack.push(Value::Mark),
            b'0' => _ = self.pop()?,
            b'1' => _ = self.pop_mark()?,
            b'2' => {
                let top = self.peek()?;
                self.stack.push(top);
            }
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'K' => {
                let [n] = self.take()?;
                self.stack.push(Value::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(n.into()));
            }
            b'J' => {
                let n = i32::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(n.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                self.take::<8>()?;
                self.stack.push(Value::Other);
            }
            0x8c => {
                let [len] = self.take()?;
                self.text(len.into())?;
            }
            b'X' => {
                let len = u32::from_le_bytes(self.take()?);
                self.text(len.into())?;
            }
            0x8d => {
                let len = u64::from_le_bytes(self.take()?);
                self.text(len)?;
            }
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => {
                let count = usize::from(op - 0x84);
                let Some(first) = self.stack.len().checked_sub(count) else { return Err(self.empty()) };
                let parts = self.stack.split_off(first);
                self.push(Node::Tuple(parts));
            }
            b't' => {
                let parts = self.pop_mark()?;
                self.push(Node::Tuple(parts));
            }
            // What lists hold is never asked for: shapes and arguments come as tuples.
            b']' => self.push(Node::List),
            b'a' => _ = self.pop()?,
            b'e' => _ = self.pop_mark()?,
            b'l' => {
                self.pop_mark()?;
                self.push(Node::List);
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let parts = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()));
                self.set_items(&parts)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let parts = self.pop_mark()?;
                self.set_items(&parts)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(place, module, name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.name(place, module, name)?,
                _ => return Err(self.refuse(place, "a global (STACK_GLOBAL) whose name is no text")),
            },
            b'R' => self.reduce(place)?,
            b'b' => self.build(place)?,
            b'Q' => self.storage(place)?,
            b'h' => {
                let [key] = self.take()?;
                self.get(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.take()?);
                self.get(key)?;
            }
            b'q' => {
                let [key] = self.take()?;
                self.put(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.take()?);
                self.put(key)?;
            }
            0x94 => self.put(self.memo.len() as u32)?,
            _ => return Err(self.refuse(place, &format!("the opcode {}", opcode(op)))),
        }
        Ok(false)
    }

    /// What STOP leaves: a dictionary from names to tensors.
    fn result(&mut self) -> Result<Vec<PickledTensor>> {
        let top = self.pop()?;
        let Some(Node::Dict(entries)) = self.node(top) else {
            return Err(checkpoint_error(self.path, "its pickle holds no dictionary of tensors"));
        };
        let mut tensors = Vec::new();
        for (key, value) in entries {
            let (Value::Text(name), Some(Node::Tensor { storage, offset, shape, strides })) = (*key, self.node(*value))
            else {
                continue;
            };
            let Node::Storage { dtype, key, len } = self.nodes[*storage as usize] else {
                unreachable!("tensors are made of storages")
            };
            tensors.push(PickledTensor {
                name: name.into(),
                dtype,
                storage: key.into(),
                storage_len: len,
                offset: *offset,
                shape: shape.clone(),
                strides: strides.clone(),
            });
        }
        if tensors.is_empty() {
            let nested = entries.iter().find(|(_, value)| matches!(self.node(*value), Some(Node::Dict(_))));
            let hint = match nested {
                Some((Value::Text(name), _)) => {
                    format!("; `{}` in it is a dictionary: save that one by itself, with torch.save", excerpt(name))
                }
                _ => String::new(),
            };
            return Err(checkpoint_error(self.path, format!("its pickle holds no tensors by name{hint}")));
        }
        let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(tensor_error(self.path, pair[0], "comes twice in the pickle")),
            None => Ok(tensors),
        }
    }

    /// A call: of the maker of a tensor, of a parameter (which is its tensor), or of an empty dictionary.
    fn reduce(&mut self, place: usize) -> Result<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Some(Node::Tuple(arguments)) = self.node(arguments) else {
            return Err(self.refuse(place, "a call (REDUCE) without a tuple of arguments"));
        };
        match (callee, arguments.as_slice()) {
            (Value::Name(Name::OrderedDict), []) => self.push(Node::Dict(Vec::new())),
            (Value::Name(Name::RebuildParameter), &[tensor, ..]) => match self.node(tensor) {
                Some(Node::Tensor { .. }) => self.stack.push(tensor),
                _ => return Err(self.refuse(place, "a parameter that is made of no tensor")),
            },
            (Value::Name(Name::RebuildTensor), &[Value::Node(storage), Value::Int(offset), shape, strides, ..]) => {
                let is_storage = matches!(self.nodes[storage as usize], Node::Storage { .. });
                let (shape, strides) = (self.sizes(shape), self.sizes(strides));
                let (true, Ok(offset), Some(shape), Some(strides)) =
                    (is_storage, u64::try_from(offset), shape, strides)
                else {
                    return Err(self.refuse(place, "a tensor with arguments that describe none"));
                };
                if shape.len() != strides.len() {
                    return Err(self.refuse(place, "a tensor whose shape and strides differ in length"));
                }
                self.push(Node::Tensor { storage, offset, shape, strides });
            }
            _ => return Err(self.refuse(place, "a call (REDUCE) that makes no tensor")),
        }
        Ok(())
    }

    /// Attributes set on a container (`_metadata` of a state dictionary) are left out; anything else has none.
    fn build(&mut self, place: usize) -> Result<()> {
        self.pop()?;
        let top = self.peek()?;
        match self.node(top) {
            Some(Node::Dict(_) | Node::Tensor { .. }) => Ok(()),
            _ => Err(self.refuse(place, "attributes (BUILD) for something that has none")),
        }
    }

    /// A persistent id: `('storage', class, key, device, elements)`.
    fn storage(&mut self, place: usize) -> Result<()> {
        let id = self.pop()?;
        let parts = match self.node(id) {
            Some(Node::Tuple(parts)) => parts.as_slice(),
            _ => &[],
        };
        match *parts {
            [Value::Text("storage"), Value::Name(Name::Storage(dtype)), Value::Text(key), _, Value::Int(len)]
                if len >= 0 =>
            {
                self.push(Node::Storage { dtype, key, len: len as u64 });
                Ok(())
            }
            _ => Err(self.refuse(place, "a persistent id (BINPERSID) that describes no storage")),
        }
    }

    fn name(&mut self, place: usize, module: &str, name: &str) -> Result<()> {
        let Some(known) = Name::of(module, name) else {
            let what = format!("the global `{}.{}`", excerpt(module), excerpt(name));
            return Err(self.refuse(place, &what));
        };
        self.stack.push(Value::Name(known));
        Ok(())
    }

    fn set_items(&mut self, parts: &[Value<'a>]) -> Result<()> {
        let top = self.peek()?;
        let (pairs, rest) = parts.as_chunks::<2>();
        match top {
            Value::Node(node) if rest.is_empty() => match &mut self.nodes[node as usize] {
                Node::Dict(entries) => {
                    entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                    Ok(())
                }
                _ => Err(self.refuse(self.at - 1, "entries for something that is no dictionary")),
            },
            _ => Err(self.refuse(self.at - 1, "entries for something that is no dictionary")),
        }
    }

    /// A tuple of sizes.
    fn sizes(&self, value: Value<'a>) -> Option<Vec<u64>> {
        let Some(Node::Tuple(parts)) = self.node(value) else { return None };
        // Weights have up to five.
        if parts.len() > MAX_DIMENSIONS {
            return None;
        }
        let size = |part: &Value| match part {
            Value::Int(size) => u64::try_from(*size).ok(),
            _ => None,
        };
        parts.iter().map(size).collect()
    }

    /// LONG1: a whole number of up to eight bytes; longer ones are kept as something that is no size.
    fn long(&mut self) -> Result<()> {
        let [len] = self.take()?;
        let bytes = self.slice(len.into())?;
        let negative = bytes.last().is_some_and(|top| top & 0x80 != 0);
        let value = if bytes.len() > 8 {
            Value::Other
        } else {
            let mut wide = if negative { [0xff; 8] } else { [0; 8] };
            wide[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        };
        self.stack.push(value);
        Ok(())
    }

    fn text(&mut self, len: u64) -> Result<()> {
        let bytes = self.slice(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.refuse(self.at, "a text that is not UTF-8"))?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn get(&mut self, key: u32) -> Result<()> {
        match self.memo.get(&key) {
            Some(value) => self.stack.push(*value),
            None => return Err(self.refuse(self.at, &format!("a use of number {key}, which was not kept"))),
        }
        Ok(())
    }

    fn put(&mut self, key: u32) -> Result<()> {
        let top = self.peek()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) {
        // A node takes at least one byte of a pickle of at most 100 MB.
        self.stack.push(Value::Node(self.nodes.len() as u32));
        self.nodes.push(node);
    }

    fn node(&self, value: Value<'a>) -> Option<&Node<'a>> {
        match value {
            Value::Node(node) => Some(&self.nodes[node as usize]),
            _ => None,
        }
    }

    fn peek(&self) -> Result<Value<'a>> {
        match self.stack.last() {
            Some(Value::Mark) | None => Err(self.empty()),
            Some(top) => Ok(*top),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        let top = self.peek()?;
        self.stack.pop();
        Ok(top)
    }

    /// All values above the topmost mark, which goes too.
    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>> {
        let mark = self.stack.iter().rposition(|value| *value == Value::Mark).ok_or_else(|| self.empty())?;
        let values = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(values)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.slice(N as u64)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    fn slice(&mut self, len: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let bytes = end.and_then(|end| self.bytes.get(self.at..end));
        let bytes = bytes.ok_or_else(|| checkpoint_error(self.path, "its pickle ends too early: truncated"))?;
        self.at += bytes.len();
        Ok(bytes)
    }

    /// Text up to the end of the line, which goes too.
    fn line(&mut self) -> Result<&'a str> {
        // Names are short: a line without an end is not searched to the end of the file again and again.
        let window = &self.bytes[self.at..self.bytes.len().min(self.at + 1000)];
        let end = window.iter().position(|byte| *byte == b'\n');
        let text = end.and_then(|end| std::str::from_utf8(&window[..end]).ok());
        let text = text.ok_or_else(|| self.refuse(self.at, "a global (GLOBAL) without a name"))?;
        self.at += text.len() + 1;
        Ok(text)
    }

    fn empty(&self) -> Error {
        self.refuse(self.at.saturating_sub(1), "an opcode that finds nothing to work on")
    }

    fn refuse(&self, place: usize, what: &str) -> Error {
        let problem = format!(
            "its pickle contains {what} (byte {place} of it), which no checkpoint needs: only tensors are loaded, and nothing \
             is ever run; save the weights alone, with torch.save(model.state_dict(), …), or as safetensors"
        );
        checkpoint_error(self.path, problem)
    }
}

/// An opcode's name in `pickletools`, for those that are refused.
fn opcode(op: u8) -> String {
    let name = match op {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'g' => "GET",
        b'p' => "PUT",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("0x{op:02x}"),
    };
    name.into()
}

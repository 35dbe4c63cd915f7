//! The pickle of a state dict, read without running it.
//!
//! A pickle is a program for a stack machine that may call any function of Python. This machine knows the
//! opcodes that `torch.save` writes for a dict of tensors (protocol 2) and the few names such a dict needs;
//! whatever else a file holds is refused by name.

mod cursor;
mod value;

use std::collections::{BTreeMap, HashMap};

use safetensors::Dtype;

use super::Result;
use cursor::Cursor;
use value::{Global, Value, opcode_name};

/// Opcodes that are executed at most. Each makes one value at most, so that this bounds the stack, the memo and every
/// table of the machine, however deep values hold each other. The real VAE's pickle has 9 thousand.
const MAX_OPCODES: usize = 1 << 18;
/// Dimensions of a tensor that are accepted at most.
const MAX_RANK: usize = 8;
/// Bytes of a storage's key that are accepted at most.
const MAX_KEY: usize = 64;

/// A tensor of the dict: the arguments of `torch._utils._rebuild_tensor_v2`, not checked against the storage yet.
#[derive(Debug)]
pub(super) struct Rebuilt {
    pub(super) name: String,
    pub(super) storage: Storage,
    /// Elements of the storage before the first.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A storage: the archive's entry `data/KEY`.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: Dtype,
    pub(super) count: usize,
}

/// The tensors of the dict that the pickle describes, in the order of their names.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Rebuilt>> {
    let mut machine = Machine::new(bytes);
    for _ in 0..MAX_OPCODES {
        let (at, opcode) = (machine.pickle.at(), machine.pickle.byte()?);
        if opcode == b'.' {
            return machine.finish();
        }
        machine.step(opcode).map_err(|error| format!("byte {at}: {error}"))?;
    }
    bail!("expected at most {MAX_OPCODES} opcodes, found more");
}

struct Machine<'a> {
    pickle: Cursor<'a>,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    texts: Vec<String>,
    tuples: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<Rebuilt>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            pickle: Cursor::new(bytes),
            stack: Vec::new(),
            memo: HashMap::new(),
            texts: Vec::new(),
            tuples: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => match self.pickle.byte()? {
                2 => {}
                other => bail!("expected pickle protocol 2, found {other}"),
            },
            b'(' => self.stack.push(Value::Mark),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'J' | b'K' | b'M' | 0x8a => self.integer(opcode)?,
            b'X' => {
                let length = u32::from_le_bytes(self.pickle.array()?);
                let text = self.pickle.text(length as usize)?.to_owned();
                self.texts.push(text);
                self.stack.push(Value::Text(self.texts.len() - 1));
            }
            b')' | 0x85..=0x87 | b't' => self.tuple(opcode)?,
            b'}' => self.push_dict(),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            b'q' | b'r' | b'h' | b'j' => self.memo(opcode)?,
            b'c' => {
                let (module, name) = (self.pickle.line()?, self.pickle.line()?);
                let global = Global::named(module, name)?;
                self.stack.push(Value::Global(global));
            }
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => bail!("opcode {} is not one that tensors need: refused", opcode_name(other)),
        }
        Ok(())
    }

    /// BININT, BININT1, BININT2 and LONG1.
    fn integer(&mut self, opcode: u8) -> Result<()> {
        let int = match opcode {
            b'J' => i32::from_le_bytes(self.pickle.array()?).into(),
            b'K' => self.pickle.byte()?.into(),
            b'M' => u16::from_le_bytes(self.pickle.array()?).into(),
            _ => self.long()?,
        };
        self.stack.push(Value::Int(int));
        Ok(())
    }

    /// EMPTY_TUPLE, TUPLE1 to TUPLE3 and TUPLE.
    fn tuple(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b')' => Vec::new(),
            b't' => self.pop_to_mark()?,
            _ => {
                let n = usize::from(opcode - 0x84);
                let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                items.reverse();
                items
            }
        };
        self.tuples.push(items);
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
        Ok(())
    }

    /// BINPUT, LONG_BINPUT, BINGET and LONG_BINGET.
    fn memo(&mut self, opcode: u8) -> Result<()> {
        let slot = match opcode {
            b'q' | b'h' => self.pickle.byte()?.into(),
            _ => u32::from_le_bytes(self.pickle.array()?),
        };
        if matches!(opcode, b'q' | b'r') { self.remember(slot) } else { self.recall(slot) }
    }

    /// The dict on top of the stack, as tensors.
    fn finish(mut self) -> Result<Vec<Rebuilt>> {
        let Value::Dict(dict) = self.pop()? else {
            bail!("expected a dict of tensors at the top");
        };
        let mut named = BTreeMap::new();
        for (key, value) in std::mem::take(&mut self.dicts[dict]) {
            let Value::Text(key) = key else { bail!("expected names as keys of the dict, found {key:?}") };
            let name = &self.texts[key];
            let Value::Tensor(tensor) = value else {
                bail!("{name}: expected a tensor, found {}: a bare state dict is wanted", value.kind());
            };
            ensure!(named.insert(name.clone(), tensor).is_none(), "{name}: twice in the dict");
        }
        let rebuilt = |(name, index): (String, usize)| {
            let Rebuilt { storage, offset, shape, strides, .. } = &self.tensors[index];
            let (storage, shape, strides) = (storage.clone(), shape.clone(), strides.clone());
            Rebuilt { name, storage, offset: *offset, shape, strides }
        };
        Ok(named.into_iter().map(rebuilt).collect())
    }

    fn long(&mut self) -> Result<i64> {
        let length = self.pickle.byte()?;
        ensure!(length <= 8, "expected integers of 8 bytes at most, found {length}");
        let bytes = self.pickle.take(length.into())?;
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut int = [sign; 8];
        int[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(int))
    }

    /// `("storage", type, key, device, elements)`.
    fn persistent(&mut self) -> Result<()> {
        let items = self.pop_tuple()?;
        let [
            Value::Text(tag),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            count,
        ] = items[..]
        else {
            bail!("expected a persistent id (storage, type, key, device, elements)");
        };
        ensure!(
            self.texts[tag] == "storage",
            "expected a persistent id of a storage, found {:?}",
            self.texts[tag]
        );
        let key = &self.texts[key];
        // torch counts storages; a long key named a thousand times would be a thousand copies.
        ensure!(
            key.len() <= MAX_KEY,
            "expected a storage key of at most {MAX_KEY} bytes, found {}",
            key.len()
        );
        let storage = Storage { key: key.clone(), dtype, count: size(count)? };
        self.storages.push(storage);
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    fn reduce(&mut self) -> Result<()> {
        let args = self.pop_tuple()?;
        match self.pop()? {
            Value::Global(Global::OrderedDict) => {
                ensure!(args.is_empty(), "expected OrderedDict(), found {} arguments", args.len());
                self.push_dict();
            }
            Value::Global(Global::RebuildTensor) => {
                let [Value::Storage(storage), offset, Value::Tuple(shape), Value::Tuple(strides), _, _] =
                    args[..]
                else {
                    bail!(
                        "expected _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks), \
                         found {} arguments",
                        args.len()
                    );
                };
                let tensor = Rebuilt {
                    name: String::new(),
                    storage: self.storages[storage].clone(),
                    offset: size(offset)?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                };
                ensure!(
                    tensor.shape.len() == tensor.strides.len() && tensor.shape.len() <= MAX_RANK,
                    "expected as many strides as sizes, at most {MAX_RANK}, found {} and {}",
                    tensor.strides.len(),
                    tensor.shape.len()
                );
                self.tensors.push(tensor);
                self.stack.push(Value::Tensor(self.tensors.len() - 1));
            }
            other => bail!("a call of {}: refused", other.kind()),
        }
        Ok(())
    }

    /// Attributes of a dict (the `_metadata` of a module's state dict), ignored.
    fn build(&mut self) -> Result<()> {
        let attributes = self.pop()?;
        match (self.stack.last(), attributes) {
            (Some(Value::Dict(_)), Value::Dict(_)) => Ok(()),
            (Some(object), state) => {
                bail!("attributes {} of {}: refused", state.kind(), object.kind())
            }
            (None, _) => bail!("the stack is empty"),
        }
    }

    fn set_items(&mut self, items: &[Value]) -> Result<()> {
        let Some(Value::Dict(dict)) = self.stack.last() else { bail!("expected a dict to put items into") };
        let (pairs, rest) = items.as_chunks::<2>();
        ensure!(rest.is_empty(), "expected keys and values, found {} items", items.len());
        self.dicts[*dict].extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn sizes(&self, tuple: usize) -> Result<Vec<usize>> {
        self.tuples[tuple].iter().map(|value| size(*value)).collect()
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn pop_tuple(&mut self) -> Result<Vec<Value>> {
        match self.pop()? {
            Value::Tuple(tuple) => Ok(self.tuples[tuple].clone()),
            other => bail!("expected a tuple, found {}", other.kind()),
        }
    }

    fn pop(&mut self) -> Result<Value> {
        match self.stack.pop() {
            None => bail!("the stack is empty"),
            Some(Value::Mark) => bail!("expected a value, found a mark"),
            Some(value) => Ok(value),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark)).ok_or("no mark")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn remember(&mut self, slot: u32) -> Result<()> {
        match self.stack.last() {
            Some(Value::Mark) | None => bail!("nothing to remember"),
            Some(value) => self.memo.insert(slot, *value),
        };
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<()> {
        let value = self.memo.get(&slot).ok_or_else(|| format!("nothing remembered as {slot}"))?;
        self.stack.push(*value);
        Ok(())
    }
}

fn size(value: Value) -> Result<usize> {
    match value {
        Value::Int(n) => usize::try_from(n).map_err(|_| format!("expected a size, found {n}")),
        other => bail!("expected a size, found {}", other.kind()),
    }
}

#[cfg(test)]
mod tests;

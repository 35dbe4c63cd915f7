//! Values of the stack, and the only names and opcodes that a pickle may use.

use safetensors::Dtype;

use crate::pth::Result;

/// Values that hold others are indices into the machine's tables, so that no value is deep.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Mark,
    None,
    Bool,
    Int(i64),
    Text(usize),
    Tuple(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    Storage(Dtype),
}

impl Value {
    /// Its kind, for messages.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Mark => "a mark",
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "a number",
            Self::Text(_) => "a text",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dict",
            Self::Global(Global::Storage(_)) => "a storage type",
            Self::Global(_) => "a function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

impl Global {
    /// The only names a pickle may import.
    pub(super) fn named(module: &str, name: &str) -> Result<Self> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch", "FloatStorage") => Self::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Self::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Dtype::BF16),
            ("torch", "DoubleStorage") => Self::Storage(Dtype::F64),
            ("torch", "LongStorage") => Self::Storage(Dtype::I64),
            ("torch", "IntStorage") => Self::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Self::Storage(Dtype::I16),
            ("torch", "CharStorage") => Self::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Self::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Self::Storage(Dtype::BOOL),
            _ => bail!(
                "global {}.{} is not one that tensors need: refused",
                module.escape_debug(),
                name.escape_debug()
            ),
        })
    }
}

/// An opcode, with its name if it is one that a pickle may well hold.
pub(super) fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'G' => "BINFLOAT",
        b']' => "EMPTY_LIST",
        b'a' => "APPEND",
        b'e' => "APPENDS",
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        b'B' => "BINBYTES",
        b'U' => "SHORT_BINSTRING",
        0x81 => "NEWOBJ",
        0x82..=0x84 => "EXT",
        0x8b => "LONG4",
        0x8c => "SHORT_BINUNICODE",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x95 => "FRAME",
        _ => return format!("{opcode:#04x}"),
    };
    format!("{opcode:#04x} ({name})")
}

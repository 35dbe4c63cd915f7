//! The bytes of a pickle, one after the other.

use crate::pth::Result;

const EARLY: &str = "the pickle ends early";

/// Bytes and the place in them that comes next.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>()).copied();
        self.at += N;
        bytes.ok_or_else(|| EARLY.to_owned())
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        self.at += n;
        rest.get(..n).ok_or_else(|| EARLY.to_owned())
    }

    /// The next `n` bytes as text.
    pub(super) fn text(&mut self, n: usize) -> Result<&'a str> {
        utf8(self.take(n)?)
    }

    /// Up to the end of the line, which is left out.
    pub(super) fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|b| *b == b'\n').ok_or(EARLY)?;
        self.at += length + 1;
        utf8(&rest[..length])
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| error.to_string())
}

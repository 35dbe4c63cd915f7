//! Integers at places of a file that may not exist.

use crate::fault::Fault;

/// `N` bytes at an offset.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Fault> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(Fault::ends_early)
}

/// A little-endian integer of 2 bytes.
pub(crate) fn u16_le(bytes: &[u8], at: usize) -> Result<u16, Fault> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// A little-endian integer of 4 bytes.
pub(crate) fn u32_le(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    array(bytes, at).map(u32::from_le_bytes)
}

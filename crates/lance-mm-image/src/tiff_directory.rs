//! The first directory of a TIFF or BigTIFF, which EXIF data is too.

use crate::bytes::array;
use crate::fault::Fault;

/// Byte order and width of offsets.
#[derive(Clone, Copy, Debug)]
struct Form {
    big_endian: bool,
    /// 8-byte offsets.
    is_big: bool,
}

impl Form {
    fn uint(self, bytes: &[u8]) -> u64 {
        let value = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        if self.big_endian { bytes.iter().fold(0, value) } else { bytes.iter().rev().fold(0, value) }
    }

    /// An integer of `N` bytes at an offset.
    fn at<const N: usize>(self, bytes: &[u8], at: usize) -> Result<u64, Fault> {
        Ok(self.uint(&array::<N>(bytes, at)?))
    }

    /// An offset or a count.
    fn word(self, bytes: &[u8], at: usize) -> Result<u64, Fault> {
        if self.is_big { self.at::<8>(bytes, at) } else { self.at::<4>(bytes, at) }
    }
}

/// A tag's values, where they are in the file.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    tag: u16,
    /// Bytes of a value.
    size: usize,
    data: &'a [u8],
}

/// Entries of a directory.
#[derive(Debug)]
pub(crate) struct Directory<'a> {
    form: Form,
    entries: Vec<Entry<'a>>,
    /// Offset of the next directory, 0 if there is none.
    next: u64,
}

impl<'a> Directory<'a> {
    /// Reads the first directory. Entries with wrong offsets or types are left out.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        let form = match array(bytes, 0)? {
            [b'I', b'I', kind @ (42 | 43), 0] => Form { big_endian: false, is_big: kind == 43 },
            [b'M', b'M', 0, kind @ (42 | 43)] => Form { big_endian: true, is_big: kind == 43 },
            // Pillow reads these too.
            [b'M', b'M', 42, 0] => Form { big_endian: true, is_big: false },
            [b'I', b'I', 0, 42] => Form { big_endian: false, is_big: false },
            found => return Err(Fault::damaged(format!("expected a TIFF header, found {found:02x?}"))),
        };
        let first = form.word(bytes, if form.is_big { 8 } else { 4 })?;
        let first = usize::try_from(first).map_err(|_| Fault::ends_early())?;
        let (count, entries, len) = if form.is_big {
            (form.at::<8>(bytes, first)?, first.saturating_add(8), 20)
        } else {
            (form.at::<2>(bytes, first)?, first.saturating_add(2), 12)
        };
        let room = bytes.len().saturating_sub(entries) / len;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let rows = bytes.get(entries..).unwrap_or_default().chunks_exact(len).take(count);
        let entries_read = rows.filter_map(|row| entry(form, bytes, row)).collect();
        let next = if count <= room { form.word(bytes, entries + count * len).unwrap_or(0) } else { 0 };
        Ok(Directory { form, entries: entries_read, next })
    }

    /// Byte order of the file.
    pub(crate) fn big_endian(&self) -> bool {
        self.form.big_endian
    }

    /// Whether another directory follows.
    pub(crate) fn has_next(&self) -> bool {
        self.next != 0
    }

    /// The last entry counts, as in Pillow.
    fn entry(&self, tag: u16) -> Option<Entry<'a>> {
        self.entries.iter().rev().find(|entry| entry.tag == tag).copied()
    }

    /// The only value of a tag.
    pub(crate) fn uint(&self, tag: u16) -> Option<u64> {
        (self.count(tag) == 1).then(|| self.uint_at(tag, 0))?
    }

    /// The first value of a tag.
    pub(crate) fn first(&self, tag: u16) -> Option<u64> {
        self.uint_at(tag, 0)
    }

    /// One of a tag's values.
    pub(crate) fn uint_at(&self, tag: u16, index: usize) -> Option<u64> {
        let entry = self.entry(tag)?;
        let at = index.checked_mul(entry.size)?;
        let value = entry.data.get(at..)?.get(..entry.size)?;
        Some(self.form.uint(value))
    }

    /// Number of a tag's values.
    pub(crate) fn count(&self, tag: u16) -> usize {
        self.entry(tag).map_or(0, |entry| entry.data.len() / entry.size)
    }

    /// Bytes of a tag's values.
    pub(crate) fn data(&self, tag: u16) -> Option<&'a [u8]> {
        self.entry(tag).map(|entry| entry.data)
    }
}

/// An entry of integers whose values are all in the file.
fn entry<'a>(form: Form, bytes: &'a [u8], row: &'a [u8]) -> Option<Entry<'a>> {
    let tag = form.uint(row.get(..2)?) as u16;
    let size = match form.uint(row.get(2..4)?) {
        // Bytes, text, undefined; shorts; longs and directories; longs and directories of BigTIFF.
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 13 => 4,
        16..=18 => 8,
        _ => return None,
    };
    let (count, value) = if form.is_big {
        (form.uint(row.get(4..12)?), &row[12..])
    } else {
        (form.uint(row.get(4..8)?), &row[8..])
    };
    let len = usize::try_from(count).ok()?.checked_mul(size)?;
    if len <= value.len() {
        return Some(Entry { tag, size, data: &value[..len] });
    }
    let at = usize::try_from(form.uint(value)).ok()?;
    Some(Entry { tag, size, data: bytes.get(at..)?.get(..len)? })
}

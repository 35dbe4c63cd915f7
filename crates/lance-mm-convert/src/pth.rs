//! PyTorch's `.pth`: a zip archive of raw storages, and a pickle with the names and shapes of the tensors in them.
//!
//! The pickle is read, never run ([`pickle`]). Storages stay in the file: torch stores them uncompressed,
//! so that a tensor is a range of it.

/// Returns a message.
macro_rules! bail {
    ($($message:tt)*) => {
        return Err(format!($($message)*))
    };
}

/// Returns a message unless something holds.
macro_rules! ensure {
    ($holds:expr, $($message:tt)*) => {
        if !$holds {
            bail!($($message)*);
        }
    };
}

mod pickle;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use crate::error::Error;
use crate::file_tensor::{FileTensor, Source, checked_size, width};
use pickle::Rebuilt;
pub(crate) use write::write;

/// Bytes of a pickle that are read at most; that of the real VAE has 26 kB.
const MAX_PICKLE: u64 = 4 << 20;

/// Results with a message that lacks the file's name.
type Result<T> = std::result::Result<T, String>;

/// Every tensor of a state dict written by `torch.save`.
pub(crate) fn open(path: &Path) -> crate::error::Result<Vec<FileTensor>> {
    let source = Source::open(path)?;
    read(path, source).map_err(|message| Error::file(path, message))
}

fn read(path: &Path, source: Arc<Source>) -> Result<Vec<FileTensor>> {
    let mut archive = Archive::open(path, source)?;
    if let Some(order) = archive.entries.get("byteorder").copied() {
        let order = archive.bytes(order, 16)?;
        ensure!(order == b"little", "expected byteorder little, found {}", String::from_utf8_lossy(&order));
    }
    let data = archive.entry("data.pkl")?;
    let rebuilt =
        pickle::read(&archive.bytes(data, MAX_PICKLE)?).map_err(|error| format!("data.pkl: {error}"))?;
    let mut tensors = Vec::with_capacity(rebuilt.len());
    for tensor in rebuilt {
        let name = tensor.name.clone();
        tensors.push(locate(tensor, &mut archive).map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(tensors)
}

/// Checks that every element a tensor names lies in its storage, and the storage in the file.
fn locate(tensor: Rebuilt, archive: &mut Archive) -> Result<FileTensor> {
    let Rebuilt { name, storage, offset, shape, strides } = tensor;
    let (start, bytes) = archive.range(archive.entry(&format!("data/{}", storage.key))?)?;
    let expected = storage.count.checked_mul(width(storage.dtype)).map(|n| n as u64);
    ensure!(
        expected == Some(bytes),
        "expected a storage of {} × {:?}, found {bytes} bytes",
        storage.count,
        storage.dtype
    );
    let (count, _) =
        checked_size(&shape, storage.dtype).ok_or_else(|| format!("shape {shape:?} is beyond any memory"))?;
    let last = shape.iter().zip(&strides).try_fold(offset, |at, (n, stride)| {
        n.saturating_sub(1).checked_mul(*stride).and_then(|step| at.checked_add(step))
    });
    ensure!(
        count == 0 || (count <= storage.count && last.is_some_and(|last| last < storage.count)),
        "shape {shape:?} with strides {strides:?} from {offset} on leaves its storage of {} values",
        storage.count
    );
    let at = match count {
        0 => start,
        _ => start + (offset * width(storage.dtype)) as u64,
    };
    Ok(FileTensor::new(&archive.source, name, storage.dtype, shape, at).strided(strides))
}

/// A zip archive and the places of its entries.
struct Archive {
    zip: ZipArchive<BufReader<File>>,
    source: Arc<Source>,
    length: u64,
    /// By name, without the folder that all share.
    entries: HashMap<String, usize>,
}

impl Archive {
    fn open(path: &Path, source: Arc<Source>) -> Result<Self> {
        let message = |error: std::io::Error| error.to_string();
        let file = File::open(path).map_err(message)?;
        let length = file.metadata().map_err(message)?.len();
        let mut start = vec![0; length.min(64) as usize];
        source.fill(0, &mut start).map_err(message)?;
        ensure!(
            !start.starts_with(b"version https://git-lfs"),
            "expected weights, found a Git LFS pointer: run `git lfs pull`"
        );
        ensure!(
            start.starts_with(b"PK\x03\x04"),
            "expected a zip archive, as torch.save writes it since PyTorch 1.6"
        );
        let zip = ZipArchive::new(BufReader::new(file)).map_err(zip_error)?;
        ensure!(!zip.has_duplicate_names(), "the zip archive holds a name twice");
        let names: Vec<String> =
            zip.file_names_raw().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let mut roots = names.iter().filter_map(|name| name.strip_suffix("data.pkl"));
        let (Some(root), None) = (roots.next(), roots.next()) else {
            bail!("expected one data.pkl in the zip archive, found {}", names.len());
        };
        let inside = |(i, name): (usize, &String)| Some((name.strip_prefix(root)?.to_owned(), i));
        let entries = names.iter().enumerate().filter_map(inside).collect();
        Ok(Self { zip, source, length, entries })
    }

    fn entry(&self, name: &str) -> Result<usize> {
        self.entries.get(name).copied().ok_or_else(|| format!("{name}: not in the zip archive"))
    }

    /// First byte and length of an entry.
    fn range(&mut self, entry: usize) -> Result<(u64, u64)> {
        let file = self.zip.by_index_raw(entry).map_err(zip_error)?;
        let name = || String::from_utf8_lossy(file.name_raw()).into_owned();
        ensure!(
            file.compression() == CompressionMethod::Stored && !file.encrypted(),
            "{}: expected plain bytes, found {:?}",
            name(),
            file.compression()
        );
        let start = file.data_start().ok_or_else(|| format!("{}: expected an entry with data", name()))?;
        let end = start.checked_add(file.size());
        ensure!(
            file.size() == file.compressed_size() && end.is_some_and(|end| end <= self.length),
            "{}: expected {} bytes at {start}, the file has {}",
            name(),
            file.size(),
            self.length
        );
        Ok((start, file.size()))
    }

    fn bytes(&mut self, entry: usize, max: u64) -> Result<Vec<u8>> {
        let (start, length) = self.range(entry)?;
        ensure!(length <= max, "expected at most {max} bytes, found {length}");
        let mut bytes = vec![0; length as usize];
        self.source.fill(start, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}

fn zip_error(error: impl std::fmt::Display) -> String {
    format!("zip archive: {error}")
}

#[cfg(test)]
mod tests;

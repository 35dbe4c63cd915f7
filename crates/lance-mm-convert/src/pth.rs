//! PyTorch's `.pth`: a zip archive of raw storages and a pickle that says what lies in them.
//!
//! The pickle is read, never run ([`pickle`]). Storages stay in the file: torch stores them uncompressed,
//! so that a tensor is a range of it.

mod pickle;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use zip::{CompressionMethod, ZipArchive};

use crate::located::{Located, Source, checked_size, width};
use pickle::Rebuilt;
pub(crate) use write::write;

/// Bytes of a pickle that are read at most; that of the real VAE has 26 kB.
const MAX_PICKLE: u64 = 4 << 20;

/// Every tensor of a state dict written by `torch.save`, where it lies.
pub(crate) fn open(path: &Path) -> Result<Vec<Located>> {
    read(path).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<Vec<Located>> {
    let source = Source::open(path)?;
    let mut archive = Archive::open(path, source.clone())?;
    if let Some(order) = archive.entries.get("byteorder").copied() {
        let order = archive.bytes(order, 16)?;
        ensure!(order == b"little", "expected byteorder little, found {}", String::from_utf8_lossy(&order));
    }
    let data = archive.entry("data.pkl")?;
    let rebuilt = pickle::read(&archive.bytes(data, MAX_PICKLE)?).context("data.pkl")?;
    let mut tensors = Vec::with_capacity(rebuilt.len());
    for tensor in rebuilt {
        let name = tensor.name.clone();
        tensors.push(locate(tensor, &mut archive).with_context(|| name)?);
    }
    Ok(tensors)
}

/// Checks that every element a tensor names lies in its storage, and the storage in the file.
fn locate(tensor: Rebuilt, archive: &mut Archive) -> Result<Located> {
    let Rebuilt { name, storage, offset, shape, strides } = tensor;
    let (start, bytes) = archive.range(archive.entry(&format!("data/{}", storage.key))?)?;
    let expected = storage.count.checked_mul(width(storage.dtype)).map(|n| n as u64);
    ensure!(
        expected == Some(bytes),
        "expected a storage of {} × {:?}, found {bytes} bytes",
        storage.count,
        storage.dtype
    );
    let (count, _) = checked_size(&shape, storage.dtype)
        .with_context(|| format!("shape {shape:?} is beyond any memory"))?;
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
    Ok(Located::new(&archive.source, name, storage.dtype, shape, at).strided(strides))
}

/// Where the entries of the zip archive lie.
struct Archive {
    zip: ZipArchive<BufReader<File>>,
    source: Arc<Source>,
    length: u64,
    /// By name, without the folder that all share.
    entries: HashMap<String, usize>,
}

impl Archive {
    fn open(path: &Path, source: Arc<Source>) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut start = vec![0; length.min(64) as usize];
        source.read(0, &mut start)?;
        ensure!(
            !start.starts_with(b"version https://git-lfs"),
            "expected weights, found a Git LFS pointer: run `git lfs pull`"
        );
        ensure!(
            start.starts_with(b"PK\x03\x04"),
            "expected a zip archive, as torch.save writes it since PyTorch 1.6"
        );
        let zip = ZipArchive::new(BufReader::new(file)).context("zip archive")?;
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
        self.entries.get(name).copied().with_context(|| format!("{name}: not in the zip archive"))
    }

    /// First byte and length of an entry.
    fn range(&mut self, entry: usize) -> Result<(u64, u64)> {
        let file = self.zip.by_index_raw(entry).context("zip archive")?;
        let name = || String::from_utf8_lossy(file.name_raw()).into_owned();
        ensure!(
            file.compression() == CompressionMethod::Stored && !file.encrypted(),
            "{}: expected plain bytes, found {:?}",
            name(),
            file.compression()
        );
        let start = file.data_start().with_context(name)?;
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
        self.source.read(start, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;

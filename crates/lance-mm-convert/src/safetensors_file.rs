//! Safetensors files read and written tensor by tensor.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lance_mm_pipelines::checkpoint::WeightsFile;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use crate::located::{Located, Source, width};

/// Every tensor of a file or of its shards, where it lies.
pub(crate) fn open(part: &WeightsFile) -> Result<Vec<Located>> {
    // Opening them as weights checks lengths, shards and repeated names; only headers are touched.
    let paths = part.open()?.file_paths();
    let mut tensors = Vec::new();
    for path in paths {
        tensors.extend(open_file(&path).with_context(|| path.display().to_string())?);
    }
    Ok(tensors)
}

fn open_file(path: &Path) -> Result<Vec<Located>> {
    let source = Source::open(path)?;
    let mut length = [0; 8];
    source.read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    let mut header = vec![0; usize::try_from(length)?];
    source.read(8, &mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header).context("header")?;
    let located = |name: String| {
        let info = metadata.info(&name).context("a name of this header")?;
        let offset = 8 + length + info.data_offsets.0 as u64;
        Ok(Located::new(&source, name, info.dtype, info.shape.clone(), offset))
    };
    metadata.offset_keys().into_iter().map(located).collect()
}

/// What a tensor of a file to write is, before its values are known.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Writes a file: `fill` is asked for the bytes of each tensor in turn. `format` goes into its metadata.
pub fn write(
    path: &Path,
    format: Option<&str>,
    entries: &[Entry],
    mut fill: impl FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut header = Map::new();
    if let Some(format) = format {
        header.insert("__metadata__".into(), json!({"format": format}));
    }
    let mut at = 0;
    for entry in entries {
        let end = at + entry.shape.iter().product::<usize>() * width(entry.dtype);
        let dtype: Value = serde_json::to_value(entry.dtype)?;
        header.insert(
            entry.name.clone(),
            json!({"dtype": dtype, "shape": entry.shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let name = || path.display().to_string();
    let file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(name)?);
    let mut file = Counted { inner: file, written: 0 };
    file.write_all(&(header.len() as u64).to_le_bytes()).with_context(name)?;
    file.write_all(&header).with_context(name)?;
    let data = file.written;
    let mut end = data;
    for (i, entry) in entries.iter().enumerate() {
        fill(i, &mut file).with_context(|| format!("{}: {}", path.display(), entry.name))?;
        end += (entry.shape.iter().product::<usize>() * width(entry.dtype)) as u64;
        ensure!(
            file.written == end,
            "{}: {}: expected {} bytes in all so far, wrote {}",
            path.display(),
            entry.name,
            end - data,
            file.written - data
        );
    }
    file.flush().with_context(name)
}

/// Writes tensors in the order of their names, each in the type that `dtype` says.
pub(crate) fn write_located(
    path: PathBuf,
    format: &str,
    mut tensors: Vec<Located>,
    dtype: impl Fn(&Located) -> Dtype,
) -> Result<usize> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let entry = |t: &Located| Entry { name: t.name.clone(), dtype: dtype(t), shape: t.shape.clone() };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    write(&path, Some(format), &entries, |i, out| tensors[i].write_as(entries[i].dtype, out))?;
    Ok(tensors.len())
}

struct Counted<W> {
    inner: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let entry = |name: &str, n| Entry { name: name.into(), dtype: Dtype::U8, shape: vec![n] };
        let entries = [entry("b", 2), entry("a", 3)];
        write(&path, Some("mlx"), &entries, |i, out| Ok(out.write_all([b"xy".as_slice(), b"123"][i])?))
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("a").unwrap().data(), b"123");
        assert_eq!(u64::from_le_bytes(*bytes.first_chunk().unwrap()) % 8, 0);
        let read = open(&WeightsFile { path: path.clone(), sharded: false }).unwrap();
        let found: Vec<_> =
            read.iter().map(|t| (t.name.as_str(), t.chunks().next().unwrap().unwrap())).collect();
        assert_eq!(found, [("b", b"xy".to_vec()), ("a", b"123".to_vec())]);
        let wrong = write(&path, None, &entries, |_, out| Ok(out.write_all(b"xy")?)).unwrap_err();
        assert!(wrong.to_string().ends_with("a: expected 5 bytes in all so far, wrote 4"), "{wrong}");
    }
}

//! Reads and writes safetensors files tensor by tensor.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use lance_mm_pipelines::checkpoint::WeightsFile;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::file_tensor::{FileTensor, Source, width};
use crate::progress::Progress;

/// Every tensor of a file or of its shards.
pub(crate) fn open(part: &WeightsFile) -> Result<Vec<FileTensor>> {
    // Opening them as weights checks lengths, shards and repeated names; only headers are touched.
    let paths = part.open()?.file_paths();
    let mut tensors = Vec::new();
    for path in paths {
        tensors.extend(open_file(&path)?);
    }
    Ok(tensors)
}

fn open_file(path: &Path) -> Result<Vec<FileTensor>> {
    let source = Source::open(path)?;
    let mut length = [0; 8];
    source.read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    let wrong = |message: String| Error::file(path, format!("header: {message}"));
    let rest = source.length().saturating_sub(8);
    if length > rest {
        return Err(wrong(format!("expected at most the {rest} bytes that follow, found {length}")));
    }
    let mut header = vec![0; length as usize];
    source.read(8, &mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
    let tensor = |name: String| {
        let info = metadata.info(&name).expect("a name that the header itself lists");
        let offset = 8 + length + info.data_offsets.0 as u64;
        FileTensor::new(&source, name, info.dtype, info.shape.clone(), offset)
    };
    Ok(metadata.offset_keys().into_iter().map(tensor).collect())
}

/// Name, type and shape of a tensor to write.
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorEntry {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * width(self.dtype)
    }
}

/// Writes a file: `fill` writes the bytes of each tensor in turn. `format` goes into the metadata.
///
/// # Errors
/// A file that cannot be written; tensors with other sizes than their entries; an error of `fill`.
pub fn write<E: From<Error>>(
    path: &Path,
    format: &str,
    entries: &[TensorEntry],
    mut fill: impl FnMut(usize, &mut dyn Write) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let header = header(format, entries);
    let file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(Error::io(path))?);
    let mut file = Counted { inner: file, written: 0 };
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(path))?;
    file.write_all(&header).map_err(Error::io(path))?;
    let data = file.written;
    let mut end = data;
    for (i, entry) in entries.iter().enumerate() {
        fill(i, &mut file)?;
        end += entry.bytes() as u64;
        if file.written != end {
            let (all, found) = (end - data, file.written - data);
            let message = format!("{}: expected {all} bytes in all so far, found {found}", entry.name);
            return Err(Error::file(path, message).into());
        }
    }
    Ok(file.flush().map_err(Error::io(path))?)
}

/// The header, padded to a multiple of eight bytes.
fn header(format: &str, entries: &[TensorEntry]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": format}));
    let mut at = 0;
    for entry in entries {
        let end = at + entry.bytes();
        let value = json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, end]});
        header.insert(entry.name.clone(), value);
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// Writes tensors in the order of their names, each in the type that `dtype` says.
pub(crate) fn write_tensors(
    path: &Path,
    format: &str,
    mut tensors: Vec<FileTensor>,
    dtype: impl Fn(&FileTensor) -> Dtype,
    progress: &mut Progress<'_>,
) -> Result<()> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let entry =
        |t: &FileTensor| TensorEntry { name: t.name.clone(), dtype: dtype(t), shape: t.shape.clone() };
    let entries: Vec<TensorEntry> = tensors.iter().map(entry).collect();
    write(path, format, &entries, |i, out| {
        let finite = tensors[i].write_as(entries[i].dtype, path, out)?;
        progress.wrote(&tensors[i], finite)
    })
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
        let entry = |name: &str, n| TensorEntry { name: name.into(), dtype: Dtype::U8, shape: vec![n] };
        let entries = [entry("b", 2), entry("a", 3)];
        let fill = |i: usize, out: &mut dyn Write| -> Result<()> {
            out.write_all([b"xy".as_slice(), b"123"][i]).map_err(Error::io(&path))
        };
        write(&path, "mlx", &entries, fill).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("a").unwrap().data(), b"123");
        assert_eq!(u64::from_le_bytes(*bytes.first_chunk().unwrap()) % 8, 0);
        let read = open(&WeightsFile { path: path.clone(), sharded: false }).unwrap();
        let found: Vec<_> =
            read.iter().map(|t| (t.name.as_str(), t.chunks().next().unwrap().unwrap())).collect();
        assert_eq!(found, [("b", b"xy".to_vec()), ("a", b"123".to_vec())]);
        let wrong = write(&path, "mlx", &entries, |_, out| fill(0, out)).unwrap_err();
        assert!(wrong.to_string().ends_with("a: expected 5 bytes in all so far, found 4"), "{wrong}");
    }
}

//! A state dict as `torch.save` writes it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::error::{Error, Result};
use crate::file_tensor::FileTensor;
use crate::progress::Progress;

/// Writes tensors as F32, each in a storage of its own, in the order of their names. `root` is the folder
/// inside the archive.
pub(crate) fn write(
    path: &Path,
    root: &str,
    mut tensors: Vec<FileTensor>,
    progress: &mut Progress<'_>,
) -> Result<()> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(Error::io(path))?);
    let mut zip = ZipWriter::new(file);
    // torch aligns storages, so that a reader may map them.
    let stored =
        SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
    let mut file = |name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>| {
        zip.start_file(format!("{root}/{name}"), stored).map_err(|error| Error::io(path)(error.into()))?;
        fill(&mut zip)
    };
    let plain = |bytes: &[u8], out: &mut dyn Write| out.write_all(bytes).map_err(Error::io(path));
    file("data.pkl", &mut |out| plain(&pickle(&tensors), out))?;
    file("byteorder", &mut |out| plain(b"little", out))?;
    for (i, tensor) in tensors.iter().enumerate() {
        let mut finite = true;
        file(&format!("data/{i}"), &mut |out| {
            finite = tensor.write_as(Dtype::F32, path, out)?;
            Ok(())
        })?;
        progress.wrote(tensor, finite)?;
    }
    file("version", &mut |out| plain(b"3\n", out))?;
    let mut file = zip.finish().map_err(|error| Error::io(path)(error.into()))?;
    file.flush().map_err(Error::io(path))
}

/// `OrderedDict` would need its own call; a plain dict is what the real file holds.
fn pickle(tensors: &[FileTensor]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for (i, tensor) in tensors.iter().enumerate() {
        text(&tensor.name, &mut out);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text("storage", &mut out);
        out.extend(b"ctorch\nFloatStorage\n");
        text(&i.to_string(), &mut out);
        text("cpu", &mut out);
        int(tensor.count(), &mut out);
        out.extend(b"tQ");
        int(0, &mut out);
        ints(&tensor.shape, &mut out);
        let strides = (0..tensor.shape.len()).map(|d| tensor.shape[d + 1..].iter().product());
        ints(&strides.collect::<Vec<usize>>(), &mut out);
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn ints(values: &[usize], out: &mut Vec<u8>) {
    out.push(b'(');
    values.iter().for_each(|n| int(*n, out));
    out.push(b't');
}

fn int(value: usize, out: &mut Vec<u8>) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((value as i64).to_le_bytes());
        }
    }
}

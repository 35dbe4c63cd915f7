//! A tensor in a file, read piece by piece.
//!
//! Files are read, not mapped: a mapped page counts as memory of the process for as long as the system
//! leaves it there, and a converter that has touched 12 GB should not look as if it needed them.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use lance_mm_pipelines::checkpoint::FileState;
use safetensors::Dtype;

use crate::error::{Error, Result};

/// Elements that are read at once.
const CHUNK: usize = 1 << 20;

/// A file that tensors are read from.
pub(crate) struct Source {
    path: PathBuf,
    file: File,
    opened: FileState,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        let file = File::open(path).map_err(Error::io(path))?;
        let opened = FileState::of(&file.metadata().map_err(Error::io(path))?);
        Ok(Arc::new(Self { path: path.to_owned(), file, opened }))
    }

    /// Bytes of the file when it was opened.
    pub(crate) fn length(&self) -> u64 {
        self.opened.length
    }

    /// Checks that the path still names a file of the length and time that were found when it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let now = FileState::of(&fs::metadata(&self.path).map_err(Error::io(&self.path))?);
        if now == self.opened {
            return Ok(());
        }
        let (expected, found) = (self.opened.length, now.length);
        let message = format!(
            "changed while it was read: expected {expected} bytes of the time when it was opened, found {found}"
        );
        Err(Error::file(&self.path, message))
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.fill(offset, bytes).map_err(Error::io(&self.path))
    }

    /// Like [`read`](Self::read), with an error that lacks the file's name.
    pub(crate) fn fill(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(bytes)).map_err(|error| {
            io::Error::new(error.kind(), format!("{} bytes at {offset}: {error}", bytes.len()))
        })
    }
}

/// A tensor in a file: the place of its first element and the strides of its dimensions, in elements. Permuting the
/// dimensions changes the strides only.
#[derive(Clone)]
pub(crate) struct FileTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    strides: Vec<usize>,
    offset: u64,
    source: Arc<Source>,
}

impl FileTensor {
    /// Elements one after the other.
    pub(crate) fn new(
        source: &Arc<Source>,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        offset: u64,
    ) -> Self {
        let strides = contiguous(&shape);
        Self { name, dtype, shape, strides, offset, source: source.clone() }
    }

    /// The same elements `strides` apart. Whoever calls it has checked that the last of them is there.
    pub(crate) fn strided(self, strides: Vec<usize>) -> Self {
        assert_eq!(strides.len(), self.shape.len(), "a stride for each dimension");
        Self { strides, ..self }
    }

    pub(crate) fn renamed(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Dimension `i` of the result is dimension `order[i]`.
    pub(crate) fn permuted(self, order: &[usize]) -> Self {
        let shape = order.iter().map(|i| self.shape[*i]).collect();
        let strides = order.iter().map(|i| self.strides[*i]).collect();
        Self { shape, strides, ..self }
    }

    /// With this many dimensions, those after the first of size one.
    pub(crate) fn with_unit_dimensions(mut self, rank: usize) -> Self {
        assert!(self.shape[1..].iter().all(|n| *n == 1), "only dimensions of size one come or go");
        self.shape.resize(rank, 1);
        self.strides.resize(rank, 1);
        self
    }

    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements' bytes in order, a chunk at a time.
    pub(crate) fn chunks(&self) -> Box<dyn Iterator<Item = Result<Vec<u8>>> + '_> {
        let width = width(self.dtype);
        if !self.is_contiguous() {
            // Few tensors are permuted; the largest, a convolution of the VAE, has 113 MB.
            return match self.gathered() {
                Ok(all) => Box::new(
                    (0..all.len())
                        .step_by(CHUNK * width)
                        .map(move |at| Ok(all[at..all.len().min(at.saturating_add(CHUNK * width))].to_vec())),
                ),
                Err(error) => Box::new(std::iter::once(Err(error))),
            };
        }
        let count = self.count();
        Box::new((0..count).step_by(CHUNK).map(move |at| {
            let mut bytes = vec![0; (count - at).min(CHUNK) * width];
            self.source.read(self.offset + (at * width) as u64, &mut bytes)?;
            Ok(bytes)
        }))
    }

    /// Writes the elements as `dtype` into the file `path`; returns whether all of them are finite.
    pub(crate) fn write_as(&self, dtype: Dtype, path: &Path, out: &mut dyn Write) -> Result<bool> {
        let mut finite = true;
        for chunk in self.chunks() {
            let chunk = chunk?;
            finite &= all_finite(&chunk, self.dtype);
            let bytes = self.cast(chunk, dtype)?;
            out.write_all(&bytes).map_err(Error::io(path))?;
        }
        Ok(finite)
    }

    /// Values of this tensor in another type, which must hold those that are finite.
    pub(crate) fn cast(&self, bytes: Vec<u8>, to: Dtype) -> Result<Vec<u8>> {
        cast(bytes, self.dtype, to)
            .map_err(|message| Error::file(self.path(), format!("{}: {message}", self.name)))
    }

    /// Bytes of its elements.
    pub(crate) fn bytes(&self) -> u64 {
        (self.count() * width(self.dtype)) as u64
    }

    /// The file it is in.
    pub(crate) fn path(&self) -> &Path {
        &self.source.path
    }

    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    fn is_contiguous(&self) -> bool {
        let expected = contiguous(&self.shape);
        self.count() == 0
            || (0..self.shape.len()).all(|i| self.shape[i] == 1 || self.strides[i] == expected[i])
    }

    fn gathered(&self) -> Result<Vec<u8>> {
        let width = width(self.dtype);
        let last: usize = self.shape.iter().zip(&self.strides).map(|(n, stride)| (n - 1) * stride).sum();
        let mut bytes = vec![0; (last + 1) * width];
        self.source.read(self.offset, &mut bytes)?;
        let mut out = Vec::with_capacity(self.count() * width);
        gather(&bytes, width, &self.shape, &self.strides, 0, &mut out);
        Ok(out)
    }
}

fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

fn gather(bytes: &[u8], width: usize, shape: &[usize], strides: &[usize], at: usize, out: &mut Vec<u8>) {
    match (shape, strides) {
        ([n, shape @ ..], [stride, strides @ ..]) => {
            for i in 0..*n {
                gather(bytes, width, shape, strides, at + i * stride, out);
            }
        }
        _ => out.extend_from_slice(&bytes[at * width..(at + 1) * width]),
    }
}

/// Bytes of an element.
pub(crate) fn width(dtype: Dtype) -> usize {
    dtype.bitsize().div_ceil(8)
}

/// The number of elements of `shape`, and of bytes; `None` if no memory could hold them.
pub(crate) fn checked_size(shape: &[usize], dtype: Dtype) -> Option<(usize, usize)> {
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    Some((count, count.checked_mul(width(dtype))?))
}

/// Whether values of this type can be permuted into another.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Whether no value is an infinity or no number. Values of types that are not cast are none of either.
fn all_finite(bytes: &[u8], dtype: Dtype) -> bool {
    // An exponent of ones.
    let pairs = |mask: u16| bytes.as_chunks::<2>().0.iter().all(|b| u16::from_le_bytes(*b) & mask != mask);
    match dtype {
        Dtype::F16 => pairs(0x7c00),
        Dtype::BF16 => pairs(0x7f80),
        Dtype::F32 => {
            bytes.as_chunks::<4>().0.iter().all(|b| u32::from_le_bytes(*b) & 0x7f80_0000 != 0x7f80_0000)
        }
        _ => true,
    }
}

/// The same values in another type, rounded to nearest, ties to even. A finite value stays finite.
fn cast(bytes: Vec<u8>, from: Dtype, to: Dtype) -> std::result::Result<Vec<u8>, String> {
    if from == to {
        return Ok(bytes);
    }
    if !is_float(from) {
        return Err(format!("expected values in F32, F16 or BF16, found {from:?}"));
    }
    let (pairs, _) = bytes.as_chunks::<2>();
    let (quads, _) = bytes.as_chunks::<4>();
    let widened: Vec<f32> = match from {
        Dtype::F16 => pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => quads.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    };
    Ok(match to {
        Dtype::F32 => widened.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::BF16 => {
            let beyond = |v: &&f32| v.is_finite() && !bf16::from_f32(**v).is_finite();
            if let Some(value) = widened.iter().find(beyond) {
                return Err(format!("{value:e} is beyond the largest number of BF16"));
            }
            rounded(&widened)
        }
        other => return Err(format!("no file is written in {other:?}")),
    })
}

/// The bytes of F32 values as those of BF16 ones.
pub(crate) fn to_bf16(bytes: &[u8]) -> Vec<u8> {
    rounded(&bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>())
}

fn rounded(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dir: &tempfile::TempDir, values: &[f32], shape: &[usize]) -> FileTensor {
        let path = dir.path().join("values");
        std::fs::write(&path, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        FileTensor::new(&Source::open(&path).unwrap(), "x".into(), Dtype::F32, shape.to_vec(), 0)
    }

    fn values(tensor: &FileTensor) -> Vec<f32> {
        let mut bytes = Vec::new();
        tensor.write_as(Dtype::F32, Path::new("bytes"), &mut bytes).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn a_permuted_tensor_is_read_in_its_new_order() {
        let dir = tempfile::tempdir().unwrap();
        let x = tensor(&dir, &[0., 1., 2., 3., 4., 5.], &[2, 3]);
        assert_eq!(values(&x), [0., 1., 2., 3., 4., 5.]);
        let permuted = x.clone().permuted(&[1, 0]);
        assert_eq!(
            (permuted.shape.as_slice(), values(&permuted)),
            ([3, 2].as_slice(), vec![0., 3., 1., 4., 2., 5.])
        );
        assert_eq!(values(&permuted.permuted(&[1, 0])), values(&x));
    }

    #[test]
    fn more_than_one_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<f32> = (0..CHUNK + 3).map(|i| i as f32).collect();
        let x = tensor(&dir, &all, &[CHUNK + 3]);
        assert_eq!(values(&x), all);
        let column = x.with_unit_dimensions(2).permuted(&[1, 0]);
        assert_eq!(column.chunks().map(|c| c.unwrap().len()).collect::<Vec<_>>(), [4 * CHUNK, 12]);
    }

    #[test]
    fn rounding_goes_to_the_nearest_and_ties_to_even() {
        // (f32 bits, bf16 bits): below, at and above the tie; odd tie; the largest; the smallest subnormal; signs.
        let cases = [
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f80_8001, 0x3f81),
            (0x3f81_8000, 0x3f82),
            (0x7f7f_7fff, 0x7f7f),
            (0x0000_0001, 0x0000),
            (0x8000_0000, 0x8000),
            (0xff80_0000u32, 0xff80u16),
        ];
        for (f32_bits, expected) in cases {
            let cast = cast(f32_bits.to_le_bytes().to_vec(), Dtype::F32, Dtype::BF16).unwrap();
            assert_eq!(u16::from_le_bytes([cast[0], cast[1]]), expected, "{f32_bits:08x}");
        }
        let one = cast(f16::from_f32(1.0).to_le_bytes().to_vec(), Dtype::F16, Dtype::F32).unwrap();
        assert_eq!(one, 1f32.to_le_bytes());
        assert!(cast(vec![0; 8], Dtype::I64, Dtype::F32).unwrap_err().contains("found I64"));
        let beyond = cast(f32::MAX.to_le_bytes().to_vec(), Dtype::F32, Dtype::BF16).unwrap_err();
        assert_eq!(beyond, "3.4028235e38 is beyond the largest number of BF16");
    }

    #[test]
    fn values_that_are_not_finite_are_noticed_in_every_type() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, -1e-40] {
            let half = f16::from_f32(if value == f32::MAX { 65504.0 } else { value });
            let bytes = [value.to_le_bytes().to_vec(), half.to_le_bytes().to_vec()];
            let finite = value.is_finite();
            assert_eq!(all_finite(&bytes[0], Dtype::F32), finite, "{value}");
            assert_eq!(all_finite(&bytes[1], Dtype::F16), finite, "{value}");
            // The upper half of an F32 number is the BF16 one below it.
            assert_eq!(all_finite(&bytes[0][2..], Dtype::BF16), finite, "{value}");
        }
        assert!(all_finite(&[0xff; 8], Dtype::U32));
    }

    #[test]
    fn sizes_beyond_memory_are_none() {
        assert_eq!(checked_size(&[2, 3], Dtype::BF16), Some((6, 12)));
        assert_eq!(checked_size(&[1 << 40, 1 << 40], Dtype::U8), None);
    }
}

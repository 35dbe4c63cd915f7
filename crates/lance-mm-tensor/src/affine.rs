//! Matrices in MLX's affine format: `scale · code + bias` per group of adjacent values of a row.
//!
//! Format: MLX 0.32 `mx.quantize`; checked against its CPU backend bit by bit.

mod pack;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use half::{bf16, f16};

use crate::bytes::Bytes;
use crate::dtype::FloatType;
use crate::error::{Error, Result};
use crate::kernels::{Affine, Rows};
use crate::precision::AffinePrecision;
use crate::scheme::{QuantMode, Scheme};
pub(crate) use pack::unpack_row;
pub use pack::{pack_codes, quantize_group};

/// A `(R, K)` matrix of packed codes with one scale and one bias per group. Cloning shares the bytes.
///
/// Words, scales and biases stay as the file holds them; rows are unpacked when they are used. The storage dtype (`U32`
/// words) is never a compute dtype: values are f32.
#[derive(Clone)]
pub struct AffineWeight {
    words: Bytes,
    scales: Bytes,
    biases: Bytes,
    dtype: FloatType,
    scheme: Scheme,
    rows: usize,
    cols: usize,
    precision: AffinePrecision,
    check: Arc<Check>,
}

/// Result of the search for scales and biases that are not finite, made at the first use: loading reads no weights.
struct Check {
    name: String,
    /// Part and row of the first one.
    damage: OnceLock<Option<(&'static str, usize)>>,
}

impl AffineWeight {
    /// Makes a matrix of the parts in a file. `name` names it in errors.
    pub(crate) fn new(name: &str, parts: AffineParts, scheme: Scheme, rows: usize, cols: usize) -> Self {
        let AffineParts { words, scales, biases, dtype } = parts;
        assert_eq!(scheme.mode(), QuantMode::Affine, "the loader chose by mode");
        assert_eq!(words.len(), rows * scheme.words(cols) * 4, "shapes were checked");
        assert_eq!(scales.len(), rows * (cols / scheme.group_size()) * dtype.size(), "shapes were checked");
        assert_eq!(scales.len(), biases.len(), "shapes were checked");
        let check = Arc::new(Check { name: name.to_owned(), damage: OnceLock::new() });
        Self {
            words,
            scales,
            biases,
            dtype,
            scheme,
            rows,
            cols,
            precision: AffinePrecision::default(),
            check,
        }
    }

    /// Searches scales and biases for values that are not finite, once.
    ///
    /// # Errors
    /// The first one, with its row.
    pub(crate) fn check(&self) -> Result<()> {
        match self.check.damage.get_or_init(|| self.damage(0..self.rows)) {
            None => Ok(()),
            Some(damage) => Err(self.damaged(*damage)),
        }
    }

    /// Searches one row only; see [`check`](Self::check).
    pub(crate) fn check_row(&self, row: usize) -> Result<()> {
        self.damage(row..row + 1).map_or(Ok(()), |damage| Err(self.damaged(damage)))
    }

    fn damage(&self, rows: Range<usize>) -> Option<(&'static str, usize)> {
        let groups = self.groups();
        let bytes = rows.start * groups * self.dtype.size()..rows.end * groups * self.dtype.size();
        let find = |(part, stored): (&'static str, &Bytes)| {
            let index = first_non_finite(&stored[bytes.clone()], self.dtype)?;
            Some((part, rows.start + index / groups))
        };
        [("scales", &self.scales), ("biases", &self.biases)].into_iter().find_map(find)
    }

    fn damaged(&self, (part, row): (&'static str, usize)) -> Error {
        Error::File {
            file: format!("{}.{part}", self.check.name),
            message: format!("not finite in row {row}"),
        }
    }

    /// Quantizes f32 values, row by row, as `mx.quantize` does; scales and biases are f32.
    ///
    /// # Errors
    /// Columns that are not whole groups, an empty or ragged matrix, values or scales that are not finite.
    pub fn quantize_f32(name: &str, values: &[f32], cols: usize, scheme: Scheme) -> Result<Self> {
        Self::quantize(name, values, cols, scheme, FloatType::F32)
    }

    /// Quantizes values, row by row, as `mx.quantize` does for a source of `dtype`: codes come from unrounded f32 scales;
    /// scales and biases are rounded to `dtype` afterwards.
    ///
    /// # Errors
    /// As [`quantize_f32`](Self::quantize_f32).
    pub fn quantize(
        name: &str,
        values: &[f32],
        cols: usize,
        scheme: Scheme,
        dtype: FloatType,
    ) -> Result<Self> {
        check_scheme(name, cols, scheme)?;
        if values.is_empty() || !values.len().is_multiple_of(cols) {
            return Err(Error::setting(name, format!("rows of {cols}"), format!("{} values", values.len())));
        }
        let rows = values.len() / cols;
        let mut parts = pack::Packed::with_capacity(rows, cols, scheme, dtype);
        for (row, values) in values.chunks_exact(cols).enumerate() {
            if values.iter().any(|v| !v.is_finite()) {
                return Err(Error::File { file: name.into(), message: format!("not finite in row {row}") });
            }
            parts.push_row(values);
        }
        let parts = AffineParts {
            words: Bytes::from_vec(parts.words),
            scales: Bytes::from_vec(parts.scales),
            biases: Bytes::from_vec(parts.biases),
            dtype,
        };
        let weight = Self::new(name, parts, scheme, rows, cols);
        weight.check().map(|()| weight)
    }

    /// The same matrix with f32 activations in matmuls: slow, and as exact as f32 is.
    ///
    /// By default activations are rounded to integers with one scale for each token and group: 16 bits (±32,639) for one
    /// or two tokens, 8 bits (±127) for more. On AMX, weights and activations of more than eight tokens (two, if codes do
    /// not have 4 bits) are rounded to bf16.
    pub fn with_f32_activations(self) -> Self {
        self.with_precision(AffinePrecision::F32)
    }

    pub(crate) fn with_precision(self, precision: AffinePrecision) -> Self {
        Self { precision, ..self }
    }

    /// Whether weights are rounded as `mx.dequantize` rounds them.
    pub(crate) fn is_rounded(&self) -> bool {
        self.precision == AffinePrecision::MlxRounded
    }

    /// The view for integer kernels; `None` for other arithmetic.
    pub(crate) fn integer(&self) -> Option<Affine<'_>> {
        (self.precision == AffinePrecision::Integer).then(|| Affine {
            words: &self.words,
            scales: &self.scales,
            biases: &self.biases,
            dtype: self.dtype,
            bits: self.scheme.bits(),
            group: self.scheme.group_size(),
            rows: self.rows,
            cols: self.cols,
        })
    }

    /// Makes a matrix of packed words `(R, K · bits / 32)` (see [`pack_codes`]) and scales and
    /// biases `(R, K / group)`, which are rounded to `dtype`.
    ///
    /// # Errors
    /// Columns that are not whole groups, lengths that do not fit each other, scales or biases that are not
    /// finite in `dtype`.
    pub fn from_parts(
        name: &str,
        words: Vec<u32>,
        scales: &[f32],
        biases: &[f32],
        cols: usize,
        scheme: Scheme,
        dtype: FloatType,
    ) -> Result<Self> {
        check_scheme(name, cols, scheme)?;
        let (width, groups) = (scheme.words(cols), cols / scheme.group_size());
        let rows = words.len() / width;
        if rows == 0 || words.len() != rows * width {
            return Err(Error::setting(
                name,
                format!("rows of {width} words"),
                format!("{} words", words.len()),
            ));
        }
        for (part, found) in [("scales", scales.len()), ("biases", biases.len())] {
            if found != rows * groups {
                return Err(Error::setting(
                    format!("{name}.{part}"),
                    format!("{rows} rows of {groups}"),
                    found,
                ));
            }
        }
        let stored = |values: &[f32]| {
            let mut bytes = Vec::with_capacity(values.len() * dtype.size());
            values.iter().for_each(|v| dtype.push(*v, &mut bytes));
            Bytes::from_vec(bytes)
        };
        let parts = AffineParts {
            words: Bytes::from_vec(words.iter().flat_map(|w| w.to_le_bytes()).collect()),
            scales: stored(scales),
            biases: stored(biases),
            dtype,
        };
        let weight = Self::new(name, parts, scheme, rows, cols);
        weight.check().map(|()| weight)
    }

    /// Rows `R`.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// Columns `K`.
    pub fn n_cols(&self) -> usize {
        self.cols
    }

    /// Bits and group size.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Dtype of scales and biases.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// Packed words, row by row: `(R, K · bits / 32)`.
    pub fn words(&self) -> Vec<u32> {
        self.words.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    /// The packed words as a file stores them: `U32`, little endian.
    pub fn word_bytes(&self) -> &[u8] {
        &self.words
    }

    /// The scales as a file stores them, in [`dtype`](Self::dtype).
    pub fn scale_bytes(&self) -> &[u8] {
        &self.scales
    }

    /// The biases as a file stores them, in [`dtype`](Self::dtype).
    pub fn bias_bytes(&self) -> &[u8] {
        &self.biases
    }

    /// Scales widened to f32, `(R, K / group)`.
    pub fn scales(&self) -> Vec<f32> {
        self.widened(&self.scales)
    }

    /// Biases widened to f32, `(R, K / group)`.
    pub fn biases(&self) -> Vec<f32> {
        self.widened(&self.biases)
    }

    fn widened(&self, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / self.dtype.size()];
        self.dtype.widen(bytes, &mut out);
        out
    }

    fn groups(&self) -> usize {
        self.cols / self.scheme.group_size()
    }

    /// Dequantizes one row as `scale · code + bias` in f32; lookups do this by default.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        self.with_row(row, out, |scale, bias, code| scale * code + bias);
    }

    /// Dequantizes one row as `mx.dequantize` does: product and sum are each rounded to the dtype of the scales.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit.
    pub fn read_row_rounded(&self, row: usize, out: &mut [f32]) {
        let round: fn(f32) -> f32 = match self.dtype {
            FloatType::F32 => |v| v,
            FloatType::F16 => |v| f16::from_f32(v).to_f32(),
            FloatType::BF16 => |v| bf16::from_f32(v).to_f32(),
        };
        self.with_row(row, out, |scale, bias, code| round(round(scale * code) + bias));
    }

    fn with_row(&self, row: usize, out: &mut [f32], value: impl Fn(f32, f32, f32) -> f32) {
        assert_eq!(out.len(), self.cols, "one output for each column");
        let width = self.scheme.words(self.cols) * 4;
        unpack_row(&self.words[row * width..(row + 1) * width], self.scheme.bits(), out);
        for (g, group) in out.chunks_exact_mut(self.scheme.group_size()).enumerate() {
            let at = row * self.groups() + g;
            let scale = self.dtype.widen_one(&self.scales, at);
            let bias = self.dtype.widen_one(&self.biases, at);
            for v in group {
                *v = value(scale, bias, *v);
            }
        }
    }
}

/// Checks that rows of `cols` values can be quantized in this scheme.
fn check_scheme(name: &str, cols: usize, scheme: Scheme) -> Result<()> {
    let group = scheme.group_size();
    if scheme.mode() != QuantMode::Affine {
        return Err(Error::setting(name, "the affine mode, the only one written", scheme.mode()));
    }
    if cols > 0 && cols.is_multiple_of(group) {
        Ok(())
    } else {
        Err(Error::setting(name, format!("columns in groups of {group}"), format!("{cols} columns")))
    }
}

/// The stored parts of an affine matrix.
pub(crate) struct AffineParts {
    pub(crate) words: Bytes,
    pub(crate) scales: Bytes,
    pub(crate) biases: Bytes,
    pub(crate) dtype: FloatType,
}

impl Rows for AffineWeight {
    fn n_rows(&self) -> usize {
        self.rows
    }

    fn n_cols(&self) -> usize {
        self.cols
    }

    fn stored(&self) -> Vec<&[u8]> {
        vec![&self.words, &self.scales, &self.biases]
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        match self.precision {
            AffinePrecision::MlxRounded => self.read_row_rounded(row, out),
            AffinePrecision::Integer | AffinePrecision::F32 => self.read_row(row, out),
        }
    }
}

/// Index of the first value whose exponent bits are all set.
fn first_non_finite(bytes: &[u8], dtype: FloatType) -> Option<usize> {
    let half = |exponent: u16| {
        bytes.as_chunks().0.iter().position(|b| u16::from_le_bytes(*b) & exponent == exponent)
    };
    match dtype {
        FloatType::F32 => bytes.as_chunks().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite()),
        FloatType::F16 => half(0x7c00),
        FloatType::BF16 => half(0x7f80),
    }
}

#[cfg(test)]
mod tests;

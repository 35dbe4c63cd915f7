//! Matrices in the formats mxfp4, mxfp8 and nvfp4; read only, not written.
//!
//! Element and scale formats: OCP Microscaling specification 1.0; packing as in MLX 0.32 `mx.quantize`.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::affine::unpack_row;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::kernels::Rows;
use crate::scheme::{QuantMode, Scheme};

/// A `(R, K)` matrix of packed 4-bit or 8-bit floats with a scale of one byte per group. Cloning shares the bytes.
#[derive(Clone)]
pub struct MxWeight {
    words: Bytes,
    scales: Bytes,
    scheme: Scheme,
    rows: usize,
    cols: usize,
    check: Arc<Check>,
}

/// Result of the search for scales that are not finite, made at the first use: loading reads no weights.
struct Check {
    name: String,
    /// Row of the first one.
    damage: OnceLock<Option<usize>>,
}

impl MxWeight {
    /// Makes a matrix of the parts in a file. `name` names it in errors.
    pub(crate) fn new(
        name: &str,
        words: Bytes,
        scales: Bytes,
        scheme: Scheme,
        rows: usize,
        cols: usize,
    ) -> Self {
        assert_ne!(scheme.mode(), QuantMode::Affine, "the loader chose by mode");
        assert_eq!(words.len(), rows * scheme.words(cols) * 4, "shapes were checked");
        assert_eq!(scales.len(), rows * (cols / scheme.group_size()), "shapes were checked");
        let check = Arc::new(Check { name: name.to_owned(), damage: OnceLock::new() });
        Self { words, scales, scheme, rows, cols, check }
    }

    /// Searches scales for values that are not finite, once.
    ///
    /// # Errors
    /// The row of the first one.
    pub(crate) fn check(&self) -> Result<()> {
        self.found(*self.check.damage.get_or_init(|| self.damage(0..self.rows)))
    }

    /// Searches one row only; see [`check`](Self::check).
    pub(crate) fn check_row(&self, row: usize) -> Result<()> {
        self.found(self.damage(row..row + 1))
    }

    fn damage(&self, rows: Range<usize>) -> Option<usize> {
        let groups = self.cols / self.scheme.group_size();
        let scales = &self.scales[rows.start * groups..rows.end * groups];
        let index = scales.iter().position(|byte| !self.scale(*byte).is_finite())?;
        Some(rows.start + index / groups)
    }

    fn found(&self, damage: Option<usize>) -> Result<()> {
        match damage {
            None => Ok(()),
            Some(row) => Err(Error::File {
                file: format!("{}.scales", self.check.name),
                message: format!("not finite in row {row}"),
            }),
        }
    }

    /// Mode, bits and group size.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn scale(&self, byte: u8) -> f32 {
        match self.scheme.mode() {
            QuantMode::NvFp4 => e4m3(byte),
            _ if byte == 0xff => f32::NAN,
            _ => f32::exp2(f32::from(byte) - 127.0),
        }
    }
}

impl Rows for MxWeight {
    fn n_rows(&self) -> usize {
        self.rows
    }

    fn n_cols(&self) -> usize {
        self.cols
    }

    fn stored(&self) -> Vec<&[u8]> {
        vec![&self.words, &self.scales]
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        let width = self.scheme.words(self.cols) * 4;
        unpack_row(&self.words[row * width..(row + 1) * width], self.scheme.bits(), out);
        let groups = self.cols / self.scheme.group_size();
        let element = if self.scheme.bits() == 4 { e2m1 } else { e4m3 };
        for (g, group) in out.chunks_exact_mut(self.scheme.group_size()).enumerate() {
            let scale = self.scale(self.scales[row * groups + g]);
            for v in group {
                *v = element(*v as u8) * scale;
            }
        }
    }
}

/// Decodes E2M1: sign, two bits of exponent, one of fraction.
fn e2m1(code: u8) -> f32 {
    const MAGNITUDE: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let v = MAGNITUDE[usize::from(code & 7)];
    if code & 8 == 0 { v } else { -v }
}

/// Decodes E4M3: sign, four bits of exponent (bias 7), three of fraction; no infinities, one NaN per sign.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let v = match exponent {
        0 => fraction * f32::exp2(-9.0),
        15 if code & 7 == 7 => f32::NAN,
        _ => (1.0 + fraction / 8.0) * f32::exp2((exponent - 7) as f32),
    };
    if code & 0x80 == 0 { v } else { -v }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_by_hand() {
        assert_eq!([0, 1, 7, 9, 15].map(e2m1), [0.0, 0.5, 6.0, -0.5, -6.0]);
        assert_eq!([0x00, 0x01, 0x38, 0x7e, 0xb8].map(e4m3), [0.0, 0.001953125, 1.0, 448.0, -1.0]);
        assert!(e4m3(0x7f).is_nan());
    }

    #[test]
    fn one_row_of_each_mode() {
        let cases = [
            (QuantMode::MxFp4, 4, 32, 128u8, 2.0),
            (QuantMode::MxFp8, 8, 32, 126, 0.5),
            (QuantMode::NvFp4, 4, 16, 0x40, 2.0),
        ];
        for (mode, bits, group, scale, factor) in cases {
            let one = if bits == 4 { 0x22 } else { 0x38 };
            let words = Bytes::from_vec(vec![one; 32 * bits / 8]);
            let scales = Bytes::from_vec(vec![scale; 32 / group]);
            let w = MxWeight::new("w", words, scales, Scheme::new(bits, group, mode).unwrap(), 1, 32);
            let mut out = [f32::NAN; 32];
            w.read_row(0, &mut out);
            assert_eq!(out, [factor; 32], "{mode}");
        }
    }
}

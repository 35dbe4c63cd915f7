//! Bits, group size and mode of a quantized matrix.

use std::fmt;

use crate::error::{Error, Result};

/// Format of a quantized matrix, in MLX's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuantMode {
    /// `scale · code + bias` per group.
    Affine,
    /// e2m1 elements, one power of two per 32.
    MxFp4,
    /// e4m3 elements, one power of two per 32.
    MxFp8,
    /// e2m1 elements, one e4m3 scale per 16.
    NvFp4,
}

impl QuantMode {
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        match text {
            "affine" => Ok(Self::Affine),
            "mxfp4" => Ok(Self::MxFp4),
            "mxfp8" => Ok(Self::MxFp8),
            "nvfp4" => Ok(Self::NvFp4),
            other => Err(Error::setting(name, "affine, mxfp4, mxfp8 or nvfp4", format!("{other:?}"))),
        }
    }
}

impl fmt::Display for QuantMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Affine => "affine",
            Self::MxFp4 => "mxfp4",
            Self::MxFp8 => "mxfp8",
            Self::NvFp4 => "nvfp4",
        })
    }
}

/// Bits, group size and mode of a quantized matrix; always a legal combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scheme {
    bits: usize,
    group_size: usize,
    mode: QuantMode,
}

impl Scheme {
    /// Makes an affine scheme: bits 2, 3, 4, 5, 6 or 8, groups of 32, 64 or 128.
    ///
    /// # Errors
    /// Any other combination.
    pub fn affine(bits: usize, group_size: usize) -> Result<Self> {
        Self::new(bits, group_size, QuantMode::Affine)
    }

    /// Makes a scheme of any mode. The floating modes have one combination each: mxfp4 (4, 32), mxfp8 (8, 32),
    /// nvfp4 (4, 16).
    ///
    /// # Errors
    /// A combination the mode does not have.
    pub fn new(bits: usize, group_size: usize, mode: QuantMode) -> Result<Self> {
        let found = format!("{bits} bits, group size {group_size}");
        let legal = match mode {
            QuantMode::Affine => [2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group_size),
            QuantMode::MxFp4 => (bits, group_size) == (4, 32),
            QuantMode::MxFp8 => (bits, group_size) == (8, 32),
            QuantMode::NvFp4 => (bits, group_size) == (4, 16),
        };
        let expected = match mode {
            QuantMode::Affine => "bits 2, 3, 4, 5, 6 or 8 and group size 32, 64 or 128",
            QuantMode::MxFp4 => "4 bits, group size 32",
            QuantMode::MxFp8 => "8 bits, group size 32",
            QuantMode::NvFp4 => "4 bits, group size 16",
        };
        if legal {
            Ok(Self { bits, group_size, mode })
        } else {
            Err(Error::setting(format!("{mode} quantization"), expected, found))
        }
    }

    /// Bits per code.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Number of adjacent values of a row that share a scale.
    pub fn group_size(&self) -> usize {
        self.group_size
    }

    /// The format of codes and scales.
    pub fn mode(&self) -> QuantMode {
        self.mode
    }

    /// Number of u32 words in one packed row of `cols` values.
    pub(crate) fn words(&self, cols: usize) -> usize {
        cols * self.bits / 32
    }
}

//! The widths of a VAE, which only its tensors tell.

use lance_mm_tensor::{Error, Result, Weights};

/// Bound of a width: products of the sizes of its filters stay far from overflow.
const MAX_WIDTH: usize = 1 << 12;

/// Widths of the encoder and the decoder. Everything else is the same in every Wan 2.2 VAE. The default is the
/// published model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaeConfig {
    /// Channels of the encoder's first stage; the last has four times as many.
    pub encoder_width: usize,
    /// Channels of the decoder's last stage; the first has four times as many.
    pub decoder_width: usize,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self { encoder_width: 160, decoder_width: 256 }
    }
}

impl VaeConfig {
    /// Reads the widths off the shapes of `encoder.conv1.bias` and `decoder.head.layer_0.gamma`.
    ///
    /// # Errors
    /// A file without these, or with widths beyond all reason: no VAE in the published layout.
    pub fn of(weights: &Weights) -> Result<Self> {
        let width = |name: &str| {
            let info = weights.info(name);
            let shape = info.as_ref().map(|info| info.shape.as_slice());
            match shape {
                Some(&[width]) if (1..=MAX_WIDTH).contains(&width) => Ok(width),
                _ => Err(Error::File {
                    file: weights.files(),
                    message: format!(
                        "no Wan 2.2 VAE in the MLX layout: expected {name} of 1 to {MAX_WIDTH} values, found {}",
                        shape.map_or("none".to_owned(), |shape| format!("{shape:?}"))
                    ),
                }),
            }
        };
        Ok(Self {
            encoder_width: width("encoder.conv1.bias")?,
            decoder_width: width("decoder.head.layer_0.gamma")?,
        })
    }
}

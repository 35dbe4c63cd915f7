//! L2 normalization of each pixel over its channels.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};

use crate::error::{Error, Result};
use crate::kernels::{metal, pixel_norm};
use crate::weights::Weights;

/// `x / max(‖x‖₂, 1e-12) · √C · gamma` over the last axis, in f32. Zeros stay zeros.
///
/// Reference: Wan 2.2, `RMS_norm` of `vae2_2.py`.
#[derive(Clone)]
pub struct PixelNorm {
    gamma: Vec<f32>,
    /// On a device: the same there.
    tensor: Option<Tensor>,
}

impl PixelNorm {
    /// Makes a norm with one factor for each channel.
    pub fn new(gamma: Vec<f32>) -> Self {
        Self { gamma, tensor: None }
    }

    /// Loads `gamma` `(width)`.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn load(weights: &Weights, width: usize) -> Result<Self> {
        let gamma = weights.tensor("gamma", &[width])?;
        Ok(Self { gamma: gamma.to_vec1()?, tensor: Some(gamma) })
    }

    /// Normalizes f32 `(.., C)`; the shape stays.
    ///
    /// # Errors
    /// A last axis of another width, another dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, false)
    }

    /// [`forward`](Self::forward), then SiLU, `v · sigmoid(v)`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, true)
    }

    fn apply(&self, x: &Tensor, silu: bool) -> Result<Tensor> {
        if x.dims().last() != Some(&self.gamma.len()) || self.gamma.is_empty() || x.dtype() != DType::F32 {
            let expected = format!("f32 (.., {})", self.gamma.len());
            return Err(Error::input("pixels", expected, format!("{:?} {:?}", x.dtype(), x.dims())));
        }
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        if metal::runs_on(x.device()) {
            let gamma =
                self.tensor.clone().map_or_else(|| Tensor::new(self.gamma.as_slice(), x.device()), Ok)?;
            let plan = metal::pixel_norm(x.elem_count() / self.gamma.len(), self.gamma.len(), silu);
            return metal::apply(&plan, &[&x.contiguous()?, &gamma.contiguous()?], x.dims());
        }
        Ok(x.contiguous()?.apply_op1_no_bwd(&NormOp { norm: self, silu })?)
    }
}

struct NormOp<'a> {
    norm: &'a PixelNorm,
    silu: bool,
}

impl CustomOp1 for NormOp<'_> {
    fn name(&self) -> &'static str {
        "pixel-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("pixel-norm expects contiguous pixels")
        };
        let x = &storage.as_slice::<f32>()?[start..end];
        let out = pixel_norm(x, &self.norm.gamma, self.silu);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::{assert_close, seeded};

    fn naive(x: &[f32], gamma: &[f32], silu: bool) -> Vec<f32> {
        x.chunks_exact(gamma.len())
            .flat_map(|x| {
                let length = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
                let scale = (gamma.len() as f64).sqrt() / length;
                x.iter().zip(gamma).map(move |(x, g)| {
                    let v = f64::from(*x) * scale * f64::from(*g);
                    (if silu { v / (1.0 + (-v).exp()) } else { v }) as f32
                })
            })
            .collect()
    }

    #[test]
    fn pixels_equal_the_f64_reference() {
        // Tiny pixels are divided by their own length, zeros stay zeros.
        for (channels, factor) in [(1, 1.0), (5, 1e-6), (160, 3.0), (1000, 1.0), (8, 0.0)] {
            let x: Vec<f32> = seeded(6 * channels, 1).iter().map(|v| v * factor).collect();
            let gamma = seeded(channels, 2);
            let norm = PixelNorm::new(gamma.clone());
            let input = Tensor::from_slice(&x, (2, 3, channels), &Device::Cpu).unwrap();
            for (y, silu) in [(norm.forward(&input), false), (norm.forward_silu(&input), true)] {
                let y = y.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_close(&format!("{channels} {silu}"), &y, &naive(&x, &gamma, silu), 2e-6);
            }
        }
    }

    #[test]
    fn pixels_of_another_width_are_refused() {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(PixelNorm::new(vec![1.0; 4]).forward(&x).is_err());
        assert!(PixelNorm::new(Vec::new()).forward(&x).is_err());
    }
}

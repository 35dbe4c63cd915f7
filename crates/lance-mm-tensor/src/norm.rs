//! RMS normalization.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use crate::dtype::FloatType;
use crate::error::Result;
use crate::kernels::{metal, rms_norm};
use crate::weights::Weights;

/// `w · x / sqrt(mean(x²) + eps)` over the last axis, in f32 whatever the weight is stored in
/// (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization").
#[derive(Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Makes a norm with an f32 `weight` `(K)`.
    pub fn new(weight: Tensor, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// Loads `weight` `(width)`, widened to f32.
    ///
    /// # Errors
    /// As [`Weights::tensor`]; a quantized norm.
    pub fn load(weights: &Weights, width: usize, eps: f32) -> Result<Self> {
        if weights.has("scales") {
            weights.report("scales", "expected a norm that is not quantized")?;
        }
        Ok(Self::new(weights.tensor("weight", &[width])?, eps))
    }

    /// The weight, f32 `(K)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The epsilon added to the mean of squares.
    pub(crate) fn eps(&self) -> f32 {
        self.eps
    }

    /// Normalizes f32 `(.., K)`; on a device f16 and bf16 too, with arithmetic in f32. Shape and dtype stay.
    ///
    /// # Errors
    /// A last axis of another width, another dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let width = self.weight.elem_count();
        let fits = x.dims().last() == Some(&width);
        if metal::runs_on(x.device()) && fits && x.elem_count() > 0 {
            let float = FloatType::try_from(x.dtype())?;
            let plan = metal::rms_norm(x.elem_count() / width, width, self.eps, float);
            return metal::apply(&plan, &[&x, &self.weight], x.dims());
        }
        if x.device().is_cpu() && fits {
            Ok(x.apply_op2_no_bwd(&self.weight, &Op { eps: self.eps })?)
        } else {
            Ok(candle_nn::ops::rms_norm(&x, &self.weight, self.eps)?)
        }
    }
}

struct Op {
    eps: f32,
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (Some((start, end)), Some((first, last))) =
            (x_layout.contiguous_offsets(), w_layout.contiguous_offsets())
        else {
            candle_core::bail!("rms-norm expects contiguous rows")
        };
        let out = rms_norm(&x.as_slice::<f32>()?[start..end], &w.as_slice::<f32>()?[first..last], self.eps);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::{assert_close, seeded};

    fn naive(x: &[f32], w: &[f32], eps: f64) -> Vec<f32> {
        x.chunks_exact(w.len())
            .flat_map(|row| {
                let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64;
                let scale = 1.0 / (mean + eps).sqrt();
                row.iter().zip(w).map(move |(v, w)| (f64::from(*v) * scale * f64::from(*w)) as f32)
            })
            .collect()
    }

    #[test]
    fn a_norm_without_its_weight_does_not_load() {
        let weights = Weights::from_vec("file", b"\x02\0\0\0\0\0\0\0{}".to_vec()).unwrap();
        let error = RmsNorm::load(&weights.pp("norm"), 8, 1e-6).err().unwrap().to_string();
        assert_eq!(error, "file: 1 problem: norm.weight: missing, expected [8]");
    }

    #[test]
    fn rows_equal_the_f64_reference() {
        // A row so small that eps decides, and a row of zeros.
        for (width, factor) in [(1, 1.0), (5, 1.0), (128, 1e-4), (2048, 3.0), (8, 0.0), (9000, 1.0)] {
            let x: Vec<f32> = seeded(3 * width, 1).iter().map(|v| v * factor).collect();
            let w = seeded(width, 2);
            let norm = RmsNorm::new(Tensor::new(w.as_slice(), &Device::Cpu).unwrap(), 1e-6);
            let y = norm.forward(&Tensor::from_slice(&x, (3, width), &Device::Cpu).unwrap()).unwrap();
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_close(&format!("width {width}"), &y, &naive(&x, &w, 1e-6), 2e-6);
        }
    }
}

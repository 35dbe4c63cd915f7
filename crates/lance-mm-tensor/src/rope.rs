//! Rotary position embedding: multimodal (three axes in contiguous sections) and from given angles.

use std::ops::Range;

use candle_core::{CpuStorage, Device, InplaceOp3, Layout, Tensor};

use crate::dtype::FloatType;
use crate::error::{Error, Result};
use crate::kernels::{Angles, apply_rotary, metal};
use crate::norm::RmsNorm;

/// Frequencies of a multimodal rotary embedding: channel pair `j` of a head is rotated by
/// `position[axis(j)] · theta^(-2j/D)`, where each axis has a contiguous section of the pairs
/// (Qwen2-VL, arXiv:2409.12191, section 2.1).
#[derive(Clone, Debug)]
pub struct Rotary {
    frequencies: Vec<f32>,
    axes: Vec<usize>,
}

impl Rotary {
    /// Makes frequencies for heads of width `head_dim`, with `sections` pairs for the axes t, h and w.
    ///
    /// # Errors
    /// Sections that do not add up to half the head width.
    pub fn new(head_dim: usize, theta: f64, sections: [usize; 3]) -> Result<Self> {
        let half = head_dim / 2;
        if !head_dim.is_multiple_of(2) || sections.iter().sum::<usize>() != half {
            let expected = format!("sections that add up to half of {head_dim}");
            return Err(Error::setting("mrope_section", expected, format!("{sections:?}")));
        }
        let axes = sections.iter().enumerate().flat_map(|(axis, n)| std::iter::repeat_n(axis, *n)).collect();
        Ok(Self { frequencies: frequencies(head_dim, theta), axes })
    }

    /// `theta^(-2j/D)` for `j` below `D/2`.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Makes the table for tokens at `positions` (axes t, h and w, a value for each token). Positions are integers and
    /// their product with a frequency is f32: bf16 could not tell 999 from 1002.
    ///
    /// # Errors
    /// Axes of different length.
    pub fn table(&self, positions: &[Vec<u32>; 3], device: &Device) -> Result<RotaryTable> {
        let n = positions[0].len();
        if positions.iter().any(|axis| axis.len() != n) {
            let found = format!("{:?}", positions.each_ref().map(Vec::len));
            return Err(Error::input("positions", "three axes of one length", found));
        }
        let mut angles = Vec::with_capacity(n * self.axes.len());
        for row in 0..n {
            angles.extend(
                self.axes.iter().zip(&self.frequencies).map(|(axis, f)| positions[*axis][row] as f32 * f),
            );
        }
        RotaryTable::from_angles(&angles, self.axes.len(), device)
    }
}

/// `theta^(-2j/dim)` for `j` below `dim/2`, rounded once from f64.
pub(crate) fn frequencies(dim: usize, theta: f64) -> Vec<f32> {
    (0..dim / 2).map(|j| theta.powf(-2.0 * j as f64 / dim as f64) as f32).collect()
}

/// Cosines and sines of each token's angles, f32 `(T, D/2)`: made once a pass, shared by all layers.
#[derive(Clone)]
pub struct RotaryTable {
    cos: Tensor,
    sin: Tensor,
}

impl RotaryTable {
    /// Makes a table of angles in radians, token by token, `half` (= `D/2`) each.
    ///
    /// # Errors
    /// Errors of candle.
    pub fn from_angles(angles: &[f32], half: usize, device: &Device) -> Result<Self> {
        let shape = (angles.len() / half.max(1), half);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        Ok(Self { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
    }

    /// Cosines `(T, D/2)`.
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// Sines `(T, D/2)`.
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }

    /// Rotates channel pairs `j`, `j + D/2` of f32 heads `(T, H, D)`, on a device f16 and bf16 too. On the CPU this is in
    /// place: other tensors that share the storage of `x` change too. Tokens may have a stride.
    ///
    /// # Errors
    /// A shape that does not fit the table, another dtype; on the CPU a token whose heads are not contiguous.
    pub fn apply(&self, x: Tensor) -> Result<Tensor> {
        if metal::runs_on(x.device()) {
            return self.apply_on_device(&x, None);
        }
        let (t, _, d) = x.dims3()?;
        if self.cos.dims() != [t, d / 2] || !d.is_multiple_of(2) {
            let expected = format!("{:?}: tokens and half the head width", self.cos.dims());
            return Err(Error::input("heads to rotate", expected, format!("{:?}", x.dims())));
        }
        x.inplace_op3(&self.cos, &self.sin, &ApplyRotary)?;
        Ok(x)
    }

    /// Normalizes each head of `(T, H, D)`, then applies rotary, out of place; on a device in one pass over the values.
    /// `other` is a second norm and the range of tokens that it is for.
    ///
    /// # Errors
    /// As [`apply`](Self::apply) and [`RmsNorm::forward`]; a range of tokens past the last.
    pub fn apply_normed(
        &self,
        norm: &RmsNorm,
        other: Option<(&RmsNorm, Range<usize>)>,
        x: &Tensor,
    ) -> Result<Tensor> {
        let (t, _, d) = x.dims3()?;
        let (other, rows) = other.unwrap_or((norm, 0..0));
        if rows.start > rows.end || rows.end > t {
            return Err(Error::input(
                "tokens of the second norm",
                format!("tokens below {t}"),
                format!("{rows:?}"),
            ));
        }
        let one_pass =
            [norm, other].iter().all(|norm| norm.weight().elem_count() == d) && norm.eps() == other.eps();
        if metal::runs_on(x.device()) && one_pass {
            let by = metal::HeadNorm { eps: norm.eps(), others: (!rows.is_empty()).then_some(rows) };
            return self.apply_on_device(x, Some((by, [norm, other])));
        }
        if rows.is_empty() {
            return self.apply(norm.forward(x)?);
        }
        let parts = [(norm, 0..rows.start), (other, rows.clone()), (norm, rows.end..t)];
        let parts = parts.into_iter().filter(|(_, rows)| !rows.is_empty());
        let normed =
            |(norm, rows): (&RmsNorm, Range<usize>)| norm.forward(&x.narrow(0, rows.start, rows.len())?);
        self.apply(Tensor::cat(&parts.map(normed).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Runs the device kernel, which writes heads as attention reads them, `(H, T, D)`; the result is a view of that.
    fn apply_on_device(&self, x: &Tensor, norm: Option<(metal::HeadNorm, [&RmsNorm; 2])>) -> Result<Tensor> {
        let (rows, heads, dim) = x.dims3()?;
        if self.cos.dims() != [rows, dim / 2] || !dim.is_multiple_of(2) || rows == 0 {
            let expected = format!("{:?}: tokens and half the head width", self.cos.dims());
            return Err(Error::input("heads to rotate", expected, format!("{:?}", x.dims())));
        }
        let float = FloatType::try_from(x.dtype())?;
        let plan = metal::norm_rope([rows, heads, dim], norm.as_ref().map(|(by, _)| by), float);
        let x = x.contiguous()?;
        let mut inputs = vec![&x, &self.cos, &self.sin];
        inputs.extend(norm.iter().flat_map(|(_, norms)| norms.iter().map(|norm| norm.weight())));
        Ok(metal::apply(&plan, &inputs, &[heads, rows, dim])?.transpose(0, 1)?)
    }
}

struct ApplyRotary;

impl InplaceOp3 for ApplyRotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (t, heads, d) = x_layout.shape().dims3()?;
        let [row, head, channel] = *x_layout.stride() else {
            candle_core::bail!("rotary expects tokens of heads")
        };
        if channel != 1 || (head != d && heads > 1) || (row < heads * d && t > 1) {
            candle_core::bail!("rotary expects tokens with contiguous heads, found {x_layout:?}");
        }
        let angles = [(cos, cos_layout), (sin, sin_layout)].map(|(storage, layout)| {
            let Some((start, end)) = layout.contiguous_offsets() else {
                candle_core::bail!("rotary expects contiguous angles")
            };
            Ok(&storage.as_slice::<f32>()?[start..end])
        });
        let [cos, sin] = angles;
        let CpuStorage::F32(x) = x else { candle_core::bail!("rotary expects f32") };
        if t > 0 {
            let row = row.max(heads * d);
            let start = x_layout.start_offset();
            let end = start + (t - 1) * row + heads * d;
            apply_rotary(&mut x[start..end], row, heads, Angles { cos: cos?, sin: sin?, half: d / 2 });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{assert_close, seeded};

    /// Angles in f64 and the pairing of halves, one head channel at a time.
    fn naive(
        x: &[f32],
        heads: usize,
        positions: &[Vec<u32>; 3],
        sections: [usize; 3],
        theta: f64,
    ) -> Vec<f32> {
        let half = sections.iter().sum::<usize>();
        let mut out = x.to_vec();
        for (row, head) in x.chunks_exact(2 * half).enumerate() {
            for j in 0..half {
                let axis = if j < sections[0] {
                    0
                } else if j < sections[0] + sections[1] {
                    1
                } else {
                    2
                };
                let angle = f64::from(positions[axis][row / heads]) * theta.powf(-(j as f64) / half as f64);
                let (a, b) = (f64::from(head[j]), f64::from(head[j + half]));
                out[row * 2 * half + j] = (a * angle.cos() - b * angle.sin()) as f32;
                out[row * 2 * half + j + half] = (b * angle.cos() + a * angle.sin()) as f32;
            }
        }
        out
    }

    #[test]
    fn rotated_heads_equal_the_f64_reference() {
        // The last has rows enough for several threads.
        for (heads, sections) in [(1, [1, 1, 1]), (4, [2, 3, 3]), (2, [16, 24, 24]), (80, [16, 24, 24])] {
            let d = 2 * sections.iter().sum::<usize>();
            let positions = [vec![0, 1, 7, 999], vec![0, 2, 900, 1002], vec![3, 4, 5, 1000]];
            let x = seeded(4 * heads * d, 9);
            let rotary = Rotary::new(d, 1e6, sections).unwrap();
            let table = rotary.table(&positions, &Device::Cpu).unwrap();
            let y = table.apply(Tensor::from_slice(&x, (4, heads, d), &Device::Cpu).unwrap()).unwrap();
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_close("rotated", &y, &naive(&x, heads, &positions, sections, 1e6), 2e-4);
        }
    }

    #[test]
    fn a_strided_part_is_rotated_in_place() {
        let (t, d) = (70, 16);
        let positions = [1, 2, 3].map(|axis| (0..t as u32).map(|row| axis * row).collect::<Vec<_>>());
        let table = Rotary::new(d, 1e6, [2, 3, 3]).unwrap().table(&positions, &Device::Cpu).unwrap();
        for all in [3, 300] {
            let values = seeded(t * all * d, 4);
            let x = Tensor::from_slice(&values, (t, all, d), &Device::Cpu).unwrap();
            let part = |x: &Tensor| x.narrow(1, 0, all - 1).unwrap();
            let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let alone = table.apply(part(&x).force_contiguous().unwrap()).unwrap();
            let turned = table.apply(part(&x)).unwrap();
            assert_eq!(flat(turned), flat(alone.clone()));
            let rest = |x: &Tensor| flat(x.narrow(1, all - 1, 1).unwrap());
            assert_eq!(flat(part(&x)), flat(alone));
            assert_eq!(rest(&x), rest(&Tensor::from_slice(&values, (t, all, d), &Device::Cpu).unwrap()));
        }
        let across = Tensor::zeros((3, t, d), DType::F32, &Device::Cpu).unwrap().transpose(0, 1).unwrap();
        assert!(table.apply(across).is_err());
    }

    #[test]
    fn tokens_of_the_second_norm_are_normalized_by_it() {
        let (t, d) = (5, 6);
        let tensor = |shape: &[usize], seed| {
            Tensor::from_vec(seeded(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
        };
        let [norm, other] = [1, 2].map(|seed| RmsNorm::new(tensor(&[d], seed), 1e-6));
        let positions: [Vec<u32>; 3] = [vec![1, 2, 3, 4, 5], vec![7; t], vec![9; t]];
        let table = Rotary::new(d, 1e6, [1, 1, 1]).unwrap().table(&positions, &Device::Cpu).unwrap();
        let x = tensor(&[t, 2, d], 3);
        let rows = |x: Tensor| x.reshape((t, 2 * d)).unwrap().to_vec2::<f32>().unwrap();
        let [by_norm, by_other] =
            [&norm, &other].map(|norm| rows(table.apply_normed(norm, None, &x).unwrap()));
        for others in [1..4, 0..2, 3..5, 0..5, 2..2] {
            let found = rows(table.apply_normed(&norm, Some((&other, others.clone())), &x).unwrap());
            for (i, row) in found.iter().enumerate() {
                assert_eq!(row, if others.contains(&i) { &by_other[i] } else { &by_norm[i] }, "{others:?}");
            }
        }
        let text = table.apply_normed(&norm, Some((&other, 2..6)), &x).unwrap_err().to_string();
        assert_eq!(text, "tokens of the second norm: expected tokens below 5, found 2..6");
    }

    #[test]
    fn neighbours_near_a_thousand_stay_apart() {
        let table = Rotary::new(4, 1e6, [1, 1, 0]).unwrap();
        let angle = |p: u32| {
            let t = table.table(&[vec![p], vec![p], vec![p]], &Device::Cpu).unwrap();
            t.sin().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
        };
        assert!((angle(999) - angle(1002)).abs() > 0.1);
    }

    #[test]
    fn sections_must_fill_half_the_head() {
        let text = Rotary::new(16, 1e6, [2, 3, 4]).unwrap_err().to_string();
        assert!(
            text.contains("mrope_section: expected sections that add up to half of 16, found [2, 3, 4]"),
            "{text}"
        );
        assert!(
            Rotary::new(6, 1e6, [1, 1, 1]).unwrap().table(&[vec![1], vec![], vec![1]], &Device::Cpu).is_err()
        );
    }
}

//! Convolutions over video frames, channels last.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::conv_window::Window;
use crate::cpu_values::Values;
use crate::dense::DenseWeight;
use crate::error::{Error, Result};
use crate::kernels::metal;
use crate::kernels::{Frames, Geometry, Rows, add_conv, zeros};
use crate::weights::Weights;

/// A causal convolution over time, with bias: each frame of the output reads its input frame and those before it.
///
/// Sums are f32, weights stay in the dtype they are stored in; while it runs, one f32 copy of the filters exists. A
/// frame before the first costs nothing: its taps are left out.
#[derive(Clone)]
pub struct Conv {
    weight: DenseWeight,
    /// On a device: the filters as stored, as bytes.
    filters: Option<Tensor>,
    bias: Tensor,
    /// Temporal size of the kernel.
    taps: usize,
    channels: usize,
    geometry: Geometry,
}

impl Conv {
    /// Makes a convolution of `R` filters, the rows of `weight`: a kernel of `[frames, rows, columns]` with `channels`
    /// values each, channels last; `bias` f32 `(R)`.
    ///
    /// # Errors
    /// Rows of another length, a bias of another shape, sizes of zero.
    pub fn new(
        weight: DenseWeight,
        bias: Tensor,
        kernel: [usize; 3],
        channels: usize,
        window: Window,
    ) -> Result<Self> {
        let [taps, rows, columns] = kernel;
        let filter = kernel.iter().try_fold(channels, |n, k| n.checked_mul(*k));
        if filter.is_none_or(|n| n == 0 || n != weight.n_cols()) || window.stride == 0 || window.upsample == 0
        {
            let expected =
                format!("{kernel:?} filters of {channels} channels, stride and upsampling above 0");
            let found = format!("filters of {} values, {window:?}", weight.n_cols());
            return Err(Error::input("convolution", expected, found));
        }
        if bias.dims() != [weight.n_rows()] || bias.dtype() != DType::F32 {
            let expected = format!("f32 [{}]", weight.n_rows());
            let found = format!("{:?} {:?}", bias.dtype(), bias.dims());
            return Err(Error::input("bias of a convolution", expected, found));
        }
        let geometry = Geometry { kernel: [rows, columns], window };
        let filters = filters_on(bias.device(), &weight)?;
        Ok(Self { weight, filters, bias, taps, channels, geometry })
    }

    /// Loads `{stem}weight` `(n_out, ..kernel, n_in)` and `{stem}bias` `(n_out)`; `kernel` is `[rows, columns]` or
    /// `[frames, rows, columns]`.
    ///
    /// # Errors
    /// As [`Weights::matrix`] and [`Weights::tensor`].
    ///
    /// # Panics
    /// When `kernel` has neither two nor three axes.
    pub fn load(
        weights: &Weights,
        stem: &str,
        (n_in, n_out): (usize, usize),
        kernel: &[usize],
        window: Window,
    ) -> Result<Self> {
        let (taps, rows, columns) = match *kernel {
            [rows, columns] => (1, rows, columns),
            [taps, rows, columns] => (taps, rows, columns),
            _ => panic!("a filter has two or three axes"),
        };
        let shape: Vec<usize> = [n_out].iter().chain(kernel).chain(&[n_in]).copied().collect();
        let weight = weights.matrix(&format!("{stem}weight"), &shape)?;
        Ok(Self {
            filters: filters_on(weights.device(), &weight)?,
            weight,
            bias: weights.tensor(&format!("{stem}bias"), &[n_out])?,
            taps,
            channels: n_in,
            geometry: Geometry { kernel: [rows, columns], window },
        })
    }

    /// Temporal size of the kernel.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// Multiplications of [`forward`](Self::forward) on a frame of this size with `n_past` frames before it;
    /// none if the filters do not fit.
    pub fn products(&self, height: usize, width: usize, n_past: usize) -> u64 {
        let positions = |n, axis| self.geometry.positions(n, axis).unwrap_or(0) as u64;
        let filters = (self.bias.elem_count() * self.weight.n_cols() / self.taps * (n_past + 1)) as u64;
        positions(height, 0) * positions(width, 1) * filters
    }

    /// The output frame, f32 `(H', W', R)`, of input frame `x`, f32 `(H, W, C)`, after `past`: the frames just before it,
    /// oldest first. Missing ones count as zeros.
    ///
    /// # Errors
    /// Frames of different sizes or of another number of channels, smaller than the kernel, or more than it spans.
    pub fn forward(&self, x: &Tensor, past: &[Tensor]) -> Result<Tensor> {
        self.run(x, past, None)
    }

    /// `residual + forward(x, past)`, with f32 `residual` `(H', W', R)`; the CPU begins its sums with it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); a residual of another shape.
    pub fn forward_residual(&self, residual: &Tensor, x: &Tensor, past: &[Tensor]) -> Result<Tensor> {
        self.run(x, past, Some(residual))
    }

    fn run(&self, x: &Tensor, past: &[Tensor], start: Option<&Tensor>) -> Result<Tensor> {
        let (height, width, channels) = x.dims3()?;
        let positions = self.geometry.positions(height, 0).zip(self.geometry.positions(width, 1));
        let fits = channels == self.channels && x.dtype() == DType::F32;
        let Some((rows, columns)) = positions.filter(|_| fits) else {
            let expected = format!("f32 (H, W, {}) under filters {:?}", self.channels, self.geometry.kernel);
            let found = format!("{:?} {:?}", x.dtype(), x.dims());
            return Err(Error::input("frame", expected, found));
        };
        if past.len() >= self.taps || past.iter().any(|p| p.dims() != x.dims() || p.dtype() != DType::F32) {
            let expected = format!("at most {} frames {:?}", self.taps - 1, x.dims());
            let found = format!("{:?}", past.iter().map(Tensor::dims).collect::<Vec<_>>());
            return Err(Error::input("past frames", expected, found));
        }
        let dims = [rows, columns, self.weight.n_rows()];
        if let Some(start) = start.filter(|start| start.dims() != dims || start.dtype() != DType::F32) {
            let found = format!("{:?} {:?}", start.dtype(), start.dims());
            return Err(Error::input("residual of a convolution", format!("f32 {dims:?}"), found));
        }
        let past = past.iter().map(Tensor::contiguous).collect::<candle_core::Result<Vec<_>>>()?;
        if let Some(filters) = &self.filters {
            let y = self.forward_on_device(filters, &x.contiguous()?, past, [rows, columns])?;
            return start.map_or(Ok(y.clone()), |start| Ok((start + y)?));
        }
        self.forward_on_cpu(&x.contiguous()?, &past, start, [rows, columns])
    }
}

impl Conv {
    fn forward_on_cpu(
        &self,
        x: &Tensor,
        past: &[Tensor],
        start: Option<&Tensor>,
        [rows, columns]: [usize; 2],
    ) -> Result<Tensor> {
        let (height, width, channels) = x.dims3()?;
        let (x, past) = (Values::of(x)?, past.iter().map(Values::of).collect::<Result<Vec<_>>>()?);
        let mut frames = vec![None; self.taps - 1 - past.len()];
        frames.extend(past.iter().chain([&x]).map(|frame| Some(&**frame)));

        let bias = self.bias.to_vec1::<f32>()?;
        let mut out = zeros(rows * columns * bias.len());
        let start = start.map(Tensor::contiguous).transpose()?;
        let start = start.as_ref().map(Values::of).transpose()?;
        let pixels = out.par_chunks_exact_mut(bias.len().max(1)).enumerate().with_min_len(1024);
        pixels.for_each(|(i, pixel)| {
            pixel.copy_from_slice(&bias);
            if let Some(start) = &start {
                let start = &start[i * bias.len()..];
                pixel.iter_mut().zip(start).for_each(|(sum, start)| *sum += start);
            }
        });
        add_conv(
            Frames { frames: &frames, height, width, channels },
            &self.geometry,
            self.weight.view(),
            &mut out,
        );
        Ok(Tensor::from_vec(out, (rows, columns, bias.len()), &Device::Cpu)?)
    }

    fn forward_on_device(
        &self,
        filters: &Tensor,
        x: &Tensor,
        past: Vec<Tensor>,
        positions: [usize; 2],
    ) -> Result<Tensor> {
        let (height, width, channels) = x.dims3()?;
        let Window { stride, pad_before, upsample, .. } = self.geometry.window;
        let frames: Vec<Tensor> = past.into_iter().chain([x.clone()]).rev().collect();
        let shape = metal::ConvShape {
            frame: [height, width, channels],
            kernel: self.geometry.kernel,
            window: [stride, pad_before, upsample],
            positions,
            filters: self.weight.n_rows(),
            filter: self.weight.n_cols(),
            frames: frames.len(),
            float: self.weight.dtype(),
        };
        metal::convolve(&shape, filters, &self.bias, &frames)
    }
}

/// Copies the filters to `device`, if operations run there.
fn filters_on(device: &Device, weight: &DenseWeight) -> Result<Option<Tensor>> {
    let bytes = weight.bytes();
    let upload = || Tensor::from_slice(bytes, bytes.len(), device);
    Ok((metal::runs_on(device) && !bytes.is_empty()).then(upload).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, seeded};

    const SAME: Window = Window { stride: 1, pad_before: 1, pad_after: 1, upsample: 1 };

    fn tensor(n: usize, shape: &[usize], seed: u64) -> Tensor {
        Tensor::from_vec(seeded(n, seed), shape, &Device::Cpu).unwrap()
    }

    fn conv(kernel: [usize; 3], channels: usize, n_out: usize, window: Window) -> Conv {
        let filter = kernel.iter().product::<usize>() * channels;
        let weight = DenseWeight::from_f32(&seeded(n_out * filter, 1), filter);
        Conv::new(weight, tensor(n_out, &[n_out], 2), kernel, channels, window).unwrap()
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn frames_that_are_missing_count_as_zeros() {
        let conv = conv([3, 3, 3], 4, 6, SAME);
        let [a, b] = [3, 4].map(|seed| tensor(5 * 6 * 4, &[5, 6, 4], seed));
        let zero = a.zeros_like().unwrap();
        for (few, all) in [(vec![], vec![zero.clone(), zero.clone()]), (vec![b.clone()], vec![zero, b])] {
            let (few, all) = (conv.forward(&a, &few).unwrap(), conv.forward(&a, &all).unwrap());
            assert_eq!(few.dims(), [5, 6, 6]);
            assert_close("missing frames", &flat(&few), &flat(&all), 1e-5);
        }
    }

    #[test]
    fn a_point_convolution_equals_a_linear_layer() {
        let conv = conv([1, 1, 1], 20, 40, Window::default());
        let linear = crate::Linear::new(crate::Weight::Dense(conv.weight.clone()), Some(conv.bias.clone()));
        let x = tensor(3 * 7 * 20, &[7, 3, 20], 5);
        let (y, expected) = (conv.forward(&x, &[]).unwrap(), linear.forward(&x).unwrap());
        assert_eq!(y.dims(), expected.dims());
        assert_close("linear", &flat(&y), &flat(&expected), 1e-5);
        // The same frame, seen through another order of its axes.
        let turned = x.transpose(0, 1).unwrap();
        assert_close(
            "strided",
            &flat(&conv.forward(&turned, &[]).unwrap()),
            &flat(&y.transpose(0, 1).unwrap()),
            1e-5,
        );
    }

    #[test]
    fn sums_may_begin_with_something_else() {
        let conv = conv([1, 3, 3], 4, 6, SAME);
        let (x, start) = (tensor(5 * 6 * 4, &[5, 6, 4], 3), tensor(5 * 6 * 6, &[5, 6, 6], 4));
        let expected = (conv.forward(&x, &[]).unwrap() + &start).unwrap();
        assert_close("onto", &flat(&conv.forward_residual(&start, &x, &[]).unwrap()), &flat(&expected), 1e-5);
        let error = conv.forward_residual(&x, &x, &[]).unwrap_err().to_string();
        assert!(error.contains("expected f32 [5, 6, 6], found F32 [5, 6, 4]"), "{error}");
    }

    #[test]
    fn the_number_of_products_is_that_of_the_sums() {
        let conv = conv([3, 3, 3], 4, 6, Window { stride: 2, pad_before: 0, pad_after: 1, upsample: 1 });
        assert_eq!(conv.products(4, 6, 0), 2 * 3 * 6 * 9 * 4);
        assert_eq!(conv.products(4, 6, 2), 3 * conv.products(4, 6, 0));
    }

    #[test]
    fn frames_that_do_not_fit_are_named() {
        let conv = conv([2, 3, 3], 4, 6, Window::default());
        let frame = |h: usize, w: usize, c: usize| tensor(h * w * c, &[h, w, c], 3);
        for (x, past, expected) in [
            (frame(3, 3, 5), vec![], "expected f32 (H, W, 4)"),
            (frame(2, 3, 4), vec![], "under filters [3, 3], found F32 [2, 3, 4]"),
            (frame(3, 3, 4), vec![frame(3, 4, 4)], "expected at most 1 frames [3, 3, 4], found [[3, 4, 4]]"),
            (frame(3, 3, 4), vec![frame(3, 3, 4), frame(3, 3, 4)], "expected at most 1 frames"),
        ] {
            let text = conv.forward(&x, &past).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
        let weight = DenseWeight::from_f32(&[0.0; 18], 9);
        assert!(Conv::new(weight.clone(), tensor(2, &[2], 1), [1, 3, 3], 2, SAME).is_err());
        assert!(Conv::new(weight, tensor(3, &[3], 1), [1, 3, 3], 1, SAME).is_err());
    }
}

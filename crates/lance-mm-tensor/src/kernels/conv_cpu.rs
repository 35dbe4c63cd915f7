//! Convolution of channels-last frames on the CPU as a matmul whose left operand is read in place: the values under one row
//! of a filter are contiguous.
//!
//! ```text
//! input of a tile    row 0: pixel 0 (C values, perhaps a gap) | pixel 1 | ..      padding and upsampling laid out
//! under a filter     for each row of the kernel: columns · C contiguous values; the next position is stride pixels further
//!
//! packed filters     panel 0: value 0 of 32 filters | value 1 of 32 filters | .. | panel 1 ..        f32
//! output             (rows, columns, R): up to 12 positions x 32 filters are one call of [`tile::add`]
//! ```
//!
//! Large frames: each thread takes a band of rows and passes all filters over it. Small frames: each thread takes panels of
//! filters, packs them itself, and passes them over all positions.

#[cfg(target_arch = "x86_64")]
mod tiles;

use std::cell::RefCell;

use rayon::prelude::*;

use super::operands::Dense;
use super::output_columns::Columns;
use super::simd::Simd;
use super::tile::{self, Left, PANEL};
use super::zeros::zeros;
use crate::conv_window::Window;

/// Values summed in registers before they are added to the output.
// A panel of this depth, 32 kB, stays in the first-level cache while the pixels of a tile pass. 64 to 1024 took 114 to 134
// ms for 32 x 32 pixels of 512 channels on a noisy machine: no difference to see.
const DEPTH: usize = 256;
/// Most rows of the output of one task.
// Bounds the input of a tile, which has kernel rows beside them. 1 to 16 rows: no difference beyond noise.
const BAND: usize = 8;
/// Pixels of the output whose input is laid out at a time.
// 256 pixels of 256 channels are 256 kB for each frame, of a second-level cache of 1 or 2 MB. 64 to 1024: no difference
// beyond noise.
const TILE: usize = 256;
/// Most values of the whole input, padding included, of a frame that is convolved panel by panel of filters.
// 6 MB, which threads read from the last-level cache again for each panel. Bands of so small a frame would have every thread
// read all filters: 16 x 16 pixels of 1,024 channels went from 179 to 391 Gop/s, 32 x 32 from 331 to 421 (two threads of
// Zen 5).
const SMALL: usize = 3 << 19;
/// Channels of which a multiple makes pixels collide in the caches.
// Pixels a multiple of 1 kB apart fall on few sets of a cache, and evict each other.
const ALIASED: usize = 256;
/// Values between such pixels.
// One cache line spreads them over all sets.
const GAP: usize = 16;

/// Kernel size, stride, padding and upsampling of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Rows and columns of the kernel.
    pub(crate) kernel: [usize; 2],
    pub(crate) window: Window,
}

impl Geometry {
    /// Filter positions along a side of `n` pixels; `None` if the filter, `kernel[axis]` long, does not fit.
    pub(crate) fn positions(&self, n: usize, axis: usize) -> Option<usize> {
        let Window { stride, pad_before, pad_after, upsample } = self.window;
        let padded = n.checked_mul(upsample)?.checked_add(pad_before)?.checked_add(pad_after)?;
        Some(padded.checked_sub(self.kernel[axis])? / stride + 1)
    }

    /// The pixel at padded position `at` along a side of `n` pixels; `None` in the padding.
    fn pixel(&self, at: usize, n: usize) -> Option<usize> {
        let at = at.checked_sub(self.window.pad_before)? / self.window.upsample;
        (at < n).then_some(at)
    }
}

/// Frames `(height, width, channels)` of one size.
#[derive(Clone, Copy)]
pub(crate) struct Frames<'a> {
    /// One for every temporal tap, oldest first; `None` is zeros.
    pub(crate) frames: &'a [Option<&'a [f32]>],
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

/// Adds a convolution to `out`, f32 `(rows, columns, R)` of filter positions: `weight` has `R` filters of
/// `(frames, kernel rows, kernel columns, channels)` values.
///
/// # Panics
/// When sizes do not fit each other.
pub(crate) fn add_conv(x: Frames<'_>, geometry: &Geometry, weight: Dense<'_>, out: &mut [f32]) {
    let [kernel_rows, kernel_columns] = geometry.kernel;
    let filter = kernel_rows * kernel_columns * x.channels;
    let columns = geometry.positions(x.width, 1).expect("the filter fits the frame");
    let rows = geometry.positions(x.height, 0).expect("the filter fits the frame");
    let n_out = weight.rows;
    assert_eq!(weight.cols, x.frames.len() * filter, "a filter covers the frames");
    assert_eq!(out.len(), rows * columns * n_out, "a value for each position and filter");
    let present: Vec<(usize, &[f32])> =
        x.frames.iter().enumerate().filter_map(|(i, frame)| Some((i, (*frame)?))).collect();
    assert!(present.iter().all(|(_, f)| f.len() == x.height * x.width * x.channels), "whole frames");
    if present.is_empty() || out.is_empty() || filter == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if tiles::add(x, geometry, weight, out) {
        return;
    }
    let taps: Vec<usize> = present.iter().map(|(tap, _)| *tap).collect();
    let aliased = x.channels.is_multiple_of(ALIASED);
    let pitch = x.channels + if aliased { GAP } else { 0 };
    // Without gaps, the values under a row of the kernel are one run.
    let run = if aliased { x.channels } else { kernel_columns * x.channels };
    let pieces = (0..kernel_columns * x.channels / run)
        .flat_map(|i| (0..run).step_by(DEPTH).map(move |start| (i, start)))
        .map(|(i, start)| Piece {
            input: i * pitch + start,
            depth: i * run + start,
            len: DEPTH.min(run - start),
        })
        .collect();
    let product = Product {
        frames: present.into_iter().map(|(_, frame)| frame).collect(),
        x,
        geometry,
        n_out,
        pitch,
        pieces,
        simd: Simd::detect(),
    };
    let panels = n_out.div_ceil(PANEL);
    if product.input_of(rows, columns) <= SMALL && panels >= rayon::current_num_threads() {
        return product.by_panel([rows, columns], out, |panel, out| pack(weight, &taps, filter, panel, out));
    }
    let depth = taps.len() * filter;
    let mut packed = zeros(panels * depth * PANEL);
    let all = packed.par_chunks_mut(depth * PANEL).enumerate();
    all.for_each(|(i, panel)| pack(weight, &taps, filter, i, panel));
    // Four tasks for each thread, so that none waits long for the last.
    let band = rows.div_ceil(4 * rayon::current_num_threads()).clamp(1, BAND);
    // Memory for the input of tiles is reused: the system clears new memory page by page.
    out.par_chunks_mut(band * columns * n_out).enumerate().for_each_init(Vec::new, |input, (i, out)| {
        let step = (TILE / band).max(1);
        for first in (0..columns).step_by(step) {
            product.tile(&packed, i * band, first..(first + step).min(columns), columns, input, out);
        }
    });
}

/// Packs panel `panel` of the filters' values under the frames `taps`: `(depth, PANEL)`, the last panel with zeros.
fn pack(weight: Dense<'_>, taps: &[usize], filter: usize, panel: usize, out: &mut [f32]) {
    /// Values of a filter that are read at a time.
    // 32 filters of 128 values are 16 kB of f32, half of a first-level cache.
    const RUN: usize = 128;
    let rows = panel * PANEL..((panel + 1) * PANEL).min(weight.rows);
    let mut run = [[0.0; RUN]; PANEL];
    for (tap, out) in taps.iter().zip(out.chunks_exact_mut(filter * PANEL)) {
        for first in (0..filter).step_by(RUN) {
            let len = RUN.min(filter - first);
            for (row, run) in rows.clone().zip(&mut run) {
                weight.read_part(row, tap * filter + first, &mut run[..len]);
            }
            let out = out[first * PANEL..(first + len) * PANEL].as_chunks_mut::<PANEL>().0;
            for (k, out) in out.iter_mut().enumerate() {
                for (out, run) in out.iter_mut().zip(&run) {
                    *out = run[k];
                }
            }
        }
    }
}

thread_local! {
    /// A panel of filters and its sums, of this thread: as much as the largest small frame needs.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Operands shared by all tasks of a convolution.
struct Product<'a> {
    /// The frames that are not zeros, in the order of the packed filters.
    frames: Vec<&'a [f32]>,
    x: Frames<'a>,
    geometry: &'a Geometry,
    n_out: usize,
    /// Distance from one pixel of a tile's input to the next.
    pitch: usize,
    /// Pieces of the values under a row of the kernel.
    pieces: Vec<Piece>,
    simd: Simd,
}

/// Contiguous values under one row of the kernel.
struct Piece {
    /// Their offset in a tile's input, from the first pixel under the kernel.
    input: usize,
    /// Their offset in the kernel's row.
    depth: usize,
    len: usize,
}

impl Product<'_> {
    /// Number of input values, padding included, of this many rows and columns of the output.
    fn input_of(&self, rows: usize, columns: usize) -> usize {
        let [height, width] = self.under(rows, columns);
        self.frames.len() * height * width * self.pitch
    }

    /// Rows and columns of pixels under this many of the output.
    fn under(&self, rows: usize, columns: usize) -> [usize; 2] {
        let Geometry { kernel: [kernel_rows, kernel_columns], window: Window { stride, .. } } =
            *self.geometry;
        [(rows - 1) * stride + kernel_rows, (columns - 1) * stride + kernel_columns]
    }

    /// Convolves panel by panel of filters, all positions for each; `pack` fills one.
    fn by_panel(
        &self,
        [rows, columns]: [usize; 2],
        out: &mut [f32],
        pack: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let Geometry { kernel: [kernel_rows, kernel_columns], window: Window { stride, .. } } =
            *self.geometry;
        let [height, width] = self.under(rows, columns);
        let mut input = Vec::new();
        self.gather(0, 0, height, width, &mut input);
        let filter_row = kernel_columns * self.x.channels;
        let lines = self.frames.len() * kernel_rows;
        let block = tile::rows(self.simd);
        Columns::new(out, self.n_out).in_parallel(PANEL, 1, |part| {
            let range = part.range();
            for first in range.clone().step_by(PANEL) {
                // Nothing in here runs other work of the pool on this thread.
                SCRATCH.with_borrow_mut(|[panel, sums]| {
                    panel.resize(lines * filter_row * PANEL, 0.0);
                    pack(first / PANEL, panel);
                    let cols = first..(first + PANEL).min(range.end);
                    sums.resize(rows * columns * PANEL, 0.0);
                    for (position, sums) in sums.chunks_exact_mut(PANEL).enumerate() {
                        let (sums, rest) = sums.split_at_mut(cols.len());
                        sums.copy_from_slice(part.row(position, cols.clone()));
                        rest.fill(0.0);
                    }
                    for (line, piece) in
                        (0..lines).flat_map(|line| self.pieces.iter().map(move |piece| (line, piece)))
                    {
                        let (frame, y) = (line / kernel_rows, line % kernel_rows);
                        let panel = &panel[(line * filter_row + piece.depth) * PANEL..][..piece.len * PANEL];
                        for row in 0..rows {
                            let from = (frame * height + row * stride + y) * width * self.pitch + piece.input;
                            for column in (0..columns).step_by(block) {
                                let step = stride * self.pitch;
                                let left =
                                    Left { values: &input[from + column * step..], row: step, step: 1 };
                                let sums = &mut sums[(row * columns + column) * PANEL..];
                                tile::add(self.simd, block.min(columns - column), left, panel, sums, PANEL);
                            }
                        }
                    }
                    for (position, sums) in sums.chunks_exact(PANEL).enumerate() {
                        part.row(position, cols.clone()).copy_from_slice(&sums[..cols.len()]);
                    }
                });
            }
        });
    }

    /// Convolves the positions `positions` of each row of `out`, whose first row is row `first_row` of the output.
    fn tile(
        &self,
        packed: &[f32],
        first_row: usize,
        positions: std::ops::Range<usize>,
        columns: usize,
        input: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let Geometry { kernel: [kernel_rows, kernel_columns], window: Window { stride, .. } } =
            *self.geometry;
        let rows = out.len() / (columns * self.n_out);
        // The input under the tile, padding included, frame by frame.
        let [height, width] = self.under(rows, positions.len());
        self.gather(first_row * stride, positions.start * stride, height, width, input);

        let filter_row = kernel_columns * self.x.channels;
        let depth = self.frames.len() * kernel_rows * filter_row;
        for line in 0..self.frames.len() * kernel_rows {
            let (frame, y) = (line / kernel_rows, line % kernel_rows);
            for piece in &self.pieces {
                for (n, panel) in packed.chunks_exact(depth * PANEL).enumerate() {
                    let panel = &panel[(line * filter_row + piece.depth) * PANEL..][..piece.len * PANEL];
                    for row in 0..rows {
                        let from = (frame * height + row * stride + y) * width * self.pitch + piece.input;
                        let to = (row * columns + positions.start) * self.n_out + n * PANEL;
                        self.line(&input[from..], panel, positions.len(), n, &mut out[to..]);
                    }
                }
            }
        }
    }

    /// Convolves `count` positions side by side with panel `n` of filters.
    fn line(&self, input: &[f32], panel: &[f32], count: usize, n: usize, out: &mut [f32]) {
        let step = self.geometry.window.stride * self.pitch;
        let filters = (self.n_out - n * PANEL).min(PANEL);
        let block = tile::rows(self.simd);
        for first in (0..count).step_by(block) {
            let rows = block.min(count - first);
            let input = Left { values: &input[first * step..], row: step, step: 1 };
            let out = &mut out[first * self.n_out..];
            if filters == PANEL {
                tile::add(self.simd, rows, input, panel, out, self.n_out);
                continue;
            }
            let mut sums = [0.0; tile::MAX_ROWS * PANEL];
            tile::add(self.simd, rows, input, panel, &mut sums, PANEL);
            for (out, sums) in out.chunks_mut(self.n_out).zip(sums.chunks_exact(PANEL)).take(rows) {
                for (out, sum) in out.iter_mut().zip(&sums[..filters]) {
                    *out += sum;
                }
            }
        }
    }

    /// Lays out rows and columns of every frame from padded position `(top, left)` on, with zeros for padding and in gaps.
    fn gather(&self, top: usize, left: usize, height: usize, width: usize, input: &mut Vec<f32>) {
        let (geometry, x) = (self.geometry, self.x);
        input.clear();
        input.resize(self.frames.len() * height * width * self.pitch, 0.0);
        for (line, out) in input.chunks_exact_mut(width * self.pitch).enumerate() {
            let (frame, y) = (self.frames[line / height], line % height);
            let Some(row) = geometry.pixel(top + y, x.height) else { continue };
            let row = &frame[row * x.width * x.channels..][..x.width * x.channels];
            for (column, out) in out.chunks_exact_mut(self.pitch).enumerate() {
                if let Some(column) = geometry.pixel(left + column, x.width) {
                    out[..x.channels].copy_from_slice(&row[column * x.channels..][..x.channels]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::dense::DenseWeight;
    use crate::dtype::FloatType;
    use crate::precision::ActivationPrecision;
    use crate::testing::{assert_close, seeded};

    struct Case {
        /// Which of the taps in time have a frame.
        frames: &'static [bool],
        size: [usize; 2],
        channels: [usize; 2],
        geometry: Geometry,
    }

    /// One product at a time, in f64.
    fn naive(case: &Case, frames: &[Vec<f32>], weight: &[f32], out: &mut [f32]) {
        let Geometry { kernel: [kr, kc], window: Window { stride, pad_before, upsample, .. } } =
            case.geometry;
        let ([h, w], [n_in, n_out]) = (case.size, case.channels);
        let columns = case.geometry.positions(w, 1).unwrap();
        for (at, out) in out.iter_mut().enumerate() {
            let (row, column, filter) = (at / n_out / columns, at / n_out % columns, at % n_out);
            let mut sum = f64::from(*out);
            for (tap, present) in case.frames.iter().enumerate() {
                for (y, x, c) in (0..kr * kc * n_in).map(|i| (i / n_in / kc, i / n_in % kc, i % n_in)) {
                    let [py, px] = [row * stride + y, column * stride + x];
                    let inside = py >= pad_before
                        && px >= pad_before
                        && py < pad_before + upsample * h
                        && px < pad_before + upsample * w;
                    if *present && inside {
                        let pixel =
                            ((py - pad_before) / upsample * w + (px - pad_before) / upsample) * n_in + c;
                        let value =
                            weight[(((filter * case.frames.len() + tap) * kr + y) * kc + x) * n_in + c];
                        sum += f64::from(frames[tap][pixel]) * f64::from(value);
                    }
                }
            }
            *out = sum as f32;
        }
    }

    fn rounded(values: &[f32]) -> Vec<f32> {
        values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
    }

    /// They decide whether a thread takes panels of filters or tiles of positions.
    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (size, n_in, n_out) = ([9, 14], 5, 100);
        let window = Window { stride: 1, pad_before: 1, pad_after: 1, upsample: 1 };
        let geometry = Geometry { kernel: [3, 3], window };
        let frame = seeded(size[0] * size[1] * n_in, 1);
        let weight = DenseWeight::from_f32(&seeded(n_out * 9 * n_in, 2), 9 * n_in);
        let on = |threads| {
            let mut out = seeded(size[0] * size[1] * n_out, 3);
            let frames = [Some(frame.as_slice())];
            let x = Frames { frames: &frames, height: size[0], width: size[1], channels: n_in };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| add_conv(x, &geometry, weight.view(), &mut out));
            out
        };
        assert!(on(1) == on(4) && on(1) == on(5));
    }

    #[test]
    fn convolutions_equal_the_naive_reference() {
        let window = Window { stride: 1, pad_before: 1, pad_after: 1, upsample: 1 };
        let same = Geometry { kernel: [3, 3], window };
        let cases = [
            Case { frames: &[true], size: [1, 1], channels: [1, 1], geometry: same },
            Case { frames: &[true], size: [5, 7], channels: [3, 33], geometry: same },
            Case { frames: &[true, true, true], size: [4, 3], channels: [5, 7], geometry: same },
            Case { frames: &[false, false, true], size: [4, 30], channels: [100, 32], geometry: same },
            Case { frames: &[false, true, true], size: [19, 2], channels: [2, 40], geometry: same },
            Case { frames: &[false, false], size: [2, 2], channels: [2, 4], geometry: same },
            Case {
                frames: &[true],
                size: [6, 9],
                channels: [4, 5],
                geometry: Geometry { window: Window { stride: 2, pad_before: 0, ..window }, ..same },
            },
            Case {
                frames: &[true],
                size: [5, 4],
                channels: [6, 64],
                geometry: Geometry { window: Window { upsample: 2, ..window }, ..same },
            },
            Case {
                frames: &[true, true, true],
                size: [3, 300],
                channels: [9, 3],
                geometry: Geometry { kernel: [1, 1], window: Window::default() },
            },
        ];
        for case in cases {
            let ([h, w], [n_in, n_out], taps) = (case.size, case.channels, case.frames.len());
            let frames: Vec<_> = (0..taps).map(|i| seeded(h * w * n_in, i as u64)).collect();
            let filter = taps * case.geometry.kernel.iter().product::<usize>() * n_in;
            let values = rounded(&seeded(n_out * filter, 9));
            let positions = [0, 1].map(|axis| case.geometry.positions(case.size[axis], axis).unwrap());
            let start = seeded(positions[0] * positions[1] * n_out, 10);
            let mut expected = start.clone();
            naive(&case, &frames, &values, &mut expected);
            let present: Vec<_> =
                frames.iter().zip(case.frames).map(|(f, present)| present.then_some(f.as_slice())).collect();
            // Filters of f32, and of bf16 with inputs of f32 and, in tiles where there are any, of two terms.
            let stored = DenseWeight::rounded(&values, filter, FloatType::BF16)
                .with_activation_precision(ActivationPrecision::Split);
            for (weight, tolerance) in [
                (DenseWeight::from_f32(&values, filter), 2e-5),
                (stored.clone(), 2e-5),
                (stored.with_activation_precision(ActivationPrecision::Bf16), 1e-4),
            ] {
                let x = Frames { frames: &present, height: h, width: w, channels: n_in };
                let mut out = start.clone();
                add_conv(x, &case.geometry, weight.view(), &mut out);
                let name = format!(
                    "{:?} {:?} {:?} {:?} {:?}",
                    weight.dtype(),
                    case.frames,
                    case.size,
                    case.channels,
                    case.geometry
                );
                assert_close(&name, &out, &expected, tolerance);
            }
        }
    }
}

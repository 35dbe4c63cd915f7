//! Convolutions with bf16 filters on AMX.
//!
//! ```text
//! a row of input   step 0: term 0: word 0: pixel 0, pixel 1, .. | word 1: pixel 0, .. | .. 16 words | term 1 .. | step 1 ..
//!                  a word is two channels of bf16; a step is 32 channels
//! right operand    16 words of 16 neighbouring pixels: rows `width` words apart, beginning at any pixel
//! left operand     32 filters x 32 channels of one tap, packed once
//! sums             32 filters x 32 positions; transposed when they are added to the output
//! ```
//!
//! Because pixels of a word are contiguous, the right operand of the next column of the kernel begins one word later: the
//! input is laid out once for all taps.

use rayon::prelude::*;

use super::{BAND, Frames, Geometry};
use crate::kernels::amx::{AmxBf16, Operands, PANEL, Rows32, SIDE, Sums};
use crate::kernels::avx512_bf16::Terms;
use crate::kernels::operands::Dense;
use crate::precision::ActivationPrecision;

/// Positions side by side of a tile of sums.
// Two right operands, beside two left ones.
const POSITIONS: usize = 2 * SIDE;
/// bf16 terms of a pixel.
// With two, 44 of the 196,608 levels of a decoded image differ from f32, each by one. Inputs that must be nearer are
// multiplied in f32.
const TERMS: usize = 2;
/// Most words of a tile's input.
// 1 MB, half of a second-level cache of 2 MB. 64 x 64 pixels of 512 channels: 39.6 ms, with a quarter of it 55.5 (one core).
const NEAR: usize = 256 * 1024;

/// Implements [`add_conv`](super::add_conv); `false` without AMX, for filters or activations that are not bf16, and for a
/// stride.
pub(super) fn add(x: Frames<'_>, geometry: &Geometry, weight: Dense<'_>, out: &mut [f32]) -> bool {
    let Some((values, precision)) = weight.bf16() else { return false };
    let Some(amx) = AmxBf16::detect() else { return false };
    if geometry.window.stride != 1 || precision != ActivationPrecision::Bf16 {
        return false;
    }
    Product::new(amx, x, geometry, values).add(out);
    true
}

/// Operands shared by all tasks of a convolution.
struct Product<'a> {
    amx: AmxBf16,
    /// The frames that are not zeros.
    frames: Vec<&'a [f32]>,
    x: Frames<'a>,
    geometry: &'a Geometry,
    /// Filters by panel, then frame, row and column of the kernel, then 32 channels.
    packed: Vec<[Rows32; 2]>,
    n_out: usize,
    /// Steps of 32 channels.
    steps: usize,
    /// Pixels in a row of a tile's input.
    width: usize,
}

impl<'a> Product<'a> {
    fn new(amx: AmxBf16, x: Frames<'a>, geometry: &'a Geometry, values: &[[u8; 2]]) -> Self {
        let [rows, columns] = geometry.kernel;
        let (steps, taps) = (x.channels.div_ceil(32), rows * columns);
        let filter = x.frames.len() * taps * x.channels;
        let n_out = values.len() / filter;
        let present: Vec<(usize, &[f32])> =
            x.frames.iter().enumerate().filter_map(|(i, frame)| Some((i, (*frame)?))).collect();
        let mut packed = vec![[Rows32::default(); 2]; n_out.div_ceil(PANEL) * present.len() * taps * steps];
        packed.par_chunks_mut(present.len() * taps * steps).enumerate().for_each(|(panel, out)| {
            let filters = values[panel * PANEL * filter..].chunks_exact(filter).take(PANEL);
            for (i, values) in filters.enumerate() {
                for ((frame, _), out) in present.iter().zip(out.chunks_exact_mut(taps * steps)) {
                    let values = values[frame * taps * x.channels..].chunks_exact(x.channels);
                    for (values, out) in values.zip(out.chunks_exact_mut(steps)) {
                        amx.convert.copy(
                            values,
                            0,
                            out.iter_mut().map(|step| &mut step[i / SIDE].0[i % SIDE]),
                        );
                    }
                }
            }
        });
        let frames = present.into_iter().map(|(_, frame)| frame).collect();
        let width = (POSITIONS + columns - 1).next_multiple_of(SIDE);
        Self { amx, frames, x, geometry, packed, n_out, steps, width }
    }

    fn add(&self, out: &mut [f32]) {
        let columns = self.geometry.positions(self.x.width, 1).expect("the filter fits, as was checked");
        let rows = out.len() / (columns * self.n_out);
        let kernel_rows = self.geometry.kernel[0];
        // As many rows as keep the input in the cache; four tasks for each thread, so that none waits long for the last.
        let near = (NEAR / (self.frames.len() * self.line())).saturating_sub(kernel_rows - 1);
        let band = rows.div_ceil(4 * rayon::current_num_threads()).min(near).clamp(1, BAND);
        out.par_chunks_mut(band * columns * self.n_out).enumerate().for_each(|(i, out)| {
            let mut input = Vec::new();
            let mut sums = Vec::new();
            for first in (0..columns).step_by(POSITIONS) {
                self.gather(i * band, first, out.len() / (columns * self.n_out), &mut input);
                self.tile(&input, first, columns, &mut sums, out);
            }
        });
    }

    /// Words in a row of a tile's input.
    fn line(&self) -> usize {
        self.steps * TERMS * SIDE * self.width
    }

    /// Convolves the positions from `first` on of each row of `out`.
    fn tile(&self, input: &[u32], first: usize, columns: usize, sums: &mut Vec<Sums<f32>>, out: &mut [f32]) {
        let [kernel_rows, kernel_columns] = self.geometry.kernel;
        let rows = out.len() / (columns * self.n_out);
        let height = rows + kernel_rows - 1;
        let mut tiles = self.amx.tiles();
        sums.resize(rows, Sums::default());
        let of_panel = self.frames.len() * kernel_rows * kernel_columns * self.steps;
        for (panel, packed) in self.packed.chunks_exact(of_panel).enumerate() {
            for (tap, w) in packed.chunks_exact(self.steps).enumerate() {
                let (line, column) = (tap / kernel_columns, tap % kernel_columns);
                let (frame, y) = (line / kernel_rows, line % kernel_rows);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let term = |t: usize| {
                        let start = (frame * height + row + y) * self.line() + t * SIDE * self.width + column;
                        [start, start + SIDE]
                    };
                    let step = TERMS * SIDE * self.width;
                    let x = Operands::<TERMS, 2>::in_words(
                        input,
                        std::array::from_fn(term),
                        self.width,
                        step,
                        self.steps,
                    );
                    tiles.bf16(w, x, sums, tap > 0, w.as_ptr().cast());
                }
            }
            for (sums, out) in sums.iter().zip(out.chunks_exact_mut(columns * self.n_out)) {
                let end = (first + POSITIONS).min(columns);
                self.write(sums, panel * PANEL, &mut out[first * self.n_out..end * self.n_out]);
            }
        }
    }

    /// Adds sums of filters from `first` on to positions side by side.
    fn write(&self, sums: &Sums<f32>, first: usize, out: &mut [f32]) {
        let filters = (self.n_out - first).min(PANEL);
        let mut positions = [[0.0; PANEL]; SIDE];
        for (b, out) in out.chunks_mut(SIDE * self.n_out).enumerate() {
            for a in 0..2 {
                let positions = &mut positions.as_flattened_mut()[a * SIDE..];
                self.amx.convert.transpose(&sums.0[a][b], positions, PANEL);
            }
            for (out, sums) in out.chunks_exact_mut(self.n_out).zip(&positions) {
                out[first..first + filters].iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            }
        }
    }

    /// Lays out the pixels under `rows` rows of positions from `(row, column)` on, with zeros for padding.
    fn gather(&self, row: usize, column: usize, rows: usize, input: &mut Vec<u32>) {
        let (geometry, x) = (self.geometry, self.x);
        let height = rows + geometry.kernel[0] - 1;
        input.resize(self.frames.len() * height * self.line(), 0);
        for (i, line) in input.chunks_exact_mut(self.line()).enumerate() {
            let (frame, y) = (self.frames[i / height], i % height);
            let Some(row) = geometry.pixel(row + y, x.height) else {
                line.fill(0);
                continue;
            };
            let pixels = &frame[row * x.width * x.channels..][..x.width * x.channels];
            for first in (0..self.width).step_by(SIDE) {
                for (step, words) in line.chunks_exact_mut(TERMS * SIDE * self.width).enumerate() {
                    let mut terms = [Terms([[0; 32]; 2]); SIDE];
                    for (j, terms) in terms.iter_mut().enumerate() {
                        if let Some(column) = geometry.pixel(column + first + j, x.width) {
                            let pixel = &pixels[column * x.channels..][..x.channels];
                            *terms = self.amx.convert.split_part(pixel, 32 * step);
                        }
                    }
                    for (t, words) in words.chunks_exact_mut(SIDE * self.width).enumerate() {
                        self.amx.convert.pair_up(&terms, t, &mut words[first..], self.width);
                    }
                }
            }
        }
    }
}

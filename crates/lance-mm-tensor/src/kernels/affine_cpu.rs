//! Matmuls with matrices in MLX's affine format, straight from their packed words: activations are rounded to integers of
//! one byte, or two where one would hide most values of a group,
//! multiplied by the codes in integers, and scaled once a group: `y = Σ scale · (Σ code · x) + bias · Σ x`.
//!
//! ```text
//! tokens     bits   kernel   a register of codes holds             bound by
//! 1, 2       all    matvec   one row, half a line of columns       reading the weights once
//! 3 to 8     4      panel    sixteen rows, four columns of each    multiplying, while rows are read in order
//! others     all    matmul   the same, from a rearranged tile      multiplying
//!    on AMX         tiles    weights as bf16, in tiles             multiplying
//! ```
//!
//! Every instruction set adds the same integers in the same order, so that all but AMX give the same bits.

mod activations;
mod matmul;
mod matvec;
mod panel;
#[cfg(target_arch = "x86_64")]
mod tiles;

use rayon::prelude::*;

use super::affine_matrix::{Affine, Codes};
use super::operands::{Addends, Layer, Matrix, added};
use super::output_columns::{Columns, Part};
use super::pointwise::{add_to, swiglu_serial};
use super::vector::Isa;
use super::zeros::zeros;
use activations::{Activations, Order};

/// Lines whose scales are widened together.
// They have 16, 32 or 64 scales: whole registers of sixteen, whatever the group size.
const CHUNK: usize = 16;
/// Most tokens for which each row of the weight is read alone.
// Reading the weights takes longer than multiplying them by two tokens.
const PRECISE: usize = 2;
/// Most tokens that are multiplied by codes of four bits as these are read.
// 8 x 11008 x 2048 took 375 us, and 596 us row by row (two threads of Zen 5). More tokens use a rearranged tile of codes
// often enough to pay for it.
const FEW: usize = 8;

/// Implements [`matmul`](super::matmul::matmul).
pub(super) fn matmul(x: &[f32], n: usize, w: &Affine<'_>, add: Addends<'_>) -> Vec<f32> {
    matmul_with(Isa::detect(), x, n, w, add)
}

fn matmul_with(isa: Isa, x: &[f32], n: usize, w: &Affine<'_>, add: Addends<'_>) -> Vec<f32> {
    assert_eq!(x.len(), n * w.cols, "x is n tokens of K");
    let y = match n {
        _ if n * w.rows == 0 => Vec::new(),
        1..=PRECISE => {
            let [y] = precise(isa, x, n, [w]);
            y
        }
        ..=FEW if w.codes() == Codes::Nibbles => {
            let [y] = few(isa, x, n, [w]);
            y
        }
        _ => match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(simd, amx) => return tiles::matmul(simd, amx, x, w, add),
            _ => many(isa, x, n, w),
        },
    };
    added(y, add)
}

/// Implements [`matmul_each`](super::matmul::matmul_each); `None` if weights are better read one after another.
pub(super) fn matmul_each<const N: usize>(
    x: &[f32],
    n: usize,
    layers: [Layer<'_>; N],
) -> Option<[Vec<f32>; N]> {
    let mut weights = Vec::with_capacity(N);
    for layer in layers {
        let Matrix::Affine(w) = layer.weight else { return None };
        weights.push(w);
    }
    let weights: &[Affine<'_>; N] = weights.as_array()?;
    let first = weights.first()?;
    if !weights.iter().all(|w| w.reads_as(first) && w.rows > 0) {
        return None;
    }
    let (isa, weights) = (Isa::detect(), weights.each_ref());
    let mut y = match n {
        1..=PRECISE => precise(isa, x, n, weights),
        1..=FEW if first.codes() == Codes::Nibbles => few(isa, x, n, weights),
        _ => return None,
    };
    for (y, Layer { bias, .. }) in y.iter_mut().zip(layers) {
        *y = added(std::mem::take(y), Addends { bias, residual: None });
    }
    Some(y)
}

/// Implements [`matmul_swiglu`](super::matmul::matmul_swiglu); `None` if two matmuls and a SwiGLU after them are as fast.
pub(super) fn matmul_swiglu(
    x: &[f32],
    n: usize,
    gate: &Affine<'_>,
    up: &Affine<'_>,
    biases: [Option<&[f32]>; 2],
) -> Option<Vec<f32>> {
    let isa = Isa::detect();
    match n {
        _ if n * gate.rows == 0 => Some(Vec::new()),
        1..=FEW if !gate.reads_as(up) => None,
        1..=PRECISE => Some(precise_swiglu(isa, x, n, [gate, up], biases)),
        1..=FEW if gate.codes() == Codes::Nibbles => Some(few_swiglu(isa, x, n, [gate, up], biases)),
        _ => match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(simd, amx) => tiles::matmul_swiglu(simd, amx, x, gate, up, biases),
            _ => None,
        },
    }
}

/// Bytes of a weight that a thread reads before it asks for more work.
// Long enough for memory to get up to speed, short enough that no thread waits long for the last: pieces of 32 to 128 kB
// decode as fast. Pieces of 512 kB, two weights of 256, made the last wait of a SwiGLU 15 us where it is 8.
const PIECE: usize = 256 * 1024;

/// Rows that a thread takes at once of `weights` matrices of the shape of `w`.
fn piece(w: &Affine<'_>, weights: usize) -> usize {
    let fair = w.rows.div_ceil(4 * rayon::current_num_threads());
    fair.min(PIECE / (weights * w.row_bytes()).max(1)).max(8)
}

fn precise<const N: usize>(isa: Isa, x: &[f32], n: usize, weights: [&Affine<'_>; N]) -> [Vec<f32>; N] {
    let Some(first) = weights.first() else { return std::array::from_fn(|_| Vec::new()) };
    let x = Activations::new(isa, x, n, first.group, first.codes(), Order::Rows);
    let mut by_row = weights.map(|w| vec![0.0; w.rows * n]);
    let mut pieces = Vec::new();
    for (w, out) in weights.iter().zip(&mut by_row) {
        let rows = piece(w, 1);
        pieces.extend(out.chunks_mut(rows * n).enumerate().map(|(i, out)| (w, i * rows, out)));
    }
    pieces.into_par_iter().with_max_len(1).for_each(|(w, first, out)| matvec::rows(isa, w, &x, first, out));
    by_row.map(|y| from_columns(y, n))
}

fn precise_swiglu(
    isa: Isa,
    x: &[f32],
    n: usize,
    [gate, up]: [&Affine<'_>; 2],
    [gate_bias, up_bias]: [Option<&[f32]>; 2],
) -> Vec<f32> {
    let x = Activations::new(isa, x, n, gate.group, gate.codes(), Order::Rows);
    let mut by_row = vec![0.0; gate.rows * n];
    let rows = piece(gate, 2);
    by_row.par_chunks_mut(rows * n).enumerate().with_max_len(1).for_each(|(i, out)| {
        let mut other = vec![0.0; out.len()];
        for (w, bias, out) in [(gate, gate_bias, &mut *out), (up, up_bias, &mut other)] {
            matvec::rows(isa, w, &x, i * rows, out);
            for (y, bias) in out.chunks_exact_mut(n).zip(bias.map_or(&[][..], |bias| &bias[i * rows..])) {
                y.iter_mut().for_each(|y| *y += bias);
            }
        }
        swiglu_serial(out, &other);
    });
    from_columns(by_row, n)
}

/// `(R, n)` to `(n, R)`.
fn from_columns(by_row: Vec<f32>, n: usize) -> Vec<f32> {
    match n {
        1 => by_row,
        _ => (0..n).flat_map(|i| by_row[i..].iter().step_by(n).copied()).collect(),
    }
}

fn few<const N: usize>(isa: Isa, x: &[f32], n: usize, weights: [&Affine<'_>; N]) -> [Vec<f32>; N] {
    let Some(first) = weights.first() else { return std::array::from_fn(|_| Vec::new()) };
    let x = panel::activations(isa, x, n, first);
    weights.map(|w| {
        let mut out = zeros(n * w.rows);
        in_panels(w, &mut out, |columns| {
            panel::rows(isa, w, &x, columns.range(), |i, rows, y| columns.row(i, rows).copy_from_slice(y));
        });
        out
    })
}

fn few_swiglu(
    isa: Isa,
    x: &[f32],
    n: usize,
    [gate, up]: [&Affine<'_>; 2],
    [gate_bias, up_bias]: [Option<&[f32]>; 2],
) -> Vec<f32> {
    let x = panel::activations(isa, x, n, gate);
    let mut out = zeros(n * gate.rows);
    in_panels(gate, &mut out, |columns| {
        let range = columns.range();
        panel::rows(isa, gate, &x, range.clone(), |i, rows, y| columns.row(i, rows).copy_from_slice(y));
        let (start, width) = (range.start, range.len());
        let mut other = vec![0.0; n * width];
        panel::rows(isa, up, &x, range.clone(), |i, rows, y| {
            other[i * width + rows.start - start..][..y.len()].copy_from_slice(y);
        });
        for (i, other) in other.chunks_exact_mut(width).enumerate() {
            let out = columns.row(i, range.clone());
            for (y, bias) in [(&mut *out, gate_bias), (&mut *other, up_bias)] {
                if let Some(bias) = bias {
                    add_to(y, &bias[range.clone()]);
                }
            }
            swiglu_serial(out, other);
        }
    });
    out
}

/// Calls `run` on all threads with whole panels of columns of the output.
fn in_panels(w: &Affine<'_>, out: &mut [f32], run: impl Fn(&mut Part<'_>) + Sync) {
    let units = PIECE / (panel::ROWS * w.row_bytes()).max(1);
    Columns::new(out, w.rows).in_parallel(panel::ROWS, units.max(1), run);
}

fn many(isa: Isa, x: &[f32], n: usize, w: &Affine<'_>) -> Vec<f32> {
    let mut out = zeros(n * w.rows);
    for (x, out) in x.chunks(matmul::BLOCK * w.cols).zip(out.chunks_mut(matmul::BLOCK * w.rows)) {
        let n = x.len() / w.cols;
        let x = Activations::new(isa, x, n, w.group, w.codes(), Order::Lines(n));
        matmul::rows(isa, w, &x, out);
    }
    out
}

#[cfg(test)]
mod tests;

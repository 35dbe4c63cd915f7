//! Matmuls on AMX: many tokens times the transpose of a matrix, panel by panel of its rows, summed in f32. The matrix is
//! the left operand, so that its values stay in the order in which they are stored; sums come out transposed.
//!
//! ```text
//! x as right operands     group 0: step 0: term 0: tile, tile; term 1: tile, tile | step 1 | ..       32 tokens a group
//! packed panels of W      panel 0: step 0: rows 0..15, rows 16..31 | step 1 | .. | panel 1 | ..       one part of K
//! sums                    group 0: panel 0: 2 x 2 tiles | panel 1 | ..                                f32, 4 kB a panel
//!
//! for blocks of groups                      their sums stay in memory of the thread
//!   for panels packed together              packed once for all groups of the block
//!     for parts of K
//!       for groups
//!         for parts of the group            20 tiles, which stay in the first-level cache
//!           for panels                      tmm0..3 += 2 x 2 tiles, step by step
//!   transpose sums, add bias and residual or apply SwiGLU, write rows
//! ```

use std::cell::{Cell, RefCell};
use std::ops::Range;

use rayon::prelude::*;

use super::amx::{AHEAD, AmxBf16, Operands, PANEL, Rows32, SIDE, Sums, Tiles, Words16};
use super::avx512_bf16::{Avx512Bf16, Terms};
use super::operands::Addends;
use super::output_stripes::{Stripe, Stripes};
use super::pointwise::swiglu_serial;

/// Values of K within which an [`Order`] permutes.
// The line of affine codes.
pub(super) const LINE: usize = 128;
/// Most steps of 32 values of K that are packed together.
// 224 kB of a panel. 256 x 2048 x 11008 took 13.7 ms with 56 or 112 steps, and 21.4 with 224, which leave room for two
// panels (one core, second-level cache of 2 MB).
const DEPTH: usize = 112;
/// The same if all tokens are one group, and a panel is multiplied once.
// 32 kB, which never leave a first-level cache of 48 kB. 16 x 2048 x 11008 took 8.3 ms with 4 steps, 4.5 with 16, and on this
// core (second-level cache of 2 MB) 3.8 with 64.
const NEAR: usize = 16;
/// Tiles of 1 kB of a right operand that pass several panels.
// They stay in the first-level cache. With the next group prefetched, and large outputs written past the caches, this took
// qkv of the vision encoder from 35.5 to 24.5 ms (two threads of Sapphire Rapids). 512 x 2048 x 2048: 4.2 ms with 20, 5.0
// with 4 (one core).
const RIGHT_TILES: usize = 20;
/// Steps of panels that are packed together.
// 0.9 MB, which stay in a second-level cache of 2 MB while tokens pass, with room for other data: 1.1 MB took the vision
// encoder at 1008 x 1008 from 5.8 to 6.0 s. 512 x 2048 x 2048: 4.3 ms with 448, 5.2 with 896, 6.4 with 112.
const PACKED: usize = 448;
/// Groups of tokens that pass all parts of K before the next groups.
// Bounds memory: their sums with eight panels are 2 MB.
const PAIRS: usize = 64;
/// Tokens packed at once.
// Bounds memory, 34 MB a term at 2048 columns, and reads a weight once for inputs of up to as many tokens.
const SLAB: usize = 8192;

/// Order of the values of K in the 32 of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// In the order of K.
    Natural,
    /// In every [`LINE`] values, step `j` of four has those at `4·i + j`.
    EveryFourth,
}

impl Order {
    /// Steps of 32 values, the last amx up with zeros.
    fn steps(self, k: usize) -> usize {
        match self {
            Self::Natural => k.div_ceil(32),
            Self::EveryFourth => k.div_ceil(LINE) * 4,
        }
    }
}

/// A matrix `(R, K)` that can be packed as bf16.
pub(super) trait Panels: Sync {
    /// `R` and `K`.
    fn dims(&self) -> [usize; 2];

    /// Order of packed values.
    fn order(&self) -> Order;

    /// Packs the steps `steps` of K, whole lines or up to the last, of sixteen rows from `first` on: row `i` goes to
    /// `out[step][half].0[i]`. Rows past the last have any value, values past the end of K are finite. The rows packed next
    /// are those from `next` on.
    fn pack(&self, first: usize, next: usize, steps: Range<usize>, half: usize, out: &mut [[Rows32; 2]]);
}

/// Matrices of a matmul, and the operation on its sums.
pub(super) enum Output<'a, W> {
    /// A matmul plus bias and residual.
    Sums { w: &'a W, add: Addends<'a> },
    /// SwiGLU of the matmuls with two matrices of one shape and order, and their biases.
    Swiglu { w: [&'a W; 2], biases: [Option<&'a [f32]>; 2] },
}

impl<W: Panels> Output<'_, W> {
    fn w(&self) -> &W {
        match self {
            Self::Sums { w, .. } | Self::Swiglu { w: [w, _], .. } => w,
        }
    }

    /// Columns of the output that a panel gives.
    fn width(&self) -> usize {
        match self {
            Self::Sums { .. } => PANEL,
            Self::Swiglu { .. } => SIDE,
        }
    }

    /// Packs the panel of the columns from `first` on.
    fn pack(&self, first: usize, steps: &Range<usize>, out: &mut [[Rows32; 2]]) {
        let (second, next) = (first + SIDE, first + self.width());
        match self {
            Self::Sums { w, .. } => {
                w.pack(first, next, steps.clone(), 0, out);
                w.pack(second, second + self.width(), steps.clone(), 1, out);
            }
            Self::Swiglu { w: [gate, up], .. } => {
                gate.pack(first, next, steps.clone(), 0, out);
                up.pack(first, next, steps.clone(), 1, out);
            }
        }
    }
}

/// `x` `(n, K)`, each value the sum of `T` bf16 terms, times the transpose of matrices `(R, K)`: `(n, R)`.
pub(super) fn amx_matmul<const T: usize, W: Panels>(
    amx: AmxBf16,
    x: &[f32],
    output: &Output<'_, W>,
) -> Vec<f32> {
    let [rows, k] = output.w().dims();
    let n = x.len() / k;
    let mut y = Stripes::new(n, rows);
    // Slabs of the same height.
    let slab = n.div_ceil(n.div_ceil(SLAB).max(1)).max(1);
    for (i, x) in x.chunks(slab * k).enumerate() {
        match x.len() / k {
            ..=SIDE => slab_matmul::<T, 1, W>(amx, x, i * slab, output, &mut y),
            _ => slab_matmul::<T, 2, W>(amx, x, i * slab, output, &mut y),
        }
    }
    y.finish()
}

/// Computes the rows of the output from `first` on.
fn slab_matmul<const T: usize, const B: usize, W: Panels>(
    amx: AmxBf16,
    x: &[f32],
    first: usize,
    output: &Output<'_, W>,
    y: &mut Stripes,
) {
    let (w, width) = (output.w(), output.width());
    let k = w.dims()[1];
    // Taken out meanwhile: while this thread waits for others it may begin another matmul.
    let mut memory = RIGHT.take();
    let x = Right::<T, B>::new(amx.convert, x, k, w.order(), &mut memory);
    let units = if x.is_single() { usize::MAX / PANEL } else { x.depth().1 };
    y.write(x.n, width, units, |stripe| {
        SCRATCH.with_borrow_mut(|scratch| Product { amx, x: &x, first, output, stripe }.run(scratch));
    });
    RIGHT.set(memory);
}

/// Activations as `T` bf16 terms: `B` tiles of sixteen tokens side by side, step by step.
struct Right<'a, const T: usize, const B: usize> {
    values: &'a [[[Words16; B]; T]],
    steps: usize,
    n: usize,
}

impl<'a, const T: usize, const B: usize> Right<'a, T, B> {
    fn new(convert: Avx512Bf16, x: &[f32], k: usize, order: Order, memory: &'a mut Vec<Words16>) -> Self {
        let (n, steps) = (x.len() / k, order.steps(k));
        // All of it is written below, whatever it held.
        memory.resize(n.div_ceil(B * SIDE) * steps * T * B, Words16::default());
        let values = memory.as_chunks_mut().0.as_chunks_mut().0;
        let piece = B * SIDE * k;
        values.par_chunks_mut(steps).zip(x.par_chunks(piece)).for_each(|(tiles, x)| {
            let tile =
                |b: usize| x.get(b * SIDE * k..).map(|x| &x[..x.len().min(SIDE * k)]).unwrap_or_default();
            for b in 0..B {
                let mut put = |step: usize, terms: &[Terms; SIDE]| {
                    for (t, out) in tiles[step].iter_mut().enumerate() {
                        convert.pair_up(terms, t, out[b].0.as_flattened_mut(), SIDE);
                    }
                };
                match order {
                    Order::Natural => {
                        for step in 0..steps {
                            put(step, &convert.split_rows(tile(b), k, 32 * step));
                        }
                    }
                    Order::EveryFourth => {
                        for line in 0..steps / 4 {
                            for (j, terms) in convert.split_lines(tile(b), k, LINE * line).iter().enumerate()
                            {
                                put(4 * line + j, terms);
                            }
                        }
                    }
                }
            }
        });
        Self { values, steps, n }
    }

    /// Groups of `B` tiles.
    fn groups(&self) -> usize {
        self.n.div_ceil(B * SIDE)
    }

    /// Whether all tokens pass a panel at once: then it is packed just before it is multiplied, and never leaves the
    /// first-level cache.
    fn is_single(&self) -> bool {
        self.groups() == 1
    }

    /// Steps of K that are packed together, and panels.
    fn depth(&self) -> (usize, usize) {
        if self.is_single() {
            return (NEAR.min(self.steps), 1);
        }
        // Parts of the same depth, of whole lines in either order.
        let depth =
            self.steps.div_ceil(self.steps.div_ceil(DEPTH)).next_multiple_of(LINE / 32).min(self.steps);
        (depth, (PACKED / depth).max(1))
    }

    /// Steps `steps` of a group.
    fn group(&self, group: usize, steps: Range<usize>) -> &[[[Words16; B]; T]] {
        &self.values[group * self.steps + steps.start..group * self.steps + steps.end]
    }
}

thread_local! {
    /// Memory for right operands of a matmul that this thread began.
    static RIGHT: Cell<Vec<Words16>> = const { Cell::new(Vec::new()) };
    /// Memory of this thread: up to some megabytes.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

struct Scratch {
    /// Panels over some steps, panel by panel.
    packed: Vec<[Rows32; 2]>,
    /// Sums of groups of tiles with panels, group by group.
    sums: Vec<Sums<f32>>,
    /// Rows of the output.
    rows: Vec<f32>,
}

impl Scratch {
    const fn new() -> Self {
        Self { packed: Vec::new(), sums: Vec::new(), rows: Vec::new() }
    }
}

/// Some columns of the output, for all tokens.
struct Product<'a, 'b, W, const T: usize, const B: usize> {
    amx: AmxBf16,
    x: &'a Right<'a, T, B>,
    /// The row of the output of the first token.
    first: usize,
    output: &'a Output<'a, W>,
    stripe: &'a mut Stripe<'b>,
}

impl<W: Panels, const T: usize, const B: usize> Product<'_, '_, W, T, B> {
    fn run(mut self, scratch: &mut Scratch) {
        let (steps, groups) = (self.x.steps, self.x.groups());
        let n_panels = self.stripe.cols().len().div_ceil(self.output.width());
        let (depth, together) = self.x.depth();
        // Whether all panels are packed once for all tokens: then a group is finished as soon as it has passed them.
        let once = steps <= depth && n_panels <= together;
        let block = if once { 1 } else { PAIRS.min(groups) };
        let mut tiles = self.amx.tiles();
        scratch.packed.resize(depth * together.min(n_panels), Default::default());
        scratch.sums.resize_with(block * n_panels, Sums::default);
        for first in (0..groups).step_by(block) {
            let groups = first..(first + block).min(groups);
            for panel in (0..n_panels).step_by(together) {
                let panels = panel..(panel + together).min(n_panels);
                for start in (0..steps).step_by(depth) {
                    let part = start..(start + depth).min(steps);
                    if first == 0 || !once {
                        self.pack(&panels, &part, &mut scratch.packed);
                    }
                    for group in groups.clone() {
                        let sums = &mut scratch.sums[(group - first) * n_panels..][panels.clone()];
                        self.multiply(&mut tiles, group, &part, &scratch.packed, sums);
                    }
                }
            }
            for (group, sums) in groups.zip(scratch.sums.chunks_exact_mut(n_panels)) {
                self.write(group, sums, &mut scratch.rows);
            }
        }
    }

    fn pack(&self, panels: &Range<usize>, part: &Range<usize>, packed: &mut [[Rows32; 2]]) {
        let first = self.stripe.cols().start;
        for (panel, out) in panels.clone().zip(packed.chunks_exact_mut(part.len())) {
            self.output.pack(first + panel * self.output.width(), part, out);
        }
    }

    /// Adds the products of a group with packed panels over the steps `part`; the first part overwrites `sums`.
    fn multiply(
        &self,
        tiles: &mut Tiles,
        group: usize,
        part: &Range<usize>,
        packed: &[[Rows32; 2]],
        sums: &mut [Sums<f32>],
    ) {
        let x = self.x.group(group, part.clone());
        let near = if self.x.is_single() { NEAR } else { RIGHT_TILES / (T * B) };
        // Prefetched while these are multiplied: the next group.
        let next = if group + 1 < self.x.groups() { self.x.group(group + 1, part.clone()) } else { &[] };
        let mut ahead = 0;
        for (i, x) in x.chunks(near).enumerate() {
            let (steps, x_tiles) = (i * near..i * near + x.len(), Operands::in_tiles(x));
            for (w, sums) in packed.chunks_exact(part.len()).zip(&mut *sums) {
                // After all of it, addresses that are near already.
                let now = if ahead < size_of_val(next) {
                    next.as_ptr().cast::<u8>().wrapping_add(ahead)
                } else {
                    w.as_ptr().cast()
                };
                tiles.bf16(&w[steps.clone()], x_tiles, sums, part.start + i > 0, now);
                ahead += x.len() * AHEAD;
            }
        }
    }

    /// Writes the rows of a group.
    fn write(&mut self, group: usize, sums: &mut [Sums<f32>], rows: &mut Vec<f32>) {
        let (cols, convert) = (self.stripe.cols(), self.amx.convert);
        let width = sums.len() * self.output.width();
        rows.resize(SIDE * width, 0.0);
        for b in 0..B {
            let first = (group * B + b) * SIDE;
            for (p, Sums([first, second])) in sums.iter_mut().enumerate() {
                match self.output {
                    Output::Sums { .. } => {
                        convert.transpose(&first[b], &mut rows[p * PANEL..], width);
                        convert.transpose(&second[b], &mut rows[p * PANEL + SIDE..], width);
                    }
                    Output::Swiglu { biases: [gate_bias, up_bias], .. } => {
                        let col = cols.start + p * SIDE;
                        add_by_row(&mut first[b], *gate_bias, col);
                        add_by_row(&mut second[b], *up_bias, col);
                        swiglu_serial(first[b].as_flattened_mut(), second[b].as_flattened());
                        convert.transpose(&first[b], &mut rows[p * SIDE..], width);
                    }
                }
            }
            let n = self.x.n.saturating_sub(first);
            for (row, values) in (self.first + first..).zip(rows.chunks_exact_mut(width).take(n)) {
                let values = &mut values[..cols.len()];
                if let Output::Sums { w, add: Addends { bias, residual } } = self.output {
                    if let Some(bias) = bias {
                        values.iter_mut().zip(&bias[cols.clone()]).for_each(|(y, b)| *y += b);
                    }
                    if let Some(residual) = residual {
                        let added = &residual[row * w.dims()[0]..][cols.clone()];
                        values.iter_mut().zip(added).for_each(|(y, a)| *y += a);
                    }
                }
                self.stripe.push_row(values);
            }
        }
    }
}

/// Adds the values from `first` on, one to each row; rows past the last value stay.
fn add_by_row(rows: &mut [[f32; SIDE]; SIDE], values: Option<&[f32]>, first: usize) {
    let values = values.and_then(|values| values.get(first..)).unwrap_or_default();
    for (row, value) in rows.iter_mut().zip(values) {
        row.iter_mut().for_each(|y| *y += value);
    }
}

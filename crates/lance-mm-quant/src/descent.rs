//! Coordinate descent on quantized rows, group by group, with all other groups fixed.
//!
//! For errors `d` the cost is `dᵀHd` with the whole Hessian. A step on a group first refits its scale and bias to its
//! codes, then moves every code to the one nearest to its best value. Neither can raise the cost.

use lance_mm_tensor::{MatRef, Scheme, add_matmul};
use rayon::prelude::*;

use crate::activations::Activations;
use crate::block::{Block, nearest};
use crate::hessian_factor::Factor;
use crate::matrix::round_bf16;
use crate::refit::Normal;

/// Matrix `Z` and `λ` with `H = ZᵀZ + λ·I`, and `H` within every group.
pub(crate) struct Descent {
    root: Vec<f32>,
    cols: usize,
    damping: f32,
    scheme: Scheme,
    groups: Vec<Group>,
}

/// `H` within a group.
struct Group {
    /// `(g, g)`.
    h: Vec<f32>,
    /// `H · 1`.
    ones: Vec<f32>,
    total: f64,
}

impl Descent {
    /// Descent on the Hessian of `factor`. `Z` is the search set or, if that has more tokens than channels, the factor's
    /// root.
    pub(crate) fn new(inputs: &Activations, factor: &Factor, scheme: Scheme) -> Self {
        let cols = inputs.n_cols();
        let (root, damping) = if inputs.n_search() < cols {
            let scale = (inputs.n_search() as f32).sqrt().recip();
            (inputs.search().iter().map(|v| v * scale).collect(), factor.damping())
        } else {
            (factor.root(), 0.0)
        };
        let group = scheme.group_size();
        let n = root.len() / cols;
        let groups: Vec<usize> = (0..cols / group).collect();
        let groups = groups
            .into_par_iter()
            .map(|j| {
                let part = MatRef::new(&root[j * group..], n, group, cols);
                let mut h = vec![0.0f32; group * group];
                add_matmul(&mut h, group, 1.0, part.t(), part);
                h.iter_mut().step_by(group + 1).for_each(|v| *v += damping as f32);
                let ones: Vec<f32> = h.chunks_exact(group).map(|row| row.iter().sum()).collect();
                let total = ones.iter().map(|v| f64::from(*v)).sum();
                Group { h, ones, total }
            })
            .collect();
        Self { root, cols, damping: damping as f32, scheme, groups }
    }

    /// Sweeps `passes` times over every group of the rows `w`.
    pub(crate) fn improve(&self, w: &[f32], block: &mut Block, passes: usize) {
        let (cols, group) = (self.cols, self.scheme.group_size());
        let (rows, n) = (w.len() / cols, self.root.len() / cols);
        // d = value − weight, and its outputs Z·d.
        let mut d = block.error(w, self.scheme);
        d.iter_mut().for_each(|v| *v = -*v);
        let root = MatRef::new(&self.root, n, cols, cols);
        let mut outputs = vec![0.0; rows * n];
        add_matmul(&mut outputs, n, 1.0, MatRef::new(&d, rows, cols, cols), root.t());
        let (mut gradient, mut change) = (vec![0.0; rows * group], vec![0.0; rows * group]);
        for pass in 0..passes {
            for (j, start) in (0..cols).step_by(group).enumerate() {
                let part = MatRef::new(&self.root[start..], n, group, cols);
                gradient.fill(0.0);
                add_matmul(&mut gradient, group, 1.0, MatRef::new(&outputs, rows, n, n), part);
                for r in 0..rows {
                    let at = r * cols + start;
                    let g = r * (cols / group) + j;
                    let turn = GroupStep {
                        group: &self.groups[j],
                        bits: self.scheme.bits(),
                        codes: &mut block.codes[at..at + group],
                        scale: &mut block.scales[g],
                        bias: &mut block.biases[g],
                        w: &w[at..at + group],
                        d: &mut d[at..at + group],
                        gradient: &mut gradient[r * group..(r + 1) * group],
                    };
                    let change = &mut change[r * group..(r + 1) * group];
                    change.copy_from_slice(turn.d);
                    turn.take(self.damping);
                    change.iter_mut().zip(&d[at..at + group]).for_each(|(c, d)| *c = d - *c);
                }
                if pass + 1 < passes || start + group < cols {
                    add_matmul(&mut outputs, n, 1.0, MatRef::new(&change, rows, group, group), part.t());
                }
            }
        }
    }
}

/// A step on one group of one row.
struct GroupStep<'a> {
    group: &'a Group,
    bits: usize,
    codes: &'a mut [u8],
    scale: &'a mut f32,
    bias: &'a mut f32,
    w: &'a [f32],
    d: &'a mut [f32],
    /// `H·d` of the whole row, in this group.
    gradient: &'a mut [f32],
}

impl GroupStep<'_> {
    fn take(mut self, damping: f32) {
        self.gradient.iter_mut().zip(&*self.d).for_each(|(g, d)| *g += damping * d);
        self.refit();
        self.move_codes();
    }

    /// Adds `factor` times row `k` of `H` to the gradient.
    fn add_row(&mut self, k: usize, factor: f32) {
        let row = &self.group.h[k * self.w.len()..(k + 1) * self.w.len()];
        self.gradient.iter_mut().zip(row).for_each(|(g, h)| *g += factor * h);
    }

    /// The best scale and bias for the codes, as bf16 stores them.
    fn refit(&mut self) {
        let group = self.w.len();
        let q: Vec<f32> = self.codes.iter().map(|code| f32::from(*code)).collect();
        let mut hq = vec![0.0f32; group];
        for (q, row) in q.iter().zip(self.group.h.chunks_exact(group)) {
            hq.iter_mut().zip(row).for_each(|(o, h)| *o += q * h);
        }
        let normal = Normal { qq: dot(&q, &hq), q1: dot(&q, &self.group.ones), one: self.group.total };
        let slope = [dot(&q, self.gradient), self.gradient.iter().map(|g| f64::from(*g)).sum()];
        let Some((by, _)) = normal.solve(-slope[0], -slope[1]) else { return };
        let scale = round_bf16((f64::from(*self.scale) + by) as f32);
        let by = f64::from(scale) - f64::from(*self.scale);
        // The best bias for the scale as bf16 stores it.
        let bias = round_bf16((f64::from(*self.bias) + (-slope[1] - normal.q1 * by) / normal.one) as f32);
        let up = f64::from(bias) - f64::from(*self.bias);
        let cost = 2.0 * (by * slope[0] + up * slope[1])
            + by * by * normal.qq
            + 2.0 * by * up * normal.q1
            + up * up * normal.one;
        if scale == 0.0 || cost.is_nan() || cost >= 0.0 {
            return;
        }
        (*self.scale, *self.bias) = (scale, bias);
        let (by, up) = (by as f32, up as f32);
        for i in 0..group {
            self.gradient[i] += by * hq[i] + up * self.group.ones[i];
            self.d[i] = scale * q[i] + bias - self.w[i];
        }
    }

    /// Moves codes, one after another, to the nearest of their best values.
    fn move_codes(&mut self) {
        let n = ((1u32 << self.bits) - 1) as f32;
        for k in 0..self.w.len() {
            let own = self.group.h[k * self.w.len() + k];
            let best = self.w[k] + self.d[k] - self.gradient[k] / own;
            let code = nearest((best - *self.bias) / *self.scale, n) as u8;
            if code != self.codes[k] {
                let d = *self.scale * f32::from(code) + *self.bias - self.w[k];
                self.add_row(k, d - self.d[k]);
                (self.codes[k], self.d[k]) = (code, d);
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;
    use crate::gptq::{Choice, gptq};
    use crate::testing::correlated;

    /// `dᵀHd` over all rows.
    fn cost(w: &[f32], block: &Block, rows: &Activations, damping: f64, scheme: Scheme) -> f64 {
        let d = block.error(w, scheme);
        let outputs = crate::block::output_energy(rows.search(), &d, rows.n_cols()) / rows.n_search() as f64;
        outputs + damping * crate::block::energy(&d)
    }

    #[test]
    fn no_pass_raises_the_cost() {
        for (n, bits) in [(20, 2), (20, 4), (300, 2), (300, 3), (300, 8)] {
            let (k, scheme) = (96, Scheme::affine(bits, 32).unwrap());
            let rows = correlated(n, 5, k, 3);
            let factor = Factor::new("x", &rows, 0.01).unwrap();
            let descent = Descent::new(&rows, &factor, scheme);
            let w = seeded(7 * k, 4);
            for mut block in [Block::plain(&w, scheme), gptq(&w, &factor, scheme, Choice::Searched)] {
                let mut before = cost(&w, &block, &rows, factor.damping(), scheme);
                for pass in 0..4 {
                    descent.improve(&w, &mut block, 1);
                    let after = cost(&w, &block, &rows, factor.damping(), scheme);
                    assert!(after <= before * 1.00001, "{n} {bits} {pass}: {before} {after}");
                    before = after;
                }
            }
        }
    }

    #[test]
    fn two_passes_are_one_and_one() {
        let (k, scheme) = (64, Scheme::affine(3, 32).unwrap());
        let rows = correlated(30, 5, k, 3);
        let factor = Factor::new("x", &rows, 0.01).unwrap();
        let descent = Descent::new(&rows, &factor, scheme);
        let w = seeded(2 * k, 4);
        let mut once = Block::plain(&w, scheme);
        let mut twice = once.clone();
        descent.improve(&w, &mut once, 1);
        descent.improve(&w, &mut once, 1);
        descent.improve(&w, &mut twice, 2);
        assert_eq!(once.codes, twice.codes);
    }
}

//! Many rows of x on AMX.

use std::ops::Range;

use super::Bf16Matrix;
use crate::kernels::amx::{Order, Panels, Rows32, SIDE};

impl Panels for Bf16Matrix<'_> {
    fn dims(&self) -> [usize; 2] {
        [self.n_rows(), self.k]
    }

    fn order(&self) -> Order {
        Order::Natural
    }

    fn pack(&self, first: usize, next: usize, steps: Range<usize>, half: usize, out: &mut [[Rows32; 2]]) {
        let rows = first.min(self.n_rows())..(first + SIDE).min(self.n_rows());
        let ahead = 2 * (next - first) * self.k;
        // All rows over some steps before the next steps: what is written then stays near. What is asked for
        // meanwhile is the same of the next panel.
        for (steps, out) in steps.step_by(STEPS).zip(out.chunks_mut(STEPS)) {
            let within = 32 * steps..self.k.min(32 * (steps + STEPS));
            for (i, row) in rows.clone().enumerate() {
                let values = &self.values[row * self.k..][within.clone()];
                let out = out.iter_mut().map(|step| &mut step[half].0[i]);
                self.kernels.copy(values, ahead, out);
            }
        }
    }
}

/// Steps of a row that are packed together.
const STEPS: usize = 16;

//! Many rows of x on AMX.

use std::ops::Range;

use super::Bf16Matrix;
use crate::kernels::amx::{Order, Panels, Rows32};

impl Panels for Bf16Matrix<'_> {
    fn dims(&self) -> [usize; 2] {
        [self.n_rows(), self.k]
    }

    fn order(&self) -> Order {
        Order::Natural
    }

    fn pack(&self, first: usize, steps: Range<usize>, out: &mut [[Rows32; 2]]) {
        let start = 32 * steps.start;
        for (i, row) in (first..self.n_rows()).enumerate().take(2 * 16) {
            let values = &self.values[row * self.k + start..row * self.k + self.k.min(32 * steps.end)];
            let mut out = out.iter_mut().map(|step| &mut step[i / 16].0[i % 16]);
            let (whole, rest) = values.as_chunks::<32>();
            for (values, out) in whole.iter().zip(&mut out) {
                *out = values.map(u16::from_le_bytes);
            }
            if let Some(out) = out.next() {
                *out = [0; 32];
                out.iter_mut().zip(rest).for_each(|(out, value)| *out = u16::from_le_bytes(*value));
            }
        }
    }
}

//! Recorded inputs together with what is computed of them once.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lance_mm_tensor::Result;

use crate::activations::Activations;
use crate::group_gram::GroupGram;
use crate::hessian_factor::Factor;

/// Up to this width several factors are kept: 67 MB each there, 485 MB for 11008 channels.
const KEEP: usize = 4096;

/// The inputs of one or several linear layers, with what is computed of them once.
pub struct Inputs {
    name: String,
    rows: Activations,
    grams: [OnceLock<Vec<GroupGram>>; 3],
    factors: Mutex<Vec<(f64, Arc<Factor>)>>,
}

impl Inputs {
    /// Takes rows in the space of the weights: divided by the scale that the columns are multiplied by.
    /// `name` names the site in errors.
    pub fn new(name: impl Into<String>, rows: Activations) -> Self {
        Self { name: name.into(), rows, grams: Default::default(), factors: Mutex::default() }
    }

    /// The rows.
    pub fn rows(&self) -> &Activations {
        &self.rows
    }

    /// Where the inputs come from, for errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Gram matrix of every group.
    pub(crate) fn grams(&self, group: usize) -> &[GroupGram] {
        let at = match group {
            32 => 0,
            64 => 1,
            _ => 2,
        };
        self.grams[at].get_or_init(|| GroupGram::of_groups(&self.rows, group))
    }

    /// The factor of the damped Hessian. All are kept up to 4096 channels, above only the latest.
    pub(crate) fn factor(&self, damping: f64) -> Result<Arc<Factor>> {
        let mut factors = self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factor)) = factors.iter().find(|(d, _)| *d == damping) {
            return Ok(factor.clone());
        }
        if self.rows.n_cols() > KEEP {
            factors.clear();
        }
        let factor = Arc::new(Factor::new(&self.name, &self.rows, damping)?);
        factors.push((damping, factor.clone()));
        Ok(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::correlated;

    #[test]
    fn factors_are_made_once() {
        let inputs = Inputs::new("x", correlated(9, 3, 64, 1));
        let first = inputs.factor(0.01).unwrap();
        inputs.factor(0.1).unwrap();
        assert!(Arc::ptr_eq(&first, &inputs.factor(0.01).unwrap()));
        assert_eq!((inputs.name(), inputs.grams(32).len()), ("x", 2));
    }
}

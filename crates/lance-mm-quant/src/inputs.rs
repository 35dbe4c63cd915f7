//! Recorded activations with cached statistics.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lance_mm_tensor::Result;

use crate::activations::Activations;
use crate::group_gram::GroupGram;
use crate::hessian_factor::Factor;

/// Widest input of which several factors are kept: 67 MB each, while one of 11008 channels has 485 MB.
const KEEP: usize = 4096;

/// Input activations of one or several linear layers, with statistics that are computed once.
pub struct Inputs {
    name: String,
    activations: Activations,
    grams: [OnceLock<Vec<GroupGram>>; 3],
    factors: Mutex<Vec<(f64, Arc<Factor>)>>,
}

impl Inputs {
    /// Takes activations in the space of the weights: divided by the scale that the columns are multiplied by. `name`
    /// names the input in errors.
    pub fn new(name: impl Into<String>, activations: Activations) -> Self {
        Self { name: name.into(), activations, grams: Default::default(), factors: Mutex::default() }
    }

    /// The activations.
    pub fn activations(&self) -> &Activations {
        &self.activations
    }

    /// Name of the input, for errors.
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
        self.grams[at].get_or_init(|| GroupGram::of_groups(&self.activations, group))
    }

    /// The factor of the damped Hessian. All are kept up to 4096 channels, only the latest above.
    pub(crate) fn factor(&self, damping: f64) -> Result<Arc<Factor>> {
        let mut factors = self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factor)) = factors.iter().find(|(d, _)| *d == damping) {
            return Ok(factor.clone());
        }
        if self.activations.n_cols() > KEEP {
            factors.clear();
        }
        let factor = Arc::new(Factor::new(&self.name, &self.activations, damping)?);
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

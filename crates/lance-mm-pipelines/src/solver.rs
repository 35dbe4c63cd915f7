//! Solvers: from a velocity to the next latents.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::schedule::InferenceStep;

/// Solver of the flow's ODE from noise to data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SolverKind {
    /// `x - dt · v`, as the original.
    #[default]
    Euler,
    /// Two-step Adams-Bashforth with steps of varying length; the first step is Euler's. lance-mlx calls it
    /// "DPM-Solver++(2M)", which it is not: that one predicts data, over logarithms of the signal's share.
    AdamsBashforth,
}

/// Integrates the velocities of one image or video, step by step.
///
/// The velocity points from data to noise and time falls, so a step subtracts it. Nothing is clipped and no
/// noise is added.
#[derive(Clone, Debug)]
pub struct Solver {
    method: SolverKind,
    /// Velocity and length of the step before.
    previous: Option<(Tensor, f32)>,
}

impl Solver {
    /// A solver before its first step.
    pub fn new(method: SolverKind) -> Self {
        Self { method, previous: None }
    }

    /// The state after `step`, from the state `x` and the velocity `v` there: f32, both of one shape.
    ///
    /// `v` is what is integrated, after guidance.
    ///
    /// # Errors
    /// States and velocities of different shapes.
    pub fn step(&mut self, x: &Tensor, v: &Tensor, step: InferenceStep) -> Result<Tensor> {
        let before = self.previous.as_ref().map_or(x, |(v, _)| v).dims();
        if x.dims() != v.dims() || before != v.dims() {
            let expected = format!("a velocity of the state's shape {:?}", x.dims());
            let found = format!("{:?}", v.dims());
            return Err(Error::Tensor(lance_mm_tensor::Error::input("velocity", expected, found)));
        }
        let dt = f64::from(step.dt);
        let next = match (&self.previous, self.method) {
            (Some((before, before_dt)), SolverKind::AdamsBashforth) => {
                let half = dt / (2.0 * f64::from(*before_dt));
                let slope = ((v * (1.0 + half))? - (before * half)?)?;
                (x - (slope * dt)?)?
            }
            _ => (x - (v * dt)?)?,
        };
        self.previous = Some((v.clone(), step.dt));
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::schedule::Schedule;

    /// Integrates `velocity(t)` from 1 at t = 1.
    fn integrate(method: SolverKind, steps: usize, velocity: impl Fn(f64) -> f64) -> f64 {
        let mut solver = Solver::new(method);
        let mut x = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        for step in Schedule::new(steps, 3.5).unwrap().steps() {
            let v = Tensor::new(&[velocity(f64::from(step.t)) as f32], &Device::Cpu).unwrap();
            x = solver.step(&x, &v, step).unwrap();
        }
        f64::from(x.to_vec1::<f32>().unwrap()[0])
    }

    #[test]
    fn constant_velocities_are_exact_and_linear_ones_but_for_eulers_first_step() {
        for method in [SolverKind::Euler, SolverKind::AdamsBashforth] {
            assert!((integrate(method, 7, |_| 1.0)).abs() < 1e-6, "{method:?}");
        }
        // x(0) = 1 - ∫ 2t dt = 0. Two steps back are exact for a line; Euler's first step is off by dt².
        let first = Schedule::new(7, 3.5).unwrap().steps().next().unwrap().dt;
        let found = integrate(SolverKind::AdamsBashforth, 7, |t| 2.0 * t);
        assert!((found + f64::from(first).powi(2)).abs() < 1e-6, "{found}");
        assert!(integrate(SolverKind::Euler, 7, |t| 2.0 * t).abs() > 0.1);
    }

    #[test]
    fn velocities_of_another_shape_are_refused() {
        let tensor = |n: usize| Tensor::zeros(n, candle_core::DType::F32, &Device::Cpu).unwrap();
        let step = Schedule::new(2, 1.0).unwrap().steps().next().unwrap();
        let mut solver = Solver::new(SolverKind::Euler);
        assert!(solver.step(&tensor(2), &tensor(3), step).is_err());
        solver.step(&tensor(2), &tensor(2), step).unwrap();
        assert!(solver.step(&tensor(3), &tensor(3), step).is_err());
    }
}

//! Classifier-free guidance: away from the velocity without the caption.

use candle_core::Tensor;
use lance_mm_tensor::require_finite;

use crate::error::{Error, Result};

/// Added to the length of the guided velocity before dividing by it.
const EPS: f64 = 1e-8;

/// How the velocities with and without caption are combined. The default is the original's.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// How far to go from the velocity without caption through the one with it; at 1 or below only the
    /// latter is computed.
    pub scale: f64,
    /// Guidance is used at times above the first and up to the second.
    pub interval: (f64, f64),
    /// Rescaling that keeps the guided velocity as short as the one with caption.
    pub renorm: Renorm,
    /// Least factor of [`renorm`](Self::renorm), in `[0, 1]`; the largest is always 1.
    pub renorm_min: f64,
}

/// Over what the length of the guided velocity is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Renorm {
    /// All rows together.
    #[default]
    Global,
    /// Every row, that is every latent pixel, by itself.
    Channel,
    /// Not at all.
    None,
}

impl Default for Guidance {
    fn default() -> Self {
        Self { scale: 4.0, interval: (0.4, 1.0), renorm: Renorm::Global, renorm_min: 0.0 }
    }
}

impl Guidance {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`Error::Option`] for the first field outside its range.
    pub fn validate(&self) -> Result<()> {
        if !(self.scale >= 0.0 && self.scale <= f64::from(f32::MAX)) {
            return Err(Error::option("guidance", "a finite number of at least 0", self.scale));
        }
        let (low, high) = self.interval;
        if !(low <= high && low.is_finite() && high.is_finite()) {
            let expected = "two finite numbers, the first not above the second";
            return Err(Error::option("guidance interval", expected, format!("{low} and {high}")));
        }
        if !(0.0..=1.0).contains(&self.renorm_min) {
            return Err(Error::option("renorm minimum", "a number from 0 to 1", self.renorm_min));
        }
        Ok(())
    }

    /// Whether the step at time `t` needs the velocity without caption. Compared in f32, as the original.
    pub fn applies(&self, t: f32) -> bool {
        self.scale > 1.0 && t > self.interval.0 as f32 && t <= self.interval.1 as f32
    }

    /// `v_uncond + scale · (v_cond - v_uncond)`, renormed: f32 `(N, C)` each.
    ///
    /// # Errors
    /// Velocities of different shapes.
    pub fn combine(&self, v_cond: &Tensor, v_uncond: &Tensor) -> Result<Tensor> {
        let guided = (v_uncond + ((v_cond - v_uncond)? * self.scale)?)?;
        Ok(guided.broadcast_mul(&self.factor(v_cond, &guided)?)?)
    }

    /// Factor by which [`combine`](Self::combine) rescales the guided velocity:
    /// `clamp(|v_cond| / (|guided| + 1e-8), renorm_min, 1)`, f32 `(1, 1)`, for every row `(N, 1)`.
    ///
    /// # Errors
    /// Velocities that are not `(N, C)`; [`Error::NotFinite`] for lengths that overflow.
    pub fn factor(&self, v_cond: &Tensor, guided: &Tensor) -> Result<Tensor> {
        let (n, channels) = v_cond.dims2()?;
        let width = match self.renorm {
            Renorm::None => return Ok(guided.narrow(0, 0, 1)?.narrow(1, 0, 1)?.ones_like()?),
            Renorm::Global => n * channels,
            Renorm::Channel => channels,
        };
        let length = |v: &Tensor| v.reshape(((), width))?.sqr()?.sum_keepdim(1)?.sqrt();
        let ratio = (length(v_cond)? / (length(guided)? + EPS)?)?;
        // Lengths that overflow: the clamp would make a legal factor of NaN.
        require_finite("guidance: ratio of velocities", &ratio)?;
        Ok(ratio.clamp(self.renorm_min, 1.0)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn rows(values: [[f32; 2]; 2]) -> Tensor {
        Tensor::new(&values, &Device::Cpu).unwrap()
    }

    fn combine(renorm: Renorm, scale: f64, renorm_min: f64) -> Vec<Vec<f32>> {
        let (cond, uncond) = (rows([[3.0, 4.0], [0.0, 0.0]]), rows([[1.0, 0.0], [0.0, 2.0]]));
        let guidance = Guidance { scale, renorm, renorm_min, ..Guidance::default() };
        guidance.combine(&cond, &uncond).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn guided_velocities_are_held_to_the_length_of_the_conditional() {
        // Guided by 2: (5, 8), (0, -2).
        assert_eq!(combine(Renorm::None, 2.0, 0.0), [[5.0, 8.0], [0.0, -2.0]]);
        let factor = (25.0f32 / 93.0).sqrt();
        let expected = [[5.0 * factor, 8.0 * factor], [0.0, -2.0 * factor]];
        for (found, expected) in combine(Renorm::Global, 2.0, 0.0).iter().zip(expected) {
            for (f, e) in found.iter().zip(expected) {
                assert!((f - e).abs() < 1e-6, "{f} {e}");
            }
        }
        // A zero row stays zero unless the minimum holds it.
        assert_eq!(combine(Renorm::Channel, 2.0, 0.0)[1], [0.0, 0.0]);
        assert_eq!(combine(Renorm::Channel, 2.0, 0.5)[1], [0.0, -1.0]);
        // Never longer: at scale 0 the guided velocity is the shorter one.
        assert_eq!(combine(Renorm::Channel, 0.0, 0.0)[0], [1.0, 0.0]);
    }

    /// The clamp of the factor would make 0 of NaN, and velocities of no length.
    #[test]
    fn velocities_whose_length_overflows_are_errors() {
        for renorm in [Renorm::Global, Renorm::Channel] {
            let guidance = Guidance { renorm, ..Guidance::default() };
            for bad in [f32::NAN, f32::INFINITY, 1e30] {
                let (cond, uncond) = (rows([[bad, 0.0], [0.0, 1.0]]), rows([[0.0; 2]; 2]));
                let result = guidance.combine(&cond, &uncond);
                assert!(matches!(result, Err(Error::NotFinite { .. })), "{renorm:?} {bad}: {result:?}");
            }
        }
    }

    #[test]
    fn guidance_applies_inside_its_interval_only() {
        let guidance = Guidance::default();
        for (t, expected) in [(1.0, true), (0.41, true), (0.4, false), (0.2, false)] {
            assert_eq!(guidance.applies(t), expected, "{t}");
        }
        assert!(!Guidance { scale: 1.0, ..Guidance::default() }.applies(1.0));
    }

    #[test]
    fn options_out_of_range_are_named() {
        let default = Guidance::default;
        for (guidance, name) in [
            (Guidance { scale: -1.0, ..default() }, "guidance"),
            (Guidance { scale: f64::NAN, ..default() }, "guidance"),
            (Guidance { scale: f64::INFINITY, ..default() }, "guidance"),
            (Guidance { interval: (0.5, 0.4), ..default() }, "guidance interval"),
            (Guidance { interval: (f64::NAN, 0.4), ..default() }, "guidance interval"),
            (Guidance { renorm_min: 1.5, ..default() }, "renorm minimum"),
        ] {
            let text = guidance.validate().unwrap_err().to_string();
            assert!(text.starts_with(&format!("option {name}: expected")), "{text}");
        }
        default().validate().unwrap();
    }
}

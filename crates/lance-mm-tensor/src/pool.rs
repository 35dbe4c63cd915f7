//! The threads that operations share.

use candle_core::Device;

use crate::kernels::metal;

/// Runs `run` on one of the threads that operations share. Operations that are called there begin at once and find
/// the other threads awake; called elsewhere each hands its work over and sleeps until it is done, which costs a
/// decode step of some hundred operations more than a tenth of its time.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lance_mm_tensor::{DenseWeight, Linear, on_pool};
///
/// let layer = Linear::from(DenseWeight::from_f32(&[1.0, 2.0, 3.0, 4.0], 2));
/// let x = Tensor::new(&[[1f32, 1.0]], &Device::Cpu)?;
/// let y = on_pool(|| layer.forward(&layer.forward(&x)?))?;
/// assert_eq!(y.to_vec2::<f32>()?, [[17.0, 37.0]]);
/// # Ok::<(), lance_mm_tensor::Error>(())
/// ```
pub fn on_pool<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    // What stands in for a device does so on its own thread.
    match metal::runs_on(&Device::Cpu) {
        true => run(),
        false => rayon::scope(|_| run()),
    }
}

//! Plans as operations on tensors.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::Plan;
use crate::error::Result;

/// Runs a plan on the device that its inputs are on: `inputs` as the plan numbers them, contiguous; the result
/// has `shape` and `dtype`.
///
/// # Errors
/// Inputs that are not on a Metal device or not contiguous, source the device refuses.
pub fn apply(plan: &Plan, inputs: &[&Tensor], shape: &[usize], dtype: DType) -> Result<Tensor> {
    let (first, rest) = inputs.split_first().expect("a plan has inputs");
    Ok(first.apply_op1_no_bwd(&Apply { plan, rest, shape, dtype })?)
}

#[cfg_attr(
    not(all(feature = "metal", target_os = "macos")),
    expect(dead_code, reason = "read by the device's side only")
)]
struct Apply<'a> {
    plan: &'a Plan,
    /// Inputs after the first: candle's operations take three at most.
    rest: &'a [&'a Tensor],
    shape: &'a [usize],
    dtype: DType,
}

impl CustomOp1 for Apply<'_> {
    fn name(&self) -> &'static str {
        self.plan.source.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("{}: expected tensors on a Metal device, found the CPU's", self.plan.kernel)
    }

    #[cfg(all(feature = "metal", target_os = "macos"))]
    fn metal_fwd(
        &self,
        storage: &candle_core::MetalStorage,
        layout: &Layout,
    ) -> candle_core::Result<(candle_core::MetalStorage, Shape)> {
        use candle_core::backend::BackendStorage;

        let opened: Vec<_> = self.rest.iter().map(|x| x.storage_and_layout()).collect();
        let mut inputs = vec![super::device::Input::new(storage, layout)?];
        for (storage, layout) in &opened {
            let candle_core::Storage::Metal(storage) = &**storage else {
                candle_core::bail!("{}: expected all inputs on one Metal device", self.plan.kernel)
            };
            inputs.push(super::device::Input::new(storage, layout)?);
        }
        let out = super::device::run(self.plan, storage.device(), &inputs, self.dtype)?;
        Ok((out, Shape::from(self.shape)))
    }
}

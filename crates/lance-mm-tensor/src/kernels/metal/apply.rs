//! Running a plan on tensors, as an operation of candle.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Storage, Tensor};

use super::executor::{bytes_of, execute};
use super::{KernelArg, KernelPlan};
use crate::error::{Error, Result};

/// Runs a plan on the device of its inputs, which are in the order of the plan; the output has `shape`.
///
/// # Errors
/// Inputs that are not on a Metal device, or not contiguous; source that the device refuses.
pub fn apply(plan: &KernelPlan, inputs: &[&Tensor], shape: &[usize]) -> Result<Tensor> {
    for arg in &plan.args {
        if let KernelArg::Input(i) = arg
            && !inputs[*i].is_contiguous()
        {
            let found = format!("{:?} of strides {:?}", inputs[*i].dims(), inputs[*i].stride());
            return Err(Error::input("input of a kernel", "contiguous values", found));
        }
    }
    let (first, rest) = inputs.split_first().expect("a plan has inputs");
    Ok(first.apply_op1_no_bwd(&Apply { plan, rest, shape })?)
}

struct Apply<'a> {
    plan: &'a KernelPlan,
    /// Inputs after the first: candle's operations take three at most.
    rest: &'a [&'a Tensor],
    shape: &'a [usize],
}

impl CustomOp1 for Apply<'_> {
    fn name(&self) -> &'static str {
        self.plan.source.name
    }

    /// Runs the executor that stands in for a device, if there is one.
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut inputs = vec![bytes_of(storage, layout)?];
        for x in self.rest {
            let (storage, layout) = x.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else {
                candle_core::bail!("{}: expected all inputs on one device", self.plan.kernel)
            };
            inputs.push(bytes_of(storage, layout)?);
        }
        Ok((execute(self.plan, &inputs)?, Shape::from(self.shape)))
    }

    #[cfg(all(feature = "metal", target_os = "macos"))]
    fn metal_fwd(
        &self,
        storage: &candle_core::MetalStorage,
        layout: &Layout,
    ) -> candle_core::Result<(candle_core::MetalStorage, Shape)> {
        use candle_core::backend::BackendStorage;

        let opened: Vec<_> = self.rest.iter().map(|x| x.storage_and_layout()).collect();
        let mut inputs = vec![super::device::Input::new(storage, layout)];
        for (storage, layout) in &opened {
            let Storage::Metal(storage) = &**storage else {
                candle_core::bail!("{}: expected all inputs on one Metal device", self.plan.kernel)
            };
            inputs.push(super::device::Input::new(storage, layout));
        }
        let out = super::device::run(self.plan, storage.device(), &inputs)?;
        Ok((out, Shape::from(self.shape)))
    }
}

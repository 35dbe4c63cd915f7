//! Runs plans of tests on this machine's Metal device.

use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};

use super::values::encode;
use super::{KernelPlan, apply};
use crate::DeviceChoice;

/// The device has an order of its own.
pub(crate) const ORDERS: [u32; 1] = [0];

/// One for all tests: each that is opened compiles kernels anew.
static DEVICE: LazyLock<Device> =
    LazyLock::new(|| DeviceChoice::Metal.open().expect("tests with the feature run on a machine with Metal"));

/// The bytes of a plan's output.
pub(crate) fn run(plan: &KernelPlan, inputs: &[Vec<u8>], _order: u32) -> anyhow::Result<Vec<u8>> {
    let upload = |bytes: &Vec<u8>| Tensor::from_slice(bytes.as_slice(), bytes.len(), &DEVICE);
    let inputs = inputs.iter().map(upload).collect::<candle_core::Result<Vec<_>>>()?;
    let (len, float) = plan.output();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let y = apply(plan, &inputs, &[len])?;
    let values = y.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(encode(&values, float))
}

/// Runs operations on the device.
pub(crate) fn on_device<T>(work: impl FnOnce(&Device) -> T) -> T {
    work(&DEVICE)
}

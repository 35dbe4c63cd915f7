//! Runs plans of tests on this machine's Metal device.

use candle_core::{DType, Device, Tensor};

use super::values::encode;
use super::{Plan, apply};
use crate::DeviceChoice;
use crate::dense::FloatType;

/// The device has an order of its own.
pub(crate) const ORDERS: [u32; 1] = [0];

/// The output of a plan, bytes of `out` values.
pub(crate) fn run(plan: &Plan, inputs: &[Vec<u8>], out: FloatType, _order: u32) -> anyhow::Result<Vec<u8>> {
    let device = DeviceChoice::Metal.open()?;
    let upload = |bytes: &Vec<u8>| Tensor::from_slice(bytes.as_slice(), bytes.len(), &device);
    let inputs = inputs.iter().map(upload).collect::<candle_core::Result<Vec<_>>>()?;
    let dtype = match out {
        FloatType::F32 => DType::F32,
        FloatType::F16 => DType::F16,
        FloatType::BF16 => DType::BF16,
    };
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let y = apply(plan, &inputs, &[plan.output_len()], dtype)?;
    let values = y.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(encode(&values, out))
}

/// Runs operations on the device.
pub(crate) fn on_device<T>(work: impl FnOnce(&Device) -> T) -> T {
    work(&DeviceChoice::Metal.open().expect("tests with the feature run on a machine with Metal"))
}

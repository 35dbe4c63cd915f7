//! Choosing a device, and moving tensors to and from it.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::kernels::metal::runs_on;
use crate::precision::{ActivationPrecision, kv_dtype};

/// The device that networks run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The GPU if build and machine have one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of a Mac; needs a build with the feature `metal`.
    Metal,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// Metal in a build or on a machine without it.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Metal => metal(),
            Self::Auto => Ok(metal().unwrap_or(Device::Cpu)),
        }
    }
}

#[cfg(all(feature = "metal", target_os = "macos"))]
fn metal() -> Result<Device> {
    // candle panics when asked for a device that does not exist.
    if candle_metal_kernels::metal::Device::all().is_empty() {
        Err(Error::setting("device", "cpu or auto", "metal, but this machine has no Metal device"))
    } else {
        Ok(Device::new_metal(0)?)
    }
}

#[cfg(not(all(feature = "metal", target_os = "macos")))]
fn metal() -> Result<Device> {
    let found = "metal, but this build has no Metal: it takes a Mac and a build with `--features metal`";
    Err(Error::setting("device", "cpu or auto", found))
}

/// Name of a device: `cpu`, `metal` or `cuda`.
pub fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Metal(_) => "metal",
        Device::Cuda(_) => "cuda",
    }
}

/// Dtype of hidden states between operations: f32 on the CPU; on a device bf16 with [`ActivationPrecision::Bf16`], which
/// halves what operations read and write.
pub fn hidden_dtype(precision: ActivationPrecision, device: &Device) -> DType {
    if runs_on(device) { kv_dtype(precision) } else { DType::F32 }
}

/// Copies `x` to another device after all work on its own has succeeded. candle's `to_device` checks the last command
/// buffer only.
///
/// # Errors
/// Work that failed on the device of `x`, or copying it.
pub fn download(x: &Tensor, to: &Device) -> candle_core::Result<Tensor> {
    let copy = x.to_device(to)?;
    x.device().synchronize()?;
    Ok(copy)
}

/// Copies `x` to `device`. candle's `to_device` copies the whole storage of a view (for one frame, all frames of its
/// video); this copies the view alone.
///
/// # Errors
/// Out of memory on the device.
pub fn upload(x: &Tensor, device: &Device) -> Result<Tensor> {
    if x.device().same_device(device) { Ok(x.clone()) } else { Ok(x.force_contiguous()?.to_device(device)?) }
}

/// Runs `work` in an autorelease pool: objects of Metal that the system releases at the end of a pool are released when
/// `work` returns. Without it, every step of a long loop would keep some memory. Does nothing without Metal.
pub fn with_autorelease_pool<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(all(feature = "metal", target_os = "macos"))]
    return objc2::rc::autoreleasepool(|_| work());
    #[cfg(not(all(feature = "metal", target_os = "macos")))]
    work()
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Metal => "metal",
        })
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            _ => Err(Error::setting("device", "auto, cpu or metal", text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_devices_and_back() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Metal] {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        let text = "gpu".parse::<DeviceChoice>().unwrap_err().to_string();
        assert_eq!(text, "device: expected auto, cpu or metal, found gpu");
        assert_eq!(device_name(&DeviceChoice::Cpu.open().unwrap()), "cpu");
    }

    #[test]
    #[cfg(not(all(feature = "metal", target_os = "macos")))]
    fn a_build_without_metal_says_so() {
        let text = DeviceChoice::Metal.open().unwrap_err().to_string();
        assert!(
            text.contains("device: expected cpu or auto, found metal, but this build has no Metal"),
            "{text}"
        );
        assert!(DeviceChoice::Auto.open().unwrap().is_cpu());
    }
}

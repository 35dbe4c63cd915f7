//! Devices: which one is asked for, which there is, and what a loop on one has to do.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::kernels::metal::runs_on;
use crate::precision::{ActivationPrecision, kv_dtype};

/// Which device networks run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The GPU where this build and this machine have one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of a Mac; needs a build with the feature `metal`.
    Metal,
}

impl DeviceChoice {
    /// The device.
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
    // candle panics when it is asked for a device that is not there.
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

/// What a device is called: `cpu`, `metal` or `cuda`.
pub fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Metal(_) => "metal",
        Device::Cuda(_) => "cuda",
    }
}

/// The type that rows of a network have between operations: f32 on the CPU; on another device bf16 where activations are,
/// which halves what operations read and write.
pub fn hidden_dtype(activations: ActivationPrecision, device: &Device) -> DType {
    if runs_on(device) { kv_dtype(activations) } else { DType::F32 }
}

/// `x` on another device, once all that it was computed from has ended well: of a GPU's work candle's `to_device` looks at
/// the last part only.
///
/// # Errors
/// What failed on the device of `x`, or copying it.
pub fn download(x: &Tensor, to: &Device) -> candle_core::Result<Tensor> {
    let copy = x.to_device(to)?;
    x.device().synchronize()?;
    Ok(copy)
}

/// `x` on `device`. candle's `to_device` takes all of the memory that a part of a tensor lies in along: of a clip, for each of
/// its frames. This takes the part.
///
/// # Errors
/// Memory that the device lacks.
pub fn upload(x: &Tensor, device: &Device) -> Result<Tensor> {
    if x.device().same_device(device) { Ok(x.clone()) } else { Ok(x.force_contiguous()?.to_device(device)?) }
}

/// Runs one step of a loop. What the system holds back for the device until the end of a step, it then lets go of:
/// without that, every step of a long loop would keep some memory.
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

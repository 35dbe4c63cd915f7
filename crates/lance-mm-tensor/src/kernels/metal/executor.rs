//! The executor of tests, which stands in for a device: it runs plans over tensors on the CPU.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{CpuStorage, Device, Layout, bail};
use half::{bf16, f16};

use super::KernelPlan;
use crate::dtype::FloatType;

/// A function from the bytes of a plan's inputs to those of its output, or to an error message.
pub type Executor = dyn Fn(&KernelPlan, &[Vec<u8>]) -> Result<Vec<u8>, String>;

thread_local! {
    static EXECUTOR: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// Whether operations on tensors of this device go through plans: on every device but the CPU, and on the CPU if an
/// executor stands in.
pub(crate) fn runs_on(device: &Device) -> bool {
    !device.is_cpu() || EXECUTOR.with_borrow(Option::is_some)
}

/// Runs `work` with `executor` standing in for a device on this thread.
pub(crate) fn with_executor<T>(executor: Rc<Executor>, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Rc<Executor>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            EXECUTOR.set(self.0.take());
        }
    }
    let _restore = Restore(EXECUTOR.replace(Some(executor)));
    work()
}

/// Runs a plan with the executor of this thread.
pub(super) fn execute(plan: &KernelPlan, inputs: &[Vec<u8>]) -> candle_core::Result<CpuStorage> {
    let Some(executor) = EXECUTOR.with_borrow(Clone::clone) else {
        bail!("{}: expected tensors on a Metal device, found the CPU's", plan.kernel)
    };
    let bytes =
        executor(plan, inputs).map_err(|e| candle_core::Error::Msg(format!("{}: {e}", plan.kernel)))?;
    let (len, float) = plan.output();
    if bytes.len() != len * float.size() {
        bail!("{}: expected {len} values, found {} bytes", plan.kernel, bytes.len())
    }
    let pairs = || bytes.as_chunks().0.iter();
    Ok(match float {
        FloatType::F32 => {
            CpuStorage::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        FloatType::F16 => CpuStorage::F16(pairs().map(|b| f16::from_le_bytes(*b)).collect()),
        FloatType::BF16 => CpuStorage::BF16(pairs().map(|b| bf16::from_le_bytes(*b)).collect()),
    })
}

/// Copies the bytes from the first value of a tensor to its last, and none around them, so that a kernel that reads too far
/// is noticed.
pub(super) fn bytes_of(storage: &CpuStorage, layout: &Layout) -> candle_core::Result<Vec<u8>> {
    let last: usize = layout.dims().iter().zip(layout.stride()).map(|(n, s)| n.saturating_sub(1) * s).sum();
    let range = layout.start_offset()..layout.start_offset() + last + 1;
    Ok(match storage {
        CpuStorage::U8(v) => v[range].to_vec(),
        CpuStorage::U32(v) => v[range].iter().flat_map(|v| v.to_le_bytes()).collect(),
        CpuStorage::F32(v) => v[range].iter().flat_map(|v| v.to_le_bytes()).collect(),
        CpuStorage::F16(v) => v[range].iter().flat_map(|v| v.to_le_bytes()).collect(),
        CpuStorage::BF16(v) => v[range].iter().flat_map(|v| v.to_le_bytes()).collect(),
        other => bail!(
            "expected bytes, u32 or floats of up to 32 bits, found {:?}",
            candle_core::backend::BackendStorage::dtype(other)
        ),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};

    use super::super::{apply, swiglu};
    use super::*;

    #[test]
    fn an_executor_stands_in_as_long_as_the_work_lasts() {
        let x = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let plan = swiglu(2, FloatType::F32);
        let run = || apply(&plan, &[&x.narrow(0, 1, 2).unwrap(), &x.narrow(0, 0, 2).unwrap()], &[2]);
        let text = run().unwrap_err().to_string();
        assert!(text.contains("expected tensors on a Metal device, found the CPU's"), "{text}");
        let sums: Rc<Executor> = Rc::new(|plan, inputs| {
            assert_eq!((plan.kernel.as_str(), inputs.len()), ("swiglu_f32", 2));
            Ok(inputs[0].clone())
        });
        let found = with_executor(sums, || (runs_on(&Device::Cpu), run().unwrap()));
        assert_eq!((found.0, found.1.to_vec1::<f32>().unwrap()), (true, vec![2.0, 3.0]));
        let fails: Rc<Executor> = Rc::new(|_, _| Err("no such kernel".to_owned()));
        assert!(with_executor(fails, run).unwrap_err().to_string().contains("swiglu_f32: no such kernel"));
        assert!(!runs_on(&Device::Cpu) && run().is_err());
    }

    #[test]
    fn values_come_back_in_the_type_they_went_in() {
        let first: Rc<Executor> = Rc::new(|_, inputs| Ok(inputs[0].clone()));
        for float in [FloatType::F32, FloatType::F16, FloatType::BF16] {
            let x = Tensor::new(&[1f32, -2.5], &Device::Cpu).unwrap().to_dtype(float.into()).unwrap();
            let y = with_executor(first.clone(), || apply(&swiglu(2, float), &[&x, &x], &[2])).unwrap();
            assert_eq!(y.dtype(), DType::from(float));
            assert_eq!(y.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1.0, -2.5]);
            let short: Rc<Executor> = Rc::new(move |_, _| Ok(vec![0; float.size()]));
            assert!(with_executor(short, || apply(&swiglu(2, float), &[&x, &x], &[2])).is_err());
        }
    }

    #[test]
    fn inputs_are_contiguous_unless_the_plan_says_how_they_lie() {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap().t().unwrap();
        let text = apply(&swiglu(6, FloatType::F32), &[&x, &x], &[6]).unwrap_err().to_string();
        assert!(text.contains("input of a kernel: expected contiguous values"), "{text}");
    }
}

//! SwiGLU, the activation of an MLP.

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};

use crate::dtype::FloatType;
use crate::error::{Error, Result};
use crate::kernels::{metal, swiglu as kernel};

/// `silu(gate) · up` of one shape, f32, on a device f16 and bf16 too (Shazeer 2020, "GLU variants improve Transformer").
/// On the CPU this is in place: other tensors that share the storage of `gate` change too.
///
/// # Errors
/// Shapes or dtypes that differ; on the CPU tensors that are not contiguous, or two views of one storage.
pub fn swiglu(gate: Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() || gate.dtype() != up.dtype() {
        let say = |x: &Tensor| format!("{:?} {:?}", x.dtype(), x.dims());
        return Err(Error::input("gate", say(up), say(&gate)));
    }
    if gate.elem_count() == 0 {
        return Ok(gate);
    }
    if metal::runs_on(gate.device()) {
        let (gate, up) = (gate.contiguous()?, up.contiguous()?);
        let plan = metal::swiglu(gate.elem_count(), FloatType::try_from(gate.dtype())?);
        return metal::apply(&plan, &[&gate, &up], gate.dims());
    }
    gate.inplace_op2(up, &Swiglu)?;
    Ok(gate)
}

struct Swiglu;

impl InplaceOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &mut CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(gate), CpuStorage::F32(up)) = (gate, up) else {
            candle_core::bail!("swiglu expects f32")
        };
        match (gate_layout.contiguous_offsets(), up_layout.contiguous_offsets()) {
            (Some((start, end)), Some((first, last))) => kernel(&mut gate[start..end], &up[first..last]),
            _ => candle_core::bail!("swiglu expects contiguous values"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::testing::{assert_close, seeded};

    #[test]
    fn a_view_equals_candle() {
        let tensor = |seed| Tensor::from_vec(seeded(60, seed), (4, 15), &Device::Cpu).unwrap();
        let part = |x: Tensor| x.narrow(0, 1, 2).unwrap();
        let (gate, up) = (part(tensor(1)), part(tensor(2)));
        let expected = (gate.silu().unwrap() * &up).unwrap();
        let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_close("swiglu", &flat(swiglu(gate, &up).unwrap()), &flat(expected), 1e-6);
        assert!(swiglu(tensor(1), &up).is_err());
        assert!(swiglu(tensor(1).t().unwrap(), &tensor(2).t().unwrap()).is_err());
    }
}

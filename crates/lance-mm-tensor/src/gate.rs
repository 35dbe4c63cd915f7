//! The gate of an MLP.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};

use crate::error::{Error, Result};
use crate::kernels::{metal, swiglu as kernel};

/// `silu(gate) · up`, f32 of one shape (Shazeer 2020, "GLU variants improve Transformer").
///
/// # Errors
/// Shapes that differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        return Err(Error::input("gate", format!("{:?}", up.dims()), format!("{:?}", gate.dims())));
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    if metal::runs_on(gate.device()) && gate.elem_count() > 0 {
        return metal::apply(&metal::swiglu(gate.elem_count()), &[&gate, &up], gate.dims(), DType::F32);
    }
    Ok(gate.apply_op2_no_bwd(&up, &Swiglu)?)
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut out = values(gate, gate_layout)?.to_vec();
        kernel(&mut out, values(up, up_layout)?);
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("swiglu wants contiguous values"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::testing::{assert_close, seeded};

    #[test]
    fn a_part_of_a_tensor_is_gated_as_candle_gates_it() {
        let x = Tensor::from_vec(seeded(60, 1), (2, 30), &Device::Cpu).unwrap();
        let (gate, up) = (x.narrow(1, 0, 15).unwrap(), x.narrow(1, 15, 15).unwrap());
        let expected = (gate.silu().unwrap() * &up).unwrap();
        let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_close("gated", &flat(swiglu(&gate, &up).unwrap()), &flat(expected), 1e-6);
        assert!(swiglu(&gate, &x).is_err());
    }
}

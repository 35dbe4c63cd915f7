//! What is done once when networks were loaded onto a device.

use candle_core::{DType, Device, Tensor};
use lance_mm_models::{Cursor, Grid, Llm, Segment, Sequence, Vit};
use lance_mm_tensor::within_step;

use crate::error::Result;
use crate::lance::Checkpoint;

/// Rows of the prompt that is run: more than any kernel for few rows takes.
const ROWS: usize = 40;
/// Patches of the picture that is run, a side.
const SIDE: usize = 8;

/// On a device besides the CPU, runs each network once, so that kernels are compiled now and not while somebody
/// waits for the first answer, and gives the pages of files back whose tensors the device has copies of.
///
/// # Errors
/// What the networks refuse.
pub(crate) fn up(checkpoint: &Checkpoint, llm: &Llm, vit: Option<&Vit>) -> Result<()> {
    if checkpoint.model.device().is_cpu() {
        return Ok(());
    }
    within_step(|| run(llm, vit))?;
    checkpoint.model.release()?;
    let others = checkpoint.vit.iter().chain(&checkpoint.vae);
    Ok(others.into_iter().try_for_each(|weights| weights.release())?)
}

fn run(llm: &Llm, vit: Option<&Vit>) -> Result<()> {
    let mut cache = llm.cache();
    let text = [Segment::Text(vec![0; ROWS])];
    let sequence = Sequence::new(&text, &llm.config().layout(), Cursor::default());
    llm.prefill(&llm.embed(&sequence, &[])?, &sequence, &mut cache)?;
    let logits = llm.logits(&llm.step(0, sequence.end(), &mut cache)?)?;
    if let Some(vit) = vit {
        let side = SIDE.next_multiple_of(vit.config().spatial_merge_size);
        let grid = Grid { t: 1, h: side, w: side };
        let shape = (grid.count(), vit.config().patch_width());
        vit.forward(&Tensor::zeros(shape, DType::F32, &Device::Cpu)?, &[grid])?;
    }
    Ok(logits.device().synchronize()?)
}

#[cfg(test)]
mod tests {
    use lance_mm_models::Experts;

    use super::*;
    use crate::testing::checkpoint;

    #[test]
    fn the_networks_run() {
        let checkpoint = checkpoint();
        let llm = Llm::load(&checkpoint.config, &checkpoint.model, Experts::Und).unwrap();
        let vit = Vit::load(&checkpoint.config.vision, checkpoint.vit.as_ref().unwrap()).unwrap();
        run(&llm, Some(&vit)).unwrap();
        up(&checkpoint, &llm, None).unwrap();
    }
}

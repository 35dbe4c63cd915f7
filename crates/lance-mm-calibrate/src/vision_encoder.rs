//! The vision encoder: copied, or with packed matrices.

use std::collections::HashMap;
use std::path::Path;

use lance_mm_pipelines::Checkpoint;
use lance_mm_pipelines::checkpoint::WeightsFile;
use lance_mm_quant::{RoundingOptions, RowSource, quantize_linear};
use lance_mm_tensor::{TensorInfo, Weight};
use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::files::copy;
use crate::module_schemes::ModuleSchemes;
use crate::stored_tensors::{BorrowedTensor, StoredTensor, packed};

/// Width of the MLP in the new file, padded to whole groups if its matrices are packed. The padding is zero and
/// computes zero, since `silu(0) · 0 = 0`.
pub(crate) fn mlp_width(source: &Checkpoint, schemes: &ModuleSchemes) -> Option<usize> {
    let width = source.vit()?.info("blocks.0.mlp.down_proj.weight")?.shape.get(1).copied()?;
    let padded = width.next_multiple_of(64);
    (padded != width && schemes.vit(padded).is_some()).then_some(padded)
}

/// Writes `vit.safetensors`, if the source has one: `part`.
pub(crate) fn write(
    dir: &Path,
    source: &Checkpoint,
    part: Option<&WeightsFile>,
    schemes: &ModuleSchemes,
) -> Result<()> {
    let path = dir.join("vit.safetensors");
    let Some(vit) = source.vit() else { return Ok(()) };
    let file = part.filter(|part| !part.sharded).map(|part| &part.path);
    if let Some(file) = file.filter(|_| !schemes.packs_vit()) {
        return copy(file, &path);
    }
    let wide = mlp_width(source, schemes);
    let mut tensors: HashMap<String, StoredTensor> = HashMap::new();
    for tensor in vit.tensors() {
        let shape = padded(&tensor, wide);
        let packs = tensor.name.strip_suffix(".weight").zip(match shape[..] {
            [rows, cols] => schemes.vit(cols).map(|scheme| (rows, cols, scheme)),
            _ => None,
        });
        if let Some((module, (rows, cols, scheme))) = packs {
            let weight = Weight::load(&vit.pp(module), tensor.shape[0], tensor.shape[1])?;
            let weight = Padded { weight: &weight, rows, cols };
            let result = quantize_linear(module, &weight, None, scheme, &RoundingOptions::default())?;
            packed(module, &result.weight, &mut tensors);
            continue;
        }
        let mut bytes = vit.with_bytes(&tensor.name, <[u8]>::to_vec).unwrap_or_default();
        // Tensors that are not packed grow by whole rows only.
        bytes.resize(bytes.len() / tensor.shape[0] * shape[0], 0);
        tensors.insert(tensor.name, StoredTensor { dtype: tensor.dtype, shape, bytes });
    }
    match file {
        Some(file) if tensors.values().all(|t| t.dtype != Dtype::U32) => copy(file, &path),
        _ => safetensors::serialize_to_file(tensors.iter().map(|(n, t)| (n, BorrowedTensor(t))), None, &path)
            .map_err(Error::at(&path)),
    }
}

/// The shape of a tensor with the MLP `wide`.
fn padded(tensor: &TensorInfo, wide: Option<usize>) -> Vec<usize> {
    let mut shape = tensor.shape.clone();
    let (Some(wide), Some((_, name))) = (wide, tensor.name.split_once(".mlp.")) else { return shape };
    if !tensor.name.starts_with("blocks.") {
        return shape;
    }
    match (name, &mut shape[..]) {
        ("gate_proj.weight" | "up_proj.weight", [rows, _]) => *rows = wide,
        ("gate_proj.bias" | "up_proj.bias", [rows]) => *rows = wide,
        ("down_proj.weight", [_, cols]) => *cols = wide,
        _ => {}
    }
    shape
}

/// A weight with zeros below and to the right.
struct Padded<'a> {
    weight: &'a Weight,
    rows: usize,
    cols: usize,
}

impl RowSource for Padded<'_> {
    fn n_rows(&self) -> usize {
        self.rows
    }

    fn n_cols(&self) -> usize {
        self.cols
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        let (values, rest) = out.split_at_mut(self.weight.n_cols());
        rest.fill(0.0);
        if row < self.weight.n_rows() {
            self.weight.read_row(row, values);
        } else {
            values.fill(0.0);
        }
    }
}

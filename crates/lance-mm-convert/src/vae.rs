//! The VAE's tensors: both names and both arrangements of each.

use lance_mm_tensor::Problem;

use crate::file_tensor::FileTensor;

/// A tensor of the VAE.
#[derive(Debug)]
struct Row {
    upstream: String,
    mlx: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Upstream (out, in, ...), MLX channels last (out, ..., in); this many dimensions.
    Conv(usize),
    /// Upstream (C, 1, ...) of this many dimensions, MLX (C).
    Gamma(usize),
    Bias,
}

/// The tensors of a VAE under their MLX names and in MLX's arrangement. Tensors that are missing, unknown or of
/// another number of dimensions go to `problems`.
pub(crate) fn canonical(tensors: &[FileTensor], problems: &mut Vec<Problem>) -> Vec<FileTensor> {
    let mlx = is_mlx(tensors);
    let rows = rows();
    let name = |row: &Row| if mlx { row.mlx.clone() } else { row.upstream.clone() };
    let mut found = Vec::new();
    for row in &rows {
        let Some(tensor) = tensors.iter().find(|tensor| tensor.name == name(row)) else {
            // Widths differ from file to file, so that there is no shape to expect.
            problems.push(Problem { tensor: name(row), what: "missing".into(), missing: None });
            continue;
        };
        match row.canonical(tensor.clone(), mlx) {
            Ok(tensor) => found.push(tensor),
            Err(what) => problems.push(Problem { tensor: name(row), what, missing: None }),
        }
    }
    let unknown = tensors.iter().filter(|tensor| !rows.iter().any(|row| name(row) == tensor.name));
    problems.extend(unknown.map(|tensor| Problem {
        tensor: tensor.name.clone(),
        what: "no part of the VAE".into(),
        missing: None,
    }));
    found
}

/// A tensor of [`canonical`] as upstream has it.
pub(crate) fn to_upstream(tensors: Vec<FileTensor>) -> Vec<FileTensor> {
    let rows = rows();
    let upstream = |tensor: FileTensor| {
        let row = rows.iter().find(|row| row.mlx == tensor.name).expect("canonical names are in the table");
        let tensor = match row.kind {
            Kind::Conv(rank) => tensor.permuted(&[&[0, rank - 1], &FROM_ONE[..rank - 2]].concat()),
            Kind::Gamma(rank) => tensor.with_unit_dimensions(rank),
            Kind::Bias => tensor,
        };
        tensor.renamed(&row.upstream)
    };
    tensors.into_iter().map(upstream).collect()
}

/// Whether names are MLX's.
fn is_mlx(tensors: &[FileTensor]) -> bool {
    tensors.iter().any(|tensor| tensor.name.contains(".layer_"))
}

const FROM_ONE: [usize; 3] = [1, 2, 3];
const FROM_TWO: [usize; 3] = [2, 3, 4];

impl Row {
    fn canonical(&self, tensor: FileTensor, mlx: bool) -> Result<FileTensor, String> {
        let shape = tensor.shape.clone();
        let rank = match (self.kind, mlx) {
            (Kind::Conv(rank), _) | (Kind::Gamma(rank), false) => rank,
            (Kind::Bias, _) | (Kind::Gamma(_), true) => 1,
        };
        if shape.len() != rank {
            return Err(format!("expected {rank} dimensions, found {shape:?}"));
        }
        if matches!(self.kind, Kind::Gamma(_)) && shape[1..].iter().any(|n| *n != 1) {
            return Err(format!("expected ones after the first dimension, found {shape:?}"));
        }
        let tensor = match self.kind {
            Kind::Conv(rank) if !mlx => tensor.permuted(&[&[0], &FROM_TWO[..rank - 2], &[1]].concat()),
            Kind::Gamma(_) => tensor.with_unit_dimensions(1),
            _ => tensor,
        };
        Ok(tensor.renamed(&self.mlx))
    }
}

/// Every tensor of the Wan2.2 VAE. Its widths may differ, its structure does not.
fn rows() -> Vec<Row> {
    let mut table = Table::default();
    for part in ["encoder", "decoder"] {
        table.conv3(&format!("{part}.conv1"));
        for i in [0, 2] {
            table.residual(&format!("{part}.middle.{i}"), false);
        }
        table.attention(&format!("{part}.middle.1"));
        table.gamma(&format!("{part}.head.0"), &format!("{part}.head.layer_0"), 4);
        table.conv(&format!("{part}.head.2"), &format!("{part}.head.layer_2."), 5);
    }
    // (stages with: a shortcut in the first block, a resampling at the end, one in time too)
    for (part, blocks, shortcut, resample, time) in
        [("encoder.down", 2, 1..3, 0..3, 1..3), ("decoder.up", 3, 2..4, 0..3, 0..2)]
    {
        let kind = &part["encoder.".len()..];
        for stage in 0..4 {
            let prefix = format!("{part}samples.{stage}.{kind}samples");
            for block in 0..blocks {
                table.residual(&format!("{prefix}.{block}"), block == 0 && shortcut.contains(&stage));
            }
            let last = format!("{prefix}.{blocks}");
            if resample.contains(&stage) {
                table.conv(&format!("{last}.resample.1"), &format!("{last}.resample_"), 4);
            }
            if time.contains(&stage) {
                table.conv3(&format!("{last}.time_conv"));
            }
        }
    }
    table.conv3("conv1");
    table.conv3("conv2");
    table.0
}

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn residual(&mut self, prefix: &str, shortcut: bool) {
        let (from, to) = (format!("{prefix}.residual"), format!("{prefix}.residual.layer_"));
        for i in [0, 3] {
            self.gamma(&format!("{from}.{i}"), &format!("{to}{i}"), 4);
        }
        for i in [2, 6] {
            self.conv(&format!("{from}.{i}"), &format!("{to}{i}."), 5);
        }
        if shortcut {
            self.conv3(&format!("{prefix}.shortcut"));
        }
    }

    fn attention(&mut self, prefix: &str) {
        self.gamma(&format!("{prefix}.norm"), &format!("{prefix}.norm"), 3);
        for name in ["to_qkv", "proj"] {
            self.conv(&format!("{prefix}.{name}"), &format!("{prefix}.{name}_"), 4);
        }
    }

    /// A convolution in time and space, of one name in both layouts.
    fn conv3(&mut self, name: &str) {
        self.conv(name, &format!("{name}."), 5);
    }

    fn conv(&mut self, upstream: &str, mlx: &str, rank: usize) {
        for (part, kind) in [("weight", Kind::Conv(rank)), ("bias", Kind::Bias)] {
            self.0.push(Row { upstream: format!("{upstream}.{part}"), mlx: format!("{mlx}{part}"), kind });
        }
    }

    fn gamma(&mut self, upstream: &str, mlx: &str, rank: usize) {
        let kind = Kind::Gamma(rank);
        self.0.push(Row { upstream: format!("{upstream}.gamma"), mlx: format!("{mlx}.gamma"), kind });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use safetensors::Dtype;

    use super::*;
    use crate::file_tensor::Source;

    /// A tensor of numbers from zero on for each row.
    fn upstream(dir: &tempfile::TempDir) -> Vec<FileTensor> {
        let path = dir.path().join("numbers");
        std::fs::write(&path, (0u8..200).collect::<Vec<_>>()).unwrap();
        let source = Source::open(&path).unwrap();
        let shape = |kind| match kind {
            Kind::Conv(5) => vec![2, 3, 1, 2, 2],
            Kind::Conv(_) => vec![2, 3, 2, 1],
            Kind::Gamma(rank) => [&[5], &[1, 1, 1][..rank - 1]].concat(),
            Kind::Bias => vec![7],
        };
        rows()
            .into_iter()
            .map(|r| FileTensor::new(&source, r.upstream, Dtype::U8, shape(r.kind), 0))
            .collect()
    }

    fn bytes(tensor: &FileTensor) -> Vec<u8> {
        tensor.chunks().flat_map(Result::unwrap).collect()
    }

    fn find<'a>(tensors: &'a [FileTensor], name: &str) -> &'a FileTensor {
        tensors.iter().find(|t| t.name == name).unwrap()
    }

    #[test]
    fn the_table_names_every_tensor_once() {
        let rows = rows();
        assert_eq!(rows.len(), 196);
        assert_eq!(rows.iter().map(|r| &r.mlx).collect::<HashSet<_>>().len(), 196);
        let mlx = |name: &str| rows.iter().find(|r| r.upstream == name).map(|r| r.mlx.as_str());
        for (upstream, expected) in [
            ("encoder.conv1.weight", "encoder.conv1.weight"),
            (
                "encoder.downsamples.1.downsamples.0.residual.3.gamma",
                "encoder.downsamples.1.downsamples.0.residual.layer_3.gamma",
            ),
            (
                "decoder.upsamples.2.upsamples.0.shortcut.bias",
                "decoder.upsamples.2.upsamples.0.shortcut.bias",
            ),
            (
                "decoder.upsamples.0.upsamples.3.resample.1.weight",
                "decoder.upsamples.0.upsamples.3.resample_weight",
            ),
            (
                "encoder.downsamples.2.downsamples.2.time_conv.weight",
                "encoder.downsamples.2.downsamples.2.time_conv.weight",
            ),
            ("decoder.middle.1.to_qkv.bias", "decoder.middle.1.to_qkv_bias"),
            ("decoder.head.2.weight", "decoder.head.layer_2.weight"),
        ] {
            assert_eq!(mlx(upstream), Some(expected));
        }
    }

    #[test]
    fn there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let source = upstream(&dir);
        let mut problems = Vec::new();
        let mlx = canonical(&source, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let conv = find(&mlx, "encoder.conv1.weight");
        assert_eq!(conv.shape, [2, 1, 2, 2, 3]);
        assert_eq!(bytes(conv)[..6], [0, 4, 8, 1, 5, 9]);
        assert_eq!(find(&mlx, "encoder.middle.1.to_qkv_weight").shape, [2, 2, 1, 3]);
        assert_eq!(find(&mlx, "encoder.head.layer_0.gamma").shape, [5]);
        let again = canonical(&mlx, &mut problems);
        assert!(problems.is_empty() && again.len() == 196, "{problems:?}");
        for tensor in to_upstream(again) {
            let first = find(&source, &tensor.name);
            assert_eq!((&tensor.shape, bytes(&tensor)), (&first.shape, bytes(first)), "{}", tensor.name);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = upstream(&dir);
        source.remove(0);
        source[0] = source[0].clone().renamed("encoder.conv9.bias");
        let mut problems = Vec::new();
        canonical(&source, &mut problems);
        let all: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.tensor, p.what)).collect();
        assert_eq!(
            all,
            [
                "encoder.conv1.weight: missing",
                "encoder.conv1.bias: missing",
                "encoder.conv9.bias: no part of the VAE"
            ]
        );
        let mut source = upstream(&dir);
        source[0].shape.truncate(4);
        canonical(&source, &mut problems);
        assert_eq!(problems[3].what, "expected 5 dimensions, found [2, 3, 1, 2]");
    }
}

use std::collections::HashMap;
use std::path::Path;

use candle_core::DType;
use candle_core::Device;
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;
use crate::dtype::FloatType;
use crate::embedding::Embedding;
use crate::precision::ActivationPrecision;
use crate::quantization::Quantization;
use crate::scheme::Scheme;
use crate::testing::{assert_close, seeded};

type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn open(dir: &Path, tensors: &[Stored], config: serde_json::Value) -> Weights {
    let views: Vec<(&str, TensorView<'_>)> =
        tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.clone(), b).unwrap())).collect();
    let path = dir.join("m.safetensors");
    safetensors::serialize_to_file(views, None::<HashMap<String, String>>, &path).unwrap();
    Weights::open(&[path]).unwrap().with_quantization(Quantization::from_config(&config).unwrap())
}

fn bf16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
}

/// A quantized module `m` of 4 rows and 64 columns as a file would hold it.
fn packed() -> (AffineWeight, Vec<Stored>) {
    let scheme = Scheme::affine(4, 32).unwrap();
    let w = AffineWeight::quantize("w", &seeded(256, 3), 64, scheme, FloatType::BF16).unwrap();
    let words = w.words().iter().flat_map(|v| v.to_le_bytes()).collect();
    let stored = vec![
        ("m.weight", Dtype::U32, vec![4, 8], words),
        ("m.scales", Dtype::BF16, vec![4, 2], bf16s(&w.scales())),
        ("m.biases", Dtype::BF16, vec![4, 2], bf16s(&w.biases())),
    ];
    (w, stored)
}

#[test]
fn a_packed_module_gives_what_its_matrix_gives() {
    let dir = tempfile::tempdir().unwrap();
    let (w, mut stored) = packed();
    stored.push(("m.bias", Dtype::BF16, vec![4], bf16s(&[1.0, -2.0, 0.5, 0.0])));
    let weights =
        open(dir.path(), &stored, serde_json::json!({"quantization": {"bits": 4, "group_size": 32}}));
    let linear = Linear::load_biased(&weights.pp("m"), 64, 4).unwrap();
    let x = Tensor::from_vec(seeded(128, 4), (2, 64), &Device::Cpu).unwrap();
    let bias = Tensor::new(&[1.0f32, -2.0, 0.5, 0.0], &Device::Cpu).unwrap();
    let expected = Linear::new(Weight::Affine(w), Some(bias)).forward(&x).unwrap();
    assert_eq!(linear.forward(&x).unwrap().to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
}

#[test]
fn an_embedding_reads_the_rows_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (w, stored) = packed();
    let weights = open(dir.path(), &stored, serde_json::json!({}));
    let table = Embedding::load(&weights.pp("m"), 4, 64).unwrap();
    let rows = table.forward(&[2, 0, 2]).unwrap().to_vec2::<f32>().unwrap();
    let mut expected = vec![0.0; 64];
    w.read_row(2, &mut expected);
    assert_eq!(rows[0], expected);
    assert_eq!(rows[0], rows[2]);
    let text = table.forward(&[4]).unwrap_err().to_string();
    assert_eq!(text, "token id: expected an id below 4, found 4");
}

#[test]
fn mlx_rounding_is_a_way_to_read_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (w, stored) = packed();
    let weights = open(dir.path(), &stored, serde_json::json!({})).with_mlx_rounding();
    let row = Embedding::load(&weights.pp("m"), 4, 64).unwrap().forward(&[1]).unwrap();
    let mut expected = vec![0.0; 64];
    w.read_row_rounded(1, &mut expected);
    assert_eq!(row.to_vec2::<f32>().unwrap()[0], expected);
    assert!(expected.iter().all(|v| bf16::from_f32(*v).to_f32() == *v));
}

#[test]
fn wrong_modules_are_reported_by_name() {
    let quantization = serde_json::json!({"quantization": {"bits": 4, "group_size": 32}});
    let (_, stored) = packed();
    let cases: [(Vec<Stored>, serde_json::Value, &str); 6] = [
        (stored[..2].to_vec(), quantization.clone(), "m.biases: missing"),
        (
            stored.clone(),
            serde_json::json!({"quantization": {"bits": 4, "group_size": 32, "a.b": true, "m.x": false}}),
            "",
        ),
        (
            stored.clone(),
            serde_json::json!({"quantization": {"bits": 4, "group_size": 32, "m": {"bits": 8}}}),
            "m.weight: config says 8 bits in groups of 32, file has 4 bits in groups of 32",
        ),
        (
            vec![("m.weight", Dtype::BF16, vec![4, 64], bf16s(&[0.0; 256]))],
            serde_json::json!({"quantization": {"bits": 4, "group_size": 32, "m": {"bits": 4}}}),
            "m.weight: config says quantized, file has no scales",
        ),
        (
            vec![stored[0].clone(), stored[1].clone(), ("m.biases", Dtype::F32, vec![4, 2], vec![0; 32])],
            quantization.clone(),
            "found BF16 and F32",
        ),
        (
            vec![("m.weight", Dtype::BF16, vec![4, 8], vec![0; 64]), stored[1].clone(), stored[2].clone()],
            quantization,
            "expected packed U32 words, found BF16",
        ),
    ];
    for (stored, config, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let weights = open(dir.path(), &stored, config);
        let load = |weights: &Weights| Linear::load(&weights.pp("m"), 64, 4).map(drop);
        for loaded in [load(&weights), weights.load_all(&["m."], load)] {
            match loaded {
                Ok(()) => assert_eq!(expected, ""),
                Err(e) => assert!(!expected.is_empty() && e.to_string().contains(expected), "{e}"),
            }
        }
    }
}

#[test]
fn a_scale_that_is_not_finite_names_its_row_when_it_is_read() {
    let (_, mut affine) = packed();
    affine[1].3 = bf16s(&[1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0]);
    let float_mode = |mode: &str, bits: usize, group: usize, bad: u8| {
        let mut scales = vec![0x38; 4 * 64 / group];
        scales[2 * 64 / group] = bad;
        let stored = vec![
            ("m.weight", Dtype::U32, vec![4, 2 * bits], vec![0; 32 * bits]),
            ("m.scales", Dtype::U8, vec![4, 64 / group], scales),
        ];
        let quantization = serde_json::json!({"mode": mode, "bits": bits, "group_size": group});
        (stored, serde_json::json!({"quantization": quantization}))
    };
    let cases = [
        (affine, serde_json::json!({})),
        float_mode("mxfp4", 4, 32, 0xff),
        float_mode("mxfp8", 8, 32, 0xff),
        float_mode("nvfp4", 4, 16, 0x7f),
        float_mode("nvfp4", 4, 16, 0xff),
    ];
    for (stored, config) in cases {
        let dir = tempfile::tempdir().unwrap();
        let weights = open(dir.path(), &stored, config);
        let linear = Linear::load(&weights.pp("m"), 64, 4).unwrap();
        let x = Tensor::zeros((1, 64), DType::F32, &Device::Cpu).unwrap();
        for _ in 0..2 {
            let text = linear.forward(&x).unwrap_err().to_string();
            assert!(text.contains("m.scales: not finite in row 2"), "{text}");
        }
        let table = Embedding::load(&weights.pp("m"), 4, 64).unwrap();
        assert_eq!(table.forward(&[0, 1, 3]).unwrap().dims(), [3, 64]);
        let text = table.forward(&[0, 2]).unwrap_err().to_string();
        assert!(text.contains("m.scales: not finite in row 2"), "{text}");
    }
}

#[test]
fn an_input_of_the_wrong_width_or_type_is_refused() {
    let linear = Linear::from(DenseWeight::from_f32(&[1.0; 6], 3));
    let wide = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
    assert!(linear.forward(&wide).unwrap_err().to_string().contains("f32 rows of 3, found F32 [1, 4]"));
    let half = Tensor::zeros((1, 3), DType::F16, &Device::Cpu).unwrap();
    assert!(linear.forward(&half).is_err());
}

#[test]
fn rows_that_are_not_contiguous_are_multiplied_right() {
    let linear = Linear::from(DenseWeight::from_f32(&[1.0, 10.0], 2));
    let x = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap().t().unwrap();
    assert_eq!(linear.forward(&x).unwrap().to_vec2::<f32>().unwrap(), [[31.0], [42.0]]);
}

/// Layers of one shape: dense of each kind of product, affine of several widths and of two in one.
fn pairs(rows: usize, cols: usize) -> Vec<[Linear; 2]> {
    let bias = |seed| Some(Tensor::from_vec(seeded(rows, seed), rows, &Device::Cpu).unwrap());
    let dense = |float, activations| {
        [1, 2].map(|seed| {
            let w = DenseWeight::rounded(&seeded(rows * cols, seed), cols, float);
            Linear::new(Weight::Dense(w.with_activation_precision(activations)), bias(seed + 7))
        })
    };
    let affine = |bits: [usize; 2], group: [usize; 2], biased: bool| {
        [0, 1].map(|i| {
            let scheme = Scheme::affine(bits[i], group[i]).unwrap();
            let values = seeded(rows * cols, i as u64 + 3);
            let w = AffineWeight::quantize("w", &values, cols, scheme, FloatType::BF16).unwrap();
            Linear::new(Weight::Affine(w), bias(i as u64 + 9).filter(|_| biased))
        })
    };
    vec![
        dense(FloatType::BF16, ActivationPrecision::Bf16),
        dense(FloatType::BF16, ActivationPrecision::Split),
        dense(FloatType::F32, ActivationPrecision::F32),
        affine([4, 4], [128, 128], false),
        affine([4, 4], [64, 64], true),
        affine([8, 8], [128, 128], true),
        affine([4, 8], [128, 128], true),
        affine([4, 4], [128, 64], true),
        [
            affine([4, 4], [128, 128], false)[0].clone(),
            dense(FloatType::BF16, ActivationPrecision::Bf16)[0].clone(),
        ],
    ]
}

#[test]
fn layers_at_once_give_what_each_gives() {
    for (rows, cols) in [(40, 256), (300, 128), (17, 384)] {
        for (kind, [first, second]) in pairs(rows, cols).iter().enumerate() {
            for n in [0, 1, 2, 3, 8, 9, 33, 70] {
                let x = Tensor::from_vec(seeded(n * cols, 5), (n, cols), &Device::Cpu).unwrap();
                let what = format!("kind {kind}, {n} rows of {cols} to {rows}");
                let same = |found: &Tensor, expected: &Tensor| {
                    assert_eq!(found.dims(), expected.dims(), "{what}");
                    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert_close(&what, &flat(found), &flat(expected), 1e-5);
                };
                let expected = [first, second].map(|layer| layer.forward(&x).unwrap());
                let each = Linear::forward_each([first, second], &x).unwrap();
                same(&each[0], &expected[0]);
                same(&each[1], &expected[1]);
                let onto = first.forward_residual(&expected[1], &x).unwrap();
                same(&onto, &(&expected[0] + &expected[1]).unwrap());
                let gated = Linear::forward_swiglu(first, second, &x).unwrap();
                same(&gated, &(expected[0].silu().unwrap() * &expected[1]).unwrap());
            }
        }
    }
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let layer = |rows: usize| Linear::from(DenseWeight::from_f32(&vec![1.0; rows * 8], 8));
    let x = Tensor::zeros((3, 8), DType::F32, &Device::Cpu).unwrap();
    for shape in [(3, 5), (2, 4)] {
        let residual = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        assert!(layer(4).forward_residual(&residual, &x).is_err(), "{shape:?}");
    }
    assert!(Linear::forward_swiglu(&layer(4), &layer(5), &x).is_err());
    let bias = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    let lopsided = Linear::new(layer(4).weight, Some(bias));
    assert!(lopsided.forward(&x).is_err());
    assert!(Linear::forward_each([&layer(4), &lopsided], &x).is_err());
    assert!(Linear::forward_swiglu(&layer(4), &lopsided, &x).is_err());
    let narrow = Tensor::zeros((3, 7), DType::F32, &Device::Cpu).unwrap();
    assert!(Linear::forward_swiglu(&layer(4), &layer(4), &narrow).is_err());
    assert!(Linear::forward_each([&layer(4), &layer(5)], &narrow).is_err());
}

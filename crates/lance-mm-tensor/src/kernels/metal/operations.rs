//! The crate's operations as on a device, against the same on the CPU.

use candle_core::{DType, Device, Tensor};

use super::runner::on_device;
use crate::bytes::Bytes;
use crate::mx_formats::MxWeight;
use crate::scheme::QuantMode;
use crate::testing::{assert_close, seeded};
use crate::{ActivationPrecision, Conv, PixelNorm, Weights, Window, attention, hidden_dtype, swiglu};
use crate::{
    AffineWeight, Block, DenseWeight, Embedding, FloatType, Linear, Result, RmsNorm, Rotary, Scheme, Weight,
};

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(seeded(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
}

/// A matrix of rounded values that the CPU multiplies nearly exactly.
fn exact(values: &[f32], cols: usize, dtype: FloatType) -> DenseWeight {
    DenseWeight::rounded(values, cols, dtype).with_activation_precision(ActivationPrecision::Split)
}

/// Runs the same twice, as on a device and on the CPU, and compares shapes and values.
#[track_caller]
fn compare(name: &str, tolerance: f32, run: impl Fn(&Device) -> Result<Tensor>) {
    let (found, expected) = (on_device(&run).unwrap(), run(&Device::Cpu).unwrap());
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_close(name, &flat(&found), &flat(&expected), tolerance);
}

/// A seeded tensor of a shape, of the type that activations have.
type Make<'a> = dyn Fn(&[usize], u64) -> Tensor + 'a;

/// As [`compare`], the device's activations in f16 and in bf16, the CPU's the same values in f32. `units` are of the type's
/// last place at 1.
#[track_caller]
fn compare_halves(name: &str, units: f32, run: impl Fn(&Device, &Make<'_>) -> Result<Tensor>) {
    for (float, unit) in [(FloatType::F16, 1.0 / 1024.0), (FloatType::BF16, 1.0 / 128.0)] {
        let make = |shape: &[usize], seed| tensor(shape, seed).to_dtype(float.into()).unwrap();
        let found =
            on_device(|device| run(device, &|shape, seed| make(shape, seed).to_device(device).unwrap()));
        let found = found.unwrap();
        let widened = |x: Tensor| x.to_dtype(DType::F32).unwrap();
        let expected = run(&Device::Cpu, &|shape, seed| widened(make(shape, seed))).unwrap();
        assert_eq!((found.dtype(), found.dims()), (float.into(), expected.dims()), "{name}");
        let flat = |x: Tensor| widened(x).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_close(&format!("{name} {float:?}"), &flat(found), &flat(expected), units * unit);
    }
}

fn affine(bits: usize) -> AffineWeight {
    let scheme = Scheme::affine(bits, 32).unwrap();
    AffineWeight::quantize("w", &seeded(9 * 64, 1), 64, scheme, FloatType::BF16)
        .unwrap()
        .with_f32_activations()
}

#[test]
fn linear_layers_are_the_same() {
    for n in [1, 12] {
        for bits in [4, 3] {
            let x = tensor(&[1, n, 64], 2);
            let layer = || Linear::new(Weight::Affine(affine(bits)), Some(tensor(&[9], 3)));
            compare(&format!("affine {bits} {n}"), 2e-5, |device| {
                layer().to_device(device)?.forward(&x.to_device(device)?)
            });
        }
        for float in [FloatType::F32, FloatType::BF16] {
            // Not contiguous, of a width that fills no tile.
            let x = tensor(&[30, n], 4).t().unwrap();
            let layer = || Linear::from(exact(&seeded(5 * 30, 5), 30, float));
            compare(&format!("dense {float:?} {n}"), 2e-5, |device| {
                layer().to_device(device)?.forward(&x.to_device(device)?)
            });
        }
    }
    compare("no rows", 0.0, |device| {
        let none = Tensor::zeros((0, 64), DType::F32, device)?;
        Weight::Affine(affine(4)).to_device(device)?.matmul(&none)
    });
}

#[test]
fn tables_give_the_same_rows() {
    let weights = || {
        let values: Vec<u8> = seeded(6 * 40, 7).iter().flat_map(|v| v.to_le_bytes()).collect();
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![6, 40], &values).unwrap();
        let file = safetensors::serialize([("weight", view)], None).unwrap();
        Weights::from_vec("table", file).unwrap().with_activation_precision(ActivationPrecision::Split)
    };
    for ids in [vec![5, 0, 5], vec![]] {
        compare("dense", 0.0, |device| {
            Embedding::load(&weights().with_device(device.clone()), 6, 40)?.forward(&ids)
        });
    }
    let read =
        on_device(|device| Weight::Affine(affine(5)).to_device(device).map(|w| (w.bytes(), w.n_rows())));
    assert_eq!(read.unwrap(), (Weight::Affine(affine(5)).bytes(), 9));
    let past_the_end = |device: &Device| {
        Embedding::load(&weights().with_device(device.clone()), 6, 40).unwrap().forward(&[1, 6])
    };
    let text = on_device(past_the_end).unwrap_err().to_string();
    assert_eq!(text, "token id: expected an id below 6, found 6");
}

#[test]
fn heads_are_normed_turned_and_attended_the_same() {
    let (t, h, g, d) = (5, 4, 2, 16);
    let q = tensor(&[t, h, d], 8);
    compare("norm", 2e-6, |device| {
        let norm = RmsNorm::new(tensor(&[d], 9).to_device(device)?, 1e-6);
        norm.forward(&q.to_device(device)?.transpose(0, 1)?)
    });
    let positions = [vec![0, 1, 2, 900, 901], vec![0, 3, 4, 5, 1000], vec![9, 8, 7, 6, 5]];
    let turned = |device: &Device| {
        let table = Rotary::new(d, 1e6, [2, 3, 3])?.table(&positions, device)?;
        table.apply(q.force_contiguous()?.to_device(device)?)
    };
    compare("turned", 2e-6, turned);
    compare("normed and turned", 4e-6, |device| {
        let norm = RmsNorm::new(tensor(&[d], 9).to_device(device)?, 1e-6);
        let table = Rotary::new(d, 1e6, [2, 3, 3])?.table(&positions, device)?;
        table.apply_normed(&norm, None, &q.to_device(device)?)
    });
    // There is no kernel for two values of eps.
    for (eps, rows) in [(1e-6, 1..4), (1e-6, 0..2), (1e-6, 0..5), (1e-6, 2..2), (1e-5, 1..4)] {
        compare("normed by two and turned", 4e-6, |device| {
            let norm = RmsNorm::new(tensor(&[d], 9).to_device(device)?, 1e-6);
            let other = RmsNorm::new(tensor(&[d], 10).to_device(device)?, eps);
            let table = Rotary::new(d, 1e6, [2, 3, 3])?.table(&positions, device)?;
            table.apply_normed(&norm, Some((&other, rows.clone())), &q.to_device(device)?)
        });
    }
    // Keys and values a part of a longer cache, of one room or of each its own.
    for rooms in [[64, 64], [64, 48]] {
        let part = |room: usize, device: &Device| {
            tensor(&[g, room, d], room as u64).to_device(device)?.narrow(1, 0, 40)
        };
        let blocks = [Block::causal(0..2, 0..30), Block::full(2..5, 3..40)];
        compare("attended", 2e-6, |device| {
            let (k, v) = (part(rooms[0], device)?, part(rooms[1], device)?);
            attention(&turned(device)?.transpose(0, 1)?, &k, &v, &blocks, ActivationPrecision::F32)
        });
        compare("one row", 2e-6, |device| {
            let (k, v) = (part(rooms[0], device)?, part(rooms[1], device)?);
            let row = q.to_device(device)?.transpose(0, 1)?.narrow(1, 1, 1)?;
            attention(&row, &k, &v, &[Block::causal(0..1, 0..40)], ActivationPrecision::F32)
        });
    }
}

#[test]
fn frames_are_normed_convolved_and_attended_the_same() {
    let frames = [20, 21, 22].map(|seed| tensor(&[4, 5, 6], seed));
    for (there, window) in
        [(1, Window { pad_before: 1, pad_after: 1, ..Window::default() }), (3, Window::default())]
    {
        compare("convolved", 2e-5, |device| {
            let weight = exact(&seeded(7 * 3 * 9 * 6, 23), 3 * 9 * 6, FloatType::BF16);
            let conv = Conv::new(weight, tensor(&[7], 24).to_device(device)?, [3, 3, 3], 6, window)?;
            let frames =
                frames.iter().map(|x| x.to_device(device)).collect::<candle_core::Result<Vec<_>>>()?;
            conv.forward(&frames[2], &frames[3 - there..2])
        });
    }
    for silu in [false, true] {
        compare("pixels", 1e-5, |device| {
            let norm = PixelNorm::new(seeded(6, 25));
            let x = frames[0].to_device(device)?;
            if silu { norm.forward_silu(&x) } else { norm.forward(&x) }
        });
    }
    // A head of a width that has no kernel.
    compare("wide", 2e-6, |device| {
        let [q, k, v] = [26, 27, 28].map(|seed| tensor(&[1, 9, 150], seed).to_device(device));
        attention(&q?, &k?, &v?, &[Block::full(0..9, 2..8)], ActivationPrecision::F32)
    });
}

#[test]
fn values_are_gated_the_same() {
    compare("gated", 2e-6, |device| {
        let (gate, up) = (tensor(&[3, 50], 12).to_device(device)?, tensor(&[3, 60], 13).to_device(device)?);
        swiglu(gate, &up.narrow(1, 5, 50)?.contiguous()?)
    });
}

#[test]
fn activations_stay_in_their_type() {
    for n in [2, 12] {
        compare_halves("onto a residual", 8.0, |device, make| {
            let layer = Linear::new(Weight::Affine(affine(4)), Some(tensor(&[9], 3))).to_device(device)?;
            layer.forward_residual(&make(&[n, 9], 1), &make(&[n, 64], 2))
        });
        compare_halves("gated", 8.0, |device, make| {
            let layer = |seed| Linear::from(exact(&seeded(5 * 30, seed), 30, FloatType::BF16));
            let [gate, up] = [1, 2].map(|seed| layer(seed).to_device(device));
            Linear::forward_swiglu(&gate?, &up?, &make(&[n, 30], 3))
        });
    }
    let positions = [vec![0, 1, 2, 900, 901], vec![0, 3, 4, 5, 1000], vec![9, 8, 7, 6, 5]];
    compare_halves("normed, turned and attended", 2.0, |device, make| {
        let norm = RmsNorm::new(tensor(&[16], 9).to_device(device)?, 1e-6);
        let table = Rotary::new(16, 1e6, [2, 3, 3])?.table(&positions, device)?;
        let q = table.apply_normed(&norm, None, &make(&[5, 4, 16], 8))?.transpose(0, 1)?;
        let k = table.apply(norm.forward(&make(&[5, 2, 16], 10))?)?.transpose(0, 1)?;
        attention(&q, &k, &make(&[2, 5, 16], 11), &[Block::causal(0..5, 0..5)], ActivationPrecision::F32)
    });
    compare_halves("wide", 1.0, |_, make| {
        let [q, k, v] = [26, 27, 28].map(|seed| make(&[1, 9, 150], seed));
        attention(&q, &k, &v, &[Block::full(0..9, 2..8)], ActivationPrecision::F32)
    });
}

#[test]
fn rows_have_the_type_of_activations() {
    let values: Vec<u8> = seeded(6 * 40, 7).iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![6, 40], &values).unwrap();
    let file = safetensors::serialize([("weight", view)], None).unwrap();
    for (activations, expected) in [
        (ActivationPrecision::F32, DType::F32),
        (ActivationPrecision::Split, DType::F32),
        (ActivationPrecision::Bf16, DType::BF16),
    ] {
        let rows = |device: &Device| {
            let weights = Weights::from_vec("table", file.clone())?.with_activation_precision(activations);
            let table = Embedding::load(&weights.with_device(device.clone()), 6, 40)?;
            assert_eq!(hidden_dtype(activations, device), table.dtype());
            table.forward(&[3, 5])
        };
        let (on_device, on_cpu) = (on_device(rows).unwrap(), rows(&Device::Cpu).unwrap());
        assert_eq!((on_device.dtype(), on_cpu.dtype()), (expected, DType::F32));
        let flat = |x: Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let rounded = on_cpu.to_dtype(expected).unwrap();
        assert_eq!(flat(on_device).unwrap(), flat(rounded).unwrap());
    }
}

#[test]
fn types_that_do_not_go_together_are_refused() {
    let wrong = |device: &Device| {
        let x = tensor(&[2, 64], 1).to_device(device)?;
        let half = x.to_dtype(DType::BF16)?;
        let layer = Linear::from(affine(4)).to_device(device)?;
        let heads = x.reshape((2, 4, 16))?;
        let (blocks, onto) = ([Block::full(0..4, 0..4)], tensor(&[2, 9], 2).to_device(device)?);
        let errors = [
            layer.forward(&x.to_dtype(DType::F64)?).unwrap_err(),
            layer.forward_residual(&onto, &half).unwrap_err(),
            swiglu(x, &half).unwrap_err(),
            attention(&heads, &heads.to_dtype(DType::BF16)?, &heads, &blocks, ActivationPrecision::Bf16)
                .unwrap_err(),
        ];
        Result::Ok(errors.map(|error| error.to_string()))
    };
    let found = on_device(wrong).unwrap();
    let expected = [
        "linear input: expected f32, f16 or bf16 rows of 64, found F64 [2, 64]",
        "residual: expected BF16 rows of 9, as many as of [2, 64], found F32 [2, 9]",
        "gate: expected BF16 [2, 64], found F32 [2, 64]",
        "heads: expected all f32, f16 or bf16, found [F32, BF16, F32]",
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_has_no_kernel_is_refused() {
    let scheme = Scheme::new(4, 32, QuantMode::MxFp4).unwrap();
    let bytes = |n| Bytes::from_vec(vec![0; n]);
    let weight = Weight::Mx(MxWeight::new("w", bytes(16), bytes(1), scheme, 1, 32));
    let text = on_device(|device| weight.to_device(device)).err().unwrap().to_string();
    assert!(text.contains("weights on a device: expected dense or affine weights"), "{text}");
    let heads = tensor(&[1, 2, 12], 14);
    let wide = |device: &Device| {
        let heads = heads.to_device(device)?;
        attention(&heads, &heads, &heads, &[Block::causal(0..2, 0..2)], ActivationPrecision::F32)
    };
    let text = on_device(wide).unwrap_err();
    assert!(text.to_string().contains("head width on this device: expected a multiple of 8"), "{text}");
}

//! Convolutions of the shapes that the decoder of a 256 x 256 picture runs, against the matrix product alone that each
//! amounts to, in f32.

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{ActivationPrecision, Conv, DenseWeight, FloatType, Window};

fn convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("conv");
    group.sample_size(10);
    let window = Window { stride: 1, pad_before: 1, pad_after: 1, upsample: 1 };
    // Side, channels in and out, filters of three by three pixels.
    for (side, n_in, n_out) in [
        (16, 1024, 1024),
        (32, 1024, 1024),
        (64, 512, 512),
        (128, 256, 256),
        (96, 1024, 1024),
        (384, 256, 256),
    ] {
        let k = 9 * n_in;
        let values = seeded(n_out * k, 1);
        let x = Tensor::from_vec(seeded(side * side * n_in, 2), (side, side, n_in), &Device::Cpu)
            .expect("the shape of the values");
        group.throughput(Throughput::Elements((2 * side * side * k * n_out) as u64));
        let shape = format!("{side}x{side}x{n_in}x{n_out}");
        let weight = DenseWeight::rounded(&values, k, FloatType::BF16);
        for (name, weight) in [
            (
                "bf16 filters, bf16 activations",
                weight.clone().with_activation_precision(ActivationPrecision::Bf16),
            ),
            ("bf16 filters", weight),
        ] {
            let bias = Tensor::zeros(n_out, DType::F32, &Device::Cpu).expect("zeros");
            let conv = Conv::new(weight, bias, [1, 3, 3], n_in, window).expect("filters of the shape");
            group.bench_function(BenchmarkId::new(name, &shape), |b| {
                b.iter(|| conv.forward(&x, &[]).expect("a frame of the layer's channels"));
            });
        }
        let (weight, rows) = (DenseWeight::from_f32(&values, k), seeded(side * side * k, 3));
        group.bench_function(BenchmarkId::new("product alone, f32", &shape), |b| {
            b.iter(|| weight.matmul(&rows, side * side));
        });
    }
    group.finish();
}

criterion_group!(benches, convolutions);
criterion_main!(benches);

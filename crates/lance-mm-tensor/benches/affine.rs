//! Affine products of the shapes that decoding and prompts run, against the same matrices in f32.

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{AffineWeight, DenseWeight, FloatType, Linear, Scheme};

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("affine");
    group.sample_size(10);
    // Rows of x, R, K: prompts, sequences decoded together, decoding.
    for (n, rows, k) in
        [(512, 11008, 2048), (512, 2048, 11008), (8, 11008, 2048), (1, 11008, 2048), (1, 2048, 11008)]
    {
        let values = seeded(rows * k, 2);
        let x = Tensor::from_vec(seeded(n * k, 1), (n, k), &Device::Cpu).expect("the shape of the values");
        group.throughput(Throughput::Elements((2 * n * rows * k) as u64));
        let affine = |bits, size| {
            let scheme = Scheme::affine(bits, size).expect("a scheme there is");
            let weight = AffineWeight::quantize("w", &values, k, scheme, FloatType::BF16);
            Linear::from(weight.expect("finite values"))
        };
        for (name, layer) in [
            ("4 bits, groups of 128", affine(4, 128)),
            ("4 bits, groups of 32", affine(4, 32)),
            ("8 bits, groups of 64", affine(8, 64)),
            ("f32", Linear::from(DenseWeight::from_f32(&values, k))),
        ] {
            let id = BenchmarkId::new(name, format!("{n}x{rows}x{k}"));
            group.bench_function(id, |b| b.iter(|| layer.forward(&x).expect("rows of the layer's width")));
        }
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);

//! Affine products of the shapes that decoding and prompts run, against the same matrices in f32.

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{AffineWeight, DenseWeight, FloatType, Linear, Scheme, in_thread_pool};

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

/// As in a model, where a weight has left the caches when its turn comes again.
fn streams(c: &mut Criterion) {
    const WEIGHTS: usize = 16;
    let mut group = c.benchmark_group("affine from memory");
    group.sample_size(10);
    let scheme = Scheme::affine(4, 128).expect("a scheme there is");
    for (rows, k) in [(11008, 2048), (2048, 11008), (2048, 2048)] {
        let weight = |seed| {
            let values = seeded(rows * k, seed);
            let weight = AffineWeight::quantize("w", &values, k, scheme, FloatType::BF16);
            Linear::from(weight.expect("finite values"))
        };
        let layers: Vec<Linear> = (0..WEIGHTS as u64).map(weight).collect();
        let bytes: usize = layers.iter().map(|layer| layer.weight().bytes()).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        for n in [1, 2, 4, 8] {
            let x =
                Tensor::from_vec(seeded(n * k, 1), (n, k), &Device::Cpu).expect("the shape of the values");
            group.bench_function(format!("{n}x{rows}x{k}"), |b| {
                b.iter(|| {
                    in_thread_pool(|| {
                        for layer in &layers {
                            black_box(layer.forward(&x).expect("rows of the layer's width"));
                        }
                    });
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, products, streams);
criterion_main!(benches);

//! bf16 products of the shapes that the vision transformer and the language model run, against the same
//! matrices in f32.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{ActivationPrecision, DenseWeight, FloatType};

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("dense");
    group.sample_size(10);
    // Rows of x, R, K: blocks of the vision transformer at 672 x 672, prefill and decode.
    for (n, rows, k) in [
        (2304, 3840, 1280),
        (2304, 1280, 3420),
        (512, 11008, 2048),
        (512, 2048, 11008),
        (64, 2048, 2048),
        (8, 11008, 2048),
        (1, 11008, 2048),
    ] {
        let x = seeded(n * k, 1);
        let values = seeded(rows * k, 2);
        group.throughput(Throughput::Elements((2 * n * rows * k) as u64));
        let bf16 = DenseWeight::rounded(&values, k, FloatType::BF16);
        for (name, w) in [
            ("bf16, bf16 activations", bf16.clone().with_activation_precision(ActivationPrecision::Bf16)),
            ("bf16", bf16),
            ("f32", DenseWeight::from_f32(&values, k)),
        ] {
            let id = BenchmarkId::new(name, format!("{n}x{rows}x{k}"));
            group.bench_function(id, |b| b.iter(|| w.matmul(&x, n)));
        }
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);

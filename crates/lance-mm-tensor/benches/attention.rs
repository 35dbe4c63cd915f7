//! Attention of the shapes that decoding, prompts and the vision transformer run, against candle's operations
//! with scores held as a whole.

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{ActivationPrecision, Block, attention};

fn heads(h: usize, t: usize, d: usize, seed: u64) -> Tensor {
    Tensor::from_vec(seeded(h * t * d, seed), (h, t, d), &Device::Cpu).expect("the shape of the values")
}

/// Full attention with k and v repeated for every query head.
fn reference(q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
    let (h, _, d) = q.dims3()?;
    let (g, s, _) = k.dims3()?;
    let repeat = |x: &Tensor| x.unsqueeze(1)?.broadcast_as((g, h / g, s, d))?.reshape((h, s, d));
    let scores = (q.matmul(&repeat(k)?.transpose(1, 2)?)? / (d as f64).sqrt())?;
    candle_nn::ops::softmax_last_dim(&scores)?.matmul(&repeat(v)?)
}

fn blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    group.sample_size(10);
    // H, G, T, S, D: a step at 64 and 4096 tokens, a prompt, a full block of the vision transformer.
    for (h, g, t, s, d) in
        [(16, 2, 1, 64, 128), (16, 2, 1, 4096, 128), (16, 2, 512, 512, 128), (16, 16, 2304, 2304, 80)]
    {
        let (q, k, v) = (heads(h, t, d, 1), heads(g, s, d, 2), heads(g, s, d, 3));
        let block = [Block::full(0..t, 0..s)];
        group.throughput(Throughput::Elements((4 * h * t * s * d) as u64));
        let shape = format!("{h}x{g}x{t}x{s}x{d}");
        for activations in [ActivationPrecision::F32, ActivationPrecision::Split, ActivationPrecision::Bf16] {
            group.bench_function(BenchmarkId::new(format!("blocks, {activations:?}"), &shape), |b| {
                b.iter(|| attention(&q, &k, &v, &block, activations).expect("the block covers the queries"));
            });
        }
        group.bench_function(BenchmarkId::new("candle", &shape), |b| {
            b.iter(|| reference(&q, &k, &v).expect("shapes fit"));
        });
    }
    group.finish();
}

criterion_group!(benches, blocks);
criterion_main!(benches);

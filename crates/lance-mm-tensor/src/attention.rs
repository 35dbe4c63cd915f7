//! Attention of blocks of queries over ranges of keys: grouped-query, without a stored mask.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Layout, Shape, Storage, Tensor, WithDType};

use crate::attention_block::Block;
use crate::dtype::FloatType;
use crate::error::{Error, Result};
use crate::kernels::{Attention, Heads, KeyValues, SingleQuery, attend_single_queries, metal};
use crate::precision::ActivationPrecision;

/// `softmax(q · kᵀ / sqrt(D)) · v` for every block; query head `h` uses key head `h / (H/G)`.
///
/// `q` is f32 `(H, T, D)`, `k` and `v` are both f32 or both bf16 `(G, S, D)`, all with any strides of heads and tokens; the
/// result is f32 `(T, H·D)`, heads side by side. On a device all have one dtype: f32, f16 or bf16. `blocks` cover the
/// queries in order, without gap or overlap. Scores and softmax are f32. On AMX, [`ActivationPrecision::Bf16`] rounds
/// queries, keys, values and softmax weights of blocks of several queries to bf16.
///
/// # Errors
/// Blocks that do not cover the queries or reach past the keys; `H` no multiple of `G`; tensors of another dtype.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    blocks: &[Block],
    precision: ActivationPrecision,
) -> Result<Tensor> {
    check_heads(q, k, v)?;
    check(blocks, q.dim(1)?, k.dim(1)?)?;
    if metal::runs_on(q.device()) {
        metal::attend(q, k, v, blocks)
    } else {
        Ok(q.apply_op3_no_bwd(k, v, &Op { blocks, precision })?)
    }
}

/// Checks that heads and dtypes go together.
fn check_heads(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
    let (h, _, d) = q.dims3()?;
    let (g, _, key_width) = k.dims3()?;
    if h == 0 || d == 0 || g == 0 || !h.is_multiple_of(g) || k.dims() != v.dims() || key_width != d {
        return Err(Error::input(
            "heads",
            format!("heads of some width, q {:?} over k and v of fewer", q.dims()),
            format!("{:?}", k.dims()),
        ));
    }
    let types = [q, k, v].map(Tensor::dtype);
    let on_device = metal::runs_on(q.device());
    let (fits, expected) = if on_device {
        (types == [q.dtype(); 3] && FloatType::try_from(q.dtype()).is_ok(), "all f32, f16 or bf16")
    } else {
        let kv = if k.dtype() == DType::BF16 { DType::BF16 } else { DType::F32 };
        (types == [DType::F32, kv, kv], "q f32, k and v both f32 or both bf16")
    };
    if !fits {
        return Err(Error::input("heads", expected, format!("{types:?}")));
    }
    Ok(())
}

/// [`attention`] of one query for each of `n` sequences, over all keys of its own sequence: `q` `(H, n, D)`, keys and values
/// of each sequence `(G, S, D)` with an `S` of its own; result `(n, H·D)`. On the CPU all sequences share the threads.
///
/// # Errors
/// As [`attention`]; a number of sequences other than `n`.
pub fn attention_each(
    q: &Tensor,
    sequences: &[(Tensor, Tensor)],
    precision: ActivationPrecision,
) -> Result<Tensor> {
    let n = q.dim(1)?;
    if sequences.len() != n || n == 0 {
        return Err(Error::input("sequences", format!("{n}, and at least one"), sequences.len()));
    }
    let blocks = |s| [Block::full(0..1, 0..s)];
    for (k, v) in sequences {
        check_heads(q, k, v)?;
        check(&blocks(k.dim(1)?), 1, k.dim(1)?)?;
    }
    if metal::runs_on(q.device()) {
        let one = |(i, (k, v)): (usize, &(Tensor, Tensor))| {
            attention(&q.narrow(1, i, 1)?, k, v, &blocks(k.dim(1)?), precision)
        };
        let rows = sequences.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
        return Ok(Tensor::cat(&rows, 0)?);
    }
    Ok(q.apply_op1_no_bwd(&Each { sequences })?)
}

struct Op<'a> {
    blocks: &'a [Block],
    precision: ActivationPrecision,
}

impl CustomOp3 for Op<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let q = heads(q, q_layout)?;
        let (k, v) = (key_values(k, k_layout)?, key_values(v, v_layout)?);
        let out = Attention { q, k, v, precision: self.precision }.run(self.blocks);
        let (h, t, d) = q_layout.shape().dims3()?;
        Ok((CpuStorage::F32(out), Shape::from((t, h * d))))
    }
}

struct Each<'a> {
    sequences: &'a [(Tensor, Tensor)],
}

impl CustomOp1 for Each<'_> {
    fn name(&self) -> &'static str {
        "attention_each"
    }

    fn cpu_fwd(&self, q: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (h, n, d) = layout.shape().dims3()?;
        let q = heads(q, layout)?;
        let opened: Vec<_> =
            self.sequences.iter().map(|(k, v)| [k.storage_and_layout(), v.storage_and_layout()]).collect();
        let mut singles = Vec::with_capacity(n);
        for (row, [k, v]) in opened.iter().enumerate() {
            let keys = 0..k.1.dims()[1];
            let [k, v] = [k, v].map(|(storage, layout)| match &**storage {
                Storage::Cpu(storage) => key_values(storage, layout),
                _ => candle_core::bail!("expected queries, keys and values on one device"),
            });
            singles.push(SingleQuery { row, keys, k: k?, v: v? });
        }
        let mut out = vec![0.0; n * h * d];
        attend_single_queries(q, &singles, out.chunks_exact_mut(h * d).collect());
        Ok((CpuStorage::F32(out), Shape::from((n, h * d))))
    }
}

/// Borrows heads `(H, T, D)`, whose channels must be contiguous.
fn heads<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Heads<'a, T>> {
    let (h, t, d) = layout.shape().dims3()?;
    match *layout.stride() {
        [head, row, channel] if (channel == 1 || d == 1) && (row >= d || t == 1) => {
            let values = &storage.as_slice::<T>()?[layout.start_offset()..];
            Ok(Heads::new(values, [h, t, d], [head, row]))
        }
        _ => candle_core::bail!("attention expects contiguous channels, found {layout:?}"),
    }
}

/// Borrows keys or values, f32 or bf16.
fn key_values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<KeyValues<'a>> {
    match storage {
        CpuStorage::BF16(_) => Ok(KeyValues::Bf16(heads(storage, layout)?)),
        _ => Ok(KeyValues::F32(heads(storage, layout)?)),
    }
}

fn check(blocks: &[Block], t: usize, s: usize) -> Result<()> {
    let mut next = 0;
    for block in blocks {
        let seen = block.keys.len() >= if block.causal { block.queries.len() } else { 1 };
        if block.queries.start != next || block.queries.is_empty() || block.keys.end > s || !seen {
            let expected = format!("queries from {next}, keys below {s}, each query seeing a key");
            return Err(Error::input("attention blocks", expected, format!("{block:?}")));
        }
        next = block.queries.end;
    }
    if next == t {
        Ok(())
    } else {
        Err(Error::input("attention blocks", format!("{t} queries covered"), next))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{assert_close, seeded};

    /// Absolute errors for values up to 1.
    const TOLERANCES: [(ActivationPrecision, f32); 3] = [
        (ActivationPrecision::F32, 2e-6),
        (ActivationPrecision::Split, 2e-6),
        (ActivationPrecision::Bf16, 4e-3),
    ];

    /// One query at a time in f64.
    fn naive(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        (h, t, d): (usize, usize, usize),
        g: usize,
        blocks: &[Block],
    ) -> Vec<f32> {
        let s = k.len() / (g * d);
        let mut out = vec![f32::NAN; t * h * d];
        for block in blocks {
            for row in block.queries.clone() {
                for head in 0..h {
                    let q = &q[(head * t + row) * d..][..d];
                    let of = |j: usize| ((head / (h / g)) * s + j) * d..((head / (h / g)) * s + j + 1) * d;
                    let scores: Vec<f64> = block
                        .visible(row)
                        .map(|j| {
                            let products = q.iter().zip(&k[of(j)]);
                            products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                        })
                        .map(|s| (s / (d as f64).sqrt()).exp())
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for c in 0..d {
                        let value: f64 = block
                            .visible(row)
                            .zip(&scores)
                            .map(|(j, s)| f64::from(v[of(j)][c]) * s / sum)
                            .sum();
                        out[row * h * d + head * d + c] = value as f32;
                    }
                }
            }
        }
        out
    }

    #[test]
    fn blocks_equal_the_naive_reference() {
        let cases: [(usize, usize, usize, usize, usize, Vec<Block>); 11] = [
            (1, 1, 1, 1, 4, vec![Block::causal(0..1, 0..1)]),
            (4, 2, 5, 5, 8, vec![Block::causal(0..5, 0..5)]),
            (4, 2, 3, 9, 16, vec![Block::causal(0..3, 0..9)]),
            (
                2,
                1,
                6,
                6,
                4,
                vec![Block::causal(0..2, 0..2), Block::full(2..5, 0..5), Block::causal(5..6, 0..6)],
            ),
            (3, 3, 7, 7, 20, vec![Block::full(0..4, 0..4), Block::full(4..7, 4..7)]),
            (16, 2, 1, 33, 128, vec![Block::full(0..1, 0..33)]),
            // One query over many parts of keys; tiles of queries and of keys with tails.
            (16, 2, 1, 1537, 128, vec![Block::full(0..1, 0..1537)]),
            (16, 2, 45, 600, 16, vec![Block::causal(0..44, 0..600), Block::causal(44..45, 3..600)]),
            (2, 2, 200, 300, 80, vec![Block::full(0..70, 20..300), Block::causal(70..200, 0..270)]),
            // Queries for several tasks; windows; widths that fill no tile.
            (2, 1, 300, 333, 40, vec![Block::causal(0..300, 0..333)]),
            (3, 3, 600, 600, 33, vec![Block::full(0..40, 0..40), Block::full(40..600, 10..600)]),
        ];
        for (h, g, t, s, d, blocks) in cases {
            let (q, k, v) = (seeded(h * t * d, 1), seeded(g * s * d, 2), seeded(g * s * d, 3));
            let tensor = |x: &[f32], n, l| Tensor::from_slice(x, (n, l, d), &Device::Cpu).unwrap();
            let (q_rows, k_rows, v_rows) = (tensor(&q, h, t), tensor(&k, g, s), tensor(&v, g, s));
            let expected = naive(&q, &k, &v, (h, t, d), g, &blocks);
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (activations, tolerance) in TOLERANCES {
                let out = attention(&q_rows, &k_rows, &v_rows, &blocks, activations).unwrap();
                assert_eq!(out.dims(), [t, h * d]);
                assert_close(&format!("{activations:?} {blocks:?}"), &flat(&out), &expected, tolerance);
            }
            // Keys and values in bf16: that rounding and no other.
            let [k_kept, v_kept] = [&k_rows, &v_rows].map(|x| x.to_dtype(DType::BF16).unwrap());
            let [k, v] = [&k_kept, &v_kept].map(|x| flat(&x.to_dtype(DType::F32).unwrap()));
            let expected = naive(&q, &k, &v, (h, t, d), g, &blocks);
            for (activations, tolerance) in TOLERANCES {
                let out = attention(&q_rows, &k_kept, &v_kept, &blocks, activations).unwrap();
                assert_close(&format!("bf16 {activations:?} {blocks:?}"), &flat(&out), &expected, tolerance);
            }
        }
    }

    #[test]
    fn heads_and_rows_may_lie_in_any_order() {
        let (h, g, t, s, d) = (4, 2, 5, 300, 8);
        let (q, k, v) = (seeded(t * h * d, 1), seeded(g * 512 * d, 2), seeded(g * 512 * d, 3));
        // Queries row by row, keys and values a part of a longer cache.
        let q = Tensor::from_vec(q, (t, h, d), &Device::Cpu).unwrap().transpose(0, 1).unwrap();
        let part =
            |x: Vec<f32>| Tensor::from_vec(x, (g, 512, d), &Device::Cpu).unwrap().narrow(1, 7, s).unwrap();
        let (k, v) = (part(k), part(v));
        for blocks in
            [vec![Block::causal(0..5, 0..300)], (0..5).map(|i| Block::full(i..i + 1, 0..s)).collect()]
        {
            let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (activations, tolerance) in TOLERANCES {
                let found = flat(attention(&q, &k, &v, &blocks, activations).unwrap());
                let [q, k, v] = [&q, &k, &v].map(|x| x.contiguous().unwrap());
                assert_eq!(found, flat(attention(&q, &k, &v, &blocks, activations).unwrap()));
                let expected = naive(&flat(q), &flat(k), &flat(v), (h, t, d), g, &blocks);
                assert_close(&format!("{activations:?} {blocks:?}"), &found, &expected, tolerance);
            }
        }
        let q = Tensor::zeros((1, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let across = q.transpose(1, 2).unwrap();
        assert!(attention(&across, &q, &q, &[Block::full(0..4, 0..4)], ActivationPrecision::F32).is_err());
    }

    #[test]
    fn queries_of_several_sequences_equal_each_alone() {
        let (h, g, d) = (4, 2, 24);
        let lengths = [1, 300, 37, 1030];
        let q = Tensor::from_vec(seeded(lengths.len() * h * d, 1), (lengths.len(), h, d), &Device::Cpu);
        let q = q.unwrap().transpose(0, 1).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let kept = |s: usize, seed| {
                let rows = Tensor::from_vec(seeded(g * s * d, seed), (g, s, d), &Device::Cpu).unwrap();
                rows.to_dtype(dtype).unwrap()
            };
            let sequences: Vec<_> = lengths.iter().map(|&s| (kept(s, s as u64), kept(s, 7))).collect();
            let found =
                attention_each(&q, &sequences, ActivationPrecision::Bf16).unwrap().to_vec2::<f32>().unwrap();
            for (i, (k, v)) in sequences.iter().enumerate() {
                let (s, flat) = (lengths[i], |x: &Tensor| {
                    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
                });
                let q = flat(&q.narrow(1, i, 1).unwrap().contiguous().unwrap());
                let expected = naive(&q, &flat(k), &flat(v), (h, 1, d), g, &[Block::full(0..1, 0..s)]);
                assert_close(&format!("{dtype:?} {s} keys"), &found[i], &expected, 2e-6);
            }
            let none = kept(2, 1).narrow(1, 0, 0).unwrap();
            for wrong in [vec![], sequences[1..].to_vec(), vec![(none.clone(), none); 4]] {
                assert!(attention_each(&q, &wrong, ActivationPrecision::Bf16).is_err());
            }
        }
    }

    #[test]
    fn types_that_do_not_go_together_are_refused() {
        let x = Tensor::zeros((1, 2, 4), DType::F32, &Device::Cpu).unwrap();
        let short = x.to_dtype(DType::BF16).unwrap();
        for (q, k, v) in [(&short, &x, &x), (&x, &short, &x), (&x, &x, &short), (&short, &short, &short)] {
            assert!(attention(q, k, v, &[Block::full(0..2, 0..2)], ActivationPrecision::F32).is_err());
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (h, g, s, d) = (8, 2, 1700, 16);
        let tensor =
            |n, rows, seed| Tensor::from_vec(seeded(n * rows * d, seed), (n, rows, d), &Device::Cpu).unwrap();
        let (q, k, v) = (tensor(h, 1, 1), tensor(g, s, 2), tensor(g, s, 3));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let attend =
                || attention(&q, &k, &v, &[Block::full(0..1, 0..s)], ActivationPrecision::F32).unwrap();
            pool.install(attend).to_vec2::<f32>().unwrap()
        };
        assert!(on(1) == on(2) && on(1) == on(7));
    }

    #[test]
    fn heads_without_values_are_refused() {
        for (heads, width) in [(2, 0), (0, 4)] {
            let x = Tensor::zeros((heads, 3, width), DType::F32, &Device::Cpu).unwrap();
            let kept = Tensor::zeros((1, 3, width), DType::F32, &Device::Cpu).unwrap();
            assert!(
                attention(&x, &kept, &kept, &[Block::full(0..3, 0..3)], ActivationPrecision::F32).is_err()
            );
            assert!(
                attention_each(&x, &vec![(kept.clone(), kept.clone()); 3], ActivationPrecision::F32).is_err()
            );
        }
    }

    #[test]
    fn blocks_must_cover_the_queries() {
        let x = Tensor::zeros((1, 4, 2), DType::F32, &Device::Cpu).unwrap();
        for blocks in [
            vec![],
            vec![Block::full(0..3, 0..4)],
            vec![Block::full(1..4, 0..4)],
            vec![Block::full(0..4, 0..5)],
            vec![Block::full(0..4, 2..2)],
            vec![Block::causal(0..4, 0..3)],
        ] {
            assert!(attention(&x, &x, &x, &blocks, ActivationPrecision::default()).is_err(), "{blocks:?}");
        }
    }
}

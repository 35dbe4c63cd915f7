//! Attention of blocks of queries over ranges of keys; kernels in `attention.metal`.
//!
//! ```text
//! row      a threadgroup: one query of one head; 8 SIMD groups take every eighth key, lanes every 32nd channel
//! tiles    a threadgroup: 32 queries of one head; a SIMD group has 8 of them, in fragments of 8 x 8; 32 keys at a time,
//!          whose tile (17 kB), scores (5 kB) and factors (1 kB) lie in threadgroup memory
//! ```

use candle_core::{DType, Tensor};

use super::{KernelArg, KernelPlan, KernelSource, apply, size, type_name};
use crate::attention_block::Block;
use crate::dtype::FloatType;
use crate::error::{Error, Result};

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "attention", text: include_str!("attention.metal") };

/// Most queries that have a threadgroup of their own for each head.
// Their ranges of keys are four numbers by value, in place of two buffers made for each call.
const FEW: usize = 4;
/// Queries of a tile.
// Four SIMD groups of fragments of eight queries.
const TILE: usize = 32;
/// Largest head width of the kernels.
pub const MAX_HEAD_DIM: usize = 128;
/// Most scores of wider heads in memory at once.
// 256 MB of f32: those of all pixels of a frame of 4096 x 4096 would be 17 GB, more than a buffer may hold.
const SCORES: usize = 1 << 26;

/// Shapes of one call.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Queries, `N`.
    pub rows: usize,
    /// Query heads, `H`.
    pub heads: usize,
    /// Key heads, `G`; a divisor of `H`.
    pub kv_heads: usize,
    /// Keys from one head to the next: the capacity of the cache.
    pub stride: usize,
    /// Width of a head, `D`: a multiple of 8, at most [`MAX_HEAD_DIM`].
    pub dim: usize,
}

/// First and last (exclusive) key of every query: inputs 3 and 4 of [`attention`], as `uint`.
pub fn key_ranges(blocks: &[Block]) -> [Vec<u32>; 2] {
    let index = |n: usize| u32::try_from(n).expect("keys of a cache are below 2^32");
    let rows = blocks.iter().flat_map(|block| block.queries.clone().map(|row| block.visible(row)));
    let (first, last) = rows.map(|keys| (index(keys.start), index(keys.end))).unzip();
    [first, last]
}

/// Plans `softmax(q · kᵀ / sqrt(D)) · v`: inputs are q `(H, N, D)`, k and v `(G, stride, D)`, all of dtype `x`, and for more
/// than four queries the [`key_ranges`] of `blocks`; output `(N, H·D)` of dtype `x`.
///
/// # Panics
/// When `H` is no multiple of `G`, or the head width no multiple of 8 or above [`MAX_HEAD_DIM`].
pub fn attention(shape: AttentionShape, blocks: &[Block], x: FloatType) -> KernelPlan {
    let AttentionShape { rows, heads, kv_heads, stride, dim } = shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "query heads share key heads evenly");
    assert!(dim.is_multiple_of(8) && dim <= MAX_HEAD_DIM, "a head width of the kernels");
    let mut args = vec![KernelArg::Input(0), KernelArg::Strided(1), KernelArg::Strided(2)];
    if rows <= FEW {
        args.extend(
            key_ranges(blocks)
                .map(|keys| KernelArg::U32s(std::array::from_fn(|row| keys.get(row).copied().unwrap_or(0)))),
        )
    } else {
        args.extend([KernelArg::Input(3), KernelArg::Input(4)])
    }
    args.extend([
        KernelArg::Output(rows * heads * dim, x),
        size(rows),
        size(heads),
        size(kv_heads),
        size(stride),
    ]);
    args.push(KernelArg::F32(1.0 / (dim as f32).sqrt()));
    let (kernel, groups, threads) = if rows <= FEW {
        ("attention_row", rows, 256)
    } else {
        ("attention_tiles", rows.div_ceil(TILE), 128)
    };
    KernelPlan {
        source: &SOURCE,
        kernel: format!("{kernel}_{}", type_name(x)),
        constants: vec![u16::try_from(dim).expect("checked above")],
        groups: [groups, heads, 1],
        threads: [threads, 1, 1],
        args,
    }
}

/// Runs [`attention()`](crate::attention()) on a device; shapes and blocks were checked. Keys and values are read in place
/// from a cache.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, blocks: &[Block]) -> Result<Tensor> {
    let (heads, rows, dim) = q.dims3()?;
    if !dim.is_multiple_of(8) || dim > MAX_HEAD_DIM {
        if let [block] = blocks
            && !block.causal
            && k.dim(0)? == heads
        {
            return attend_wide(q, &k.narrow(1, block.keys.start, block.keys.len())?, v, block, SCORES);
        }
        let expected =
            format!("a multiple of 8, at most {MAX_HEAD_DIM}, unless all queries attend to the same keys");
        return Err(Error::input("head width on this device", expected, dim));
    }
    let q = q.contiguous()?;
    let (k, v, stride) = match (stride(k), stride(v)) {
        (Some(of_k), Some(of_v)) if of_k == of_v => (k.clone(), v.clone(), of_k),
        _ => (k.contiguous()?, v.contiguous()?, k.dim(1)?),
    };
    let float = FloatType::try_from(q.dtype())?;
    let plan = attention(AttentionShape { rows, heads, kv_heads: k.dim(0)?, stride, dim }, blocks, float);
    let mut inputs = vec![q, k, v];
    if plan.args.contains(&KernelArg::Input(3)) {
        let ranges = key_ranges(blocks).map(|keys| Tensor::new(keys, inputs[0].device()));
        inputs.extend(ranges.into_iter().collect::<candle_core::Result<Vec<_>>>()?);
    }
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    apply(&plan, &inputs, &[rows, heads * dim])
}

/// Attention of all queries over the same keys, with heads of any width: candle's matmul and softmax in f32, about `at_once`
/// scores in memory.
fn attend_wide(q: &Tensor, k: &Tensor, v: &Tensor, block: &Block, at_once: usize) -> Result<Tensor> {
    let (heads, rows, dim) = q.dims3()?;
    let (dtype, v) = (q.dtype(), v.narrow(1, block.keys.start, block.keys.len())?);
    let [k, v] = [k, &v].map(|x| x.to_dtype(DType::F32)?.contiguous());
    let (k, v) = (k?.t()?, v?);
    let step = (at_once / (heads * block.keys.len())).max(1);
    let of_rows = |start: usize| -> Result<Tensor> {
        let q = q.narrow(1, start, step.min(rows - start))?.to_dtype(DType::F32)?.contiguous()?;
        let scores = (q.matmul(&k)? / (dim as f64).sqrt())?;
        Ok(candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?)
    };
    let parts = (0..rows).step_by(step).map(of_rows).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 1)?.transpose(0, 1)?.reshape((rows, heads * dim))?.to_dtype(dtype)?)
}

/// Keys from one head of `(G, S, D)` to the next, if keys are contiguous.
fn stride(x: &Tensor) -> Option<usize> {
    match (x.dims(), x.stride()) {
        ([_, _, dim], [head, row, 1]) if row == dim && head.is_multiple_of(*dim) => Some(head / dim),
        _ => None,
    }
}

#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod tests {
    use super::super::runner::{ORDERS, run};
    use super::super::values::{decode, encode, rounded};
    use super::*;
    use crate::testing::{assert_close, seeded};

    struct Case {
        shape: AttentionShape,
        blocks: Vec<Block>,
        x_type: FloatType,
        inputs: [Vec<u8>; 5],
        expected: Vec<f32>,
    }

    fn case([heads, kv_heads, dim]: [usize; 3], spare: usize, blocks: &[Block], x_type: FloatType) -> Case {
        let rows = blocks.last().map_or(0, |b| b.queries.end);
        let stride = blocks.iter().map(|b| b.keys.end).max().unwrap_or(0) + spare;
        let shape = AttentionShape { rows, heads, kv_heads, stride, dim };
        let values = |n, seed| rounded(&seeded(n, seed).iter().map(|v| 2.0 * v).collect::<Vec<_>>(), x_type);
        let q = values(heads * rows * dim, 1);
        let mut k = values(kv_heads * stride * dim, 2);
        let mut v = values(kv_heads * stride * dim, 3);
        // Rows of the cache past the last key hold what an earlier use left there.
        for head in 1..=kv_heads {
            let past = (head * stride - spare) * dim..head * stride * dim;
            k[past.clone()].fill(f32::NAN);
            v[past].fill(f32::NAN);
        }
        let mut expected = vec![f32::NAN; rows * heads * dim];
        for block in blocks {
            for row in block.queries.clone() {
                for head in 0..heads {
                    let q = &q[(head * rows + row) * dim..][..dim];
                    let at = |j: usize| (head / (heads / kv_heads) * stride + j) * dim;
                    let dot = |j: usize| {
                        q.iter().zip(&k[at(j)..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                    };
                    let weights: Vec<f64> =
                        block.visible(row).map(|j| (dot(j) / (dim as f64).sqrt()).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for c in 0..dim {
                        let terms = block.visible(row).zip(&weights);
                        let value: f64 = terms.map(|(j, w)| f64::from(v[at(j) + c]) * w / sum).sum();
                        expected[(row * heads + head) * dim + c] = value as f32;
                    }
                }
            }
        }
        let uints = |v: &Vec<u32>| v.iter().flat_map(|n| n.to_le_bytes()).collect();
        let [first, last] = key_ranges(blocks);
        let inputs =
            [encode(&q, x_type), encode(&k, x_type), encode(&v, x_type), uints(&first), uints(&last)];
        Case { shape, blocks: blocks.to_vec(), x_type, inputs, expected }
    }

    impl Case {
        fn check(&self, order: u32) {
            let plan = attention(self.shape, &self.blocks, self.x_type);
            let y = decode(&run(&plan, &self.inputs, order).unwrap(), self.x_type);
            let tolerance = match self.x_type {
                FloatType::F32 => 4e-6,
                FloatType::F16 => 2e-3,
                FloatType::BF16 => 1e-2,
            };
            assert_close(&format!("{:?} {:?}", self.shape, self.x_type), &y, &self.expected, tolerance);
        }
    }

    fn picture_in_text() -> Vec<Block> {
        vec![Block::causal(0..7, 0..7), Block::full(7..40, 0..40), Block::causal(40..45, 0..45)]
    }

    #[test]
    fn blocks_equal_the_reference() {
        let windows: Vec<Block> =
            (0..3).map(|i| Block::full(16 * i..16 * (i + 1), 16 * i..16 * (i + 1))).collect();
        let cases = [
            // One query after a prompt, a few of them, a whole prompt, windows, ragged tails.
            case([4, 1, 128], 3, &[Block::causal(0..1, 0..77)], FloatType::F32),
            case([16, 2, 128], 7, &[Block::causal(0..1, 0..300)], FloatType::BF16),
            case([4, 2, 64], 1, &[Block::full(0..2, 5..40), Block::causal(2..4, 3..9)], FloatType::F32),
            case([4, 2, 80], 0, &[Block::causal(0..3, 0..9)], FloatType::BF16),
            case([2, 1, 40], 2, &[Block::full(0..4, 0..19)], FloatType::F16),
            case([2, 1, 128], 5, &picture_in_text(), FloatType::F32),
            case([2, 2, 80], 0, &windows, FloatType::F32),
            case([2, 2, 80], 0, &windows, FloatType::BF16),
            case([2, 1, 120], 4, &[Block::full(0..64, 30..94)], FloatType::F32),
            case([3, 1, 8], 1, &[Block::causal(0..33, 0..100)], FloatType::F16),
            case([1, 1, 128], 0, &[Block::causal(0..5, 0..5)], FloatType::BF16),
        ];
        for case in cases {
            for order in ORDERS {
                case.check(order);
            }
        }
    }

    #[test]
    fn heads_wider_than_the_kernels_are_attended_a_part_at_a_time() {
        let heads = |rows: usize, seed| {
            Tensor::from_vec(seeded(2 * rows * 150, seed), (2, rows, 150), &candle_core::Device::Cpu).unwrap()
        };
        let (q, k, v) = (heads(9, 1), heads(7, 2), heads(8, 3));
        let rows = |at_once| {
            let y = attend_wide(&q, &k, &v, &Block::full(0..9, 1..8), at_once).unwrap();
            assert_eq!(y.dims(), [9, 300]);
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        // All rows, two and one at a time.
        for at_once in [30, 1] {
            assert_close("wide heads", &rows(at_once), &rows(SCORES), 1e-6);
        }
    }

    /// Faults that only the simulator sees.
    #[cfg(target_os = "linux")]
    mod faults {
        use super::super::super::runner::{Build, check_races, run_source};
        use super::*;

        #[test]
        fn lanes_do_not_race() {
            for case in [
                case([2, 1, 8], 0, &[Block::causal(0..1, 0..17)], FloatType::F32),
                case([1, 1, 16], 0, &[Block::causal(0..9, 0..40)], FloatType::F32),
            ] {
                check_races(&attention(case.shape, &case.blocks, case.x_type), &case.inputs).unwrap();
            }
        }
        #[test]
        fn broken_copies_are_caught() {
            let case = case([1, 1, 16], 0, &[Block::causal(0..9, 0..40)], FloatType::F32);
            let plan = attention(case.shape, &case.blocks, case.x_type);
            let broken = |from: &str, to: &str, build| {
                assert!(SOURCE.text.contains(from), "the source has {from:?}");
                let text = SOURCE.text.replacen(from, to, 1);
                run_source(&text, &plan, &case.inputs, 0, build).map_err(|e| format!("{e:#}"))
            };
            let store = "      simdgroup_store(s, mine + 8 * j, SCORES);\n    }\n";
            let barrier = format!("{store}    threadgroup_barrier(mem_flags::mem_threadgroup);\n");
            let raced = broken(&barrier, store, Build::RaceCheck).unwrap_err();
            assert!(raced.contains("data race"), "{raced}");
            let outside =
                broken("key < end ? float(heads_k", "key <= end ? float(heads_k", Build::Plain).unwrap_err();
            assert!(outside.contains("outside buffer"), "{outside}");
            let wrong = broken("key < own_last ? exp", "key <= own_last ? exp", Build::Plain).unwrap();
            let (error, _) = crate::testing::max_error(&decode(&wrong, case.x_type), &case.expected);
            assert!(error.is_nan() || error > 1e-3, "{error}");
        }

        #[test]
        fn broken_copies_for_few_rows_are_caught() {
            let case = case([1, 1, 16], 0, &[Block::causal(0..2, 0..40)], FloatType::F32);
            let plan = attention(case.shape, &case.blocks, case.x_type);
            let broken = |from: &str, to: &str, build| {
                assert!(SOURCE.text.contains(from), "the source has {from:?}");
                run_source(&SOURCE.text.replace(from, to), &plan, &case.inputs, 0, build)
            };
            let best = "  float best = -INFINITY;\n";
            let barrier = format!("  threadgroup_barrier(mem_flags::mem_threadgroup);\n{best}");
            let raced = format!("{:#}", broken(&barrier, best, Build::RaceCheck).unwrap_err());
            assert!(raced.contains("data race"), "{raced}");
            let outside =
                format!("{:#}", broken("key < last[row]", "key <= last[row]", Build::Plain).unwrap_err());
            assert!(outside.contains("outside buffer"), "{outside}");
        }
    }
}

//! Attention of blocks of queries over ranges of keys, with grouped heads and without a stored mask.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};

/// Which keys a run of queries sees.
///
/// Queries of a *full* block see all of `keys`. In a *causal* block the last query sees all of `keys`, the
/// one before it one key less, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows of q.
    pub queries: Range<usize>,
    /// Rows of k and v.
    pub keys: Range<usize>,
    /// Whether keys end at each query's own row.
    pub causal: bool,
}

impl Block {
    /// Every query sees every key.
    pub fn full(queries: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, keys, causal: false }
    }

    /// Keys end at each query's own row; the last query sees all.
    pub fn causal(queries: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, keys, causal: true }
    }

    /// Keys that the query row `row` sees.
    pub fn visible(&self, row: usize) -> Range<usize> {
        let hidden = if self.causal { self.queries.end - 1 - row } else { 0 };
        self.keys.start..self.keys.end - hidden
    }
}

/// f32 scores held at once: 64 MB. Long blocks go in slices of queries, so memory does not grow with T · S.
const MAX_SCORES: usize = 16 * 1024 * 1024;

/// `softmax(q · kᵀ / sqrt(D)) · v` for every block; query head `h` uses key head `h / (H/G)`.
///
/// `q` f32 `(H, T, D)`, `k` and `v` f32 `(G, S, D)`; result f32 `(T, H·D)`, heads side by side. `blocks`
/// cover the rows of `q` in order, without gap or overlap. Scores and softmax are f32.
///
/// # Errors
/// Blocks that do not cover the queries or reach past the keys; heads that are no multiple of `G`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, blocks: &[Block]) -> Result<Tensor> {
    let (h, t, d) = q.dims3()?;
    let (g, s, _) = k.dims3()?;
    if g == 0 || !h.is_multiple_of(g) || k.dims() != v.dims() {
        return Err(Error::input(
            "heads",
            format!("q {:?} over k and v of fewer heads", q.dims()),
            format!("{:?}", k.dims()),
        ));
    }
    check(blocks, t, s)?;
    let q = (q * (1.0 / (d as f64).sqrt()))?;
    let mut parts = Vec::with_capacity(blocks.len());
    for block in blocks {
        let step = (MAX_SCORES / (h * block.keys.len()).max(1)).max(1);
        for start in block.queries.clone().step_by(step) {
            let rows = start..(start + step).min(block.queries.end);
            parts.push(slice(&q, k, v, block, rows, h / g)?);
        }
    }
    let out = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 1)? };
    // (H, T, D) -> (T, H·D)
    Ok(out.transpose(0, 1)?.reshape((t, h * d))?)
}

/// Queries `rows` of one block: `(H, r, D)`. The heads of a group are folded into rows, so k and v are
/// read once a group and never repeated.
fn slice(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    block: &Block,
    rows: Range<usize>,
    fold: usize,
) -> Result<Tensor> {
    let (h, _, d) = q.dims3()?;
    let r = rows.len();
    let keys = block.visible(rows.end - 1);
    let k = k.narrow(1, keys.start, keys.len())?;
    let v = v.narrow(1, keys.start, keys.len())?;
    let q = q.narrow(1, rows.start, r)?.reshape((h / fold, fold * r, d))?;
    let mut scores = q.matmul(&k.transpose(1, 2)?)?;
    if block.causal && r > 1 {
        scores = scores.broadcast_add(&causal_mask(r, keys.len(), fold, q.device())?)?;
    }
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    Ok(weights.matmul(&v.contiguous()?)?.reshape((h, r, d))?)
}

/// 0 where row `i` of `r` sees a key, -inf in the last `r - 1 - i` of `n` keys; repeated for folded heads.
fn causal_mask(r: usize, n: usize, fold: usize, device: &Device) -> Result<Tensor> {
    let row = |i: usize| (0..n).map(move |j| if j + r > n + i { f32::NEG_INFINITY } else { 0.0 });
    let mask: Vec<f32> = (0..fold).flat_map(|_| (0..r).flat_map(row)).collect();
    Ok(Tensor::from_vec(mask, (1, fold * r, n), device)?.to_dtype(DType::F32)?)
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
    match next == t {
        true => Ok(()),
        false => Err(Error::input("attention blocks", format!("{t} queries covered"), next)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, seeded};

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
                    let of = |x: &[f32], j: usize| x[((head / (h / g)) * s + j) * d..][..d].to_vec();
                    let scores: Vec<f64> = block
                        .visible(row)
                        .map(|j| {
                            q.iter().zip(of(k, j)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum::<f64>()
                        })
                        .map(|s| (s / (d as f64).sqrt()).exp())
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for c in 0..d {
                        let value: f64 = block
                            .visible(row)
                            .zip(&scores)
                            .map(|(j, s)| f64::from(of(v, j)[c]) * s / sum)
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
        let cases: [(usize, usize, usize, usize, usize, Vec<Block>); 6] = [
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
        ];
        for (h, g, t, s, d, blocks) in cases {
            let (q, k, v) = (seeded(h * t * d, 1), seeded(g * s * d, 2), seeded(g * s * d, 3));
            let tensor = |x: &[f32], n, l| Tensor::from_slice(x, (n, l, d), &Device::Cpu).unwrap();
            let out = attention(&tensor(&q, h, t), &tensor(&k, g, s), &tensor(&v, g, s), &blocks).unwrap();
            assert_eq!(out.dims(), [t, h * d]);
            let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_close(&format!("{blocks:?}"), &out, &naive(&q, &k, &v, (h, t, d), g, &blocks), 2e-6);
        }
    }

    #[test]
    fn slices_of_queries_give_what_one_pass_gives() {
        let (h, t, d) = (2, 6, 4);
        let q = Tensor::from_vec(seeded(h * t * d, 1), (h, t, d), &Device::Cpu).unwrap();
        let block = Block::causal(0..t, 0..t);
        let whole = slice(&q, &q, &q, &block, 0..t, 1).unwrap();
        for cut in 1..t {
            let parts = [0..cut, cut..t].map(|rows| slice(&q, &q, &q, &block, rows, 1).unwrap());
            let joined = Tensor::cat(&parts, 1).unwrap();
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_close("joined", &flat(&joined), &flat(&whole), 1e-6);
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
            assert!(attention(&x, &x, &x, &blocks).is_err(), "{blocks:?}");
        }
    }
}

//! Least bytes and operations of a pass, to set measured times against a machine's limits.
//!
//! Matrices and attention only: norms, biases and tables are a thousandth of either.

use lance_mm_tensor::{Linear, Result};

use crate::llm::{Cache, Llm};
use crate::sequence::Grid;
use crate::vit::{Vit, VitLayout};

impl Llm {
    /// The UND expert's matrices, the output head among them, as they are stored: what decoding a token reads of the
    /// weights. Of the embedding table it reads one row.
    pub fn step_weights(&self) -> Vec<&[u8]> {
        self.linears().chain([self.lm_head()]).flat_map(|linear| linear.weight().stored()).collect()
    }

    /// Bytes of [`step_weights`](Self::step_weights).
    pub fn step_bytes(&self) -> usize {
        self.step_weights().iter().map(|part| part.len()).sum()
    }

    /// Operations of a causal pass over `rows` tokens of the UND expert after `context` others, with the logits
    /// of one token; a product and its sum are two.
    pub fn flops(&self, rows: usize, context: usize) -> f64 {
        let keys = (1..=rows).map(|row| (context + row) as f64).sum::<f64>();
        let config = self.config();
        let attention = attention(keys, config.num_attention_heads * config.head_dim());
        rows as f64 * self.linears().map(per_row).sum::<f64>()
            + per_row(self.lm_head())
            + config.num_hidden_layers as f64 * attention
    }
}

impl Cache {
    /// Bytes of the tokens in the cache: what decoding a token reads of it.
    ///
    /// # Errors
    /// An error of candle.
    pub fn row_bytes(&self) -> Result<usize> {
        let mut bytes = 0;
        for layer in 0.. {
            let (Some(k), Some(v)) = (self.keys(layer)?, self.values(layer)?) else { break };
            let size = |t: &candle_core::Tensor| t.elem_count() * t.dtype().size_in_bytes();
            bytes += size(&k) + size(&v);
        }
        Ok(bytes)
    }
}

impl Vit {
    /// Operations of a pass over one image or video of patches; a product and its sum are two.
    pub fn flops(&self, grid: Grid) -> f64 {
        let config = self.config();
        let layout = VitLayout::new(config, &[grid]);
        let pairs = |borders: &[usize]| borders.windows(2).map(|b| ((b[1] - b[0]) as f64).powi(2)).sum();
        let full = config.fullatt_block_indexes.iter().filter(|block| **block < config.depth).count();
        let (full_pairs, window_pairs): (f64, f64) =
            (pairs(&layout.cu_seqlens), pairs(&layout.cu_window_seqlens));
        let groups = grid.merged(config.spatial_merge_size).count();
        grid.count() as f64 * self.patch_linears().map(per_row).sum::<f64>()
            + groups as f64 * self.group_linears().into_iter().map(per_row).sum::<f64>()
            + full as f64 * attention(full_pairs, config.hidden_size)
            + (config.depth - full) as f64 * attention(window_pairs, config.hidden_size)
    }
}

/// Operations of a layer's product with one token.
fn per_row(linear: &Linear) -> f64 {
    2.0 * linear.weight().n_rows() as f64 * linear.weight().n_cols() as f64
}

/// Operations of scores and weighted sums of pairs of a query and a key it sees, `width` over all heads.
fn attention(pairs: f64, width: usize) -> f64 {
    4.0 * pairs * width as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::{Cursor, Segment, Sequence};
    use crate::testing::{config, llm_tensors, vit_tensors, weights};
    use crate::{Config, Experts};

    fn llm(config: &Config) -> Llm {
        Llm::load(config, &weights(&llm_tensors(config)), Experts::Both).unwrap()
    }

    #[test]
    fn matrices_of_the_und_expert_count_and_attention_grows_with_the_context() {
        let config = config();
        let llm = llm(&config);
        let (d, f, n) = (config.hidden_size, config.intermediate_size, config.num_hidden_layers);
        let kv = config.num_key_value_heads * config.head_dim();
        let layers = n * (2 * d * d + 2 * d * kv + 3 * d * f);
        let head = config.vocab_size * d;
        assert_eq!(llm.step_bytes(), 4 * (layers + head));
        let width = config.num_attention_heads * config.head_dim();
        // Rows 1, 2, 3 see 8, 9 and 10 keys.
        let expected = 2 * (3 * layers + head) + n * 4 * width * (8 + 9 + 10);
        assert_eq!(llm.flops(3, 7), expected as f64);
    }

    #[test]
    fn a_repeated_cache_holds_the_same_rows_again() {
        let config = config();
        let llm = llm(&config);
        let sequence = Sequence::new(&[Segment::Text(vec![1, 2, 3])], &config.layout(), Cursor::default());
        let mut cache = llm.cache();
        cache.repeat_to(9).unwrap();
        assert_eq!((cache.len(), cache.row_bytes().unwrap()), (0, 0));
        llm.forward(&llm.embed(&sequence, &[]).unwrap(), &sequence, &mut cache).unwrap();
        let bytes = cache.row_bytes().unwrap();
        cache.repeat_to(300).unwrap();
        assert_eq!((cache.len(), cache.row_bytes().unwrap()), (300, 100 * bytes));
        let last = cache.keys(1).unwrap().unwrap();
        let row = |i: usize| last.narrow(1, i, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((row(299), row(298)), (row(2), row(1)));
        assert_ne!(row(299), row(298));
        cache.repeat_to(10).unwrap();
        assert_eq!(cache.len(), 300);
    }

    #[test]
    fn patches_attend_within_windows_and_frames() {
        let config = config();
        let vit = Vit::load(&config.vision, &weights(&vit_tensors(&config))).unwrap();
        let v = &config.vision;
        // 5 x 5 groups in one frame: windows of 64, 16, 16 and 4 patches.
        let windows = 64 * 64 + 2 * 16 * 16 + 4 * 4;
        let full = v.fullatt_block_indexes.len();
        let (d, f, merged) = (v.hidden_size, v.intermediate_size, 4 * v.hidden_size);
        let patch = v.patch_width() * d + v.depth * (4 * d * d + 3 * d * f);
        let group = merged * merged + merged * v.out_hidden_size;
        let attention = 4 * d * (full * 100 * 100 + (v.depth - full) * windows);
        let expected = 2 * (100 * patch + 25 * group) + attention;
        assert_eq!(vit.flops(Grid { t: 1, h: 10, w: 10 }), expected as f64);
    }
}

//! Keys and values of the tokens seen so far.

use candle_core::{DType, Tensor};
use lance_mm_tensor::{Error, Result};

use crate::config::Config;

/// Tokens by which a cache grows.
const CHUNK: usize = 256;

/// Keys (after norm and rotation) and values of every layer, `(G, rows, D)` each, in the type that
/// [`kv_dtype`](lance_mm_tensor::kv_dtype()) says. Grows in chunks, so a step does not copy what is there.
///
/// A cache borrows nothing of its model and may be sent to another thread: a server keeps one for each conversation.
pub struct Cache {
    layers: Vec<Option<LayerCache>>,
    rows: Vec<usize>,
    shape: (usize, usize),
    dtype: DType,
}

struct LayerCache {
    k: Tensor,
    v: Tensor,
}

impl Cache {
    pub(super) fn new(config: &Config, dtype: DType) -> Self {
        let n = config.num_hidden_layers;
        Self {
            layers: (0..n).map(|_| None).collect(),
            rows: vec![0; n],
            shape: (config.num_key_value_heads, config.head_dim()),
            dtype,
        }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.rows.first().copied().unwrap_or(0)
    }

    /// Whether the cache has no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let values = self.layers.iter().flatten().map(|l| l.k.elem_count() + l.v.elem_count());
        values.sum::<usize>() * self.dtype.size_in_bytes()
    }

    /// Forgets tokens past `len`; memory is kept for the next ones.
    ///
    /// # Errors
    /// More tokens than there are.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            return Err(Error::input("rows to keep", format!("at most {}", self.len()), len));
        }
        for rows in &mut self.rows {
            *rows = (*rows).min(len);
        }
        Ok(())
    }

    /// Keys of a layer, `(G, rows, D)`; `None` while the layer has none.
    ///
    /// # Errors
    /// An error of candle.
    pub fn keys(&self, layer: usize) -> Result<Option<Tensor>> {
        self.rows_of(layer, |l| &l.k)
    }

    /// Values of a layer, `(G, rows, D)`; `None` while the layer has none.
    ///
    /// # Errors
    /// An error of candle.
    pub fn values(&self, layer: usize) -> Result<Option<Tensor>> {
        self.rows_of(layer, |l| &l.v)
    }

    fn rows_of(&self, layer: usize, of: impl Fn(&LayerCache) -> &Tensor) -> Result<Option<Tensor>> {
        match self.layers.get(layer).and_then(Option::as_ref) {
            Some(l) if self.rows[layer] > 0 => Ok(Some(of(l).narrow(1, 0, self.rows[layer])?)),
            _ => Ok(None),
        }
    }

    /// Repeats the tokens from the first on until there are `len` of them: a long context for measuring times,
    /// without the time to compute it. Does nothing when there are as many, or none.
    ///
    /// # Errors
    /// An error of candle.
    pub fn repeat_to(&mut self, len: usize) -> Result<()> {
        while !self.is_empty() && self.len() < len {
            let take = self.len().min(len - self.len());
            for layer in 0..self.layers.len() {
                if let (Some(k), Some(v)) = (self.keys(layer)?, self.values(layer)?) {
                    let [k, v] = [k, v].map(|x| x.narrow(1, 0, take).and_then(|x| x.force_contiguous()));
                    self.append(layer, &k?, &v?)?;
                }
            }
        }
        Ok(())
    }

    /// A copy that goes on independently, of the tokens in use.
    ///
    /// # Errors
    /// An error of candle.
    pub fn fork(&self) -> Result<Self> {
        let copy = |(layer, rows): (&Option<LayerCache>, &usize)| -> Result<Option<LayerCache>> {
            let Some(l) = layer.as_ref().filter(|_| *rows > 0) else { return Ok(None) };
            let capacity = rows.next_multiple_of(CHUNK);
            Ok(Some(LayerCache { k: grown(&l.k, *rows, capacity)?, v: grown(&l.v, *rows, capacity)? }))
        };
        Ok(Self {
            layers: self.layers.iter().zip(&self.rows).map(copy).collect::<Result<_>>()?,
            rows: self.rows.clone(),
            shape: self.shape,
            dtype: self.dtype,
        })
    }

    /// Appends tokens `(G, T, D)` to a layer and returns all of its keys and values.
    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (g, t, d) = k.dims3()?;
        if (g, d) != self.shape || k.dims() != v.dims() {
            let expected = format!("{} heads of {}", self.shape.0, self.shape.1);
            return Err(Error::input("cache rows", expected, format!("{:?}, {:?}", k.dims(), v.dims())));
        }
        let rows = self.rows[layer];
        let capacity = self.layers[layer].as_ref().map_or(0, |l| l.k.dims()[1]);
        if rows + t > capacity {
            let capacity = (rows + t).next_multiple_of(CHUNK);
            let (k, v) = match &self.layers[layer] {
                Some(l) => (grown(&l.k, rows, capacity)?, grown(&l.v, rows, capacity)?),
                None => {
                    let zeros = || Tensor::zeros((g, capacity, d), self.dtype, k.device());
                    (zeros()?, zeros()?)
                }
            };
            self.layers[layer] = Some(LayerCache { k, v });
        }
        if let Some(l) = &self.layers[layer] {
            l.k.slice_set(&k.contiguous()?.to_dtype(self.dtype)?, 1, rows)?;
            l.v.slice_set(&v.contiguous()?.to_dtype(self.dtype)?, 1, rows)?;
        }
        self.rows[layer] = rows + t;
        let of = |part: Result<Option<Tensor>>| {
            part?.ok_or_else(|| Error::input("cache rows", "at least one", "none"))
        };
        Ok((of(self.keys(layer))?, of(self.values(layer))?))
    }
}

/// The first `rows` of `old` `(G, _, D)` in new memory for `capacity` tokens.
fn grown(old: &Tensor, rows: usize, capacity: usize) -> Result<Tensor> {
    let (g, _, d) = old.dims3()?;
    let new = Tensor::zeros((g, capacity, d), old.dtype(), old.device())?;
    if rows > 0 {
        new.slice_set(&old.narrow(1, 0, rows)?.contiguous()?, 1, 0)?;
    }
    Ok(new)
}

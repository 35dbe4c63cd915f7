//! The language model: a decoder in which every layer has two sets of weights, UND and GEN. Each token runs
//! on one of them; attention mixes all tokens.
//!
//! Reference: bytedance/Lance, `qwen2_navit.py`, inference path.

mod attention;
mod cache;
mod layer;
mod pass;

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Tensor};
use lance_mm_tensor::{
    Embedding, Error, Linear, Result, RmsNorm, Rotary, StopFlag, Weights, device_name, in_thread_pool,
    kv_dtype, require_finite,
};

use crate::config::Config;
use crate::monitor::{Monitor, Probe};
use crate::sequence::{Cursor, Expert, Segment, Sequence, SequenceLayout, Span};
pub use cache::Cache;
use layer::Layer;
pub use layer::LinearInput;
use pass::{Context, Pass};

/// Which sets of weights to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// UND only: all that questions need. GEN weights in the file stay untouched.
    Und,
    /// Both.
    Both,
}

/// The next token of a sequence, for [`Llm::step_all`].
pub struct NextToken<'a> {
    /// The token.
    pub id: u32,
    /// Where it is.
    pub start: Cursor,
    /// The sequence's tokens so far.
    pub cache: &'a mut Cache,
}

/// One value for each expert that is loaded.
#[derive(Clone)]
struct PerExpert<T> {
    und: T,
    gen_: Option<T>,
}

impl<T: Clone> PerExpert<T> {
    /// Loads a value for each expert; that of UND is shared with `base`, if there is one.
    fn load(base: Option<&Self>, experts: Experts, load: impl Fn(Expert) -> Result<T>) -> Result<Self> {
        let gen_ = (experts == Experts::Both).then(|| load(Expert::Gen)).transpose()?;
        let und = base.map_or_else(|| load(Expert::Und), |base| Ok(base.und.clone()))?;
        Ok(Self { und, gen_ })
    }

    fn get(&self, expert: Expert) -> Result<&T> {
        match expert {
            Expert::Und => Ok(&self.und),
            Expert::Gen => self.gen_.as_ref().ok_or_else(|| {
                Error::input(
                    "expert",
                    "rows of the UND expert, the only one loaded",
                    "rows of the GEN expert",
                )
            }),
        }
    }

    /// Runs tokens through the value of their span's expert: `(T, ..)` to `(T, ..)`.
    fn by_span(
        &self,
        x: &Tensor,
        spans: &[Span],
        mut run: impl FnMut(&T, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let [y] = self.by_span_each(x, spans, |value, x| Ok([run(value, x)?]))?;
        Ok(y)
    }

    /// As [`by_span`](Self::by_span), with several results.
    fn by_span_each<const N: usize>(
        &self,
        x: &Tensor,
        spans: &[Span],
        mut run: impl FnMut(&T, &Tensor) -> Result<[Tensor; N]>,
    ) -> Result<[Tensor; N]> {
        if let [span] = spans {
            return run(self.get(span.expert)?, x);
        }
        let rows = |x: &Tensor, rows: &Range<usize>| x.narrow(0, rows.start, rows.len());
        // An expert's weights are read once for all of its spans.
        let mut results = HashMap::new();
        for span in spans {
            if results.contains_key(&span.expert) {
                continue;
            }
            let of_expert = spans.iter().filter(|other| other.expert == span.expert);
            let parts = of_expert.map(|span| rows(x, &span.rows)).collect::<candle_core::Result<Vec<_>>>()?;
            let x = match parts.as_slice() {
                [only] => only.contiguous()?,
                several => Tensor::cat(several, 0)?,
            };
            results.insert(span.expert, (run(self.get(span.expert)?, &x)?, 0));
        }
        let mut parts = [const { Vec::new() }; N];
        for span in spans {
            let (of_expert, next) = results.get_mut(&span.expert).expect("results for each expert of a span");
            for (parts, result) in parts.iter_mut().zip(of_expert) {
                parts.push(rows(result, &(*next..*next + span.rows.len()))?);
            }
            *next += span.rows.len();
        }
        let joined: Vec<Tensor> =
            parts.iter().map(|parts| Tensor::cat(parts, 0)).collect::<candle_core::Result<_>>()?;
        Ok(joined.try_into().expect("a tensor for each result"))
    }
}

/// The language model. Hidden states `(T, D)` are f32, on a device of the type that [`hidden_dtype`](lance_mm_tensor::hidden_dtype())
/// says of the weights; features and logits are f32 on every one.
///
/// Clones share the weights.
#[derive(Clone)]
pub struct Llm {
    config: Config,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: PerExpert<RmsNorm>,
    lm_head: Linear,
    rotary: Rotary,
    /// Dtype of keys and values in the cache.
    kept: DType,
}

impl Llm {
    /// Loads the model from `weights`: the file `model.safetensors` of the published layout, dense or
    /// quantized. With [`Experts::Und`] the GEN expert and the latent layers are left where they are.
    ///
    /// # Errors
    /// All missing, misshapen or unknown tensors at once.
    pub fn load(config: &Config, weights: &Weights, experts: Experts) -> Result<Self> {
        Self::load_on(None, config, weights, experts)
    }

    /// This model with the GEN expert of `weights` besides its UND expert, whose weights both models share: on a
    /// device they are there once. `weights` are read with the settings (device, activations) that this model's were;
    /// all but the GEN expert's are left where they are.
    ///
    /// # Errors
    /// All missing, misshapen or unknown tensors of the GEN expert at once; weights for another device.
    pub fn with_gen(&self, weights: &Weights) -> Result<Self> {
        let device = self.norm.und.weight().device();
        if !device.same_device(weights.device()) {
            let (expected, found) = (device_name(device), device_name(weights.device()));
            return Err(Error::input("device of the GEN expert", expected, found));
        }
        Self::load_on(Some(self), &self.config, weights, Experts::Both)
    }

    /// Loads all that is not shared with `base`.
    fn load_on(base: Option<&Self>, config: &Config, weights: &Weights, experts: Experts) -> Result<Self> {
        weights.ignore(|name| {
            let other = match (base, experts) {
                (Some(_), _) => !is_gen(name),
                (None, Experts::Both) => is_latent(name),
                (None, Experts::Und) => is_generation(name),
            };
            // A table that older exports carry; it follows from the configuration.
            other || name.ends_with("rotary_emb.inv_freq")
        });
        let prefixes = ["layers.", "embed_tokens.", "norm", "lm_head."];
        weights.load_all(&prefixes, |weights| Self::read(base, config, weights, experts))
    }

    fn read(base: Option<&Self>, config: &Config, weights: &Weights, experts: Experts) -> Result<Self> {
        let (d, vocab) = (config.hidden_size, config.vocab_size);
        let layers = weights.pp("layers");
        let embed_tokens = match base {
            Some(base) => base.embed_tokens.clone(),
            None => Embedding::load(&weights.pp("embed_tokens"), vocab, d)?,
        };
        let lm_head = weights.pp("lm_head");
        let tied = config.tie_word_embeddings && !lm_head.has("weight");
        Ok(Self {
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(base.map(|base| &base.layers[i]), config, &layers.pp(i), experts))
                .collect::<Result<_>>()?,
            norm: PerExpert::load(base.map(|base| &base.norm), experts, |expert| {
                let name = format!("norm{}", expert.suffix());
                RmsNorm::load(&weights.pp(name), d, config.rms_norm_eps as f32)
            })?,
            lm_head: match base {
                Some(base) => base.lm_head.clone(),
                None if tied => Linear::new(embed_tokens.weight().clone(), None),
                None => Linear::load(&lm_head, d, vocab)?,
            },
            rotary: Rotary::new(config.head_dim(), config.rope_theta, config.mrope_section)?,
            kept: base.map_or_else(|| kv_dtype(weights.activation_precision()), |base| base.kept),
            embed_tokens,
            config: config.clone(),
        })
    }

    /// Configuration the model was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Frequencies of the rotary tables.
    pub fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// An empty cache for this model.
    pub fn cache(&self) -> Cache {
        Cache::new(&self.config, self.kept)
    }

    /// Input tokens `(T, D)` of a sequence: embeddings of its ids, and `features`, one f32 `(n, D)` for
    /// each visual block, in order, instead of embeddings at visual tokens.
    ///
    /// # Errors
    /// Features that do not match the blocks, ids past the table.
    pub fn embed(&self, sequence: &Sequence, features: &[Tensor]) -> Result<Tensor> {
        let blocks = sequence.visual();
        if features.len() != blocks.len() {
            return Err(Error::input("features", format!("{} blocks", blocks.len()), features.len()));
        }
        let mut parts = Vec::new();
        let mut next = 0;
        for (rows, features) in blocks.iter().zip(features) {
            let expected = (rows.len(), self.config.hidden_size);
            if features.dims2().ok() != Some(expected) {
                return Err(Error::input(
                    "features",
                    format!("{expected:?}"),
                    format!("{:?}", features.dims()),
                ));
            }
            parts.push(self.embed_tokens.forward(&sequence.ids()[next..rows.start])?);
            parts.push(features.to_dtype(self.embed_tokens.dtype())?);
            next = rows.end;
        }
        parts.push(self.embed_tokens.forward(&sequence.ids()[next..])?);
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Runs tokens `x` `(T, D)` of a sequence through all layers, appending to the cache: the residual
    /// stream after the last layer, `(T, D)`, before the final norm.
    ///
    /// # Errors
    /// A sequence that does not begin where the cache ends, no tokens, tokens of another shape. After an error
    /// the cache is as it was.
    pub fn forward(&self, x: &Tensor, sequence: &Sequence, cache: &mut Cache) -> Result<Tensor> {
        self.run(x, sequence, cache, &mut Monitor::default())
    }

    /// As [`forward`](Self::forward), showing to `probe`, below `layers.{i}`: `input_layernorm`,
    /// `self_attn.q_proj`, `self_attn.q_norm` and `self_attn.k_norm` (`(T, H, D)`, not yet turned),
    /// `self_attn.heads` (what `o_proj` reads), `self_attn`, `post_attention_layernorm`, `mlp.gated` (what
    /// `down_proj` reads), `mlp`, and the layer's output as `layers.{i}`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and what the probe returns.
    pub fn forward_probed(
        &self,
        x: &Tensor,
        sequence: &Sequence,
        cache: &mut Cache,
        probe: &mut Probe<'_>,
    ) -> Result<Tensor> {
        self.run(x, sequence, cache, &mut Monitor::probed(probe))
    }

    /// [`forward`](Self::forward) that `stop` ends between layers.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Stopped`].
    pub fn forward_with_stop(
        &self,
        x: &Tensor,
        sequence: &Sequence,
        cache: &mut Cache,
        stop: &StopFlag,
    ) -> Result<Tensor> {
        self.run(x, sequence, cache, &mut Monitor::until(Some(stop)))
    }

    pub(crate) fn run(
        &self,
        x: &Tensor,
        sequence: &Sequence,
        cache: &mut Cache,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor> {
        let start = cache.len();
        let expected = (sequence.len(), self.config.hidden_size);
        if sequence.is_empty() || x.dims2().ok() != Some(expected) {
            return Err(Error::input(
                "rows",
                format!("{expected:?}, at least one"),
                format!("{:?}", x.dims()),
            ));
        }
        if sequence.start().rows != start {
            return Err(Error::input(
                "sequence",
                format!("a start at the cache's end {start}"),
                sequence.start().rows,
            ));
        }
        let table = self.rotary.table(sequence.positions(), x.device())?;
        let context = Context::One { blocks: sequence.blocks(), cache };
        self.layers(x, Pass { spans: sequence.spans(), table, context }, monitor)
    }

    /// Runs tokens of one whole sequence through layer `index` alone: `(T, D)` to `(T, D)`. A pass over many
    /// sequences layer by layer holds one layer's weights in memory at a time.
    ///
    /// # Errors
    /// As [`forward_probed`](Self::forward_probed); a sequence that does not begin at token 0; no such layer.
    pub fn run_layer(
        &self,
        index: usize,
        x: &Tensor,
        sequence: &Sequence,
        probe: &mut Probe<'_>,
    ) -> Result<Tensor> {
        let layer = self.whole(index, x, sequence)?;
        let table = self.rotary.table(sequence.positions(), x.device())?;
        let context = Context::One { blocks: sequence.blocks(), cache: &mut self.cache() };
        let mut pass = Pass { spans: sequence.spans(), table, context };
        layer.forward(x, &mut pass, index, &mut Monitor::probed(probe))
    }

    /// Input of linear layers of layer `index`: of the tokens `rows` of one whole sequence, which all run on `expert`. Runs
    /// no more than that takes: `(rows, width of the input)`.
    ///
    /// # Errors
    /// As [`run_layer`](Self::run_layer); no such tokens.
    pub fn layer_input(
        &self,
        index: usize,
        x: &Tensor,
        sequence: &Sequence,
        rows: (&[u32], Expert),
        input: LinearInput,
    ) -> Result<Tensor> {
        let layer = self.whole(index, x, sequence)?;
        let table = self.rotary.table(sequence.positions(), x.device())?;
        let context = Context::One { blocks: sequence.blocks(), cache: &mut self.cache() };
        let mut pass = Pass { spans: sequence.spans(), table, context };
        layer.input(x, &mut pass, index, rows, input)
    }

    /// Layer `index`, for the tokens `x` of a whole sequence.
    fn whole(&self, index: usize, x: &Tensor, sequence: &Sequence) -> Result<&Layer> {
        let Some(layer) = self.layers.get(index) else {
            return Err(Error::input("layer", format!("one below {}", self.layers.len()), index));
        };
        let expected = (sequence.len(), self.config.hidden_size);
        if sequence.is_empty() || sequence.start().rows != 0 || x.dims2().ok() != Some(expected) {
            let expected = format!("{expected:?}, at least one, from row 0");
            return Err(Error::input("rows", expected, format!("{:?}", x.dims())));
        }
        Ok(layer)
    }

    /// Runs tokens through all layers; after an error the caches are as they were.
    fn layers(&self, x: &Tensor, mut pass: Pass<'_, '_>, monitor: &mut Monitor<'_>) -> Result<Tensor> {
        let lengths = pass.lengths();
        let mut result = Ok(x.clone());
        for (i, layer) in self.layers.iter().enumerate() {
            result = result.and_then(|x| {
                monitor.check()?;
                layer.forward(&x, &mut pass, i, monitor)
            });
        }
        if result.is_err() {
            pass.truncate(&lengths)?;
        }
        result
    }

    /// The UND expert's linear layer at a checkpoint path: `layers.0.self_attn.q_proj`, `lm_head`.
    pub fn linear(&self, path: &str) -> Option<&Linear> {
        match in_layer(path) {
            Some((index, path)) => self.layers.get(index)?.linear(path),
            None => (path == "lm_head").then_some(&self.lm_head),
        }
    }

    /// The UND expert's linear layers, the output head not among them.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(Layer::linears)
    }

    /// The output head.
    pub(crate) fn lm_head(&self) -> &Linear {
        &self.lm_head
    }

    /// The UND expert's norm of the residual stream at a checkpoint path: `layers.0.input_layernorm`,
    /// `layers.0.post_attention_layernorm`, `norm`.
    pub fn residual_norm(&self, path: &str) -> Option<&RmsNorm> {
        match in_layer(path) {
            Some((index, name)) => self.layers.get(index)?.norm(name),
            None => (path == "norm").then_some(&self.norm.und),
        }
    }

    /// The final norm of the hidden states of a sequence, each with its expert's weights: `(T, D)`.
    ///
    /// # Errors
    /// Tokens of another number than the sequence has.
    pub fn norm(&self, hidden: &Tensor, sequence: &Sequence) -> Result<Tensor> {
        self.norm.by_span(hidden, sequence.spans(), |norm, x| norm.forward(x))
    }

    /// Runs a sequence whose last token is of the UND expert and returns its hidden state after the final norm,
    /// `(1, D)`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn prefill(&self, x: &Tensor, sequence: &Sequence, cache: &mut Cache) -> Result<Tensor> {
        self.prefill_until(x, sequence, cache, None)
    }

    /// [`prefill`](Self::prefill) that `stop` ends between layers.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Stopped`].
    pub fn prefill_with_stop(
        &self,
        x: &Tensor,
        sequence: &Sequence,
        cache: &mut Cache,
        stop: &StopFlag,
    ) -> Result<Tensor> {
        self.prefill_until(x, sequence, cache, Some(stop))
    }

    fn prefill_until(
        &self,
        x: &Tensor,
        sequence: &Sequence,
        cache: &mut Cache,
        stop: Option<&StopFlag>,
    ) -> Result<Tensor> {
        in_thread_pool(|| {
            let hidden = self.run(x, sequence, cache, &mut Monitor::until(stop))?;
            self.norm.und.forward(&hidden.narrow(0, sequence.len() - 1, 1)?)
        })
    }

    /// Runs one token at `start`: its hidden state after the final norm, `(1, D)`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn step(&self, id: u32, start: Cursor, cache: &mut Cache) -> Result<Tensor> {
        let layout = SequenceLayout { special_ids: self.config.special_ids, t_step: 1 };
        let sequence = Sequence::new(&[Segment::Text(vec![id])], &layout, start);
        self.prefill(&self.embed(&sequence, &[])?, &sequence, cache)
    }

    /// Runs one token of each of several sequences in one pass over the weights: their hidden states after the final
    /// norm, `(n, D)`, in order. Token by token the same as [`step`](Self::step) up to rounding; sequences may have any
    /// lengths.
    ///
    /// # Errors
    /// As [`forward`](Self::forward). After an error all caches are as they were.
    pub fn step_all(&self, steps: Vec<NextToken<'_>>) -> Result<Tensor> {
        let mut positions: [Vec<u32>; 3] = Default::default();
        for step in &steps {
            if step.start.rows != step.cache.len() {
                let expected = format!("a start at the cache's end {}", step.cache.len());
                return Err(Error::input("sequence", expected, step.start.rows));
            }
            positions.iter_mut().for_each(|axis| axis.push(step.start.position));
        }
        if steps.is_empty() {
            return Err(Error::input("sequences", "at least one", 0));
        }
        let ids: Vec<u32> = steps.iter().map(|step| step.id).collect();
        let x = self.embed_tokens.forward(&ids)?;
        let table = self.rotary.table(&positions, x.device())?;
        let spans = [Span { rows: 0..ids.len(), expert: Expert::Und }];
        let context = Context::Each(steps.into_iter().map(|step| step.cache).collect());
        in_thread_pool(|| {
            let pass = Pass { spans: &spans, table, context };
            let hidden = self.layers(&x, pass, &mut Monitor::default())?;
            self.norm.und.forward(&hidden)
        })
    }

    /// Logits f32 `(n, vocabulary)` of hidden states `(n, D)` after the final norm. Rows of the table past the
    /// tokenizer's vocabulary belong to no token.
    ///
    /// # Errors
    /// Hidden states of another width; [`Error::NotFinite`] for damaged weights.
    pub fn logits(&self, normed: &Tensor) -> Result<Tensor> {
        let logits = self.lm_head.forward(&normed.to_dtype(DType::F32)?)?;
        require_finite("logits", &logits)?;
        Ok(logits)
    }
}

/// `layers.3.mlp.up_proj` as 3 and `mlp.up_proj`.
fn in_layer(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix("layers.")?.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

/// Whether only generation reads a tensor of this name: the GEN expert and the latent layers.
pub fn is_generation(name: &str) -> bool {
    is_gen(name) || is_latent(name)
}

/// The GEN expert.
fn is_gen(name: &str) -> bool {
    name.contains(Expert::Gen.suffix())
}

/// The latent layers.
fn is_latent(name: &str) -> bool {
    ["vae_in_proj.", "llm2vae.", "time_embedder.", "latent_pos_embed."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests;

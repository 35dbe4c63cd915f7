//! Progress of a quantization.

use lance_mm_tensor::StopFlag;

use crate::error::Result;

/// A stage of [`quantize`](crate::quantize) that begins, or the part of one that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Every byte of the source is read, to recognise it when a run is resumed.
    Fingerprint,
    /// The dataset has so few samples; 32 or more are advised.
    FewSamples(usize),
    /// Samples of the dataset that were run, of all.
    Samples {
        /// Samples that are done.
        done: usize,
        /// All samples.
        total: usize,
    },
    /// Requests for images that were run, of all.
    Requests {
        /// Requests that are done.
        done: usize,
        /// All requests.
        total: usize,
    },
    /// The unchanged model's answers, which sensitivities are measured against.
    Reference,
    /// The sensitivity of the embedding.
    MeasureEmbedding,
    /// The sensitivity of a layer.
    MeasureLayer {
        /// Its index.
        index: usize,
        /// Layers of the model.
        total: usize,
    },
    /// The sensitivity of the output head.
    MeasureHead,
    /// The embedding is quantized.
    Embedding,
    /// A layer is quantized.
    Layer {
        /// Its index.
        index: usize,
        /// Layers of the model.
        total: usize,
    },
    /// The output head is quantized.
    Head,
    /// The checkpoint is written.
    Write,
}

/// Called when a stage begins, and after each sample.
pub type Observer<'a> = dyn FnMut(Progress) + 'a;

/// Reports the stages of a run, and ends it where it was asked to stop.
pub(crate) struct Monitor<'a> {
    observer: &'a mut Observer<'a>,
    stop: &'a StopFlag,
}

impl<'a> Monitor<'a> {
    pub(crate) fn new(observer: &'a mut Observer<'a>, stop: &'a StopFlag) -> Self {
        Self { observer, stop }
    }

    /// Reports a stage before it begins.
    pub(crate) fn begin(&mut self, progress: Progress) -> Result<()> {
        self.stop.check()?;
        (self.observer)(progress);
        Ok(())
    }
}

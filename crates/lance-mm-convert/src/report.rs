//! The report of a conversion.

use std::fmt;
use std::path::PathBuf;

use lance_mm_pipelines::checkpoint::CheckpointLayout;

use crate::file_tensor::FileTensor;
use crate::parts::Parts;
use crate::verify::RoundTrip;

/// Names that are printed at most.
const SHOWN: usize = 20;

/// The outcome of a conversion. Printed, it is a few lines without a line break at the end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConvertReport {
    /// Layout of the source; `None` for a VAE alone.
    pub layout: Option<CheckpointLayout>,
    /// The language model, the vision encoder and the VAE, as far as they were written.
    pub parts: Vec<ConvertedPart>,
    /// Tables in the source that every program computes, left out.
    pub computed: Vec<String>,
    /// Tensors of nothing known, left out.
    pub unmapped: Vec<String>,
    /// Tensors with an infinity or a value that is no number, written as they are.
    pub not_finite: Vec<String>,
    /// The source has a language model without the `tokenizer.json` that loading needs.
    pub lacks_tokenizer: bool,
    /// Comparison by part, if it was asked for.
    pub round_trip: Vec<RoundTrip>,
}

/// A part that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConvertedPart {
    /// `llm`, `vit` or `vae`.
    pub name: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// File of the source that has the first of them.
    pub source: PathBuf,
}

impl ConvertReport {
    pub(crate) fn new(parts: &Parts, not_finite: Vec<String>) -> Self {
        let tokenizer = parts.copied.iter().any(|path| path.ends_with("tokenizer.json"));
        let part = |(name, tensors): (&'static str, &Vec<FileTensor>)| {
            let source = tensors.first()?.path().to_owned();
            Some(ConvertedPart { name, tensors: tensors.len(), source })
        };
        let all = [("llm", &parts.llm), ("vit", &parts.vit), ("vae", &parts.vae)];
        Self {
            layout: parts.layout,
            parts: all.into_iter().filter_map(part).collect(),
            computed: parts.computed.clone(),
            unmapped: parts.unmapped.clone(),
            not_finite,
            lacks_tokenizer: parts.has_model() && !tokenizer,
            round_trip: Vec::new(),
        }
    }

    /// Whether the comparison, if it was asked for, found nothing that is lost or changed on the way there and back.
    pub fn passed(&self) -> bool {
        self.round_trip.iter().all(RoundTrip::passed)
            && (self.round_trip.is_empty() || self.unmapped.is_empty())
    }
}

impl fmt::Display for ConvertReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", self.layout.map_or("the VAE alone", CheckpointLayout::describe))?;
        for name in ["llm", "vit", "vae"] {
            match self.parts.iter().find(|part| part.name == name) {
                Some(part) => write!(f, "\n  {name}: {} tensors of {}", part.tensors, part.source.display())?,
                None => write!(f, "\n  {name}: none")?,
            }
        }
        for (what, names) in [
            ("computed anyway, left out", &self.computed),
            ("not of this model, left out", &self.unmapped),
            ("with values that are not finite, as in the source", &self.not_finite),
        ] {
            if !names.is_empty() {
                write!(f, "\n  {what}: {}", names[..names.len().min(SHOWN)].join(", "))?;
            }
            if names.len() > SHOWN {
                write!(f, " and {} more", names.len() - SHOWN)?;
            }
        }
        if self.lacks_tokenizer {
            f.write_str("\n  no tokenizer.json: take that of Qwen/Qwen2.5-VL-3B-Instruct")?;
        }
        self.round_trip.iter().try_for_each(|part| write!(f, "\n{part}"))
    }
}

//! One sequence of the calibration set, and the tokens of it that are recorded.

use candle_core::Tensor;
use lance_mm_models::{Config, Cursor, Expert, Grid, Llm, Segment, Sequence};
use lance_mm_pipelines::generate::{Piece, Plan, Unconditional};
use serde_json::{Value, json};

use crate::error::Result;

/// A sample, or one pass of a generation, laid out.
pub(crate) struct CalibrationSequence {
    kind: Kind,
    /// Tokens that are recorded, ascending, all of the sequence's expert.
    pub(crate) tokens: Vec<usize>,
    /// Tokens that predict one of the answer, ascending, recorded for the output head.
    pub(crate) head_tokens: Vec<usize>,
    /// Whether the sample is held out to decide between candidates.
    pub(crate) held_out: bool,
}

/// Contents of a sequence.
enum Kind {
    /// A question with `n_answer` tokens of an answer at its end, for the UND expert.
    Question { segments: Vec<Segment>, n_answer: usize },
    /// A pass of a denoising step, for the GEN expert.
    Generation { pieces: Vec<Piece>, captioned: bool },
}

impl CalibrationSequence {
    pub(crate) fn question(segments: Vec<Segment>, n_answer: usize, held_out: bool) -> Self {
        Self::new(Kind::Question { segments, n_answer }, held_out)
    }

    pub(crate) fn generation(pieces: Vec<Piece>, captioned: bool, held_out: bool) -> Self {
        Self::new(Kind::Generation { pieces, captioned }, held_out)
    }

    fn new(kind: Kind, held_out: bool) -> Self {
        Self { kind, tokens: Vec::new(), head_tokens: Vec::new(), held_out }
    }

    /// The expert whose inputs are recorded.
    pub(crate) fn expert(&self) -> Expert {
        match self.kind {
            Kind::Question { .. } => Expert::Und,
            Kind::Generation { .. } => Expert::Gen,
        }
    }

    /// Number of answer tokens, which come last.
    pub(crate) fn n_answer(&self) -> usize {
        match self.kind {
            Kind::Question { n_answer, .. } => n_answer,
            Kind::Generation { .. } => 0,
        }
    }

    pub(crate) fn sequence(&self, config: &Config) -> Sequence {
        match &self.kind {
            Kind::Question { segments, .. } => Sequence::new(segments, &config.layout(), Cursor::default()),
            Kind::Generation { pieces, captioned } => {
                Plan::new(pieces, &config.layout(), Unconditional::Cached).whole(*captioned)
            }
        }
    }

    /// Indices of the tokens of the GEN expert.
    pub(crate) fn latents(&self, config: &Config) -> Vec<usize> {
        let sequence = self.sequence(config);
        let spans = sequence.spans().iter().filter(|span| span.expert == Expert::Gen);
        spans.flat_map(|span| span.rows.clone()).collect()
    }

    /// The first layer's input `x`, its text tokens replaced by the embeddings of `llm`.
    pub(crate) fn embedded_by(&self, llm: &Llm, x: &Tensor) -> Result<Tensor> {
        let sequence = self.sequence(llm.config());
        let features = sequence.visual().iter().map(|rows| x.narrow(0, rows.start, rows.len()));
        Ok(llm.embed(&sequence, &features.collect::<candle_core::Result<Vec<_>>>()?)?)
    }

    pub(crate) fn to_json(&self) -> Value {
        let grid = |g: &Grid| vec![g.t, g.h, g.w];
        let kind = match &self.kind {
            Kind::Question { segments, n_answer } => {
                let segment = |segment: &Segment| match segment {
                    Segment::Text(ids) => json!({ "text": ids }),
                    Segment::Vit(g) | Segment::Clean(g) | Segment::Noise(g) => json!({ "vit": grid(g) }),
                };
                json!({ "segments": segments.iter().map(segment).collect::<Vec<_>>(), "answer": n_answer })
            }
            Kind::Generation { pieces, captioned } => {
                let piece = |piece: &Piece| match piece {
                    Piece::Template(ids) => json!({ "template": ids }),
                    Piece::Caption(ids) => json!({ "caption": ids }),
                    Piece::Vit(g) => json!({ "vit": grid(g) }),
                    Piece::Clean(g) => json!({ "clean": grid(g) }),
                    Piece::Noise(g) => json!({ "noise": grid(g) }),
                };
                json!({ "pieces": pieces.iter().map(piece).collect::<Vec<_>>(), "captioned": captioned })
            }
        };
        json!({
            "kind": kind, "tokens": self.tokens, "head_tokens": self.head_tokens, "held_out": self.held_out,
        })
    }

    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let stored = &value["kind"];
        let kind = match stored.get("pieces") {
            Some(pieces) => Kind::Generation {
                pieces: pieces.as_array()?.iter().map(piece).collect::<Option<_>>()?,
                captioned: stored["captioned"].as_bool()?,
            },
            None => Kind::Question {
                segments: stored["segments"].as_array()?.iter().map(segment).collect::<Option<_>>()?,
                n_answer: usize::try_from(stored["answer"].as_u64()?).ok()?,
            },
        };
        Some(Self {
            kind,
            tokens: numbers(&value["tokens"])?,
            head_tokens: numbers(&value["head_tokens"])?,
            held_out: value["held_out"].as_bool()?,
        })
    }
}

fn numbers(value: &Value) -> Option<Vec<usize>> {
    value.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect()
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    numbers(value)?.into_iter().map(|id| u32::try_from(id).ok()).collect()
}

fn grid(value: &Value) -> Option<Grid> {
    match numbers(value)?[..] {
        [t, h, w] => Some(Grid { t, h, w }),
        _ => None,
    }
}

fn segment(value: &Value) -> Option<Segment> {
    match value.get("text") {
        Some(text) => Some(Segment::Text(ids(text)?)),
        None => Some(Segment::Vit(grid(value.get("vit")?)?)),
    }
}

fn piece(value: &Value) -> Option<Piece> {
    let (name, value) = value.as_object()?.iter().next()?;
    Some(match name.as_str() {
        "template" => Piece::Template(ids(value)?),
        "caption" => Piece::Caption(ids(value)?),
        "vit" => Piece::Vit(grid(value)?),
        "clean" => Piece::Clean(grid(value)?),
        "noise" => Piece::Noise(grid(value)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_survives_json() {
        let g = Grid { t: 1, h: 2, w: 3 };
        let question = CalibrationSequence::question(
            vec![Segment::Text(vec![1, 2]), Segment::Vit(g), Segment::Text(vec![3])],
            1,
            true,
        );
        let pieces = vec![
            Piece::Template(vec![4]),
            Piece::Vit(g),
            Piece::Clean(g),
            Piece::Caption(vec![5, 6]),
            Piece::Noise(g),
        ];
        for mut sequence in [question, CalibrationSequence::generation(pieces, false, false)] {
            (sequence.tokens, sequence.head_tokens) = (vec![0, 3], vec![2]);
            let stored = sequence.to_json();
            let read = CalibrationSequence::from_json(&stored).unwrap();
            assert_eq!(read.to_json(), stored);
            assert_eq!((read.expert(), read.held_out), (sequence.expert(), sequence.held_out));
        }
        assert!(
            CalibrationSequence::from_json(&json!({ "kind": { "pieces": [{ "other": [1] }] } })).is_none()
        );
    }
}

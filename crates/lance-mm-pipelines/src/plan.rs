//! Sequences of a generation, with the caption and without it.

use lance_mm_models::{Cursor, Grid, Segment, Sequence, SequenceLayout};

/// Position in time of the vision encoder's tokens in edits.
const SEEN: u32 = 1000;

/// A part of a generation's prompt. A task is a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text of the template.
    Template(Vec<u32>),
    /// The caption, which guidance leaves out in its second pass.
    Caption(Vec<u32>),
    /// The source's vision encoder features, in language model tokens.
    Vit(Grid),
    /// The latents of the source.
    Clean(Grid),
    /// The latents that are denoised; the last piece.
    Noise(Grid),
}

/// SequenceLayout of guidance's pass without caption: the original has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unconditional {
    /// The layout of all published results: the text after the caption stays at the positions it has
    /// with the caption, while the noise moves up to those of the prompt without.
    #[default]
    Cached,
    /// All positions are those of the prompt without caption, and what is kept clean of the noise block does
    /// not count in the length that guidance holds: what the original computes with its cache switched off,
    /// and lance-mlx always. To compare with their numbers.
    Uncached,
}

/// The sequences of a generation. Each begins where the one before ended, but for what stands here.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sequences before the caption, one a piece: both passes see them.
    pub shared: Vec<Sequence>,
    /// The caption and the template after it.
    pub conditional: Vec<Sequence>,
    /// The template after the caption, without the caption.
    pub unconditional: Vec<Sequence>,
    /// The noise block after the caption.
    pub noise: Sequence,
    /// The noise block without the caption.
    pub unconditional_noise: Sequence,
    /// Grid of the noise block.
    pub grid: Grid,
}

impl Plan {
    /// Lays the pieces of a task out.
    ///
    /// Positions count on through all pieces, except that the vision encoder's block is at time 1000
    /// and that noise takes the positions of the clean block, if there is one.
    ///
    /// # Panics
    /// When the last piece is not the only noise block.
    pub fn new(pieces: &[Piece], layout: &SequenceLayout, unconditional: Unconditional) -> Self {
        let Some(Piece::Noise(grid)) = pieces.last() else { panic!("a task ends with a noise block") };
        let caption = pieces.iter().position(|piece| matches!(piece, Piece::Caption(_)));
        // Without a caption both passes are one.
        let shared = caption.unwrap_or(pieces.len() - 1);
        let mut with = walk(pieces, layout, None);
        let mut without = walk(pieces, layout, Some(unconditional));
        let (noise, unconditional_noise) =
            (with.split_off(with.len() - 1), without.split_off(without.len() - 1));
        Self {
            conditional: with.split_off(shared),
            unconditional: without.split_off(shared),
            shared: with,
            noise: noise[0].clone(),
            unconditional_noise: unconditional_noise[0].clone(),
            grid: *grid,
        }
    }

    /// All tokens of a pass, with the caption or without, as one sequence.
    pub fn whole(&self, captioned: bool) -> Sequence {
        let (text, noise) = if captioned {
            (&self.conditional, &self.noise)
        } else {
            (&self.unconditional, &self.unconditional_noise)
        };
        let parts: Vec<Sequence> = self.shared.iter().chain(text).chain([noise]).cloned().collect();
        Sequence::join(&parts)
    }

    /// Tokens of the longer pass.
    pub fn rows(&self) -> usize {
        self.noise.end().rows
    }

    /// Whether there is a caption that guidance could leave out.
    pub fn has_caption(&self) -> bool {
        self.noise.start() != self.unconditional_noise.start()
            || self.conditional.len() != self.unconditional.len()
    }
}

/// One sequence a piece; without the caption if `without` says how.
fn walk(pieces: &[Piece], layout: &SequenceLayout, without: Option<Unconditional>) -> Vec<Sequence> {
    let lay = |segment: Segment, at: Cursor| Sequence::new(&[segment], layout, at);
    let mut at = Cursor::default();
    let (mut gap, mut clean) = (0, None);
    let mut sequences = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let sequence = match piece {
            Piece::Caption(ids) if without.is_some() => {
                gap = if without == Some(Unconditional::Cached) { ids.len() as u32 } else { 0 };
                at.position += gap;
                continue;
            }
            Piece::Template(ids) | Piece::Caption(ids) => lay(Segment::Text(ids.clone()), at),
            Piece::Vit(grid) => lay(Segment::Vit(*grid), at).at_time(SEEN),
            Piece::Clean(grid) => {
                clean = Some(at.position);
                lay(Segment::Clean(*grid), at)
            }
            Piece::Noise(grid) => {
                let position = clean.unwrap_or(at.position - gap);
                lay(Segment::Noise(*grid), Cursor { position, ..at })
            }
        };
        at = sequence.end();
        sequences.push(sequence);
    }
    sequences
}

#[cfg(test)]
mod tests {
    use lance_mm_models::SpecialIds;

    use super::*;

    const LAYOUT: SequenceLayout =
        SequenceLayout { special_ids: SpecialIds { vision_start: 7, vision_end: 8, video: 9 }, t_step: 2 };
    const GRID: Grid = Grid { t: 1, h: 2, w: 2 };

    fn text_to_image() -> Vec<Piece> {
        vec![
            Piece::Template(vec![1; 5]),
            Piece::Caption(vec![2; 3]),
            Piece::Template(vec![1; 2]),
            Piece::Noise(GRID),
        ]
    }

    fn firsts(sequences: &[Sequence]) -> Vec<(usize, [u32; 3])> {
        let first = |s: &Sequence| (s.start().rows, s.positions().each_ref().map(|axis| axis[0]));
        sequences.iter().map(first).collect()
    }

    #[test]
    fn without_the_caption_the_text_keeps_its_place_and_the_noise_does_not() {
        let plan = Plan::new(&text_to_image(), &LAYOUT, Unconditional::Cached);
        assert_eq!(firsts(&plan.shared), [(0, [0; 3])]);
        assert_eq!(firsts(&plan.conditional), [(5, [5; 3]), (8, [8; 3])]);
        assert_eq!(firsts(&plan.unconditional), [(5, [8; 3])]);
        assert_eq!(
            firsts(&[plan.noise.clone(), plan.unconditional_noise.clone()]),
            [(10, [10; 3]), (7, [7; 3])]
        );
        assert!(plan.has_caption());
        assert_eq!(plan.rows(), 16);

        let plan = Plan::new(&text_to_image(), &LAYOUT, Unconditional::Uncached);
        assert_eq!(firsts(&plan.unconditional), [(5, [5; 3])]);
        assert_eq!(firsts(&[plan.unconditional_noise]), [(7, [7; 3])]);
    }

    #[test]
    fn edits_see_the_source_at_1000_and_draw_where_it_lies() {
        let mut pieces = text_to_image();
        pieces.splice(1..1, [Piece::Vit(Grid { t: 1, h: 1, w: 1 }), Piece::Clean(GRID)]);
        let plan = Plan::new(&pieces, &LAYOUT, Unconditional::Cached);
        assert_eq!(firsts(&plan.shared), [(0, [0; 3]), (5, [1000, 5, 5]), (8, [8; 3])]);
        // 8: vision start, 9 and 10: latents, 11: vision end.
        assert_eq!(firsts(&plan.conditional), [(14, [12; 3]), (17, [15; 3])]);
        for noise in [&plan.noise, &plan.unconditional_noise] {
            assert_eq!(noise.positions(), plan.shared[2].positions());
        }
        assert_eq!((plan.noise.start().rows, plan.unconditional_noise.start().rows), (19, 16));
    }

    #[test]
    fn without_any_caption_both_passes_are_one() {
        let mut pieces = text_to_image();
        pieces.remove(1);
        let plan = Plan::new(&pieces, &LAYOUT, Unconditional::Cached);
        assert!(!plan.has_caption());
        assert_eq!((plan.shared.len(), plan.conditional.len(), plan.unconditional.len()), (2, 0, 0));
    }
}

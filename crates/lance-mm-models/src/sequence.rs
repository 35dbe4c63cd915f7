//! Segments of a prompt laid out as tokens: ids, positions, attention blocks and experts.

use std::fmt;
use std::ops::Range;

use lance_mm_tensor::Block;

/// A block of tokens or patches in time, rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Frame pairs or latent frames.
    pub t: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

impl Grid {
    /// Tokens or patches in all.
    pub fn count(&self) -> usize {
        self.t * self.h * self.w
    }

    /// The grid of language model tokens for a grid of patches merged `m` by `m`.
    pub fn merged(&self, m: usize) -> Self {
        Self { t: self.t, h: self.h / m, w: self.w / m }
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.t, self.h, self.w)
    }
}

/// A piece of a prompt. Grids are in language model tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Token ids, each seeing what lies before it.
    Text(Vec<u32>),
    /// Tokens of the vision encoder between vision start and vision end; all of the block sees all of it.
    Vit(Grid),
    /// Clean latents between vision start and vision end; the latents run on the GEN expert.
    Clean(Grid),
    /// Latents being denoised, likewise. Tokens after the block do not see it, so it comes last.
    Noise(Grid),
}

impl Segment {
    /// Tokens of the language model, the markers around a block included.
    pub fn n_tokens(&self) -> usize {
        match self {
            Self::Text(ids) => ids.len(),
            Self::Vit(grid) | Self::Clean(grid) | Self::Noise(grid) => grid.count() + 2,
        }
    }
}

/// Which set of weights a token runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expert {
    /// Understanding: text, markers, vision tokens.
    Und,
    /// Generation: latents.
    Gen,
}

impl Expert {
    /// Both, UND first.
    pub const ALL: [Self; 2] = [Self::Und, Self::Gen];

    /// Suffix of the names of its modules: none, or `_moe_gen`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Und => "",
            Self::Gen => "_moe_gen",
        }
    }
}

/// Neighbouring tokens of one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Tokens.
    pub rows: Range<usize>,
    /// Their weights.
    pub expert: Expert,
}

/// How the tokens of a segment see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Each token sees the tokens before it.
    Causal,
    /// Each token sees the whole segment.
    Full,
}

/// Token ids that `config.json` states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// `<|vision_start|>`.
    pub vision_start: u32,
    /// `<|vision_end|>`.
    pub vision_end: u32,
    /// `<|video_pad|>`, the id of every visual token, of images too.
    pub video: u32,
}

/// Settings of a checkpoint by which sequences are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceLayout {
    /// Ids of the markers and of visual tokens.
    pub special_ids: SpecialIds,
    /// Steps of the t axis from one frame pair or latent frame to the next.
    pub t_step: u32,
}

/// Where a sequence begins: tokens already in the cache and the next free position. The two differ after an
/// image, whose tokens share positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Tokens before.
    pub rows: usize,
    /// Position of the next text token on all three axes.
    pub position: u32,
}

/// Tokens of consecutive segments, ready for [`Llm::prefill`](crate::Llm::prefill): integers only.
#[derive(Clone, Debug)]
pub struct Sequence {
    start: Cursor,
    next_position: u32,
    ids: Vec<u32>,
    positions: [Vec<u32>; 3],
    blocks: Vec<Block>,
    modes: Vec<Mode>,
    spans: Vec<Span>,
    visual: Vec<Range<usize>>,
}

impl Sequence {
    /// Lays segments out from `start`.
    ///
    /// Text takes one position after another on all axes. A block of grid (t, h, w) puts its start marker
    /// at p, token (f, r, c) at (b + step·f, b + r, b + c) with b = p + 1, and its end marker after the
    /// largest of them; text goes on from there (bytedance/Lance, `get_rope_index` on its inference path).
    ///
    /// # Panics
    /// When a noise block is not the last segment: tokens after it must not see it.
    pub fn new(segments: &[Segment], layout: &SequenceLayout, start: Cursor) -> Self {
        let mut sequence = Self {
            start,
            next_position: start.position,
            ids: Vec::new(),
            positions: Default::default(),
            blocks: Vec::new(),
            modes: Vec::new(),
            spans: Vec::new(),
            visual: Vec::new(),
        };
        for (i, segment) in segments.iter().enumerate() {
            let last = i + 1 == segments.len();
            assert!(last || !matches!(segment, Segment::Noise(_)), "a noise block is the last segment");
            let first = sequence.len();
            match segment {
                Segment::Text(ids) => sequence.push_text(ids),
                Segment::Vit(grid) => sequence.push_grid(*grid, Expert::Und, layout),
                Segment::Clean(grid) | Segment::Noise(grid) => sequence.push_grid(*grid, Expert::Gen, layout),
            }
            let mode = if matches!(segment, Segment::Text(_)) { Mode::Causal } else { Mode::Full };
            sequence.close(first, mode);
        }
        sequence
    }

    fn push_text(&mut self, ids: &[u32]) {
        for id in ids {
            self.push(*id, [self.next_position; 3], Expert::Und);
            self.next_position += 1;
        }
    }

    fn push_grid(&mut self, grid: Grid, expert: Expert, layout: &SequenceLayout) {
        let ids = layout.special_ids;
        self.push(ids.vision_start, [self.next_position; 3], Expert::Und);
        let base = self.next_position + 1;
        let first = self.len();
        for f in 0..grid.t as u32 {
            for r in 0..grid.h as u32 {
                for c in 0..grid.w as u32 {
                    self.push(ids.video, [base + layout.t_step * f, base + r, base + c], expert);
                }
            }
        }
        self.visual.push(first..self.len());
        let steps = [
            layout.t_step as usize * grid.t.saturating_sub(1),
            grid.h.saturating_sub(1),
            grid.w.saturating_sub(1),
        ];
        let end = base + steps.into_iter().max().unwrap_or(0) as u32 + 1;
        self.push(ids.vision_end, [end; 3], Expert::Und);
        self.next_position = end + 1;
    }

    fn push(&mut self, id: u32, position: [u32; 3], expert: Expert) {
        let row = self.len();
        self.ids.push(id);
        for (axis, p) in self.positions.iter_mut().zip(position) {
            axis.push(p);
        }
        match self.spans.last_mut() {
            Some(span) if span.expert == expert => span.rows.end = row + 1,
            _ => self.spans.push(Span { rows: row..row + 1, expert }),
        }
    }

    fn close(&mut self, first: usize, mode: Mode) {
        let rows = first..self.len();
        if rows.is_empty() {
            return;
        }
        let keys = 0..self.start.rows + rows.end;
        self.blocks.push(Block { queries: rows, keys, causal: mode == Mode::Causal });
        self.modes.push(mode);
    }

    /// Consecutive sequences as one: the tokens of a prompt that was laid out in parts.
    ///
    /// # Panics
    /// When one does not begin at the token where the one before ended, or there is none.
    pub fn join(parts: &[Self]) -> Self {
        let (first, rest) = parts.split_first().expect("at least one sequence");
        let mut joined = first.clone();
        for part in rest {
            let by = joined.len();
            let shifted = |rows: &Range<usize>| rows.start + by..rows.end + by;
            assert_eq!(joined.end().rows, part.start.rows, "a sequence goes on where the one before ended");
            joined.ids.extend(&part.ids);
            for (axis, more) in joined.positions.iter_mut().zip(&part.positions) {
                axis.extend(more);
            }
            let blocks = part.blocks.iter();
            joined.blocks.extend(blocks.map(|b| Block { queries: shifted(&b.queries), ..b.clone() }));
            joined.modes.extend(&part.modes);
            joined.visual.extend(part.visual.iter().map(shifted));
            let spans = part.spans.iter();
            joined.spans.extend(spans.map(|s| Span { rows: shifted(&s.rows), expert: s.expert }));
            joined.next_position = part.next_position;
        }
        joined
    }

    /// The same tokens, every token seeing only tokens before it. This is what lance-mlx computes for images;
    /// it is here to reproduce its published answers, not because it is right.
    pub fn causal(mut self) -> Self {
        for (block, mode) in self.blocks.iter_mut().zip(&mut self.modes) {
            (block.causal, *mode) = (true, Mode::Causal);
        }
        self
    }

    /// The same tokens moved along the t axis alone, so that the first lies at `t`. Edits put what the vision
    /// transformer saw at 1000; what follows is laid out as if nothing had moved.
    pub fn at_time(mut self, t: u32) -> Self {
        let axis = &mut self.positions[0];
        let first = axis.first().copied().unwrap_or(0);
        for position in axis {
            *position = *position - first + t;
        }
        self
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Where the sequence begins.
    pub fn start(&self) -> Cursor {
        self.start
    }

    /// Where the next sequence begins.
    pub fn end(&self) -> Cursor {
        Cursor { rows: self.start.rows + self.len(), position: self.next_position }
    }

    /// Token ids; visual tokens carry the video pad's.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Positions on the axes t, h, w.
    pub fn positions(&self) -> &[Vec<u32>; 3] {
        &self.positions
    }

    /// Attention of the tokens: one block a segment, keys counted from the first token of the cache.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Tokens and attention mode of each segment that has tokens.
    pub fn segments(&self) -> impl Iterator<Item = (Range<usize>, Mode)> {
        self.blocks.iter().map(|block| block.queries.clone()).zip(self.modes.iter().copied())
    }

    /// Runs of one expert, covering every token once.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Tokens that take features or latents instead of embeddings, one range a block, without markers.
    pub fn visual(&self) -> &[Range<usize>] {
        &self.visual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: SequenceLayout =
        SequenceLayout { special_ids: SpecialIds { vision_start: 7, vision_end: 8, video: 9 }, t_step: 2 };

    fn lay(segments: &[Segment], start: Cursor) -> Sequence {
        Sequence::new(segments, &LAYOUT, start)
    }

    #[test]
    fn a_picture_between_texts() {
        let grid = Grid { t: 1, h: 2, w: 3 };
        let s =
            lay(&[Segment::Text(vec![1, 2]), Segment::Vit(grid), Segment::Text(vec![3])], Cursor::default());
        assert_eq!(s.ids(), [1, 2, 7, 9, 9, 9, 9, 9, 9, 8, 3]);
        assert_eq!(s.positions()[0], [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7]);
        assert_eq!(s.positions()[1], [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7]);
        assert_eq!(s.positions()[2], [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]);
        assert_eq!(s.end(), Cursor { rows: 11, position: 8 });
        let blocks = [Block::causal(0..2, 0..2), Block::full(2..10, 0..10), Block::causal(10..11, 0..11)];
        assert_eq!(s.blocks(), blocks);
        assert_eq!(s.spans(), [Span { rows: 0..11, expert: Expert::Und }]);
        assert_eq!(s.visual(), std::slice::from_ref(&(3..9)));
        assert!(s.causal().blocks().iter().all(|b| b.causal));
    }

    #[test]
    fn only_the_time_of_a_moved_block_changes() {
        let grid = Grid { t: 2, h: 1, w: 2 };
        let start = Cursor { rows: 3, position: 5 };
        let s = lay(&[Segment::Vit(grid)], start);
        let moved = s.clone().at_time(1000);
        assert_eq!(moved.positions()[0], [1000, 1001, 1001, 1003, 1003, 1004]);
        assert_eq!(moved.positions()[1..], s.positions()[1..]);
        assert_eq!(moved.end(), s.end());
    }

    #[test]
    fn frames_are_two_steps_apart() {
        let s = lay(&[Segment::Vit(Grid { t: 3, h: 1, w: 1 })], Cursor::default());
        assert_eq!(s.positions()[0], [0, 1, 3, 5, 6]);
        assert_eq!(s.positions()[1], [0, 1, 1, 1, 6]);
    }

    #[test]
    fn markers_of_latents_stay_with_und() {
        let s = lay(&[Segment::Text(vec![1]), Segment::Noise(Grid { t: 1, h: 1, w: 2 })], Cursor::default());
        let spans = [(0..2, Expert::Und), (2..4, Expert::Gen), (4..5, Expert::Und)];
        assert_eq!(s.spans(), spans.map(|(rows, expert)| Span { rows, expert }));
    }

    #[test]
    fn a_sequence_goes_on_where_another_ended() {
        let segments = [
            Segment::Text(vec![1, 2]),
            Segment::Vit(Grid { t: 1, h: 4, w: 2 }),
            Segment::Vit(Grid { t: 2, h: 1, w: 1 }),
            Segment::Text(vec![]),
            Segment::Text(vec![3, 4]),
        ];
        let whole = lay(&segments, Cursor::default());
        for cut in 0..=segments.len() {
            let first = lay(&segments[..cut], Cursor::default());
            let second = lay(&segments[cut..], first.end());
            assert_eq!(second.end(), whole.end(), "{cut}");
            for axis in 0..3 {
                let joined = [first.positions()[axis].as_slice(), &second.positions()[axis]].concat();
                assert_eq!(joined, whole.positions()[axis], "{cut}");
            }
            let joined = Sequence::join(&[first.clone(), second.clone()]);
            assert_eq!((joined.ids(), joined.positions()), (whole.ids(), whole.positions()), "{cut}");
            assert_eq!((joined.blocks(), joined.visual()), (whole.blocks(), whole.visual()), "{cut}");
            assert_eq!(joined.end(), whole.end(), "{cut}");
            let keys: Vec<_> = first.blocks().iter().chain(second.blocks()).map(|b| b.keys.clone()).collect();
            assert_eq!(keys, whole.blocks().iter().map(|b| b.keys.clone()).collect::<Vec<_>>(), "{cut}");
        }
    }

    #[test]
    fn spans_cover_every_row_once() {
        let s = lay(
            &[
                Segment::Clean(Grid { t: 1, h: 2, w: 2 }),
                Segment::Text(vec![1]),
                Segment::Vit(Grid { t: 1, h: 1, w: 1 }),
                Segment::Noise(Grid { t: 1, h: 2, w: 2 }),
            ],
            Cursor { rows: 5, position: 3 },
        );
        let mut next = 0;
        for span in s.spans() {
            assert_eq!(span.rows.start, next);
            next = span.rows.end;
        }
        assert_eq!(next, s.len());
    }
}

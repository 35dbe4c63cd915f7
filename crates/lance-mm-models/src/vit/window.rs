//! Order of merge groups in windows, borders of windows and frames, rotary angles.

use candle_core::Device;
use lance_mm_tensor::{Block, Result, RotaryTable};

use crate::config::VitConfig;
use crate::sequence::Grid;

/// How the patches of some pictures are ordered and cut for the blocks of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct VitLayout {
    /// Merge group at every slot of the window order.
    pub window_index: Vec<u32>,
    /// Borders of windows, in patches of the window order, from 0 to N.
    pub cu_window_seqlens: Vec<usize>,
    /// Borders of frame pairs, in patches, from 0 to N: what full blocks attend within.
    pub cu_seqlens: Vec<usize>,
    /// `(N, head_dim/2)` angles in merge-group order: row angles, then column angles.
    pub rotary_angles: Vec<f32>,
}

/// Base of the rotary frequencies of the vision transformer.
const THETA: f64 = 10000.0;

impl VitLayout {
    /// The layout for patch grids whose sides are multiples of the merge size.
    ///
    /// Windows go from top left to bottom right of every frame pair, are cut at the right and bottom edge
    /// and never padded; groups inside go row by row.
    pub fn new(config: &VitConfig, grids: &[Grid]) -> Self {
        let unit = config.spatial_merge_size * config.spatial_merge_size;
        let side = config.window_groups();
        let mut layout = Self {
            window_index: Vec::new(),
            cu_window_seqlens: vec![0],
            cu_seqlens: vec![0],
            rotary_angles: Vec::new(),
        };
        for grid in grids {
            let groups = grid.merged(config.spatial_merge_size);
            for _ in 0..grid.t {
                let offset = layout.window_index.len() as u32;
                for top in (0..groups.h).step_by(side) {
                    for left in (0..groups.w).step_by(side) {
                        layout.push_window(
                            offset,
                            groups.w,
                            top..(top + side).min(groups.h),
                            left..(left + side).min(groups.w),
                        );
                        layout.cu_window_seqlens.push(layout.window_index.len() * unit);
                    }
                }
                layout.cu_seqlens.push(layout.window_index.len() * unit);
                layout.push_angles(config, groups);
            }
        }
        layout
    }

    fn push_window(
        &mut self,
        offset: u32,
        width: usize,
        rows: std::ops::Range<usize>,
        cols: std::ops::Range<usize>,
    ) {
        for r in rows {
            self.window_index.extend(cols.clone().map(|c| offset + (r * width + c) as u32));
        }
    }

    /// Angles of one frame pair's patches at their row and column.
    fn push_angles(&mut self, config: &VitConfig, groups: Grid) {
        let m = config.spatial_merge_size;
        let quarter = config.hidden_size / config.num_heads / 4;
        let frequencies: Vec<f32> =
            (0..quarter).map(|j| THETA.powf(-(j as f64) / quarter as f64) as f32).collect();
        for group in 0..groups.h * groups.w {
            let (top, left) = (group / groups.w * m, group % groups.w * m);
            for inner in 0..m * m {
                for position in [top + inner / m, left + inner % m] {
                    self.rotary_angles.extend(frequencies.iter().map(|f| position as f32 * f));
                }
            }
        }
    }

    /// Slot of the window order at which every merge group lies.
    pub(crate) fn inverse_index(&self) -> Vec<u32> {
        let mut inverse = vec![0; self.window_index.len()];
        for (slot, group) in self.window_index.iter().enumerate() {
            inverse[*group as usize] = slot as u32;
        }
        inverse
    }

    /// The rotary table in window order.
    pub(crate) fn rotary_table(&self, config: &VitConfig, device: &Device) -> Result<RotaryTable> {
        let half = config.hidden_size / config.num_heads / 2;
        let width = half * config.spatial_merge_size * config.spatial_merge_size;
        let angles: Vec<f32> = self
            .window_index
            .iter()
            .flat_map(|group| &self.rotary_angles[*group as usize * width..][..width])
            .copied()
            .collect();
        RotaryTable::from_angles(&angles, half, device)
    }

    /// Attention within windows.
    pub(crate) fn windows(&self) -> Vec<Block> {
        intervals(&self.cu_window_seqlens)
    }

    /// Attention within frame pairs.
    pub(crate) fn frames(&self) -> Vec<Block> {
        intervals(&self.cu_seqlens)
    }
}

fn intervals(borders: &[usize]) -> Vec<Block> {
    borders.windows(2).map(|pair| Block::full(pair[0]..pair[1], pair[0]..pair[1])).collect()
}

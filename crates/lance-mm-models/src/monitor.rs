//! Attachments of a pass: a probe for its intermediates, a flag that ends it.

use std::fmt;

use candle_core::Tensor;
use lance_mm_tensor::{Result, StopFlag};

/// Observer of named intermediates of a pass: names are checkpoint paths (`layers.0.self_attn.q_proj`), tensors
/// cover all tokens. Used to compare with references and to gather statistics. An error it returns ends the pass.
pub type Probe<'a> = dyn FnMut(fmt::Arguments<'_>, &Tensor) -> Result<()> + 'a;

/// Optional probe and optional stop flag of one pass. Networks ask [`is_probed`](Self::is_probed) before they fuse
/// operations whose intermediates a probe would want; a stop flag changes no arithmetic.
#[derive(Default)]
pub(crate) struct Monitor<'a> {
    pub(crate) probe: Option<&'a mut Probe<'a>>,
    pub(crate) stop: Option<&'a StopFlag>,
}

impl<'a> Monitor<'a> {
    pub(crate) fn probed(probe: &'a mut Probe<'_>) -> Self {
        Self { probe: Some(probe), stop: None }
    }

    pub(crate) fn until(stop: Option<&'a StopFlag>) -> Self {
        Self { probe: None, stop }
    }

    /// Whether someone observes intermediates.
    pub(crate) fn is_probed(&self) -> bool {
        self.probe.is_some()
    }

    /// Shows an intermediate to the probe, if there is one.
    pub(crate) fn show(&mut self, name: fmt::Arguments<'_>, x: &Tensor) -> Result<()> {
        self.probe.as_mut().map_or(Ok(()), |probe| probe(name, x))
    }

    /// Ends the calling function with `?` once the stop flag is set.
    pub(crate) fn check(&self) -> Result<()> {
        self.stop.map_or(Ok(()), StopFlag::check)
    }
}

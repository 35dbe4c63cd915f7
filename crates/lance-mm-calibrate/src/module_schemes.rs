//! Bits and group size of every module.

use std::collections::BTreeMap;

use lance_mm_tensor::Scheme;

use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// Bits and group size by module.
pub(crate) struct ModuleSchemes {
    linear: Scheme,
    embed: Scheme,
    head: Scheme,
    vit: Option<Scheme>,
    /// Modules with a share of a budget; they come before the others.
    allocated: BTreeMap<String, Option<Scheme>>,
}

impl ModuleSchemes {
    pub(crate) fn new(
        recipe: Recipe,
        bits: usize,
        group: usize,
        uniform: bool,
        vit: Option<usize>,
    ) -> Result<Self> {
        let linear = Scheme::affine(bits, group)?;
        // Head and embedding decide tokens and are a tenth of the weights: two bits and half a group more.
        let wider = |more: usize| Scheme::affine(wider_bits(bits, more), group.min(64));
        let (embed, head) = match recipe {
            Recipe::Awq if !uniform => (wider(0)?, wider(2)?),
            _ => (linear, linear),
        };
        let vit = match vit {
            None => None,
            Some(bits @ (4 | 8)) => Some(Scheme::affine(bits, 64)?),
            Some(other) => return Err(Error::option("vit_bits", "8 or 4", other)),
        };
        Ok(Self { linear, embed, head, vit, allocated: BTreeMap::new() })
    }

    /// Sets modules to their share of a budget; `None` is bf16.
    pub(crate) fn with(self, allocated: BTreeMap<String, Option<Scheme>>) -> Self {
        Self { allocated, ..self }
    }

    /// Scheme of the linear layer `path`; `None` leaves it in bf16: a budget says so, or its columns are not whole
    /// groups of any size.
    pub(crate) fn linear(&self, path: &str, cols: usize) -> Option<Scheme> {
        self.of(path, self.linear, cols)
    }

    pub(crate) fn embed(&self, cols: usize) -> Option<Scheme> {
        self.of("embed_tokens", self.embed, cols)
    }

    pub(crate) fn head(&self, cols: usize) -> Option<Scheme> {
        self.of("lm_head", self.head, cols)
    }

    fn of(&self, path: &str, default: Scheme, cols: usize) -> Option<Scheme> {
        self.allocated.get(path).copied().unwrap_or_else(|| fitting(default, cols))
    }

    /// Whether the vision encoder is quantized.
    pub(crate) fn packs_vit(&self) -> bool {
        self.vit.is_some()
    }

    /// Scheme of a matrix of the vision encoder.
    pub(crate) fn vit(&self, cols: usize) -> Option<Scheme> {
        self.vit.filter(|s| cols.is_multiple_of(s.group_size()))
    }
}

/// The scheme with the largest group that divides the columns.
fn fitting(scheme: Scheme, cols: usize) -> Option<Scheme> {
    let group = [128, 64, 32].into_iter().find(|g| *g <= scheme.group_size() && cols.is_multiple_of(*g))?;
    Scheme::affine(scheme.bits(), group).ok()
}

fn wider_bits(bits: usize, more: usize) -> usize {
    match bits + more {
        7.. => 8,
        sum => sum,
    }
}

//! The machine and its limits.

use std::time::Duration;

use lance_mm_tensor::roofline::{self, Peak, ReadBuffer};
use serde::Serialize;

use super::measurement::Measurement;

/// Bytes read through for the bandwidth.
const BUFFER: usize = 512 << 20;
/// Time to compute for a peak.
const PEAK_TIME: Duration = Duration::from_millis(60);

pub(super) const BANDWIDTH: &str = "read bandwidth";

/// Limits met in the course of a run.
#[derive(Default)]
pub(super) struct Limits {
    buffer: Option<ReadBuffer>,
    bandwidth: Vec<f64>,
    int8: Vec<Peak>,
    bf16: Vec<Peak>,
}

impl Limits {
    /// Bytes a second now.
    pub(super) fn bandwidth(&mut self) -> f64 {
        let buffer = self.buffer.get_or_insert_with(|| ReadBuffer::new(BUFFER));
        let found = buffer.read(2);
        self.bandwidth.push(found);
        found
    }

    /// Operations on int8 values a second now.
    pub(super) fn int8(&mut self) -> f64 {
        let found = roofline::int8(PEAK_TIME);
        self.int8.push(found);
        found.per_second
    }

    /// Operations on bf16 values a second now.
    pub(super) fn bf16(&mut self) -> f64 {
        let found = roofline::bf16(PEAK_TIME);
        self.bf16.push(found);
        found.per_second
    }

    /// Releases the memory that is read through, to measure that of models.
    pub(super) fn release(&mut self) {
        self.buffer = None;
    }
}

/// The machine that models were measured on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Name of the processor, where the system tells it.
    pub cpu: Option<String>,
    /// Its architecture.
    pub arch: &'static str,
    /// The operating system.
    pub os: &'static str,
    /// Threads of the pool.
    pub threads: usize,
    /// Limits met beside the measurements.
    pub limits: Vec<Measurement>,
}

impl Machine {
    pub(super) fn new(met: &Limits) -> Self {
        let mut rows = Vec::new();
        if !met.bandwidth.is_empty() {
            rows.push(Measurement::new(BANDWIDTH, "GB/s", met.bandwidth.iter().map(|v| v / 1e9).collect()));
        }
        for (what, peaks) in [("int8", &met.int8), ("bf16", &met.bf16)] {
            if let Some(first) = peaks.first() {
                let what = format!("{what} peak, {}", first.with);
                rows.push(Measurement::new(
                    what,
                    "Gop/s",
                    peaks.iter().map(|p| p.per_second / 1e9).collect(),
                ));
            }
        }
        Self {
            cpu: cpu(),
            arch: std::env::consts::ARCH,
            os: std::env::consts::OS,
            threads: roofline::threads(),
            limits: rows,
        }
    }
}

fn cpu() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

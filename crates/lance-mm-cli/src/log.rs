//! `--log` and `RUST_LOG`: events and timed stages of the libraries on standard error.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{format::FmtSpan, layer, time};
use tracing_subscriber::prelude::*;

use crate::output::LogWriter;

/// Prints what `targets` let through; a stage when it ends, with its time. Does nothing where a front end logs already.
pub(crate) fn init(targets: Targets) {
    let lines = layer().with_writer(|| LogWriter).with_ansi(false).with_timer(time::uptime());
    let lines = lines.with_span_events(FmtSpan::CLOSE).with_filter(targets);
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

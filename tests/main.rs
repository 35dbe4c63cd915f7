//! Tests of lance-mm through its facade: parity with recorded numbers of the original, whole checkpoints,
//! what a damaged folder says. Nothing here needs the network or files outside the repository.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be read fails the test")]

mod checkpoints;
mod experts;
mod generate;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod plans;
#[cfg(target_os = "linux")]
mod simulator;
mod support;
#[cfg(target_os = "linux")]
mod towers;

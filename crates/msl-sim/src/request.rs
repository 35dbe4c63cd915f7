//! Input and output of a compiled program; `shim/msl_main.hpp` has the other side.

use anyhow::{Context, Result};

use crate::{Arg, Launch, Stats};

pub(crate) fn encode(launch: &Launch<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, launch.kernel.len());
    out.extend(launch.kernel.as_bytes());
    for x in launch.groups.iter().chain(&launch.threads) {
        out.extend(x.to_le_bytes());
    }
    out.extend(launch.order.to_le_bytes());
    out.extend(u32::from(launch.allow_early_exit).to_le_bytes());
    number(&mut out, launch.constants.len());
    for (index, bytes) in &launch.constants {
        out.extend(index.to_le_bytes());
        number(&mut out, bytes.len());
        out.extend(bytes);
    }
    number(&mut out, launch.args.len());
    for arg in &launch.args {
        let (kind, index, len, bytes): (u32, u32, u64, &[u8]) = match arg {
            Arg::Buffer(index, bytes) => (0, *index, bytes.len() as u64, bytes),
            Arg::Bytes(index, bytes) => (1, *index, bytes.len() as u64, bytes),
            Arg::Threadgroup(index, len) => (2, *index, *len, &[]),
        };
        out.extend(kind.to_le_bytes());
        out.extend(index.to_le_bytes());
        out.extend(len.to_le_bytes());
        out.extend(bytes);
    }
    out
}

fn number(out: &mut Vec<u8>, n: usize) {
    out.extend(u32::try_from(n).expect("names, constants and arguments are few and short").to_le_bytes());
}

/// Writes the buffers back.
pub(crate) fn decode(mut response: &[u8], launch: Launch<'_>) -> Result<Stats> {
    let short = "the kernel's response is short";
    for arg in launch.args {
        if let Arg::Buffer(_, bytes) = arg {
            bytes.copy_from_slice(response.split_off(..bytes.len()).context(short)?);
        }
    }
    let peak = response.first_chunk().context(short)?;
    Ok(Stats { threadgroup_bytes: u64::from_le_bytes(*peak) })
}

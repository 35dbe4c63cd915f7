//! Decompression of strips and tiles.

use std::io::Read;

use weezl::{BitOrder, LzwStatus};

use super::ccitt::{self, Coding};
use crate::fault::Fault;

/// How strips and tiles are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Lzw,
    Deflate,
    PackBits,
    Fax(Coding),
    Jpeg,
}

impl Compression {
    /// The compression of a number (tag 259); `t4_options` is tag 292.
    pub(crate) fn of(number: u64, t4_options: u64) -> Result<Self, Fault> {
        Ok(match number {
            1 => Self::None,
            2 => Self::Fax(Coding::RunLengths),
            3 => Self::Fax(Coding::Group3 { mixed: t4_options & 1 != 0 }),
            4 => Self::Fax(Coding::Group4),
            5 => Self::Lzw,
            7 => Self::Jpeg,
            8 | 32946 => Self::Deflate,
            32773 => Self::PackBits,
            number => {
                let name = match number {
                    6 => "old-style JPEG",
                    32809 => "ThunderScan",
                    34887 => "LERC",
                    34925 => "LZMA",
                    50000 => "Zstandard",
                    50001 => "WebP",
                    50002 => "JPEG XL",
                    33003 | 33005 | 34712 => "JPEG 2000",
                    _ => return Err(Fault::unsupported(format!("compression {number}"))),
                };
                return Err(Fault::unsupported(format!("{name} compression")));
            }
        })
    }

    /// Decompresses a strip or tile of samples: `rows` rows of `row_len` bytes, which hold `width` pixels of fax codes.
    pub(crate) fn decode(
        self,
        data: &[u8],
        width: usize,
        rows: usize,
        row_len: usize,
    ) -> Result<Vec<u8>, Fault> {
        let len = rows * row_len;
        let mut out = match self {
            Self::None => data[..len.min(data.len())].to_vec(),
            Self::PackBits => pack_bits(data, len),
            Self::Lzw => lzw(data, len)?,
            Self::Deflate => {
                let mut out = Vec::new();
                let mut decoder = flate2::read::ZlibDecoder::new(data).take(len as u64);
                decoder.read_to_end(&mut out).map_err(Fault::damaged)?;
                out
            }
            Self::Fax(coding) => ccitt::decode(data, width, rows, coding)?,
            Self::Jpeg => return Err(Fault::unsupported("JPEG samples of this kind")),
        };
        if out.len() < len {
            return Err(Fault::ends_early());
        }
        out.truncate(len);
        Ok(out)
    }
}

/// Codes from 9 to 12 bits, the first in the high bits. Writers of old began at the low bits.
fn lzw(data: &[u8], len: usize) -> Result<Vec<u8>, Fault> {
    if let [0, second, ..] = data
        && second & 1 == 1
    {
        return Err(Fault::unsupported("LZW compression of the old style"));
    }
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
    let mut out = vec![0; len];
    let (mut read, mut written) = (0, 0);
    while written < len {
        let step = decoder.decode_bytes(&data[read..], &mut out[written..]);
        read += step.consumed_in;
        written += step.consumed_out;
        match step.status.map_err(Fault::damaged)? {
            LzwStatus::Ok => {}
            LzwStatus::NoProgress | LzwStatus::Done => break,
        }
    }
    out.truncate(written);
    Ok(out)
}

/// Runs and literals, each after its length.
fn pack_bits(data: &[u8], len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    let mut rest = data;
    while let [count, after @ ..] = rest
        && out.len() < len
    {
        let count = usize::from(*count);
        rest = match count {
            0..128 => {
                let (literal, after) = after.split_at((count + 1).min(after.len()));
                out.extend(literal);
                after
            }
            128 => after,
            _ => {
                let Some((value, after)) = after.split_first() else { break };
                out.extend(std::iter::repeat_n(*value, 257 - count));
                after
            }
        };
    }
    out
}

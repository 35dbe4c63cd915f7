//! PNM: `P1` to `P6`, text and binary, and `P7` (PAM); samples of up to 16 bits.

use crate::decoded::Decoded;
use crate::fault::Fault;
use crate::limits::Budget;
use crate::rgb::{Alpha, Colours, Layout, unpack};
use crate::size::Size;

/// Bytes that a pixel takes: samples and RGB.
const MEMORY: u64 = 6;

/// Decodes the first image of a file.
pub(crate) fn decode(bytes: &[u8], budget: &Budget<'_>) -> Result<Decoded, Fault> {
    let kind = match bytes {
        [b'P', b'7', ..] => return arbitrary_map(bytes, budget),
        [b'P', kind @ b'1'..=b'6', ..] => kind - b'0',
        _ => return Err(Fault::ends_early()),
    };
    let mut tokens = Tokens { bytes, at: 2 };
    let (width, height) = (tokens.number()?, tokens.number()?);
    let size = Size { width, height };
    budget.check(size, MEMORY)?;
    let is_bitmap = matches!(kind, 1 | 4);
    let most = if is_bitmap { 1 } else { tokens.number()? };
    let colours = if matches!(kind, 3 | 6) { Colours::Rgb } else { Colours::Gray };
    let n = size.area() as usize * colours.count();
    let samples = match kind {
        1 => tokens.bits(n)?,
        2 | 3 => (0..n)
            .map(|_| Ok(scaled(tokens.number()?, most.max(1), colours)))
            .collect::<Result<_, Fault>>()?,
        4 => {
            let stride = (width as usize).div_ceil(8);
            let data = tokens.data(stride * height as usize)?;
            let rows = data.chunks_exact(stride.max(1));
            // 1 is black.
            rows.flat_map(|row| unpack(row, 1, true).take(width as usize)).map(|v| !v).collect()
        }
        _ => binary(&mut tokens, n, most, colours)?,
    };
    let pixels = match colours {
        Colours::Rgb => samples,
        _ => Layout::opaque(colours).rgb(&samples).flatten().collect(),
    };
    Ok(Decoded { size, pixels, orientation: None })
}

/// Decodes a `P7`: lines of a keyword and a value, then samples.
fn arbitrary_map(bytes: &[u8], budget: &Budget<'_>) -> Result<Decoded, Fault> {
    const END: &[u8] = b"\nENDHDR\n";
    let header = bytes.windows(END.len()).take(4096).position(|window| window == END);
    let header = header.ok_or_else(|| Fault::damaged("expected ENDHDR, found none"))?;
    let value = |key: &str| {
        let lines = bytes[..header].split(|byte| *byte == b'\n');
        let mut fields = lines.filter_map(|line| std::str::from_utf8(line).ok()?.split_once(' '));
        let value = fields.find(|(found, _)| *found == key).map(|(_, value)| value.trim());
        value.ok_or_else(|| Fault::damaged(format!("expected {key}, found none")))
    };
    let number = |key| {
        let value = value(key)?;
        value
            .parse::<u32>()
            .map_err(|_| Fault::damaged(format!("expected a number as {key}, found {value:?}")))
    };
    let (size, most) = (Size { width: number("WIDTH")?, height: number("HEIGHT")? }, number("MAXVAL")?);
    budget.check(size, MEMORY)?;
    let layout = match number("DEPTH")? {
        1 => Layout::opaque(Colours::Gray),
        2 => Layout { alpha: Alpha::Ignored, ..Layout::with_alpha(Colours::Gray) },
        3 => Layout::opaque(Colours::Rgb),
        4 => Layout::with_alpha(Colours::Rgb),
        depth => return Err(Fault::unsupported(format!("{depth} samples a pixel"))),
    };
    let n = size.area() as usize * layout.samples;
    let samples = binary(&mut Tokens { bytes, at: header + END.len() }, n, most, layout.colours)?;
    Ok(Decoded { size, pixels: layout.rgb(&samples).flatten().collect(), orientation: None })
}

/// `n` samples of one or two bytes.
fn binary(tokens: &mut Tokens<'_>, n: usize, most: u32, colours: Colours<'_>) -> Result<Vec<u8>, Fault> {
    if !(1..=65535).contains(&most) {
        return Err(Fault::damaged(format!("expected a largest value of 1 to 65535, found {most}")));
    }
    if most > 255 {
        let pairs = tokens.data(2 * n)?.as_chunks::<2>().0;
        return Ok(pairs.iter().map(|v| scaled(u16::from_be_bytes(*v).into(), most, colours)).collect());
    }
    Ok(tokens.data(n)?.iter().map(|v| scaled((*v).into(), most, colours)).collect())
}

/// A sample of 0 to 255, rounded as Pillow does. Gray of 16 bits keeps its high byte, as in other formats.
fn scaled(value: u32, most: u32, colours: Colours<'_>) -> u8 {
    let value = value.min(most);
    if most > 255 && matches!(colours, Colours::Gray) {
        let wide = (f64::from(value) / f64::from(most) * 65535.0).round_ties_even();
        return (wide as u16 >> 8) as u8;
    }
    (f64::from(value) / f64::from(most) * 255.0).round_ties_even() as u8
}

/// Numbers between white space and comments, then data.
struct Tokens<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    /// The next byte that is neither white space nor part of a comment.
    fn visible(&mut self) -> Result<u8, Fault> {
        loop {
            match self.next().ok_or_else(Fault::ends_early)? {
                b'#' => while !matches!(self.next(), None | Some(b'\n' | b'\r')) {},
                byte if byte.is_ascii_whitespace() || byte == 0x0b => {}
                byte => return Ok(byte),
            }
        }
    }

    /// A number and the one white space after it.
    fn number(&mut self) -> Result<u32, Fault> {
        let mut byte = Some(self.visible()?);
        let mut number: u32 = 0;
        loop {
            match byte {
                Some(digit @ b'0'..=b'9') => {
                    let digit = u32::from(digit - b'0');
                    number = number
                        .checked_mul(10)
                        .and_then(|number| number.checked_add(digit))
                        .ok_or_else(|| Fault::damaged("found a number that is too large"))?;
                }
                Some(byte) if byte.is_ascii_whitespace() => return Ok(number),
                Some(b'#') => {
                    self.at -= 1;
                    return Ok(number);
                }
                None => return Ok(number),
                Some(byte) => {
                    let found = char::from(byte).escape_default();
                    return Err(Fault::damaged(format!("expected a number, found '{found}'")));
                }
            }
            byte = self.next();
        }
    }

    /// `n` digits 0 (white) or 1 (black), with or without white space.
    fn bits(&mut self, n: usize) -> Result<Vec<u8>, Fault> {
        let bit = |byte| match byte {
            b'0' => Ok(255),
            b'1' => Ok(0),
            byte => {
                let found = char::from(byte).escape_default();
                Err(Fault::damaged(format!("expected 0 or 1, found '{found}'")))
            }
        };
        (0..n).map(|_| self.visible().and_then(bit)).collect()
    }

    /// The next `n` bytes.
    fn data(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        self.bytes.get(self.at..).and_then(|rest| rest.get(..n)).ok_or_else(Fault::ends_early)
    }
}

//! Fax codes of bilevel images: ITU-T T.4 in one and two dimensions, T.6, and the run lengths of TIFF.

use std::convert::Infallible;

use fax::maps::{Mode, black, mode, white};
use fax::{BitReader, ByteReader};

use crate::fault::Fault;

/// Coding of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Runs; every row begins at a byte.
    RunLengths,
    /// T.4: rows follow end-of-line codes; with `mixed`, a bit after each says how the row is coded.
    Group3 {
        /// Two dimensions.
        mixed: bool,
    },
    /// T.6: every row refers to the one above it.
    Group4,
}

/// Rows of a strip, packed eight pixels a byte; 1 is black. Rows that the codes leave out are white, as encoders that
/// stop early mean them.
pub(crate) fn decode(data: &[u8], width: usize, rows: usize, coding: Coding) -> Result<Vec<u8>, Fault> {
    let stride = width.div_ceil(8);
    let mut out = vec![0; stride * rows];
    // Tables of codes look at more bits than the last code has.
    let padded = data.iter().copied().chain([0; 4]).map(Ok::<u8, Infallible>);
    let Ok(reader) = ByteReader::new(padded);
    let mut rows = Rows { reader, width, left: 8 * data.len(), above: Vec::new(), row: Vec::new() };
    for out in out.chunks_exact_mut(stride.max(1)) {
        let found = match coding {
            Coding::RunLengths => rows.runs(true)?,
            Coding::Group3 { mixed } => {
                if !rows.after_end_of_line() {
                    false
                } else if mixed && rows.bit() == Some(0) {
                    rows.relative()?
                } else {
                    rows.runs(false)?
                }
            }
            Coding::Group4 => rows.relative()?,
        };
        if !found {
            break;
        }
        fill(&rows.row, width, out);
        std::mem::swap(&mut rows.above, &mut rows.row);
    }
    Ok(out)
}

/// Sets the bits between every odd change and the next.
fn fill(changes: &[usize], width: usize, out: &mut [u8]) {
    for pair in changes.chunks(2) {
        let end = pair.get(1).copied().unwrap_or(width).min(width);
        for x in pair[0].min(end)..end {
            out[x / 8] |= 0x80 >> (x % 8);
        }
    }
}

/// Rows as the places where their colour changes; the first run is white.
struct Rows<R> {
    reader: ByteReader<R>,
    width: usize,
    /// Bits of the data that are left.
    left: usize,
    above: Vec<usize>,
    row: Vec<usize>,
}

/// A reader that counts bits.
struct Counted<'a, R> {
    reader: &'a mut ByteReader<R>,
    left: &'a mut usize,
}

impl<R: Iterator<Item = Result<u8, Infallible>>> BitReader for Counted<'_, R> {
    type Error = Infallible;

    fn peek(&self, bits: u8) -> Option<u16> {
        self.reader.peek(bits)
    }

    fn consume(&mut self, bits: u8) -> Result<(), Infallible> {
        *self.left = self.left.saturating_sub(usize::from(bits));
        self.reader.consume(bits)
    }

    fn bits_to_byte_boundary(&self) -> u8 {
        self.reader.bits_to_byte_boundary()
    }
}

impl<R: Iterator<Item = Result<u8, Infallible>>> Rows<R> {
    fn bits(&mut self) -> Counted<'_, R> {
        Counted { reader: &mut self.reader, left: &mut self.left }
    }

    fn bit(&mut self) -> Option<u16> {
        let bit = self.reader.peek(1);
        let Ok(()) = self.bits().consume(1);
        bit
    }

    /// A run: codes of 64 and more, then one below.
    fn run(&mut self, is_black: bool) -> Result<usize, Fault> {
        let mut sum = 0;
        loop {
            let mut bits = self.bits();
            let code = if is_black { black::decode(&mut bits) } else { white::decode(&mut bits) };
            let code = usize::from(code.ok_or_else(|| Fault::damaged("found no fax code"))?);
            sum += code;
            if code < 64 || sum > self.width {
                return Ok(sum);
            }
        }
    }

    /// Reads a row of runs; `false` at the end of the data.
    fn runs(&mut self, aligned: bool) -> Result<bool, Fault> {
        if self.left < 2 {
            return Ok(false);
        }
        self.row.clear();
        let (mut x, mut is_black) = (0, false);
        while x < self.width {
            x += self.run(is_black)?;
            if x < self.width {
                self.row.push(x);
            }
            is_black = !is_black;
        }
        if aligned {
            let extra = self.left % 8;
            let Ok(()) = self.bits().consume(extra as u8);
        }
        Ok(true)
    }

    /// Skips fill bits and an end-of-line code before a row, which the first row may lack; `false` at the end.
    fn after_end_of_line(&mut self) -> bool {
        const ZEROS: u8 = 11;
        if self.reader.peek(ZEROS) != Some(0) {
            // Some writers leave the codes out.
            return self.left >= 2;
        }
        while self.left > 0 && self.reader.peek(1) == Some(0) {
            self.bit();
        }
        self.bit();
        // Two codes in a row end the image.
        self.left >= 2 && self.reader.peek(ZEROS) != Some(0)
    }

    /// Reads a row of changes relative to the row above; `false` at the end of the data.
    fn relative(&mut self) -> Result<bool, Fault> {
        self.row.clear();
        let (mut x, mut is_black, mut started) = (0, false, false);
        while x < self.width {
            if self.left == 0 {
                return if started { Err(Fault::ends_early()) } else { Ok(false) };
            }
            let found = mode::decode(&mut self.bits());
            let (b1, b2) = self.changes_above(x, is_black, started);
            match found {
                Some(Mode::Pass) => x = b2,
                Some(Mode::Vertical(delta)) => {
                    let change = b1.checked_add_signed(isize::from(delta)).filter(|change| *change >= x);
                    x = change.ok_or_else(|| Fault::damaged("found a fax code that goes back"))?;
                    if x < self.width {
                        self.row.push(x);
                    }
                    is_black = !is_black;
                }
                Some(Mode::Horizontal) => {
                    for colour in [is_black, !is_black] {
                        x += self.run(colour)?;
                        if x < self.width {
                            self.row.push(x);
                        }
                    }
                }
                Some(Mode::EOF) if !started => return Ok(false),
                Some(Mode::EOF | Mode::Extension) | None => {
                    return Err(Fault::damaged("found no fax code"));
                }
            }
            started = true;
        }
        Ok(true)
    }

    /// The first change above to the right of `x` to the other colour, and the next.
    fn changes_above(&self, x: usize, is_black: bool, started: bool) -> (usize, usize) {
        // Changes at even indices are from white to black.
        let is_after = |change: usize| change > x || (!started && change == 0);
        let first = self.above.partition_point(|change| !is_after(*change));
        let first = if first % 2 == usize::from(is_black) { first } else { first + 1 };
        let at = |i: usize| self.above.get(i).copied().unwrap_or(self.width);
        (at(first), at(first + 1))
    }
}

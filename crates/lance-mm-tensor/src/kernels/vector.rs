//! Sixty-four bytes at a time: the operations that kernels are written in, once for every instruction set. Each set does
//! the same arithmetic in the same order, so that all give the same bits where nothing but [`Simd::mul_add`] differs.
//!
//! ```text
//! Bytes    64 x u8 or i8     AVX-512: one register   AVX2: two   NEON: four   portable: an array
//! Ints     16 x i32          lane i holds bytes 4·i to 4·i + 3
//! Floats   16 x f32
//!
//! quarters                   16 bytes each: what AVX-512 and AVX2 transpose within, and NEON holds in a register
//! ```
//!
//! The width is that of AVX-512, so that the narrower sets run two or four instructions for one operation, which also
//! hide the latency of each other.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;

#[cfg(target_arch = "x86_64")]
use super::amx::AmxBf16;

/// An instruction set. A value of an implementing type proves that this processor has it.
pub(super) trait Simd: Copy + Send + Sync {
    /// Sixty-four bytes.
    type Bytes: Copy;
    /// Sixteen i32.
    type Ints: Copy;
    /// Sixteen f32.
    type Floats: Copy;

    /// Whether a product and a sum are one instruction.
    const FMA: bool;

    fn load(self, from: &[u8; 64]) -> Self::Bytes;
    /// Four times sixteen bytes.
    fn load_quarters(self, from: [&[u8; 16]; 4]) -> Self::Bytes;
    fn store(self, bytes: Self::Bytes, to: &mut [u8; 64]);
    /// Four bytes, sixteen times.
    fn splat_four(self, from: [u8; 4]) -> Self::Bytes;
    /// Low and high four bits of every byte.
    fn nibbles(self, bytes: Self::Bytes) -> [Self::Bytes; 2];
    /// Sixteen codes of a few bits in each quarter, to a byte each.
    fn spread(self, packed: Self::Bytes, codes: &Spread) -> Self::Bytes;
    /// In each quarter of four registers, which holds four times four words of four bytes, rows become columns.
    fn transpose_words(self, rows: &mut [Self::Bytes; 4]);
    /// Quarter `i` of register `j` becomes quarter `j` of register `i`.
    fn transpose_quarters(self, rows: &mut [Self::Bytes; 4]);
    /// Transposes sixteen rows of sixteen four-byte words.
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::Bytes; 16]) {
        for rows in rows.as_chunks_mut::<4>().0 {
            self.transpose_words(rows);
        }
        // Quarter l of register 4 j + i holds column 4 l + i of rows 4 j to 4 j + 3.
        for i in 0..4 {
            let mut column = [rows[i], rows[4 + i], rows[8 + i], rows[12 + i]];
            self.transpose_quarters(&mut column);
            for l in 0..4 {
                rows[4 * l + i] = column[l];
            }
        }
    }

    fn zero_ints(self) -> Self::Ints;
    /// Adds to each i32 the products of the four unsigned bytes of `codes` in its place with the four signed
    /// ones of `x`. `WIDE` says that codes may exceed 127.
    fn dot<const WIDE: bool>(self, sums: Self::Ints, codes: Self::Bytes, x: Self::Bytes) -> Self::Ints;
    fn times_256(self, ints: Self::Ints) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;

    fn splat(self, value: f32) -> Self::Floats;
    /// Each of four values in four neighbouring places.
    fn splat_quarters(self, values: [f32; 4]) -> Self::Floats;
    fn load_floats(self, from: &[f32; 16]) -> Self::Floats;
    /// Widens sixteen bf16 values, little endian.
    fn widen_bf16(self, from: &[u8; 32]) -> Self::Floats;
    /// Widens sixteen bf16 values, given as bits.
    #[inline(always)]
    fn widen_bits(self, from: &[u16; 16]) -> Self::Floats {
        let mut bytes = [0; 32];
        for (bytes, bits) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(from) {
            *bytes = bits.to_le_bytes();
        }
        self.widen_bf16(&bytes)
    }
    fn store_floats(self, floats: Self::Floats, to: &mut [f32; 16]);
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, in one rounding with [`FMA`](Self::FMA).
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// The same bits.
    fn floats_to_bytes(self, floats: Self::Floats) -> Self::Bytes;
    fn bytes_to_floats(self, bytes: Self::Bytes) -> Self::Floats;

    fn abs(self, a: Self::Floats) -> Self::Floats;
    /// The larger of two; `b` where `a` is not a number.
    fn larger(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The nearest integers, ties to even; any number for values that have none.
    fn nearest(self, a: Self::Floats) -> Self::Ints;
    fn store_ints(self, ints: Self::Ints, to: &mut [i32; 16]);
    /// The upper byte of 16 bits whose lower eight are a signed byte: `(i + 128) / 256`, rounded down.
    fn upper_byte(self, ints: Self::Ints) -> Self::Ints;
    /// The lowest byte of each.
    #[inline(always)]
    fn low_bytes(self, ints: [Self::Ints; 4]) -> Self::Bytes {
        let mut bytes = [0; 64];
        for (bytes, ints) in bytes.as_chunks_mut::<16>().0.iter_mut().zip(ints) {
            let mut lanes = [0; 16];
            self.store_ints(ints, &mut lanes);
            for (byte, lane) in bytes.iter_mut().zip(lanes) {
                *byte = lane as u8;
            }
        }
        self.load(&bytes)
    }
    /// Bytes at even places of two registers, and those at odd ones.
    #[inline(always)]
    fn even_and_odd(self, bytes: [Self::Bytes; 2]) -> [Self::Bytes; 2] {
        let (mut even, mut odd) = ([0; 64], [0; 64]);
        for (half, bytes) in bytes.into_iter().enumerate() {
            let mut all = [0; 64];
            self.store(bytes, &mut all);
            for (i, [a, b]) in all.as_chunks().0.iter().enumerate() {
                (even[32 * half + i], odd[32 * half + i]) = (*a, *b);
            }
        }
        [self.load(&even), self.load(&odd)]
    }

    /// Prefetches the cache line at an address, which need not be valid, into the second-level cache.
    fn prefetch(self, at: *const u8);
    /// Runs a kernel compiled for this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}

/// Places of sixteen codes of 2, 3, 5 or 6 bits in the sixteen bytes of each quarter of a register.
///
/// ```text
/// bytes of even codes   two of the sixteen in each 16 bits, shifted down until the code is in the low byte
/// bytes of odd codes    the same, shifted until it is in the high byte; both are masked and joined
/// ```
// Seven instructions for 32 codes of AVX2. A loop over words took 1.45 ns a code, twenty times as long.
pub(super) struct Spread {
    /// Bytes that an even code lies in, two for each; 128 stands for a zero.
    even: [u8; 64],
    /// The same of odd codes.
    odd: [u8; 64],
    /// Bits below each even code: 1 to 8.
    below_even: [u32; 8],
    /// Bits below each odd code: 0 to 7.
    below_odd: [u32; 8],
    /// The bits of a code.
    mask: u8,
}

impl Spread {
    /// Codes of `bits` bits that begin in quarter `q` with byte `starts[q]`.
    pub(super) const fn new(bits: usize, starts: [usize; 4]) -> Self {
        const NONE: u8 = 128;
        let (mut even, mut odd) = ([NONE; 64], [NONE; 64]);
        let (mut below_even, mut below_odd) = ([0; 8], [0; 8]);
        let mut i = 0;
        while i < 64 {
            let (quarter, code) = (i / 16, i % 16);
            let (first, below) = (starts[quarter] + code * bits / 8, code * bits % 8);
            let second = if below + bits > 8 { first as u8 + 1 } else { NONE };
            // Two places of the register, from the even one on.
            let place = i - i % 2;
            if code % 2 == 1 {
                [odd[place], odd[place + 1]] = [first as u8, second];
                below_odd[code / 2] = below as u32;
            } else if below == 0 {
                // As the upper byte, since a factor of 2^16 would not fit.
                even[place + 1] = first as u8;
                below_even[code / 2] = 8;
            } else {
                [even[place], even[place + 1]] = [first as u8, second];
                below_even[code / 2] = below as u32;
            }
            i += 1;
        }
        Self { even, odd, below_even, below_odd, mask: ((1u32 << bits) - 1) as u8 }
    }
}

/// `2^(top - n)` for each `n`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
const fn factors(below: [u32; 8], top: u32) -> [u16; 8] {
    let mut factors = [0; 8];
    let mut i = 0;
    while i < 8 {
        factors[i] = 1 << (top - below[i]);
        i += 1;
    }
    factors
}

/// A function over any instruction set. `run` is `#[inline(always)]` in every implementation, and so is what
/// it calls: only then is it compiled for the set it is given.
pub(super) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Sum of sixteen values, in one order everywhere.
#[inline(always)]
pub(super) fn sum(v: [f32; 16]) -> f32 {
    let v: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
    let v: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
    (v[0] + v[2]) + (v[1] + v[3])
}

/// Instruction sets with kernels.
#[derive(Clone, Copy, Debug)]
pub(super) enum Isa {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2<false>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    /// AVX-512, and tiles for many tokens.
    #[cfg(target_arch = "x86_64")]
    Amx(avx512::Avx512, AmxBf16),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl Isa {
    /// The fastest set of this processor.
    pub(super) fn detect() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| Self::available().next().expect("the portable set is always there"))
    }

    /// All sets of this processor, the fastest first; the portable one is always the last.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let sets = [
            avx512::Avx512::detect().zip(AmxBf16::detect()).map(|(simd, amx)| Self::Amx(simd, amx)),
            avx512::Avx512::detect().map(Self::Avx512),
            avx2::Avx2::<true>::detect().map(Self::AvxVnni),
            avx2::Avx2::<false>::detect().map(Self::Avx2),
        ];
        #[cfg(target_arch = "aarch64")]
        let sets = [neon::Neon::detect().map(Self::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let sets = [None];
        sets.into_iter().flatten().chain([Self::Portable(portable::Portable)])
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) | Self::Amx(simd, _) => simd.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.run(kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;
    use crate::testing::seeded;

    /// Operands of every operation, in boxes of their own.
    struct Operations {
        bytes: [Box<[u8; 64]>; 16],
        /// Small integers, whose products and sums are exact.
        floats: [Box<[f32; 16]>; 3],
        /// Sixteen bf16 values.
        halves: Box<[u8; 32]>,
        bits: Box<[u16; 16]>,
    }

    impl Operations {
        fn new() -> Self {
            let byte = |i: usize| (i * 37 % 251) as u8;
            let float =
                |i: usize, step| Box::new(std::array::from_fn(|j| ((i + j * step) % 13) as f32 - 6.0));
            let bits = Box::new(std::array::from_fn(|i| (seeded(16, 1)[i].to_bits() >> 16) as u16));
            Self {
                bytes: std::array::from_fn(|i| Box::new(std::array::from_fn(|j| byte(64 * i + j)))),
                floats: [float(0, 3), float(5, 7), float(2, 5)],
                halves: Box::new(std::array::from_fn(|i| bits[i / 2].to_le_bytes()[i % 2])),
                bits,
            }
        }
    }

    fn bytes<S: Simd>(simd: S, bytes: S::Bytes) -> Vec<u8> {
        let mut out = black_box(Box::new([7; 64]));
        simd.store(bytes, &mut out);
        out.to_vec()
    }

    fn ints<S: Simd>(simd: S, ints: S::Ints) -> Vec<u8> {
        let mut out = black_box(Box::new([7; 16]));
        simd.store_ints(ints, &mut out);
        out.iter().flat_map(|i| i.to_ne_bytes()).collect()
    }

    fn floats<S: Simd>(simd: S, floats: S::Floats) -> Vec<u8> {
        let mut out = black_box(Box::new([7.0; 16]));
        simd.store_floats(floats, &mut out);
        out.iter().flat_map(|f| f.to_ne_bytes()).collect()
    }

    impl Kernel for &Operations {
        type Output = Vec<(&'static str, Vec<u8>)>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut rows = [simd.load(&self.bytes[0]); 16];
            for (row, bytes) in rows.iter_mut().zip(&self.bytes) {
                *row = simd.load(bytes);
            }
            let [x, y, z, ..] = rows;
            let quarters_of_rows = [0, 1, 2, 3].map(|i| &self.bytes[i].as_chunks().0[i]);
            let mut columns = rows;
            simd.transpose(&mut columns);
            let [mut words, mut quarters] = [[rows[0], rows[1], rows[2], rows[3]]; 2];
            simd.transpose_words(&mut words);
            simd.transpose_quarters(&mut quarters);
            let [low, high] = simd.nibbles(x);
            let [even, odd] = simd.even_and_odd([x, y]);
            let [a, b, c] = [0, 1, 2].map(|i| simd.load_floats(&self.floats[i]));
            let zero = simd.zero_ints();
            let narrow = simd.dot::<false>(zero, low, y);
            let wide = simd.dot::<true>(narrow, x, y);
            let four = simd.low_bytes([narrow, wide, simd.nearest(a), simd.nearest(b)]);
            let spread = const {
                [
                    Spread::new(2, [0, 4, 8, 12]),
                    Spread::new(3, [0; 4]),
                    Spread::new(5, [6, 0, 2, 5]),
                    Spread::new(6, [0, 1, 3, 4]),
                ]
            };
            let mut given = vec![
                ("load", bytes(simd, z)),
                ("load_quarters", bytes(simd, simd.load_quarters(quarters_of_rows))),
                ("splat_four", bytes(simd, simd.splat_four([1, 2, 3, 250]))),
                ("low nibbles", bytes(simd, low)),
                ("high nibbles", bytes(simd, high)),
                ("even", bytes(simd, even)),
                ("odd", bytes(simd, odd)),
                ("zero_ints", ints(simd, zero)),
                ("dot", ints(simd, narrow)),
                ("wide dot", ints(simd, wide)),
                ("times_256", ints(simd, simd.times_256(narrow))),
                ("add_ints", ints(simd, simd.add_ints(narrow, wide))),
                ("to_floats", floats(simd, simd.to_floats(wide))),
                ("splat", floats(simd, simd.splat(1.5))),
                ("splat_quarters", floats(simd, simd.splat_quarters([1.0, 2.0, 3.0, 4.0]))),
                ("load_floats", floats(simd, a)),
                ("widen_bf16", floats(simd, simd.widen_bf16(&self.halves))),
                ("widen_bits", floats(simd, simd.widen_bits(&self.bits))),
                ("add", floats(simd, simd.add(a, b))),
                ("mul", floats(simd, simd.mul(a, b))),
                ("mul_add", floats(simd, simd.mul_add(a, b, c))),
                ("floats_to_bytes", bytes(simd, simd.floats_to_bytes(a))),
                ("bytes_to_floats", floats(simd, simd.bytes_to_floats(simd.floats_to_bytes(c)))),
                ("abs", floats(simd, simd.abs(a))),
                ("larger", floats(simd, simd.larger(a, b))),
                ("nearest", ints(simd, simd.nearest(simd.mul(a, simd.splat(0.5))))),
                ("upper_byte", ints(simd, simd.upper_byte(wide))),
                ("low_bytes", bytes(simd, four)),
            ];
            given.extend(columns.map(|column| ("transpose", bytes(simd, column))));
            given.extend(words.map(|row| ("transpose_words", bytes(simd, row))));
            given.extend(quarters.map(|row| ("transpose_quarters", bytes(simd, row))));
            given.extend([0, 1, 2, 3].map(|i| ("spread", bytes(simd, simd.spread(x, &spread[i])))));
            // Any address.
            simd.prefetch(std::ptr::null());
            given
        }
    }

    #[test]
    fn columns_are_of_rows() {
        let operations = Operations::new();
        let given = portable::Portable.run(&operations);
        let columns: Vec<_> = given.iter().filter(|(name, _)| *name == "transpose").collect();
        assert_eq!(columns.len(), 16);
        for (i, (_, column)) in columns.into_iter().enumerate() {
            let words = operations.bytes.iter().flat_map(|row| row.as_chunks::<4>().0[i]);
            assert_eq!(*column, words.collect::<Vec<u8>>(), "column {i}");
        }
    }

    #[test]
    fn every_operation_gives_what_the_portable_one_gives() {
        let operations = black_box(Operations::new());
        let expected = portable::Portable.run(&operations);
        for isa in Isa::available() {
            for (found, expected) in isa.run(&operations).iter().zip(&expected) {
                assert_eq!(found, expected, "{isa:?}");
            }
        }
    }
}

//! Plain Rust over arrays: for machines without another set, and the twin that the others must equal.

use super::{Kernel, Simd, Spread};

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Portable;

impl Simd for Portable {
    type Bytes = [u8; 64];
    type Ints = [i32; 16];
    type Floats = [f32; 16];

    const FMA: bool = false;

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }

    #[inline(always)]
    fn load_quarters(self, from: [&[u8; 16]; 4]) -> [u8; 64] {
        let mut out = [0; 64];
        for (out, from) in out.as_chunks_mut::<16>().0.iter_mut().zip(from) {
            *out = *from;
        }
        out
    }

    #[inline(always)]
    fn store(self, bytes: [u8; 64], to: &mut [u8; 64]) {
        *to = bytes;
    }

    #[inline(always)]
    fn splat_four(self, from: [u8; 4]) -> [u8; 64] {
        std::array::from_fn(|i| from[i % 4])
    }

    #[inline(always)]
    fn nibbles(self, bytes: [u8; 64]) -> [[u8; 64]; 2] {
        [bytes.map(|b| b & 15), bytes.map(|b| b >> 4)]
    }

    #[inline(always)]
    fn spread(self, packed: [u8; 64], codes: &Spread) -> [u8; 64] {
        let mut out = [0; 64];
        for i in (0..64).step_by(2) {
            let byte = |place: u8| match place {
                0..16 => packed[i / 16 * 16 + usize::from(place)],
                _ => 0,
            };
            let pair = |places: &[u8; 64]| u16::from_le_bytes([byte(places[i]), byte(places[i + 1])]);
            out[i] = (pair(&codes.even) >> codes.below_even[i / 2 % 8]) as u8 & codes.mask;
            out[i + 1] = (pair(&codes.odd) >> codes.below_odd[i / 2 % 8]) as u8 & codes.mask;
        }
        out
    }

    #[inline(always)]
    fn transpose_words(self, rows: &mut [[u8; 64]; 4]) {
        let old = *rows;
        for (i, row) in rows.iter_mut().enumerate() {
            for (k, four) in row.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *four = old[k % 4].as_chunks::<4>().0[k / 4 * 4 + i];
            }
        }
    }

    #[inline(always)]
    fn transpose_quarters(self, rows: &mut [[u8; 64]; 4]) {
        let old = *rows;
        for (i, row) in rows.iter_mut().enumerate() {
            for (j, quarter) in row.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                *quarter = old[j].as_chunks::<16>().0[i];
            }
        }
    }

    #[inline(always)]
    fn zero_ints(self) -> [i32; 16] {
        [0; 16]
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: [i32; 16], codes: [u8; 64], x: [u8; 64]) -> [i32; 16] {
        let product = |k: usize| i32::from(codes[k]) * i32::from(x[k].cast_signed());
        std::array::from_fn(|i| sums[i] + (4 * i..4 * i + 4).map(product).sum::<i32>())
    }

    #[inline(always)]
    fn times_256(self, ints: [i32; 16]) -> [i32; 16] {
        ints.map(|i| 256 * i)
    }

    #[inline(always)]
    fn add_ints(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn to_floats(self, ints: [i32; 16]) -> [f32; 16] {
        ints.map(|i| i as f32)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 16] {
        [value; 16]
    }

    #[inline(always)]
    fn splat_quarters(self, values: [f32; 4]) -> [f32; 16] {
        std::array::from_fn(|i| values[i / 4])
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }

    #[inline(always)]
    fn widen_bf16(self, from: &[u8; 32]) -> [f32; 16] {
        let values = from.as_chunks::<2>().0;
        std::array::from_fn(|i| f32::from_bits(u32::from(u16::from_le_bytes(values[i])) << 16))
    }

    #[inline(always)]
    fn store_floats(self, floats: [f32; 16], to: &mut [f32; 16]) {
        *to = floats;
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn floats_to_bytes(self, floats: [f32; 16]) -> [u8; 64] {
        std::array::from_fn(|i| floats[i / 4].to_ne_bytes()[i % 4])
    }

    #[inline(always)]
    fn bytes_to_floats(self, bytes: [u8; 64]) -> [f32; 16] {
        let fours = bytes.as_chunks::<4>().0;
        std::array::from_fn(|i| f32::from_ne_bytes(fours[i]))
    }

    #[inline(always)]
    fn abs(self, a: [f32; 16]) -> [f32; 16] {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn larger(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn nearest(self, a: [f32; 16]) -> [i32; 16] {
        a.map(|a| a.round_ties_even() as i32)
    }

    #[inline(always)]
    fn store_ints(self, ints: [i32; 16], to: &mut [i32; 16]) {
        *to = ints;
    }

    #[inline(always)]
    fn upper_byte(self, ints: [i32; 16]) -> [i32; 16] {
        ints.map(|i| i.wrapping_add(128) >> 8)
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

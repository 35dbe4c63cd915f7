//! AMX, Intel since Sapphire Rapids: eight registers that are tiles of up to sixteen rows of 64 bytes, and
//! instructions that multiply whole tiles. Linux keeps their state for processes that ask it to.

#![expect(unsafe_code, reason = "instructions without intrinsics in stable Rust")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::bf16::PanelWord;

/// Rows of a tile, and its columns of four bytes.
pub(super) const SIDE: usize = 16;

/// Proof that this process may use tiles of int8 and of bf16 values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amx(());

impl Amx {
    /// The proof, where there is one.
    pub(super) fn detect() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        FOUND.get_or_init(|| has_instructions() && request()).then_some(Self(()))
    }
}

fn has_instructions() -> bool {
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_TILE_INT8 == BF16_TILE_INT8
}

/// Asks Linux for the state of tiles in all threads of the process, which it gives only where the processor
/// has it and it is switched on: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
#[cfg(target_os = "linux")]
fn request() -> bool {
    let (arch_prctl, request, tile_data) = (158u64, 0x1023u64, 18u64);
    let result: u64;
    // SAFETY: a system call with two numbers, which reads and writes no memory of ours; the kernel changes
    // `rax`, `rcx` and `r11` only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") arch_prctl => result,
            in("rdi") request,
            in("rsi") tile_data,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn request() -> bool {
    false
}

/// Rows of x in equal parts that are no more than a tile holds, two parts at a time.
#[derive(Clone, Copy)]
pub(super) struct Split {
    pairs: usize,
    /// Rows of a part.
    pub(super) rows: usize,
}

impl Split {
    pub(super) fn new(n: usize) -> Self {
        let pairs = n.div_ceil(2 * SIDE).max(1);
        Self { pairs, rows: n.div_ceil(2 * pairs).max(1) }
    }

    /// Rows of two parts, at most 32.
    pub(super) fn pair(self) -> usize {
        2 * self.rows
    }

    /// Rows of all parts, no fewer than were split.
    pub(super) fn kept(self) -> usize {
        self.pairs * self.pair()
    }
}

thread_local! {
    /// Whether a [`Tiles`] lives on this thread.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// The tiles of a thread, set up. Left operands have `rows` rows of `width` bytes, right ones a row of sixteen
/// words for every four of these bytes, sums `rows` rows of sixteen words.
pub(super) struct Tiles {
    rows: usize,
    width: usize,
    /// Tiles belong to the thread that set them up.
    thread: PhantomData<*const ()>,
}

/// What `LDTILECFG` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Operands of an int8 product, in two parts of K that are added up: two tiles of rows of signed bytes, and two
/// of columns of unsigned ones.
#[derive(Clone, Copy)]
pub(super) struct Int8<'a> {
    /// Twice the tile's rows, `x_stride` bytes from one to the next.
    pub(super) x: [&'a [u8]; 2],
    pub(super) x_stride: usize,
    /// For every four bytes of such a row those of 32 columns, `w_stride` bytes from one four to the next.
    pub(super) w: [&'a [u8]; 2],
    pub(super) w_stride: usize,
}

/// Rows of x as bf16, 32 values each: a left operand.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Rows32(pub(super) [[u16; 32]; SIDE]);

/// Sixteen words, two values each, of 32 rows of a bf16 matrix: two right operands side by side.
pub(super) type Words32 = [PanelWord; SIDE];

/// Two by two tiles of sums: tile of rows, tile of columns, row, column. Rows past a tile's are left alone.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Sums<T>(pub(super) [[[[T; SIDE]; SIDE]; 2]; 2]);

impl Tiles {
    /// Tiles for operands of `rows` rows of `width` bytes.
    ///
    /// # Panics
    /// When a tile does not hold as much, or while another value lives on this thread.
    pub(super) fn new(_: Amx, rows: usize, width: usize) -> Self {
        assert!((1..=SIDE).contains(&rows), "{rows} rows of a tile");
        assert!((4..=64).contains(&width) && width.is_multiple_of(4), "rows of {width} bytes");
        assert!(!TAKEN.replace(true), "tiles of this thread are in use");
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // Sums in tiles 0 to 3, left operands in 4 and 5, right ones in 6 and 7.
        for (tile, (rows, row_bytes)) in
            [(rows, 64); 4].into_iter().chain([(rows, width); 2]).chain([(width / 4, 64); 2]).enumerate()
        {
            (shapes.rows[tile], shapes.row_bytes[tile]) = (rows as u8, row_bytes as u16);
        }
        // SAFETY: `Amx` proves that there are tiles. The 64 bytes describe palette 1, whose tiles have up to
        // 16 rows of 64 bytes, as asserted above.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                shapes = in(reg) &shapes,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly),
            );
        }
        Self { rows, width, thread: PhantomData }
    }

    /// `sums[a][b][i][j] = Σ x · w` over both parts, of row `i` of tile `a` with column `j` of tile `b`.
    ///
    /// # Panics
    /// When rows or columns do not lie in their slices.
    #[inline(always)]
    pub(super) fn int8(&mut self, operands: Int8<'_>, sums: &mut Sums<i32>) {
        let Int8 { x, x_stride, w, w_stride } = operands;
        let fits = |rows: usize, stride: usize, width: usize, slices: [&[u8]; 2]| {
            let end = (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(width));
            end.is_some_and(|end| slices.iter().all(|slice| end <= slice.len()))
        };
        assert!(fits(2 * self.rows, x_stride, self.width, x), "rows of x");
        assert!(fits(self.width / 4, w_stride, 8 * SIDE, w), "columns of w");
        let lower = self.rows * x_stride;
        // SAFETY: this value exists, so the thread's tiles have the shapes that `new` gave them: no other
        // value lives on the thread to change them, and the compiler does not use tiles. For each part two left
        // tiles of `rows` rows of `width` bytes and two right ones of `width / 4` rows of 64 bytes, side by
        // side, were just asserted to lie in the slices; four tiles of up to 16 rows of 64 bytes lie in `sums`,
        // which is borrowed mutably.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm6, [{w0} + {ws}]",
                "tileloadd tmm4, [{x0} + {xs}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w0} + {ws} + 64]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x0_lower} + {xs}]",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "tileloadd tmm6, [{w1} + {ws}]",
                "tileloadd tmm4, [{x1} + {xs}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w1} + {ws} + 64]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1_lower} + {xs}]",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                "tilestored [{sums} + {line} + 2048], tmm2",
                "tilestored [{sums} + {line} + 3072], tmm3",
                x0 = in(reg) x[0].as_ptr(),
                x0_lower = in(reg) x[0].as_ptr().add(lower),
                x1 = in(reg) x[1].as_ptr(),
                x1_lower = in(reg) x[1].as_ptr().add(lower),
                xs = in(reg) x_stride,
                w0 = in(reg) w[0].as_ptr(),
                w1 = in(reg) w[1].as_ptr(),
                ws = in(reg) w_stride,
                sums = in(reg) sums.0.as_mut_ptr(),
                line = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// `sums[a][b][i][j] = Σ x · w` over words of K and over the `T` terms of x, of row `i` of tile `a` with
    /// column `j` of tile `b`, in f32: `x[a][u][t]` and `w[u]` hold values 32·u to 32·u + 31 of K.
    ///
    /// # Panics
    /// When K differs, or tiles were made for rows of other than 64 bytes.
    pub(super) fn bf16<const T: usize>(
        &mut self,
        x: [&[[Rows32; T]]; 2],
        w: &[Words32],
        sums: &mut Sums<f32>,
    ) {
        const { assert!(T == 1 || T == 2, "one or two terms") };
        assert!(x[0].len() == w.len() && x[1].len() == w.len(), "the same K");
        assert_eq!(self.width, 64, "bytes of 32 values");
        /// Adds the term `$offset` bytes into a step's tiles of x.
        macro_rules! term {
            ($offset:literal) => {
                concat!(
                    "tileloadd tmm4, [{x0} + {line} + ",
                    $offset,
                    "]\n",
                    "tdpbf16ps tmm0, tmm4, tmm6\n",
                    "tdpbf16ps tmm1, tmm4, tmm7\n",
                    "tileloadd tmm5, [{x1} + {line} + ",
                    $offset,
                    "]\n",
                    "tdpbf16ps tmm2, tmm5, tmm6\n",
                    "tdpbf16ps tmm3, tmm5, tmm7\n",
                )
            };
        }
        macro_rules! run {
            ($terms:expr) => {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "test {n}, {n}",
                    "jz 3f",
                    "2:",
                    "tileloadd tmm6, [{w} + {row}]",
                    "tileloadd tmm7, [{w} + {row} + 64]",
                    $terms,
                    "add {x0}, {step}",
                    "add {x1}, {step}",
                    "add {w}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "3:",
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 1024], tmm1",
                    "tilestored [{sums} + {line} + 2048], tmm2",
                    "tilestored [{sums} + {line} + 3072], tmm3",
                    x0 = inout(reg) x[0].as_ptr() => _,
                    x1 = inout(reg) x[1].as_ptr() => _,
                    w = inout(reg) w.as_ptr() => _,
                    n = inout(reg) w.len() => _,
                    step = const T * 1024,
                    sums = in(reg) sums.0.as_mut_ptr(),
                    line = in(reg) 64usize,
                    row = in(reg) 128usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            };
        }
        // SAFETY: shapes as for `int8`, with a `width` of 64. In each of the `w.len()` steps both rows of x have
        // `T` tiles of 16 rows of 64 bytes, and `w` has two of 16 rows of 64 bytes, side by side in rows of 128;
        // four tiles of up to 16 rows of 64 bytes lie in `sums`, which is borrowed mutably.
        unsafe {
            match T {
                1 => run!(term!("0")),
                _ => run!(concat!(term!("0"), term!("1024"))),
            }
        }
    }
}

/// Repeats a product of the same tiles, from registers, onto the four tiles of sums in turn.
macro_rules! repeat {
    ($name:ident, $instruction:literal, $sum:ty, $what:literal) => {
        #[doc = concat!("Sums of `4 · rounds` products of one tile of rows with one of columns, ", $what, ".")]
        pub(super) fn $name(&mut self, x: &[[u8; 64]; SIDE], w: &[[u8; 64]; SIDE], rounds: u32) -> Sums<$sum> {
            assert_eq!((self.rows, self.width), (SIDE, 64), "whole tiles");
            let mut sums = Sums::default();
            // SAFETY: shapes as for `int8`, whole tiles of 1024 bytes, which both operands have; `sums` holds four.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "tileloadd tmm4, [{x} + {line}]",
                    "tileloadd tmm6, [{w} + {line}]",
                    "test {n:e}, {n:e}",
                    "jz 3f",
                    "2:",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    concat!($instruction, " tmm1, tmm4, tmm6"),
                    concat!($instruction, " tmm2, tmm4, tmm6"),
                    concat!($instruction, " tmm3, tmm4, tmm6"),
                    "dec {n:e}",
                    "jnz 2b",
                    "3:",
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 1024], tmm1",
                    "tilestored [{sums} + {line} + 2048], tmm2",
                    "tilestored [{sums} + {line} + 3072], tmm3",
                    x = in(reg) x.as_ptr(),
                    w = in(reg) w.as_ptr(),
                    n = inout(reg) rounds => _,
                    sums = in(reg) sums.0.as_mut_ptr(),
                    line = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
            sums
        }
    };
}

impl Tiles {
    repeat!(repeat_int8, "tdpbsud", i32, "signed bytes with unsigned ones");
    repeat!(repeat_bf16, "tdpbf16ps", f32, "pairs of bf16 values");
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: gives the tiles back; none is used after the value that stands for them.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, nomem),
            );
        }
        TAKEN.set(false);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::seeded;

    #[test]
    fn products_of_bytes_equal_the_sums() {
        let Some(amx) = Amx::detect() else {
            eprintln!("this processor has no tiles");
            return;
        };
        for (rows, width) in [(1, 4), (3, 16), (9, 32), (16, 64)] {
            let (x_stride, w_stride) = (width + 3, 192);
            let x: Vec<u8> = (0..2 * 2 * rows * x_stride).map(|i| (i * 89 % 251) as u8).collect();
            let w: Vec<u8> = (0..2 * width / 4 * w_stride).map(|i| (i * 53 % 256) as u8).collect();
            let (x, w): ([&[u8]; 2], [&[u8]; 2]) =
                (x.split_at(2 * rows * x_stride).into(), w.split_at(width / 4 * w_stride).into());
            let mut sums = Sums([[[[7; SIDE]; SIDE]; 2]; 2]);
            Tiles::new(amx, rows, width).int8(Int8 { x, x_stride, w, w_stride }, &mut sums);
            for (row, column) in (0..2 * rows).flat_map(|row| (0..32).map(move |column| (row, column))) {
                let product = |part: usize, k: usize| {
                    let x = x[part][row * x_stride + k].cast_signed();
                    i32::from(x) * i32::from(w[part][k / 4 * w_stride + 4 * column + k % 4])
                };
                let expected: i32 = (0..width).map(|k| product(0, k) + product(1, k)).sum();
                let found = sums.0[row / rows][column / SIDE][row % rows][column % SIDE];
                assert_eq!(found, expected, "{rows} {width} at {row} {column}");
            }
        }
    }

    #[test]
    fn products_of_bf16_equal_the_sums() {
        let Some(amx) = Amx::detect() else { return };
        for (rows, steps) in [(1, 0u64), (5, 1), (16, 3)] {
            let bits = |v: f32| bf16::from_f32(v).to_bits();
            let values = |n, seed| -> Vec<u16> { seeded(n, seed).into_iter().map(bits).collect() };
            let x: Vec<[[Rows32; 2]; 2]> = (0..steps)
                .map(|u| {
                    let tile = |seed| {
                        Rows32(*values(512, 4 * u + seed).as_chunks().0.as_array().expect("sixteen rows"))
                    };
                    [[tile(0), tile(1)], [tile(2), tile(3)]]
                })
                .collect();
            let rows_of = |a: usize| x.iter().map(|step| step[a]).collect::<Vec<_>>();
            let w: Vec<Words32> = (0..steps)
                .map(|u| {
                    std::array::from_fn(|row| PanelWord(std::array::from_fn(|c| word(u as usize, row, c))))
                })
                .collect();
            let mut sums = Sums::default();
            Tiles::new(amx, rows, 64).bf16::<2>([&rows_of(0), &rows_of(1)], &w, &mut sums);
            for (a, i, j) in (0..2).flat_map(|a| (0..rows).flat_map(move |i| (0..32).map(move |j| (a, i, j))))
            {
                let widen = |bits: u16| f64::from(bf16::from_bits(bits).to_f32());
                let mut expected = 0.0;
                for (u, k) in (0..steps as usize).flat_map(|u| (0..32).map(move |k| (u, k))) {
                    let w = widen((w[u][k / 2].0[j] >> (16 * (k % 2))) as u16);
                    expected += x[u][a].iter().map(|term| widen(term.0[i][k]) * w).sum::<f64>();
                }
                let found = f64::from(sums.0[a][j / SIDE][i][j % SIDE]);
                assert!((found - expected).abs() < 1e-4, "{rows} {steps} at {a} {i} {j}: {found} {expected}");
            }
        }
    }

    /// Two bf16 values that differ from place to place.
    fn word(u: usize, row: usize, column: usize) -> u32 {
        let value = |i: usize| ((i * 37 % 101) as f32 / 50.0 - 1.0).to_bits() >> 16;
        let at = (u * 16 + row) * 64 + 2 * column;
        value(at) | value(at + 1) << 16
    }

    #[test]
    #[should_panic(expected = "in use")]
    fn tiles_are_set_up_once_at_a_time() {
        let amx = Amx::detect().expect("in use, or not there");
        let _tiles = Tiles::new(amx, 1, 4);
        Tiles::new(amx, 2, 8);
    }

    #[test]
    fn short_slices_are_refused() {
        let Some(amx) = Amx::detect() else { return };
        let run = |x: &[u8], w: &[u8]| {
            let operands = Int8 { x: [x; 2], x_stride: 8, w: [w; 2], w_stride: 128 };
            Tiles::new(amx, 2, 8).int8(operands, &mut Sums::default());
        };
        run(&[0; 32], &[0; 256]);
        for (x, w) in [(31, 256), (32, 255)] {
            let found = std::panic::catch_unwind(|| run(&vec![0; x], &vec![0; w]));
            assert!(found.is_err(), "{x} {w}");
        }
    }
}

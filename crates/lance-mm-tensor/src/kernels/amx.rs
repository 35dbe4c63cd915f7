//! AMX, Intel since Sapphire Rapids: eight registers that are tiles of up to sixteen rows of 64 bytes, and
//! instructions that multiply whole tiles. Linux keeps their state for processes that ask it to.
//!
//! ```text
//! left operand      16 rows of w, 32 values of K each                      tmm4, tmm5
//! right operand     16 words of K (two values each) of 16 tokens           tmm6, tmm7
//! sums              16 rows of w x 16 tokens, f32                          tmm0 .. tmm3
//!
//!                  tokens 0..15   tokens 16..31
//!                       tmm6           tmm7
//!  rows 0..15   tmm4    tmm0           tmm1           a step of 32 values of K: four tiles are loaded and multiplied
//!  rows 16..31  tmm5    tmm2           tmm3           four times; each load serves two multiplications
//! ```
//!
//! The weight is the left operand because its values stay in the order of the file there: as the right operand it has to
//! be transposed, which took as long as looking its codes up. Sums come out transposed instead.

#![expect(unsafe_code, reason = "instructions without intrinsics in stable Rust")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::avx512_bf16::Avx512Bf16;

/// Rows of a tile, and its columns of four bytes.
// The largest that the hardware has.
pub(super) const SIDE: usize = 16;
/// Rows of a matrix that are multiplied together: two tiles.
// Two by two tiles of sums, and their operands, are all eight registers.
pub(super) const PANEL: usize = 2 * SIDE;
/// Bytes that a step of [`Tiles::bf16`] prefetches.
// Four lines a step: a group of x comes near while another one passes the panels.
pub(super) const AHEAD: usize = 256;

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

/// Proof of AMX, and of the instructions that fill tiles with bf16 values.
#[derive(Clone, Copy, Debug)]
pub(super) struct AmxBf16 {
    tiles: Amx,
    pub(super) convert: Avx512Bf16,
}

impl AmxBf16 {
    /// The proof, where there is one.
    pub(super) fn detect() -> Option<Self> {
        Some(Self { tiles: Amx::detect()?, convert: Avx512Bf16::detect()? })
    }

    /// The tiles of this thread; see [`Tiles::new`].
    pub(super) fn tiles(self) -> Tiles {
        Tiles::new(self.tiles)
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

thread_local! {
    /// Whether a [`Tiles`] lives on this thread.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// The tiles of a thread, set up: each has sixteen rows of 64 bytes.
pub(super) struct Tiles {
    /// Tiles belong to the thread that set them up.
    thread: PhantomData<*const ()>,
}

/// Operand of `LDTILECFG`.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Rows of a matrix as bf16, 32 values each: a left operand.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Rows32(pub(super) [[u16; 32]; SIDE]);

impl Default for Rows32 {
    fn default() -> Self {
        Self([[0; 32]; SIDE])
    }
}

/// Sixteen words, two bf16 values each, of sixteen tokens: a right operand.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Words16(pub(super) [[u32; SIDE]; SIDE]);

/// Addresses of right operands, step by step: `T` terms of `B` tiles, of which row `i` holds words
/// `first[t][b] + i · row + step · u` and the fifteen after it.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a, const T: usize, const B: usize> {
    first: [[*const u32; B]; T],
    /// Bytes from one row to the next, and from one step to the next.
    row: usize,
    step: usize,
    n_steps: usize,
    words: PhantomData<&'a [u32]>,
}

impl<'a, const T: usize, const B: usize> Operands<'a, T, B> {
    /// Tiles one after another.
    pub(super) fn in_tiles(tiles: &'a [[[Words16; B]; T]]) -> Self {
        // Without a step nothing is read.
        let empty = [[std::ptr::null(); B]; T];
        let first = tiles.first().map_or(empty, |step| {
            std::array::from_fn(|t| std::array::from_fn(|b| step[t][b].0.as_ptr().cast::<u32>()))
        });
        Self { first, row: 64, step: T * B * size_of::<Words16>(), n_steps: tiles.len(), words: PhantomData }
    }

    /// Tiles whose rows lie `row` words apart and whose steps `step`.
    ///
    /// # Panics
    /// When the last row of the last step does not end within `words`.
    pub(super) fn in_words(
        words: &'a [u32],
        first: [[usize; B]; T],
        row: usize,
        step: usize,
        n_steps: usize,
    ) -> Self {
        let last = n_steps.saturating_sub(1) * step + (SIDE - 1) * row + SIDE;
        let within = |first: &usize| n_steps == 0 || first + last <= words.len();
        assert!(first.as_flattened().iter().all(within), "tiles within the words");
        Self {
            first: first.map(|term| term.map(|first| words[first.min(words.len())..].as_ptr())),
            row: 4 * row,
            step: 4 * step,
            n_steps,
            words: PhantomData,
        }
    }
}

/// Two by two tiles of sums: left operand, right operand, row, column.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Sums<T>(pub(super) [[[[T; SIDE]; SIDE]; 2]; 2]);

impl Tiles {
    /// # Panics
    /// While another value lives on this thread.
    pub(super) fn new(_: Amx) -> Self {
        assert!(!TAKEN.replace(true), "tiles of this thread are in use");
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.rows[..8].fill(SIDE as u8);
        shapes.row_bytes[..8].fill(64);
        // SAFETY: `Amx` proves that there are tiles. The 64 bytes describe palette 1, which has eight tiles of up to
        // 16 rows of 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                shapes = in(reg) &shapes,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly),
            );
        }
        Self { thread: PhantomData }
    }

    /// `sums[a][b][i][j] = Σ w · x` over steps of 32 values of K and over the `T` terms of x, of row `i` of left
    /// operand `a`, `w[step][a]`, with column `j` of right operand `b`, in f32. With `add` the products are added to
    /// `sums`. With one right operand, sums of a second have any value. Meanwhile [`AHEAD`] bytes a step
    /// from `ahead` on are prefetched, wherever that is.
    ///
    /// # Panics
    /// When there is not one step of x for each of w.
    pub(super) fn bf16<const T: usize, const B: usize>(
        &mut self,
        w: &[[Rows32; 2]],
        x: Operands<'_, T, B>,
        sums: &mut Sums<f32>,
        add: bool,
        ahead: *const u8,
    ) {
        const { assert!((T == 1 || T == 2) && (B == 1 || B == 2), "one or two terms and right operands") };
        assert_eq!(w.len(), x.n_steps, "the same K");
        /// Adds the products of a term with two right operands.
        macro_rules! two {
            ($first:literal, $second:literal) => {
                concat!(
                    concat!("tileloadd tmm6, [{", $first, "} + {row}]\n"),
                    "tdpbf16ps tmm0, tmm4, tmm6\n",
                    "tdpbf16ps tmm2, tmm5, tmm6\n",
                    concat!("tileloadd tmm7, [{", $second, "} + {row}]\n"),
                    "tdpbf16ps tmm1, tmm4, tmm7\n",
                    "tdpbf16ps tmm3, tmm5, tmm7\n",
                )
            };
        }
        /// Adds the products of a term with one right operand.
        macro_rules! one {
            ($first:literal) => {
                concat!(
                    concat!("tileloadd tmm6, [{", $first, "} + {row}]\n"),
                    "tdpbf16ps tmm0, tmm4, tmm6\n",
                    "tdpbf16ps tmm2, tmm5, tmm6\n",
                )
            };
        }
        macro_rules! run {
            ($products:expr) => {
                asm!(
                    "test {add:e}, {add:e}",
                    "jz 4f",
                    "tileloadd tmm0, [{sums} + {line}]",
                    "tileloadd tmm1, [{sums} + {line} + 1024]",
                    "tileloadd tmm2, [{sums} + {line} + 2048]",
                    "tileloadd tmm3, [{sums} + {line} + 3072]",
                    "jmp 5f",
                    "4:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "5:",
                    "test {n}, {n}",
                    "jz 3f",
                    "2:",
                    "tileloadd tmm4, [{w} + {line}]",
                    "tileloadd tmm5, [{w} + {line} + 1024]",
                    "prefetcht1 [{ahead}]",
                    "prefetcht1 [{ahead} + 64]",
                    "prefetcht1 [{ahead} + 128]",
                    "prefetcht1 [{ahead} + 192]",
                    "add {ahead}, 256",
                    $products,
                    "add {w}, 2048",
                    "add {x0}, {step}",
                    "add {x1}, {step}",
                    "add {x2}, {step}",
                    "add {x3}, {step}",
                    "dec {n}",
                    "jnz 2b",
                    "3:",
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 1024], tmm1",
                    "tilestored [{sums} + {line} + 2048], tmm2",
                    "tilestored [{sums} + {line} + 3072], tmm3",
                    w = inout(reg) w.as_ptr() => _,
                    x0 = inout(reg) x.first[0][0] => _,
                    x1 = inout(reg) x.first[0][B - 1] => _,
                    x2 = inout(reg) x.first[T - 1][0] => _,
                    x3 = inout(reg) x.first[T - 1][B - 1] => _,
                    ahead = inout(reg) ahead => _,
                    n = inout(reg) w.len() => _,
                    row = in(reg) x.row,
                    step = in(reg) x.step,
                    sums = in(reg) sums.0.as_mut_ptr(),
                    add = in(reg) u32::from(add),
                    line = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            };
        }
        // SAFETY: this value exists, so the thread's tiles have the shapes that `new` gave them: no other value
        // lives on the thread to change them, and the compiler does not use tiles. In each of the `w.len()` steps
        // `w` has two tiles of 16 rows of 64 bytes, one after another. x has as many steps, and what makes
        // `Operands` sees to it that 16 rows of 64 bytes of each of its tiles lie, at these distances, in a slice that
        // outlives it. What is asked for ahead may lie anywhere: that never faults. Four tiles of 16 rows of 64 bytes lie in `sums`, which is borrowed mutably.
        unsafe {
            match (T, B) {
                (1, 1) => run!(one!("x0")),
                (1, _) => run!(two!("x0", "x1")),
                (_, 1) => run!(concat!(one!("x0"), one!("x2"))),
                _ => run!(concat!(two!("x0", "x1"), two!("x2", "x3"))),
            }
        }
    }
}

/// Repeats a product of the same tiles, from registers, onto the four tiles of sums in turn.
macro_rules! repeat {
    ($name:ident, $instruction:literal, $sum:ty, $what:literal) => {
        #[doc = concat!("Sums of `4 · rounds` products of one tile of rows with one of columns, ", $what, ".")]
        pub(super) fn $name(&mut self, x: &[[u8; 64]; SIDE], w: &[[u8; 64]; SIDE], rounds: u32) -> Sums<$sum> {
            let mut sums = Sums::default();
            // SAFETY: shapes as for `bf16`, whole tiles of 1024 bytes, which both operands have; `sums` holds four.
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
    fn products_equal_the_sums() {
        let Some(amx) = Amx::detect() else {
            eprintln!("this processor has no tiles");
            return;
        };
        for steps in [0, 1, 3] {
            equal_the_sums::<1, 1>(amx, steps);
            equal_the_sums::<1, 2>(amx, steps);
            equal_the_sums::<2, 1>(amx, steps);
            equal_the_sums::<2, 2>(amx, steps);
        }
    }

    fn equal_the_sums<const T: usize, const B: usize>(amx: Amx, steps: usize) {
        let mut values = seeded(steps * 2 * 512 * (1 + T * B), 1).into_iter().map(bf16::from_f32);
        let mut next = || values.next().expect("enough values").to_bits();
        let w: Vec<[Rows32; 2]> = (0..steps)
            .map(|_| [0; 2].map(|_| Rows32([[0; 32]; SIDE].map(|row| row.map(|_| next())))))
            .collect();
        let mut word = || u32::from(next()) | u32::from(next()) << 16;
        let x: Vec<[[Words16; B]; T]> = (0..steps)
            .map(|_| {
                [[0; B]; T]
                    .map(|term| term.map(|_| Words16([[0; SIDE]; SIDE].map(|row| row.map(|_| word())))))
            })
            .collect();
        let mut sums = Box::new(Sums([[[[7.0; SIDE]; SIDE]; 2]; 2]));
        let mut tiles = Tiles::new(amx);
        // Twice the sums.
        tiles.bf16(&w, Operands::in_tiles(&x), &mut sums, false, std::ptr::null());
        tiles.bf16(&w, Operands::in_tiles(&x), &mut sums, true, w.as_ptr().cast());
        let widen = |bits: u16| f64::from(bf16::from_bits(bits).to_f32());
        for (a, b, i, j) in (0..2)
            .flat_map(|a| (0..B).flat_map(move |b| (0..256).map(move |at| (a, b, at / SIDE, at % SIDE))))
        {
            let mut expected = 0.0;
            for (w, x) in w.iter().zip(&x) {
                for (k, w) in w[a].0[i].iter().enumerate() {
                    let terms = x.iter().map(|term| widen((term[b].0[k / 2][j] >> (16 * (k % 2))) as u16));
                    expected += 2.0 * widen(*w) * terms.sum::<f64>();
                }
            }
            let found = f64::from(sums.0[a][b][i][j]);
            assert!(
                (found - expected).abs() < 1e-4,
                "{T} {B} {steps} at {a} {b} {i} {j}: {found} {expected}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "in use")]
    fn tiles_are_set_up_once_at_a_time() {
        let amx = Amx::detect().expect("in use, or not there");
        let _tiles = Tiles::new(amx);
        Tiles::new(amx);
    }

    #[test]
    fn rows_of_right_operands_may_lie_apart_and_overlap() {
        let Some(amx) = Amx::detect() else { return };
        let (first, row, step) = ([[3, 20], [200, 201]], 17, 150);
        let end = 201 + 2 * step + 15 * row + 16;
        let words: Vec<u32> =
            seeded(end, 3).into_iter().map(|v| u32::from(bf16::from_f32(v).to_bits()) * 0x1_0001).collect();
        let x: Vec<[[Words16; 2]; 2]> = (0..3)
            .map(|u| {
                first.map(|term| {
                    term.map(|first| {
                        Words16(std::array::from_fn(|i| {
                            std::array::from_fn(|j| words[first + u * step + i * row + j])
                        }))
                    })
                })
            })
            .collect();
        let w = [[Rows32([[0x3f80; 32]; SIDE]); 2]; 3];
        let sums = |x| {
            let mut sums = Box::<Sums<f32>>::default();
            Tiles::new(amx).bf16(&w, x, &mut sums, false, std::ptr::null());
            sums.0
        };
        let apart = Operands::in_words(&words, first, row, step, 3);
        assert_eq!(sums(apart), sums(Operands::in_tiles(&x)));
        let refused = |words: &[u32]| {
            std::panic::catch_unwind(|| Operands::in_words(words, first, row, step, 3).n_steps).is_err()
        };
        assert!(refused(&words[..end - 1]) && !refused(&words));
    }
}

//! Micro-kernels on AVX512-BF16: `VDPBF16PS` adds two neighbouring products of bf16 values to each f32 lane. It takes
//! denormals as zero and rounds to nearest whatever the control register says.
//!
//! ```text
//! VDPBF16PS    lane i of 16:  sum[i] += a[2i] · b[2i] + a[2i+1] · b[2i+1]
//! word         two neighbouring values of K, in the 32 bits of a lane
//! Terms        32 values: [first terms: 32 x bf16] [what is left over: 32 x bf16]
//!
//! pair_up      16 tokens x 32 values, as 16 rows of 16 words, transposed: row u holds word u of sixteen tokens
//! ```

use std::arch::x86_64::*;

/// Rows of the weight that a tile covers.
// Two registers of f32 sums for each token: two multiplications for each broadcast activation.
pub(super) const COLS: usize = 32;

/// Distance of prefetched weights, in bytes.
// Four pages, so that addresses are translated in time too. It took decoding with affine weights from 10.4 to 11.0 tokens
// a second (Sapphire Rapids); for bf16 no other distance was measured.
const AHEAD: usize = 16 * 1024;

/// One word of every row of a panel. Aligned, so that no load crosses a cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct PanelWord(pub(super) [u32; COLS]);

/// 32 values of a token as bf16: a first term, then what is left over from it.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Terms(pub(super) [[u16; 32]; 2]);

/// Proof that the processor has AVX-512 F, BW and BF16.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512Bf16(());

impl Avx512Bf16 {
    /// The proof, where there is one.
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        found.then_some(Self(()))
    }

    /// Products of `M` packed tokens, each value the sum of `T` terms, with a packed panel:
    /// `sums[i][j] = Σ x[u][t][i] · w[u][j]` over words `u` of two bf16 values each and terms `t`.
    pub(super) fn tile<const M: usize, const T: usize>(
        self,
        x: &[[[u32; M]; T]],
        w: &[PanelWord],
        sums: &mut [[f32; COLS]],
    ) {
        // SAFETY: `self` proves the features.
        unsafe { tile(x, w, sums) }
    }

    /// Dot products of `R` rows of the weight with `N` tokens: `x[c][i]` holds values 32·c and on of token i, zeros past the
    /// end of K.
    pub(super) fn dots<const R: usize, const N: usize>(
        self,
        x: &[[Terms; N]],
        w: [&[[u8; 2]]; R],
    ) -> [[f32; N]; R] {
        // SAFETY: `self` proves the features.
        unsafe { dots(x, w) }
    }

    /// Copies values of a row of a weight, 32 to each of `out`, zeros past its end, and asks for those `ahead` bytes
    /// further.
    pub(super) fn copy<'a>(
        self,
        values: &[[u8; 2]],
        ahead: usize,
        out: impl Iterator<Item = &'a mut [u16; 32]>,
    ) {
        // SAFETY: `self` proves the features.
        unsafe { copy(values, ahead, out) }
    }

    /// Packs up to 32 values, from the `first` on, of rows of a weight: word `u` of row `j` becomes `out[u][j]`.
    /// `rows` holds the rows as they are stored, one after another, `k` values each; rows past its end, and values
    /// past theirs, become zeros.
    pub(super) fn pack(self, rows: &[[u8; 2]], k: usize, first: usize, out: &mut [PanelWord]) {
        // SAFETY: `self` proves the features.
        unsafe { pack(rows, k, first, out) }
    }

    /// Splits rows of x into one or two bf16 terms: word `u` of term `t` of row `i` becomes `out[u][t][i]`.
    /// Rows past the end of `rows` become zeros.
    pub(super) fn pack_x<const M: usize, const T: usize>(
        self,
        rows: &[f32],
        k: usize,
        out: &mut [[[u32; M]; T]],
    ) {
        // SAFETY: `self` proves the features.
        unsafe { pack_x(rows, k, out) }
    }

    /// Splits the 32 values from `first` on of a row, or as many as there are; the rest are zeros.
    pub(super) fn split_part(self, row: &[f32], first: usize) -> Terms {
        // SAFETY: `self` proves the features.
        unsafe { split(&row[first..row.len().min(first + 32)]) }
    }

    /// A row as bf16, 32 values to each of `out`, zeros past its end.
    pub(super) fn round<'a>(self, row: &[f32], out: impl Iterator<Item = &'a mut [u16; 32]>) {
        // SAFETY: `self` proves the features.
        unsafe { round(row, out) }
    }

    /// As [`split_part`](Self::split_part), of up to sixteen rows of `k`; rows that are missing are zeros.
    pub(super) fn split_rows(self, rows: &[f32], k: usize, first: usize) -> [Terms; 16] {
        let mut out = [Terms([[0; 32]; 2]); 16];
        for (out, row) in out.iter_mut().zip(rows.chunks_exact(k)) {
            *out = self.split_part(row, first);
        }
        out
    }

    /// As [`split_rows`](Self::split_rows), 128 values: part `j` of four has those at `4·i + j`.
    pub(super) fn split_lines(self, rows: &[f32], k: usize, first: usize) -> [[Terms; 16]; 4] {
        let mut out = [[Terms([[0; 32]; 2]); 16]; 4];
        for (i, row) in rows.chunks_exact(k).enumerate().take(16) {
            // SAFETY: `self` proves the features.
            let parts = unsafe { every_fourth(&row[first..k.min(first + 128)]) };
            for (out, part) in out.iter_mut().zip(parts) {
                out[i] = part;
            }
        }
        out
    }

    /// Term `t` of sixteen rows, two values to a word: word `i` of row `j` becomes `out[i · stride + j]`.
    ///
    /// # Panics
    /// When the last sixteen do not end within `out`.
    pub(super) fn pair_up(self, rows: &[Terms; 16], t: usize, out: &mut [u32], stride: usize) {
        // SAFETY: `self` proves the features.
        unsafe { pair_up(rows, t, out, stride) }
    }

    /// Rows of sixteen values as bf16, two neighbouring rows to the words of one.
    pub(super) fn pair_rows(self, rows: &[[f32; 16]; 16], out: &mut [[u32; 16]; 8]) {
        // SAFETY: `self` proves the features.
        unsafe { pair_rows(rows, out) }
    }

    /// Sixteen rows of sixteen values to columns, which begin `stride` values apart in `out`.
    ///
    /// # Panics
    /// When the last one does not end within `out`.
    pub(super) fn transpose(self, rows: &[[f32; 16]; 16], out: &mut [f32], stride: usize) {
        // SAFETY: `self` proves the features.
        unsafe { transpose_values(rows, out, stride) }
    }

    /// Splits a row of x into two bf16 terms whose sum is within 2^-16 of each value, relatively.
    pub(super) fn split(self, row: &[f32], mut out: impl FnMut(usize, Terms)) {
        for (c, values) in row.chunks(32).enumerate() {
            // SAFETY: `self` proves the features.
            out(c, unsafe { split(values) });
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn tile<const M: usize, const T: usize>(x: &[[[u32; M]; T]], w: &[PanelWord], sums: &mut [[f32; COLS]]) {
    let mut acc = [[_mm512_setzero_ps(); 2]; M];
    for (x, w) in x.iter().zip(w) {
        let [w0, w1] = halves(&w.0).map(|half| load(half));
        for term in x {
            for i in 0..M {
                let x = bf16(_mm512_set1_epi32(term[i] as i32));
                acc[i][0] = _mm512_dpbf16_ps(acc[i][0], x, w0);
                acc[i][1] = _mm512_dpbf16_ps(acc[i][1], x, w1);
            }
        }
    }
    for (acc, sums) in acc.iter().zip(sums) {
        let (low, high) = sums.split_at_mut(16);
        // SAFETY: both halves of the array hold 16 f32 values; unaligned stores.
        unsafe {
            _mm512_storeu_ps(low.as_mut_ptr(), acc[0]);
            _mm512_storeu_ps(high.as_mut_ptr(), acc[1]);
        }
    }
}

fn halves(w: &[u32; COLS]) -> [&[u32; 16]; 2] {
    let (halves, _) = w.as_chunks::<16>();
    [&halves[0], &halves[1]]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn load(words: &[u32; 16]) -> __m512bh {
    // SAFETY: the array holds 64 bytes; an unaligned load.
    bf16(unsafe { _mm512_loadu_si512(words.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of plain data.
    unsafe { std::mem::transmute(words) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn dots<const R: usize, const N: usize>(x: &[[Terms; N]], w: [&[[u8; 2]]; R]) -> [[f32; N]; R] {
    let mut acc = [[[_mm512_setzero_ps(); 2]; N]; R];
    let rows = w.map(|row| row.as_chunks::<32>());
    for (c, x) in x.iter().enumerate() {
        let w = rows.map(|(whole, tail)| match whole.get(c) {
            Some(values) => {
                _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().wrapping_byte_add(AHEAD).cast());
                // SAFETY: the array holds 32 values of 2 bytes; an unaligned load.
                unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
            }
            None => load_up_to_32(tail),
        });
        for (i, x) in x.iter().enumerate() {
            for (t, term) in x.0.iter().enumerate() {
                // SAFETY: the array holds 32 values of 2 bytes; an unaligned load.
                let term = bf16(unsafe { _mm512_loadu_si512(term.as_ptr().cast()) });
                for (acc, w) in acc.iter_mut().zip(w) {
                    acc[i][t] = _mm512_dpbf16_ps(acc[i][t], term, bf16(w));
                }
            }
        }
    }
    acc.map(|row| row.map(|[a, b]| _mm512_reduce_add_ps(_mm512_add_ps(a, b))))
}

/// Loads up to 32 values; the rest are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_up_to_32(values: &[[u8; 2]]) -> __m512i {
    let mask = u32::MAX.checked_shr(32 - values.len() as u32).unwrap_or(0);
    // SAFETY: the mask has one bit for each of the at most 32 values; lanes without one are not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack(rows: &[[u8; 2]], k: usize, first: usize, out: &mut [PanelWord]) {
    let width = (k - first).min(32);
    for half in 0..2 {
        let mut words = [_mm512_setzero_si512(); 16];
        for (r, words) in words.iter_mut().enumerate() {
            let start = (half * 16 + r) * k + first;
            if let Some(values) = rows.get(start..start + width) {
                *words = load_up_to_32(values);
            }
        }
        for (out, column) in out.iter_mut().zip(transpose(words)) {
            let place: &mut [u32; 16] = &mut out.0.as_chunks_mut::<16>().0[half];
            // SAFETY: the array holds 64 bytes; an unaligned store.
            unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), column) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn copy<'a>(values: &[[u8; 2]], ahead: usize, out: impl Iterator<Item = &'a mut [u16; 32]>) {
    for (values, out) in values.chunks(32).zip(out) {
        _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().wrapping_byte_add(ahead).cast());
        // SAFETY: the array holds 64 bytes; an unaligned store.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), load_up_to_32(values)) };
    }
}

/// Transposes sixteen rows of sixteen words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = r;
    for i in (0..16).step_by(2) {
        a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    let mut b = a;
    for i in (0..16).step_by(4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // b[4·q + c] holds, in its 128-bit lane l, column 4·l + c of rows 4·q to 4·q + 3.
    let mut out = b;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(b[c], b[4 + c]);
        let low_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0b10_00_10_00>(b[8 + c], b[12 + c]);
        let high_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(b[8 + c], b[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high);
        out[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high);
        out[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low_odd, high_odd);
        out[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low_odd, high_odd);
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pack_x<const M: usize, const T: usize>(rows: &[f32], k: usize, out: &mut [[[u32; M]; T]]) {
    for (block, out) in out.chunks_mut(16).enumerate() {
        let first = block * 32;
        let width = (k - first).min(32);
        let mut terms = [[[0; 16]; M]; 2];
        for i in 0..M {
            let start = i * k + first;
            if let Some(values) = rows.get(start..start + width) {
                // SAFETY: both are 128 bytes of plain data, and pairs of little-endian values make the words.
                let [one, two] =
                    unsafe { std::mem::transmute::<[[u16; 32]; 2], [[u32; 16]; 2]>(split(values).0) };
                (terms[0][i], terms[1][i]) = (one, two);
            }
        }
        for (u, out) in out.iter_mut().enumerate() {
            for (out, term) in out.iter_mut().zip(&terms) {
                *out = std::array::from_fn(|i| term[i][u]);
            }
        }
    }
}

/// Loads up to 32 values; the rest are zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32_up_to_32(values: &[f32]) -> [__m512; 2] {
    let (low, high) = values.split_at(values.len().min(16));
    [low, high].map(|part| {
        let mask = ((1u32 << part.len().min(16)) - 1) as u16;
        // SAFETY: the mask has one bit for each of the at most 16 values of `part`; lanes without one are
        // not read.
        unsafe { _mm512_maskz_loadu_ps(mask, part.as_ptr()) }
    })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn split(values: &[f32]) -> Terms {
    let [low, high] = load_f32_up_to_32(values);
    let first = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: both are 64 bytes of plain data.
    let words: __m512i = unsafe { std::mem::transmute(first) };
    let widen = |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
    let low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(words)));
    let high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64::<1>(words)));
    let second = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: both are 128 bytes of plain data.
    Terms(unsafe { std::mem::transmute::<[__m512bh; 2], [[u16; 32]; 2]>([first, second]) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round<'a>(row: &[f32], out: impl Iterator<Item = &'a mut [u16; 32]>) {
    for (values, out) in row.chunks(32).zip(out) {
        let [low, high] = load_f32_up_to_32(values);
        // SAFETY: both are 64 bytes of plain data.
        *out = unsafe { std::mem::transmute::<__m512bh, [u16; 32]>(_mm512_cvtne2ps_pbh(high, low)) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn every_fourth(values: &[f32]) -> [Terms; 4] {
    let mut natural = [Terms([[0; 32]; 2]); 4];
    for (out, values) in natural.iter_mut().zip(values.chunks(32)) {
        *out = split(values);
    }
    let mut out = natural;
    for t in 0..2 {
        let [a, b, c, d] = natural.map(|terms| load_words(&terms.0[t]));
        for (j, out) in out.iter_mut().enumerate() {
            let places = load_words(&EVERY_FOURTH[j]);
            // The lower sixteen lanes of each are used.
            let low = _mm512_permutex2var_epi16(a, places, b);
            let high = _mm512_castsi512_si256(_mm512_permutex2var_epi16(c, places, d));
            let words = _mm512_inserti64x4::<1>(low, high);
            // SAFETY: the array holds 64 bytes; an unaligned store.
            unsafe { _mm512_storeu_si512(out.0[t].as_mut_ptr().cast(), words) };
        }
    }
    out
}

/// `4·i + j` for the lower sixteen `i`.
const EVERY_FOURTH: [[u16; 32]; 4] = {
    let mut places = [[0; 32]; 4];
    let mut i = 0;
    while i < 64 {
        places[i % 4][i / 4] = i as u16;
        i += 1;
    }
    places
};

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words(words: &[u16; 32]) -> __m512i {
    // SAFETY: the array holds 64 bytes; an unaligned load.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pair_up(rows: &[Terms; 16], t: usize, out: &mut [u32], stride: usize) {
    let mut words = [_mm512_setzero_si512(); 16];
    for (words, row) in words.iter_mut().zip(rows) {
        *words = load_words(&row.0[t]);
    }
    for (i, column) in transpose(words).into_iter().enumerate() {
        let place: &mut [u32; 16] = out[i * stride..].first_chunk_mut().expect("a column within the slice");
        // SAFETY: the array holds 64 bytes; an unaligned store.
        unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), column) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pair_rows(rows: &[[f32; 16]; 16], out: &mut [[u32; 16]; 8]) {
    let places = load_words(&INTERLEAVED);
    for ([even, odd], out) in rows.as_chunks::<2>().0.iter().zip(out) {
        // SAFETY: both arrays hold 64 bytes, unaligned loads; what is transmuted is 64 bytes of plain data.
        let halves: __m512i = unsafe {
            std::mem::transmute(_mm512_cvtne2ps_pbh(
                _mm512_loadu_ps(odd.as_ptr()),
                _mm512_loadu_ps(even.as_ptr()),
            ))
        };
        // SAFETY: the array holds 64 bytes; an unaligned store.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi16(places, halves)) };
    }
}

/// Indices that interleave two halves.
const INTERLEAVED: [u16; 32] = {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 32 {
        places[i] = (i / 2 + 16 * (i % 2)) as u16;
        i += 1;
    }
    places
};

#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_values(rows: &[[f32; 16]; 16], out: &mut [f32], stride: usize) {
    let mut words = [_mm512_setzero_si512(); 16];
    for (words, row) in words.iter_mut().zip(rows) {
        // SAFETY: the array holds 64 bytes; an unaligned load.
        *words = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    for (i, column) in transpose(words).into_iter().enumerate() {
        let place: &mut [f32; 16] = out[i * stride..].first_chunk_mut().expect("a column within the slice");
        // SAFETY: the array holds 64 bytes; an unaligned store.
        unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), column) };
    }
}

#[cfg(test)]
mod tests;

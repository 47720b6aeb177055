//! AVX-512 and AVX2 versions of the sixteen lanes: one `zmm` register, or two `ymm`.

use std::arch::x86_64::*;

use super::{F32x16, Kernel, LANES};

/// # Safety
/// The processor must have AVX-512F, AVX-512VL and POPCNT. (Without VL the compiler keeps what is later halved out of the upper
/// sixteen registers, and runs out of them.)
#[target_feature(enable = "avx512f,avx512vl,popcnt")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Zmm>()
}

/// # Safety
/// The processor must have AVX2, FMA, F16C and POPCNT.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Ymm2>()
}

/// The one `unsafe` of all the methods below.
macro_rules! simd {
    ($operation:expr) => {{
        // SAFETY: only `run_avx512` names `Zmm` and only `run_avx2` names `Ymm2`, and their callers checked the
        // processor. Loads and stores are the unaligned ones, inside the arrays that were given.
        #[allow(clippy::macro_metavars_in_unsafe)]
        unsafe {
            $operation
        }
    }};
}

#[derive(Clone, Copy)]
struct Zmm(__m512);

impl F32x16 for Zmm {
    const WIDE: bool = true;
    type Bytes = __m128i;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Zmm(simd!(_mm512_set1_ps(value)))
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Zmm(simd!(_mm512_loadu_ps(from.as_ptr())))
    }

    #[inline(always)]
    fn load_f32(from: &[u8; 4 * LANES]) -> Self {
        Zmm(simd!(_mm512_loadu_ps(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_f16(from: &[u8; 2 * LANES]) -> Self {
        Zmm(simd!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))))
    }

    #[inline(always)]
    fn load_bf16(from: &[u8; 2 * LANES]) -> Self {
        Zmm(simd!({
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }))
    }

    #[inline(always)]
    fn load_e4m3(from: &[u8; LANES]) -> Self {
        Zmm(simd!(_mm512_mul_ps(_mm512_cvtph_ps(e4m3_halves(from)), _mm512_set1_ps(256.0))))
    }

    #[inline(always)]
    fn load_i8(from: &[u8; LANES]) -> Self {
        Zmm(simd!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())))))
    }

    #[inline(always)]
    fn table4<const UPPER_FIRST: bool>(codes: &[u8; LANES / 2], table: &[f32; 16]) -> Self {
        Zmm(simd!({
            let halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            let words = _mm512_castsi128_si512(_mm_loadl_epi64(codes.as_ptr().cast()));
            let words = _mm512_permutexvar_epi32(halves, words);
            let shifts = _mm512_broadcast_i64x4(nibbles::<UPPER_FIRST>());
            // Of an index, only the lower four bits count.
            _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), _mm512_loadu_ps(table.as_ptr()))
        }))
    }

    #[inline(always)]
    fn load_coded(numbers: &[u8; LANES], codes: &[u8; 8], exponents: &[u8; 8], escapes: &[u8; LANES]) -> (Self, usize) {
        let p = codes.as_ptr();
        simd!({
            // Of 24 bits each, the codes of lanes 0 to 7 and 8 to 15.
            let (first, second) = (p.cast::<i32>().read_unaligned(), p.add(3).cast::<i32>().read_unaligned());
            let words = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xff00, second);
            let codes = _mm512_srlv_epi32(words, _mm512_broadcast_i64x4(code_shifts()));
            let escaped = _mm512_testn_epi32_mask(codes, _mm512_set1_epi32(7));
            // Of an index, the lower four bits count: the table is there twice.
            let table = _mm512_cvtepu8_epi32(_mm_set1_epi64x(i64::from_le_bytes(*exponents)));
            let escapes = _mm512_cvtepu8_epi32(_mm_loadu_si128(escapes.as_ptr().cast()));
            let exponents = _mm512_mask_expand_epi32(_mm512_permutexvar_epi32(codes, table), escaped, escapes);
            let numbers = _mm512_cvtepi8_epi32(_mm_loadu_si128(numbers.as_ptr().cast()));
            // Sign and mantissa of the one, the exponent of the other.
            let (numbers, exponents) = (_mm512_slli_epi32::<16>(numbers), _mm512_slli_epi32::<23>(exponents));
            let where_exponents_are = _mm512_set1_epi32(0x7f80_0000);
            let all = _mm512_ternarylogic_epi32::<0xd8>(numbers, exponents, where_exponents_are);
            (Zmm(_mm512_castsi512_ps(all)), escaped.count_ones() as usize)
        })
    }

    #[inline(always)]
    fn from_bytes(bytes: __m128i) -> Self {
        Zmm(simd!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))))
    }

    #[inline(always)]
    fn bytes(from: &[u8; LANES]) -> __m128i {
        simd!(_mm_loadu_si128(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn field(bytes: __m128i, shift: u32, mask: u8) -> __m128i {
        simd!(field(bytes, shift, mask))
    }

    #[inline(always)]
    fn join(low: __m128i, high: __m128i) -> __m128i {
        simd!(_mm_or_si128(low, _mm_slli_epi16::<4>(high)))
    }

    #[inline(always)]
    fn load_field(from: &[u8; 4 * LANES], shift: u32, mask: u32) -> Self {
        Zmm(simd!({
            let words = _mm512_loadu_si512(from.as_ptr().cast());
            let moved = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(moved, _mm512_set1_epi32(mask as i32)))
        }))
    }

    #[inline(always)]
    fn load_nibbles(from: &[u8; LANES / 2], shifts: &[u32; LANES]) -> Self {
        let [low, high] = halves(from);
        Zmm(simd!({
            let words =
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(_mm256_set1_epi32(low)), _mm256_set1_epi32(high));
            let moved = _mm512_srlv_epi32(words, _mm512_loadu_si512(shifts.as_ptr().cast()));
            _mm512_cvtepi32_ps(_mm512_and_si512(moved, _mm512_set1_epi32(15)))
        }))
    }

    #[inline(always)]
    fn half(bytes: [u8; 2]) -> f32 {
        simd!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes))))))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        simd!(_mm512_storeu_ps(to.as_mut_ptr(), self.0))
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Zmm(simd!(_mm512_add_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Zmm(simd!(_mm512_sub_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Zmm(simd!(_mm512_mul_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Zmm(simd!(_mm512_div_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Zmm(simd!(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Zmm(simd!(_mm512_max_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Zmm(simd!(_mm512_min_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        Zmm(simd!(_mm512_scalef_ps(self.0, n.0)))
    }

    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        simd!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        simd!({
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            sum8(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        })
    }
}

/// Lanes 0–7 and 8–15.
#[derive(Clone, Copy)]
struct Ymm2(__m256, __m256);

impl F32x16 for Ymm2 {
    const WIDE: bool = false;
    type Bytes = __m128i;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        simd!(Ymm2(_mm256_set1_ps(value), _mm256_set1_ps(value)))
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        let p = from.as_ptr();
        simd!(Ymm2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))))
    }

    #[inline(always)]
    fn load_f32(from: &[u8; 4 * LANES]) -> Self {
        let p = from.as_ptr();
        simd!(Ymm2(_mm256_loadu_ps(p.cast()), _mm256_loadu_ps(p.add(32).cast())))
    }

    #[inline(always)]
    fn load_f16(from: &[u8; 2 * LANES]) -> Self {
        let p = from.as_ptr();
        simd!(Ymm2(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))))
    }

    #[inline(always)]
    fn load_bf16(from: &[u8; 2 * LANES]) -> Self {
        let p = from.as_ptr();
        simd!({
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()));
            Ymm2(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        })
    }

    #[inline(always)]
    fn load_e4m3(from: &[u8; LANES]) -> Self {
        simd!({
            let halves = e4m3_halves(from);
            let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            let scale = _mm256_set1_ps(256.0);
            Ymm2(_mm256_mul_ps(_mm256_cvtph_ps(low), scale), _mm256_mul_ps(_mm256_cvtph_ps(high), scale))
        })
    }

    #[inline(always)]
    fn load_i8(from: &[u8; LANES]) -> Self {
        simd!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let (low, high) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
            Ymm2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        })
    }

    #[inline(always)]
    fn table4<const UPPER_FIRST: bool>(codes: &[u8; LANES / 2], table: &[f32; 16]) -> Self {
        let [a, b, c, d, e, f, g, h] = *codes;
        let words = [i32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h])];
        simd!({
            let (low, high) = (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8)));
            let shifts = nibbles::<UPPER_FIRST>();
            let [a, b] = words.map(|word| lookup8(_mm256_srlv_epi32(_mm256_set1_epi32(word), shifts), low, high));
            Ymm2(a, b)
        })
    }

    #[inline(always)]
    fn load_coded(numbers: &[u8; LANES], codes: &[u8; 8], exponents: &[u8; 8], escapes: &[u8; LANES]) -> (Self, usize) {
        simd!({
            // Everything in sixteen halves. Each gets the two bytes that its code lies in, moved up to its top three bits.
            let places = _mm256_loadu_si256(CODE_PLACES.as_ptr().cast());
            let up = _mm256_loadu_si256(CODE_FACTORS.as_ptr().cast());
            let words = _mm256_shuffle_epi8(_mm256_set1_epi64x(i64::from_le_bytes(*codes)), places);
            let codes = _mm256_srli_epi16::<13>(_mm256_mullo_epi16(words, up));
            // The upper byte of each is 0, and what the table has for that is 0.
            let table = _mm256_set1_epi64x(i64::from_le_bytes(*exponents));
            let exponents = _mm256_shuffle_epi8(table, codes);
            let escaped = _mm256_cmpeq_epi16(codes, _mm256_setzero_si256());
            let escaped = _mm_packs_epi16(_mm256_castsi256_si128(escaped), _mm256_extracti128_si256::<1>(escaped));
            let mask = _mm_movemask_epi8(escaped) as u16;
            let [first, second] = mask.to_le_bytes().map(usize::from);
            // In the second half, escapes go on where they end in the first.
            let used = first.count_ones();
            let (first, second) = (EXPAND[first], EXPAND[second] + u64::from(used) * 0x0101_0101_0101_0101);
            let escapes = _mm_loadu_si128(escapes.as_ptr().cast());
            let escapes = _mm_shuffle_epi8(escapes, _mm_set_epi64x(second as i64, first as i64));
            let exponents = _mm256_or_si256(exponents, _mm256_cvtepu8_epi16(escapes));
            let numbers = _mm256_cvtepi8_epi16(_mm_loadu_si128(numbers.as_ptr().cast()));
            let numbers = _mm256_and_si256(numbers, _mm256_set1_epi16(0x807f_u16 as i16));
            let halves = _mm256_or_si256(numbers, _mm256_slli_epi16::<7>(exponents));
            // Quarters 0, 2, 1, 3, since unpacking takes one from each half.
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(halves);
            let zero = _mm256_setzero_si256();
            let (low, high) = (_mm256_unpacklo_epi16(zero, halves), _mm256_unpackhi_epi16(zero, halves));
            (Ymm2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)), mask.count_ones() as usize)
        })
    }

    #[inline(always)]
    fn from_bytes(bytes: __m128i) -> Self {
        simd!({
            let (low, high) = (_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)));
            Ymm2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        })
    }

    #[inline(always)]
    fn bytes(from: &[u8; LANES]) -> __m128i {
        simd!(_mm_loadu_si128(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn field(bytes: __m128i, shift: u32, mask: u8) -> __m128i {
        simd!(field(bytes, shift, mask))
    }

    #[inline(always)]
    fn join(low: __m128i, high: __m128i) -> __m128i {
        simd!(_mm_or_si128(low, _mm_slli_epi16::<4>(high)))
    }

    #[inline(always)]
    fn load_field(from: &[u8; 4 * LANES], shift: u32, mask: u32) -> Self {
        let p = from.as_ptr();
        simd!(Ymm2(
            field8(_mm256_loadu_si256(p.cast()), shift, mask),
            field8(_mm256_loadu_si256(p.add(32).cast()), shift, mask)
        ))
    }

    #[inline(always)]
    fn load_nibbles(from: &[u8; LANES / 2], shifts: &[u32; LANES]) -> Self {
        let ([low, high], p) = (halves(from), shifts.as_ptr());
        simd!({
            let low = _mm256_srlv_epi32(_mm256_set1_epi32(low), _mm256_loadu_si256(p.cast()));
            let high = _mm256_srlv_epi32(_mm256_set1_epi32(high), _mm256_loadu_si256(p.add(8).cast()));
            Ymm2(field8(low, 0, 15), field8(high, 0, 15))
        })
    }

    #[inline(always)]
    fn half(bytes: [u8; 2]) -> f32 {
        simd!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes))))))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        let p = to.as_mut_ptr();
        simd!({
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        })
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        simd!(Ymm2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        simd!(Ymm2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        simd!(Ymm2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        simd!(Ymm2(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        simd!(Ymm2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        simd!(Ymm2(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        simd!(Ymm2(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        simd!(Ymm2(scale8(self.0, n.0), scale8(self.1, n.1)))
    }

    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        simd!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        simd!(sum8(_mm256_add_ps(self.0, self.1)))
    }
}

/// `a × 2ⁿ` in two steps, since 2ⁿ alone may overflow or be subnormal; the first is exact.
#[target_feature(enable = "avx2")]
#[inline]
fn scale8(a: __m256, n: __m256) -> __m256 {
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let bias = _mm256_set1_epi32(127);
    let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
    let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
    _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))
}

/// `word >> shift & mask` as numbers.
#[target_feature(enable = "avx2")]
#[inline]
fn field8(words: __m256i, shift: u32, mask: u32) -> __m256 {
    let moved = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
    _mm256_cvtepi32_ps(_mm256_and_si256(moved, _mm256_set1_epi32(mask as i32)))
}

/// Two little-endian words.
#[inline(always)]
fn halves(from: &[u8; LANES / 2]) -> [i32; 2] {
    let (words, _) = from.as_chunks::<4>();
    [i32::from_le_bytes(words[0]), i32::from_le_bytes(words[1])]
}

/// How far eight codes of three bits must move.
#[target_feature(enable = "avx2")]
#[inline]
fn code_shifts() -> __m256i {
    _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21)
}

/// Of sixteen codes of three bits, which two bytes each lies in, and what that must be multiplied by to bring it to the top.
static CODE_PLACES: [u8; 32] =
    [0, 1, 0, 1, 0, 1, 1, 2, 1, 2, 1, 2, 2, 3, 2, 3, 3, 4, 3, 4, 3, 4, 4, 5, 4, 5, 4, 5, 5, 6, 5, 6];
static CODE_FACTORS: [u16; 16] = [8192, 1024, 128, 4096, 512, 64, 2048, 256, 8192, 1024, 128, 4096, 512, 64, 2048, 256];

/// For each mask of eight: in the bytes of those that are set, their number among these; in the others 0x80, for which
/// shuffles give 0.
static EXPAND: [u64; 256] = {
    let mut all = [0; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bytes, mut next, mut l) = ([0x80; 8], 0, 0);
        while l < 8 {
            if mask >> l & 1 == 1 {
                bytes[l] = next;
                next += 1;
            }
            l += 1;
        }
        all[mask] = u64::from_le_bytes(bytes);
        mask += 1;
    }
    all
};

/// The last three levels of the tree of [`F32x16::sum`].
#[target_feature(enable = "avx2")]
#[inline]
fn sum8(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    let one = _mm_add_ss(two, _mm_movehdup_ps(two));
    _mm_cvtss_f32(one)
}

/// Sixteen E4M3 as float16, each 2⁻⁸ of its value: exponent and mantissa move to their places as they are, subnormals
/// included, and only the bias of the exponent (7 for 15) is left to be made up for. The NaNs become NaNs.
#[target_feature(enable = "avx2")]
#[inline]
fn e4m3_halves(from: &[u8; LANES]) -> __m256i {
    // SAFETY: an unaligned load inside the array.
    let bytes = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
    let wide = _mm256_cvtepu8_epi16(bytes);
    let magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
    let sign = _mm256_slli_epi16::<8>(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), wide));
    let nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
    let nan = _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00));
    _mm256_or_si256(_mm256_or_si256(sign, _mm256_slli_epi16::<7>(magnitude)), nan)
}

/// The bits that cross from byte to byte are those that the mask removes.
#[target_feature(enable = "sse2")]
#[inline]
fn field(bytes: __m128i, shift: u32, mask: u8) -> __m128i {
    _mm_and_si128(_mm_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32)), _mm_set1_epi8(mask as i8))
}

/// How far the eight codes of a word must move.
#[target_feature(enable = "avx2")]
#[inline]
fn nibbles<const UPPER_FIRST: bool>() -> __m256i {
    match UPPER_FIRST {
        true => _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24),
        false => _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28),
    }
}

/// What a table has for the lower four bits of eight words, given its halves.
#[target_feature(enable = "avx2")]
#[inline]
fn lookup8(codes: __m256i, low: __m256, high: __m256) -> __m256 {
    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
    _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), upper)
}

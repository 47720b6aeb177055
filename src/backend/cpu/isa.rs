//! One vector of sixteen float32 lanes, in three implementations. Every kernel is written once over [`F32x16`] and is
//! compiled for AVX-512, for AVX2, and portably; [`Isa`] picks one when the program starts.
//!
//! The three give the same bits. Each operation here is either exact or rounded once, as IEEE 754 says, so a kernel
//! that performs the same operations on the same lanes in the same order cannot differ. For this reason the
//! `avx512bf16` instructions are not used: they round activations to bf16 and flush subnormals. (Which payload a NaN
//! carries is not promised.)

#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

/// Lanes of the one vector that all arithmetic is defined on.
pub(crate) const LANES: usize = 16;

/// A vector in memory, in a cache line of its own.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Lanes(pub [f32; LANES]);

/// Sixteen float32 lanes. Nothing outside this module can name an implementation: a kernel gets one from [`Isa::run`],
/// which is what makes these methods safe to call.
pub(crate) trait F32x16: Copy {
    /// Whether there are registers for 4×6 accumulators (32 of 16 lanes) or only for 2×3 (16 of 8 lanes).
    const WIDE: bool;
    /// Sixteen bytes.
    type Bytes: Copy;

    fn splat(value: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    /// Little-endian float32, at any address.
    fn load_f32(from: &[u8; 4 * LANES]) -> Self;
    /// Little-endian float16 (IEEE binary16), at any address.
    fn load_f16(from: &[u8; 2 * LANES]) -> Self;
    /// Little-endian bfloat16, at any address.
    fn load_bf16(from: &[u8; 2 * LANES]) -> Self;
    /// FP8 E4M3 (no infinities, one NaN of either sign), at any address.
    fn load_e4m3(from: &[u8; LANES]) -> Self;
    /// Signed bytes, at any address.
    fn load_i8(from: &[u8; LANES]) -> Self;
    /// Sixteen codes of four bits, two in a byte, as what a table has for them. The first of a byte is its lower half, or
    /// its upper one.
    fn table4<const UPPER_FIRST: bool>(codes: &[u8; LANES / 2], table: &[f32; 16]) -> Self;
    /// Sixteen bfloat16: their signs and mantissas in bytes, and in the first six bytes of `codes`, three bits each, what
    /// `exponents` has the exponents for. Where that is 0, `exponents[0]`, they come from `escapes`, in order; how many
    /// do is the other result.
    fn load_coded(numbers: &[u8; LANES], codes: &[u8; 8], exponents: &[u8; 8], escapes: &[u8; LANES]) -> (Self, usize);
    /// Bytes, at any address.
    fn bytes(from: &[u8; LANES]) -> Self::Bytes;
    /// `byte >> shift & mask`, for masks of at most `8 - shift` bits.
    fn field(bytes: Self::Bytes, shift: u32, mask: u8) -> Self::Bytes;
    /// `low | high << 4`, for `high` below 16.
    fn join(low: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    fn from_bytes(bytes: Self::Bytes) -> Self;
    /// `word >> shift & mask` of sixteen little-endian words of 32 bits, at any address, for masks of at most 24 bits.
    fn load_field(from: &[u8; 4 * LANES], shift: u32, mask: u32) -> Self;
    /// Of two little-endian words of 32 bits, at any address: lane l is `word l / 8 >> shifts[l] & 15`.
    fn load_nibbles(from: &[u8; LANES / 2], shifts: &[u32; LANES]) -> Self;
    /// One little-endian float16.
    fn half(bytes: [u8; 2]) -> f32;
    fn store(self, to: &mut [f32; LANES]);
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// `self × b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `if self > b { self } else { b }`: a NaN in `b` stays, one in `self` goes.
    fn max(self, b: Self) -> Self;
    /// `if self < b { self } else { b }`.
    fn min(self, b: Self) -> Self;
    /// `self × 2ⁿ`, rounded once, for `self` in [0.5, 2] (or NaN) and whole `n` in [-160, 160].
    fn scale_by_power_of_two(self, n: Self) -> Self;
    /// Asks for memory that will be read soon. Any address will do.
    fn prefetch<T>(address: *const T);
    /// The lanes added as a binary tree: lane l with l+8, then with l+4, l+2, l+1.
    fn sum(self) -> f32;

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// Up to sixteen values, the missing ones as zero.
    #[inline(always)]
    fn load_part(from: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        Self::load(&lanes)
    }

    /// The first `to.len()` lanes, at most sixteen.
    #[inline(always)]
    fn store_part(self, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }
}

/// Work that can be compiled for any implementation. `run`, and all it calls, must be `#[inline(always)]` and free of
/// closures around vector operations, so that everything lands in the one function that has the instructions enabled.
pub(crate) trait Kernel {
    type Output;
    fn run<V: F32x16>(self) -> Self::Output;
}

/// An instruction set that this processor was found to have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Choice);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// All that this processor has, fastest first. The last one is the portable one.
    pub fn available() -> impl Iterator<Item = Isa> {
        Choice::ALL.iter().filter(|choice| choice.is_supported()).map(|choice| Isa(*choice))
    }

    /// The fastest that this processor has.
    pub fn best() -> Isa {
        Self::available().next().unwrap_or(Isa(Choice::Portable))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: an `Isa` comes from `available` only, which checked the processor for these features.
            #[cfg(target_arch = "x86_64")]
            Choice::Avx512 => unsafe { x86::run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Choice::Avx2 => unsafe { x86::run_avx2(kernel) },
            Choice::Portable => kernel.run::<Portable>(),
        }
    }
}

impl Choice {
    #[cfg(target_arch = "x86_64")]
    const ALL: &[Choice] = &[Choice::Avx512, Choice::Avx2, Choice::Portable];
    #[cfg(not(target_arch = "x86_64"))]
    const ALL: &[Choice] = &[Choice::Portable];

    fn is_supported(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Choice::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "x86_64")]
            Choice::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("popcnt")
            }
            Choice::Portable => true,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            #[cfg(target_arch = "x86_64")]
            Choice::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Choice::Avx2 => "avx2",
            Choice::Portable => "portable",
        })
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The twin that is obviously right, and what runs on other processors.
#[derive(Clone, Copy)]
struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|l| f(self.0[l], b.0[l])))
    }
}

impl F32x16 for Portable {
    const WIDE: bool = false;
    type Bytes = [u8; LANES];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Portable([value; LANES])
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Portable(*from)
    }

    #[inline(always)]
    fn load_f32(from: &[u8; 4 * LANES]) -> Self {
        Portable(std::array::from_fn(|l| {
            f32::from_le_bytes([from[4 * l], from[4 * l + 1], from[4 * l + 2], from[4 * l + 3]])
        }))
    }

    #[inline(always)]
    fn load_f16(from: &[u8; 2 * LANES]) -> Self {
        Portable(std::array::from_fn(|l| half::f16::from_le_bytes([from[2 * l], from[2 * l + 1]]).to_f32_const()))
    }

    #[inline(always)]
    fn load_bf16(from: &[u8; 2 * LANES]) -> Self {
        Portable(std::array::from_fn(|l| f32::from_le_bytes([0, 0, from[2 * l], from[2 * l + 1]])))
    }

    #[inline(always)]
    fn load_e4m3(from: &[u8; LANES]) -> Self {
        Portable(std::array::from_fn(|l| {
            let (sign, exponent, mantissa) = (from[l] >> 7, from[l] >> 3 & 15, from[l] & 7);
            let magnitude = match (exponent, mantissa) {
                (15, 7) => f32::NAN,
                (0, _) => f32::from(mantissa) / 512.0,
                _ => f32::from_bits((u32::from(exponent) + 120) << 23 | u32::from(mantissa) << 20),
            };
            if sign == 1 { -magnitude } else { magnitude }
        }))
    }

    #[inline(always)]
    fn load_i8(from: &[u8; LANES]) -> Self {
        Portable(std::array::from_fn(|l| f32::from(from[l] as i8)))
    }

    #[inline(always)]
    fn table4<const UPPER_FIRST: bool>(codes: &[u8; LANES / 2], table: &[f32; 16]) -> Self {
        let shift = |l: usize| if (l.is_multiple_of(2)) == UPPER_FIRST { 4 } else { 0 };
        Portable(std::array::from_fn(|l| table[usize::from(codes[l / 2] >> shift(l) & 15)]))
    }

    #[inline(always)]
    fn load_coded(numbers: &[u8; LANES], codes: &[u8; 8], exponents: &[u8; 8], escapes: &[u8; LANES]) -> (Self, usize) {
        let codes = u64::from_le_bytes(*codes);
        let mut used = 0;
        let mut lanes = [0.0; LANES];
        for (l, lane) in lanes.iter_mut().enumerate() {
            let exponent = match codes >> (3 * l) & 7 {
                0 => {
                    used += 1;
                    escapes[used - 1]
                }
                code => exponents[code as usize],
            };
            let [sign, exponent, mantissa] = [numbers[l] & 0x80, exponent, numbers[l] & 0x7f].map(u32::from);
            *lane = f32::from_bits(sign << 24 | exponent << 23 | mantissa << 16);
        }
        (Portable(lanes), used)
    }

    #[inline(always)]
    fn bytes(from: &[u8; LANES]) -> [u8; LANES] {
        *from
    }

    #[inline(always)]
    fn field(bytes: [u8; LANES], shift: u32, mask: u8) -> [u8; LANES] {
        bytes.map(|byte| byte >> shift & mask)
    }

    #[inline(always)]
    fn join(low: [u8; LANES], high: [u8; LANES]) -> [u8; LANES] {
        std::array::from_fn(|l| low[l] | high[l] << 4)
    }

    #[inline(always)]
    fn from_bytes(bytes: [u8; LANES]) -> Self {
        Portable(bytes.map(f32::from))
    }

    #[inline(always)]
    fn load_field(from: &[u8; 4 * LANES], shift: u32, mask: u32) -> Self {
        let (words, _) = from.as_chunks::<4>();
        Portable(std::array::from_fn(|l| (u32::from_le_bytes(words[l]) >> shift & mask) as f32))
    }

    #[inline(always)]
    fn load_nibbles(from: &[u8; LANES / 2], shifts: &[u32; LANES]) -> Self {
        let (words, _) = from.as_chunks::<4>();
        Portable(std::array::from_fn(|l| (u32::from_le_bytes(words[l / 8]) >> shifts[l] & 15) as f32))
    }

    #[inline(always)]
    fn half(bytes: [u8; 2]) -> f32 {
        half::f16::from_le_bytes(bytes).to_f32_const()
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|l| self.0[l].mul_add(b.0[l], c.0[l])))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        // In two steps, since 2ⁿ alone may overflow or be subnormal; the first is exact.
        self.zip(n, |a, n| {
            let n = n as i32;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            a * power(n >> 1) * power(n - (n >> 1))
        })
    }

    #[inline(always)]
    fn prefetch<T>(_: *const T) {}

    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.0;
        for width in [8, 4, 2, 1] {
            for l in 0..width {
                lanes[l] += lanes[l + width];
            }
        }
        lanes[0]
    }
}

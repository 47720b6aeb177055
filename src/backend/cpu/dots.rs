//! The dot product that everything rests on. Sixteen lanes: lane l takes the elements k ≡ l (mod 16) in increasing k,
//! each with a fused multiply-add, beginning at zero; a row whose length is not a multiple of sixteen is continued with
//! zeros; at the end the lanes are added as a tree. What else is computed at the same time never enters, so a result
//! has the same bits in every company.

use super::isa::{F32x16, LANES};
use super::weights::{Element, Factors};

/// The dot products of `R` rows with `T` tokens. `rows` holds the `R` rows one after another; each of `tokens` is as
/// long as a row. Four rows and up keep enough streams and independent sums in flight to be limited by memory only.
#[inline(always)]
pub(super) fn dots<V: F32x16, E: Element, const R: usize, const T: usize>(
    rows: &[u8],
    tokens: [&[f32]; T],
) -> [[f32; T]; R] {
    scaled_dots::<V, E, R, T>(rows, Factors::NONE, tokens)
}

/// The same for rows whose numbers are multiplied by factors, if the encoding says so.
#[inline(always)]
pub(super) fn scaled_dots<V: F32x16, E: Element, const R: usize, const T: usize>(
    rows: &[u8],
    factors: Factors<'_, R>,
    tokens: [&[f32]; T],
) -> [[f32; T]; R] {
    let row_bytes = rows.len() / R;
    let whole = row_bytes / size_of::<E::Chunk>();
    let mut row_chunks: [&[E::Chunk]; R] = [&[]; R];
    let mut row_rests: [&[u8]; R] = [&[]; R];
    for r in 0..R {
        let (chunks, rest) = E::chunks(&rows[r * row_bytes..(r + 1) * row_bytes]);
        row_chunks[r] = &chunks[..whole];
        row_rests[r] = rest;
    }
    let mut token_chunks: [&[[f32; LANES]]; T] = [&[]; T];
    let mut token_rests: [&[f32]; T] = [&[]; T];
    for t in 0..T {
        let (chunks, rest) = tokens[t].as_chunks::<LANES>();
        token_chunks[t] = &chunks[..whole * E::STEPS];
        token_rests[t] = rest;
    }

    let mut lanes = [[V::zero(); T]; R];
    #[expect(clippy::needless_range_loop, reason = "it indexes one array per row, and tokens at another step")]
    for i in 0..whole {
        let mut common = [E::Common::default(); R];
        for r in 0..R {
            common[r] = E::common::<V>(&row_chunks[r][i]);
        }
        for step in 0..E::STEPS {
            let at = i * E::STEPS + step;
            let mut w = [V::zero(); R];
            for r in 0..R {
                w[r] = factors.apply::<V, E>(E::lanes(&row_chunks[r][i], &common[r], step), r, at);
            }
            for t in 0..T {
                let x = V::load(&token_chunks[t][at]);
                for r in 0..R {
                    lanes[r][t] = w[r].mul_add(x, lanes[r][t]);
                }
            }
        }
    }
    if !row_rests[0].is_empty() {
        let mut w = [[0.0; LANES]; R];
        let mut x = [[0.0; LANES]; T];
        for (r, w) in w.iter_mut().enumerate() {
            factors.apply::<V, E>(E::lanes_part(row_rests[r]), r, whole).store(w);
        }
        for (x, rest) in x.iter_mut().zip(token_rests) {
            x[..rest.len()].copy_from_slice(rest);
        }
        for r in 0..R {
            for t in 0..T {
                lanes[r][t] = V::load(&w[r]).mul_add(V::load(&x[t]), lanes[r][t]);
            }
        }
    }

    let mut sums = [[0.0; T]; R];
    for r in 0..R {
        for t in 0..T {
            sums[r][t] = lanes[r][t].sum();
        }
    }
    sums
}

//! The dot product that everything rests on. Sixteen lanes: lane l takes the elements k ≡ l (mod 16) in increasing k,
//! each with a fused multiply-add, beginning at zero; a row whose length is not a multiple of sixteen is continued with
//! zeros; at the end the lanes are added as a tree. What else is computed at the same time never enters, so a result
//! has the same bits in every company.

use super::isa::{F32x16, LANES};
use super::weights::{Element, Row};

/// The dot products of `R` rows with `T` tokens, each of which is as long as a row. Four rows and up keep enough streams and
/// independent sums in flight to be limited by memory only.
#[inline(always)]
pub(super) fn dots<V: F32x16, E: Element, const R: usize, const T: usize>(
    rows: [Row<'_, E>; R],
    tokens: [&[f32]; T],
) -> [[f32; T]; R] {
    let whole = rows[0].chunks.len();
    let mut row_chunks: [&[E::Chunk]; R] = [&[]; R];
    for r in 0..R {
        row_chunks[r] = &rows[r].chunks[..whole];
    }
    let mut token_chunks: [&[[f32; LANES]]; T] = [&[]; T];
    for t in 0..T {
        token_chunks[t] = &tokens[t].as_chunks::<LANES>().0[..whole * E::STEPS];
    }

    let mut lanes = [[V::zero(); T]; R];
    for i in 0..whole {
        let mut common = [E::Common::default(); R];
        for r in 0..R {
            common[r] = E::common::<V>(&rows[r].beside, &row_chunks[r][i], i);
        }
        for step in 0..E::STEPS {
            let mut w = [V::zero(); R];
            for r in 0..R {
                w[r] = E::lanes(&rows[r].beside, &row_chunks[r][i], &mut common[r], i, step);
            }
            for t in 0..T {
                let x = V::load(&token_chunks[t][i * E::STEPS + step]);
                for r in 0..R {
                    lanes[r][t] = w[r].mul_add(x, lanes[r][t]);
                }
            }
        }
    }
    let done = whole * E::STEPS * LANES;
    if done < tokens[0].len() {
        for r in 0..R {
            let mut rest = rows[r].rest::<V>();
            for first in (done..tokens[0].len()).step_by(LANES) {
                let numbers = (tokens[0].len() - first).min(LANES);
                let w: V = rest.next(numbers);
                for t in 0..T {
                    let x = V::load_part(&tokens[t][first..first + numbers]);
                    lanes[r][t] = w.mul_add(x, lanes[r][t]);
                }
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

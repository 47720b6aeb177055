//! MXFP4 (Open Compute Project, Microscaling Formats 1.0): numbers of four bits, E2M1, two in a byte, the lower half first;
//! and for each 32 of a row an exponent of eight bits, E8M0, which lies elsewhere.

/// The sixteen numbers: a sign, two bits of exponent, one of mantissa.
pub(super) const NUMBERS: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Factors of exponents: `2^(e − 127)`.
pub(super) fn factors(exponents: &[u8], out: &mut Vec<f32>) {
    out.clear();
    // The least is below the normal numbers of float32.
    out.extend(exponents.iter().map(|&e| f32::from_bits(if e == 0 { 1 << 22 } else { u32::from(e) << 23 })));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_powers_of_two() {
        let mut out = vec![7.0];
        factors(&[0, 1, 126, 127, 128, 254], &mut out);
        let exact: Vec<f32> = [-127, -126, -1, 0, 1, 127].map(|e| 2f64.powi(e) as f32).to_vec();
        assert_eq!(out, exact);
    }
}

//! Fixed-point numbers in [0, 1) with 256 fractional bits, for building tables.

/// A number in [0, 1): 256 fractional bits, least significant word first.
///
/// Every operation rounds down by less than one unit in the last place, 2^-256, per use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fixed([u64; 4]);

impl Fixed {
    pub(super) const ZERO: Self = Self([0; 4]);
    /// The largest number, 1 - 2^-256: stands for 1.
    pub(super) const ONE: Self = Self([u64::MAX; 4]);

    /// `1 / (2 variance)` divided by `2^shift`, which must make it less than 1.
    pub(super) fn half_reciprocal(variance: f64, shift: u32) -> Self {
        // variance = mantissa * 2^exponent, exactly.
        let bits = variance.to_bits();
        let mantissa = (bits & ((1 << 52) - 1)) | (1 << 52);
        let exponent = ((bits >> 52) & 0x7ff) as i32 - 1075;
        // 2^256 / mantissa, then times 2^(-exponent - 1 - shift), which is at most 1 here.
        let quotient = Self::ONE.divided(mantissa);
        let power = -exponent - 1 - shift.cast_signed();
        if power >= 0 {
            quotient.doubled(power.cast_unsigned())
        } else {
            quotient.halved(power.unsigned_abs())
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        let mut carry = false;
        let mut words = [0; 4];
        for ((word, &a), &b) in words.iter_mut().zip(&self.0).zip(&other.0) {
            let (sum, first) = a.overflowing_add(b);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *word = sum;
            carry = first || second;
        }
        debug_assert!(!carry, "sums stay below 1");
        Self(words)
    }

    pub(super) fn minus(self, other: Self) -> Self {
        let mut borrow = false;
        let mut words = [0; 4];
        for ((word, &a), &b) in words.iter_mut().zip(&self.0).zip(&other.0) {
            let (difference, first) = a.overflowing_sub(b);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            *word = difference;
            borrow = first || second;
        }
        debug_assert!(!borrow, "differences stay positive");
        Self(words)
    }

    pub(super) fn times(self, other: Self) -> Self {
        let mut product = [0u64; 8];
        for (i, &a) in self.0.iter().enumerate() {
            let mut carry = 0u128;
            for (j, &b) in other.0.iter().enumerate() {
                let sum = u128::from(a) * u128::from(b) + u128::from(product[i + j]) + carry;
                product[i + j] = sum as u64;
                carry = sum >> 64;
            }
            product[i + 4] = carry as u64;
        }
        Self([product[4], product[5], product[6], product[7]])
    }

    pub(super) fn divided(self, divisor: u64) -> Self {
        let mut remainder = 0u128;
        let mut words = [0; 4];
        for (word, &value) in words.iter_mut().zip(&self.0).rev() {
            let dividend = (remainder << 64) | u128::from(value);
            *word = (dividend / u128::from(divisor)) as u64;
            remainder = dividend % u128::from(divisor);
        }
        Self(words)
    }

    /// Divided by `2^count`.
    fn halved(self, count: u32) -> Self {
        (0..count).fold(self, |value, _| value.divided(2))
    }

    /// Times `2^count`; the caller knows that it stays below 1.
    fn doubled(self, count: u32) -> Self {
        (0..count).fold(self, |value, _| value.plus(value))
    }

    /// `exp(-self)` for `self` at most 1/8.
    fn exp_minus_small(self) -> Self {
        // The alternating Taylor series, even and odd terms apart so that nothing is negative.
        let (mut even, mut odd) = (Self::ZERO, self);
        let mut term = self;
        for k in 2..60 {
            term = term.times(self).divided(k);
            if k % 2 == 0 { even = even.plus(term) } else { odd = odd.plus(term) }
        }
        Self::ONE.minus(odd.minus(even))
    }

    /// `exp(-1 / (2 variance))`, for a variance of at least 0.25.
    pub(super) fn gaussian_base(variance: f64) -> Self {
        // 1 / (2 * 0.25) = 2 = 2^4 / 8.
        const SQUARINGS: u32 = 4;
        let small = Self::half_reciprocal(variance, SQUARINGS).exp_minus_small();
        (0..SQUARINGS).fold(small, |value, _| value.times(value))
    }

    /// The top 128 bits.
    #[cfg(test)]
    pub(super) const fn top(self) -> u128 {
        ((self.0[3] as u128) << 64) | self.0[2] as u128
    }

    /// `self / total` with 128 fractional bits, for `self < total`.
    pub(super) fn ratio(self, total: Self) -> u128 {
        // Long division bit by bit; tables are built once.
        let mut remainder = self;
        let mut quotient = 0u128;
        for _ in 0..128 {
            let carry = remainder.0[3] >> 63 == 1;
            remainder = remainder.shifted_left();
            quotient <<= 1;
            if carry || !remainder.less_than(total) {
                remainder = remainder.wrapping_minus(total);
                quotient |= 1;
            }
        }
        quotient
    }

    fn less_than(self, other: Self) -> bool {
        self.0.iter().rev().lt(other.0.iter().rev())
    }

    fn shifted_left(self) -> Self {
        let [a, b, c, d] = self.0;
        Self([a << 1, (b << 1) | (a >> 63), (c << 1) | (b >> 63), (d << 1) | (c >> 63)])
    }

    fn wrapping_minus(self, other: Self) -> Self {
        let mut borrow = false;
        let mut words = [0; 4];
        for ((word, &a), &b) in words.iter_mut().zip(&self.0).zip(&other.0) {
            let (difference, first) = a.overflowing_sub(b);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            *word = difference;
            borrow = first || second;
        }
        Self(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digits from a computer algebra system, rounded down to 128 bits.
    #[test]
    fn exponentials_are_exact_to_the_last_of_128_bits() {
        let fraction = |value: Fixed| value.top() as f64 / 2.0_f64.powi(128);
        for variance in [0.25, 0.5, 1.0, 3.7, 28_900.0, 1e18_f64] {
            let expected = (-0.5 / variance).exp();
            let ours = fraction(Fixed::gaussian_base(variance));
            assert!((ours / expected - 1.0).abs() < 1e-15, "{variance}: {ours}");
        }
        // e^-0.5 = 0.60653065971263342360379953499118045344191813548718695568289...
        let ours = Fixed::gaussian_base(1.0).top();
        let expected = 0x9b45_97e3_7cb0_4ff3_d675_a355_30cd_d767_u128;
        assert!(ours.abs_diff(expected) <= 1, "{ours:x}");
    }
}

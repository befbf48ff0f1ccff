//! Shamir's secret sharing over the scalar field of Curve25519.
//!
//! All coefficients are uniform in the field, the leading one included: a polynomial of exactly the
//! degree `t - 1` would exclude one value of the secret for every `t - 1` shares. A share has the
//! size of the secret.
//!
//! Source: Shamir 1979 (CACM 22).

use curve25519_dalek::Scalar;
use rand::Rng;
use zeroize::Zeroizing;

use super::Member;

/// A random polynomial whose value at zero is the secret; zeroised on drop.
pub(super) struct Polynomial(Zeroizing<Vec<Scalar>>);

impl Polynomial {
    /// - `threshold`: shares that reconstruct, at least 1
    /// - `entropy`: a cryptographic generator
    pub(super) fn new(secret: Scalar, threshold: u32, entropy: &mut impl Rng) -> Self {
        let mut coefficients = Zeroizing::new(Vec::with_capacity(threshold as usize));
        coefficients.push(secret);
        coefficients.extend((1..threshold).map(|_| random_scalar(entropy)));
        Self(coefficients)
    }

    /// The share of one member.
    pub(super) fn share(&self, holder: Member) -> Scalar {
        let place = place(holder);
        self.0.iter().rev().fold(Scalar::ZERO, |value, coefficient| value * place + coefficient)
    }
}

/// A uniform scalar: 512 bits reduced, so the bias is below 2^-250.
pub(super) fn random_scalar(entropy: &mut impl Rng) -> Scalar {
    let mut bytes = Zeroizing::new([0; 64]);
    entropy.fill_bytes(&mut *bytes);
    Scalar::from_bytes_mod_order_wide(&bytes)
}

/// The secret that as many shares as the threshold determine.
///
/// With fewer shares, or any share wrong, the result is wrong: the caller checks it against a
/// public commitment.
///
/// - `shares`: of different members
pub(super) fn reconstruct(shares: &[(Member, Scalar)]) -> Scalar {
    let places: Vec<Scalar> = shares.iter().map(|&(holder, _)| place(holder)).collect();
    // Lagrange at zero: the product over all others of x_j / (x_j - x_i), which is the product over
    // all of x_j, divided by x_i and all differences.
    let all: Scalar = places.iter().product();
    let divisor = |&own: &Scalar| {
        let others = places.iter().filter(|&&place| place != own);
        others.fold(own, |divisor, place| divisor * (place - own))
    };
    let mut inverses: Vec<Scalar> = places.iter().map(divisor).collect();
    Scalar::invert_batch_alloc(&mut inverses);
    all * inverses.iter().zip(shares).map(|(inverse, (_, share))| inverse * share).sum::<Scalar>()
}

/// Where a member's share is taken: never at zero, where the secret is.
fn place(holder: Member) -> Scalar {
    Scalar::from(u64::from(holder.0) + 1)
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20Rng;
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn scalar(text: &str) -> Scalar {
        let bytes = HEXLOWER.decode(text.as_bytes()).expect("hexadecimal");
        let bytes = bytes.try_into().expect("32 bytes");
        Scalar::from_canonical_bytes(bytes).expect("below the order")
    }

    /// See `tests/vectors/README.md` for their origin.
    #[test]
    fn shares_are_those_of_an_independent_implementation() {
        let vectors = include_str!("../../tests/vectors/shamir.csv");
        let mut rows = csv::Reader::from_reader(vectors.as_bytes());
        let mut count = 0;
        for row in rows.records() {
            let row = row.expect("well formed");
            let secret = scalar(&row[0]);
            let coefficients = row[1].split_whitespace().map(scalar);
            let polynomial =
                Polynomial(Zeroizing::new(std::iter::once(secret).chain(coefficients).collect()));
            let holders =
                row[2].split_whitespace().map(|holder| Member(holder.parse().expect("number")));
            let shares: Vec<_> = holders.zip(row[3].split_whitespace().map(scalar)).collect();
            for &(holder, share) in &shares {
                assert_eq!(polynomial.share(holder), share);
            }
            assert_eq!(reconstruct(&shares), secret);
            count += 1;
        }
        assert_eq!(count, 15);
    }

    proptest! {
        #[test]
        fn the_threshold_reconstructs_and_less_does_not(
            threshold in 2u32..12,
            seed in any::<[u8; 32]>(),
            spread in 1u32..500,
        ) {
            let mut entropy = ChaCha20Rng::from_seed(seed);
            let secret = random_scalar(&mut entropy);
            let polynomial = Polynomial::new(secret, threshold, &mut entropy);
            let mut shares: Vec<_> = (0..threshold)
                .map(|index| Member(index * spread))
                .map(|holder| (holder, polynomial.share(holder)))
                .collect();
            prop_assert_eq!(reconstruct(&shares), secret);
            prop_assert_ne!(reconstruct(&shares[1..]), secret);
            shares[0].1 += Scalar::ONE;
            prop_assert_ne!(reconstruct(&shares), secret);
        }
    }

    /// Every share below the threshold is uniform, so its highest and lowest bits are balanced.
    #[test]
    fn one_share_says_nothing_about_the_secret() {
        let mut entropy = ChaCha20Rng::from_seed([3; 32]);
        let mut ones = [0u32; 8];
        for _ in 0..4000 {
            let share = Polynomial::new(Scalar::ZERO, 2, &mut entropy).share(Member(0)).to_bytes();
            for (bit, ones) in ones.iter_mut().enumerate() {
                *ones += u32::from(share[0] >> bit & 1);
            }
        }
        // Five standard deviations of 4000 coins.
        assert!(ones.iter().all(|&ones| ones.abs_diff(2000) < 158), "{ones:?}");
    }
}

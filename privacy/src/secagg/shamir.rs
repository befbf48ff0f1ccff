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

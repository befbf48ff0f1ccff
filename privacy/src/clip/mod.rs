//! L2 clipping of client updates: flat, per layer, and with a norm that adapts.

mod adaptive;
mod layers;
mod squares;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::squares::sum_of_squares;
pub(crate) use self::squares::{LANES, in_lanes};
pub use self::{
    adaptive::{AdaptiveClip, AdaptiveClipPlan, next_norm},
    layers::LayerNorms,
};

/// Says why an update cannot be clipped.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ClipError {
    /// An element is NaN or infinite.
    #[error("element {index} is {value}; nothing can be clipped or released")]
    NonFinite {
        /// Position of the first such element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// The update has another length than its layers together.
    #[error("the update has {length} elements; its layers have {expected}")]
    Length {
        /// Elements given.
        length: usize,
        /// Elements of all layers.
        expected: usize,
    },
    /// A parameter lies outside its range (NaN included).
    #[error("`{field}` is {value}; it must be {range}")]
    OutOfRange {
        /// The name of the parameter.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// The clipping norm is not a positive finite number.
    #[error("clipping norm {norm} is not a positive finite number")]
    Norm {
        /// What was given.
        norm: f64,
    },
}

/// An L2 bound in model units: finite and positive.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct ClippingNorm(f64);

impl ClippingNorm {
    /// Checks the bound once, so that inner code can trust it.
    ///
    /// # Errors
    /// [`ClipError::Norm`] unless `norm` is finite and above zero.
    pub fn new(norm: f64) -> Result<Self, ClipError> {
        if norm.is_finite() && norm > 0.0 { Ok(Self(norm)) } else { Err(ClipError::Norm { norm }) }
    }

    /// The bound in model units.
    #[must_use]
    pub const fn value(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for ClippingNorm {
    type Error = ClipError;
    fn try_from(norm: f64) -> Result<Self, ClipError> {
        Self::new(norm)
    }
}

impl From<ClippingNorm> for f64 {
    fn from(norm: ClippingNorm) -> Self {
        norm.0
    }
}

/// The L2 norm, accumulated in f64.
///
/// # Errors
/// [`ClipError::NonFinite`] if any element is NaN or infinite.
pub fn l2_norm(update: &[f32]) -> Result<f64, ClipError> {
    let squares = sum_of_squares(update);
    // The square of the largest f32 times 2^64 elements is far from the end of f64, so the sum is
    // finite exactly when every element is.
    if squares.is_finite() {
        return Ok(squares.sqrt());
    }
    let (index, &value) = update
        .iter()
        .enumerate()
        .find(|(_, value)| !value.is_finite())
        .expect("a sum of finite f32 squares is finite in f64");
    Err(ClipError::NonFinite { index, value })
}

/// Scales `update` so its L2 norm is at most `norm`.
///
/// Flat clipping over all elements jointly; a zero update is unchanged. The result may exceed
/// `norm` by f32 rounding; where exactness matters, [`crate::lattice::Lattice::quantize`] enforces
/// the norm in integers.
///
/// - `update`: shape `[num_parameters]`, model units
/// - returns: the norm before clipping, same units
///
/// # Errors
/// [`ClipError::NonFinite`] if any element is NaN or infinite; `update` is then unchanged.
///
/// Source: McMahan et al. 2018, arXiv:1710.06963 (flat clipping).
pub fn clip_l2(update: &mut [f32], norm: ClippingNorm) -> Result<f64, ClipError> {
    let before = l2_norm(update)?;
    if before > norm.value() {
        let factor = norm.value() / before;
        for value in update {
            *value = (f64::from(*value) * factor) as f32;
        }
    }
    Ok(before)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn norm(value: f64) -> ClippingNorm {
        ClippingNorm::new(value).expect("positive")
    }

    #[test]
    fn bad_norms_are_refused() {
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(ClippingNorm::new(value).is_err());
        }
        assert!(serde_json::from_str::<ClippingNorm>("-1.0").is_err());
    }

    #[test]
    fn a_zero_or_short_update_is_unchanged() {
        let mut zero = [0.0; 4];
        assert_eq!(clip_l2(&mut zero, norm(1.0)), Ok(0.0));
        assert_eq!(zero, [0.0; 4]);
        let mut short = [0.3, -0.4];
        clip_l2(&mut short, norm(1.0)).expect("finite");
        assert_eq!(short, [0.3, -0.4]);
        assert_eq!(clip_l2(&mut [], norm(1.0)), Ok(0.0));
    }

    #[test]
    fn non_finite_elements_are_named_and_nothing_changes() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut update = [3.0, value, f32::NAN];
            let error = clip_l2(&mut update, norm(1.0)).expect_err("not finite");
            assert!(matches!(error, ClipError::NonFinite { index: 1, .. }));
            assert_eq!(update[0], 3.0);
        }
    }

    #[test]
    fn the_largest_floats_do_not_overflow() {
        let mut update = [f32::MAX; 100];
        clip_l2(&mut update, norm(1.0)).expect("finite");
        assert!((l2_norm(&update).expect("finite") - 1.0).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn the_result_is_parallel_and_within_the_norm(
            update in prop::collection::vec(-1e6f32..1e6, 1..100),
            bound in 1e-3f64..1e6,
        ) {
            let mut clipped = update.clone();
            let before = clip_l2(&mut clipped, norm(bound)).expect("finite");
            prop_assert!(l2_norm(&clipped).expect("finite") <= bound * (1.0 + 1e-6));
            let factor = (bound / before).min(1.0);
            for (old, new) in update.iter().zip(&clipped) {
                let expected = f64::from(*old) * factor;
                prop_assert!((f64::from(*new) - expected).abs() <= expected.abs() * 1e-6 + 1e-30);
            }
        }
    }
}

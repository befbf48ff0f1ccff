//! Clipping each layer to a norm of its own.

use super::{ClipError, ClippingNorm, clip_l2, l2_norm};

/// The layers of an update, in order, each with its own L2 bound.
///
/// Layers whose gradients differ by orders of magnitude keep more of their signal than under one
/// flat norm. The sensitivity of the whole update is the root of the summed squares:
/// [`total`](Self::total).
///
/// Source: McMahan et al. 2018, arXiv:1710.06963 (per-layer clipping).
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorms {
    layers: Vec<(usize, ClippingNorm)>,
    total: ClippingNorm,
}

impl LayerNorms {
    /// - `layers`: number of elements and bound (model units) of each layer, at least one
    ///
    /// # Errors
    /// [`ClipError::Norm`] if there is no layer, or the bounds together are not finite.
    pub fn new(layers: Vec<(usize, ClippingNorm)>) -> Result<Self, ClipError> {
        let squares: f64 = layers.iter().map(|(_, norm)| norm.value().powi(2)).sum();
        // Rounded up by more than the sum and the root can have been rounded down.
        let rounding = layers.len() as f64 * f64::EPSILON;
        let total = ClippingNorm::new(squares.sqrt() * (1.0 + rounding))?;
        Ok(Self { layers, total })
    }

    /// Splits a flat norm evenly: every layer gets `total / sqrt(layers)`.
    ///
    /// # Errors
    /// [`ClipError::Norm`] if there is no layer.
    pub fn even(lengths: &[usize], total: ClippingNorm) -> Result<Self, ClipError> {
        let share = ClippingNorm::new(total.value() / (lengths.len() as f64).sqrt())?;
        let layers = lengths.iter().map(|&length| (length, share)).collect();
        Ok(Self { layers, total })
    }

    /// The L2 bound of the whole update: the sensitivity.
    #[must_use]
    pub const fn total(&self) -> ClippingNorm {
        self.total
    }

    /// Scales every layer of `update` so its L2 norm is at most the layer's bound.
    ///
    /// - `update`: all layers' elements in order, model units
    /// - returns: the norm of each layer before clipping
    ///
    /// # Errors
    /// [`ClipError::Length`] or [`ClipError::NonFinite`] (with the position in the whole update);
    /// `update` is then unchanged.
    pub fn clip(&self, update: &mut [f32]) -> Result<Vec<f64>, ClipError> {
        let expected = self.layers.iter().map(|(length, _)| length).sum();
        if update.len() != expected {
            return Err(ClipError::Length { length: update.len(), expected });
        }
        // Before anything changes.
        l2_norm(update)?;
        let mut rest = update;
        let mut norms = Vec::with_capacity(self.layers.len());
        for &(length, norm) in &self.layers {
            let (layer, later) = rest.split_at_mut(length);
            norms.push(clip_l2(layer, norm)?);
            rest = later;
        }
        Ok(norms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn norm(value: f64) -> ClippingNorm {
        ClippingNorm::new(value).expect("positive")
    }

    #[test]
    fn bad_layers_are_refused() {
        assert!(LayerNorms::new(vec![]).is_err());
        assert!(LayerNorms::even(&[], norm(1.0)).is_err());
        let layers = LayerNorms::even(&[1, 2], norm(1.0)).expect("valid");
        assert_eq!(layers.clip(&mut [1.0]), Err(ClipError::Length { length: 1, expected: 3 }));
        let mut update = [9.0, 1.0, f32::NAN];
        assert!(matches!(layers.clip(&mut update), Err(ClipError::NonFinite { index: 2, .. })));
        assert_eq!(update[0], 9.0);
    }

    proptest! {
        #[test]
        fn every_layer_and_the_whole_stay_within_their_norms(
            update in prop::collection::vec(-1e3f32..1e3, 9),
            norms in prop::collection::vec(1e-2f64..100.0, 3),
        ) {
            let layers = norms.iter().map(|&value| (3, norm(value))).collect();
            let layers = LayerNorms::new(layers).expect("valid");
            let mut clipped = update.clone();
            layers.clip(&mut clipped).expect("finite");
            for (layer, bound) in clipped.chunks(3).zip(&norms) {
                prop_assert!(l2_norm(layer).expect("finite") <= bound * (1.0 + 1e-6));
            }
            let whole = l2_norm(&clipped).expect("finite");
            prop_assert!(whole <= layers.total().value() * (1.0 + 1e-6));
        }
    }
}

//! What a trainer needs of a model, whatever computes it.

use tributary_privacy::mechanism::Held;

use super::TrainError;
use crate::{data::Dataset, model::ExampleClip};

/// The federated parameters of a model in training, and their gradients.
pub(super) trait Learner: Send {
    /// Starts from a base, which was checked: all parameters of the model.
    fn load(&mut self, base: &[f32]) -> Result<(), TrainError>;

    /// The federated parameters as they are now.
    fn parameters(&self) -> &[f32];

    /// Examples of one physical batch with clipping, at most.
    fn micro_batch_max(&self) -> usize;

    /// Examples of one physical batch without clipping, at most.
    fn plain_batch_max(&self) -> usize;

    /// Subtracts `rate` times the sum of the records' gradients.
    ///
    /// - returns: whether the gradients are finite; if not, the model is of no use
    fn descend(&mut self, data: &Dataset, indices: &[u32], rate: f32) -> Result<bool, TrainError>;

    /// Adds the sum of the records' gradients to `sum`.
    fn add_sum(
        &mut self,
        data: &Dataset,
        indices: &[u32],
        sum: &mut [f32],
    ) -> Result<(), TrainError>;

    /// Adds the sum of the records' gradients, each scaled to at most `norm_max`, to `sum`, or
    /// overwrites what is no sum yet.
    ///
    /// - `step`: for the message
    ///
    /// # Errors
    /// [`TrainError::NonFiniteGradient`] among others; `sum` is then of no use.
    fn add_clipped_sum(
        &mut self,
        data: &Dataset,
        indices: &[u32],
        clip: (ExampleClip, f64),
        step: u32,
        sum: &mut [f32],
        held: Held,
    ) -> Result<(), TrainError>;

    /// The federated parameters, if a step may be taken where they lie, and into how many parts the
    /// work may be split.
    fn in_place(&mut self) -> Option<(&mut [f32], usize)>;

    /// Adds `scale` times `step` to the federated parameters.
    fn add_scaled(&mut self, step: &[f32], scale: f32) -> Result<(), TrainError>;
}

//! Training in memory that is kept.

use std::{borrow::Cow, ops::ControlFlow};

use rand::Rng;
use rayon::prelude::*;
use tributary_privacy::{
    mechanism::{ClippedGradientSum, GradientSum, NoisyGradientSum, StepPart},
    noise::NoiseSource,
};
use tributary_protocol::{
    job::LocalAlgorithm,
    model::{FederatedPart, ModelSpec},
    tensor_file::check_parameters,
};

use super::{
    LocalTask, TrainError, check_data, drift::restraint, graph::Graph, learner::Learner,
    sampling::poisson_batch,
};
use crate::{
    data::Dataset,
    model::{Dense, ExampleClip, ModelError, all_finite},
};

/// A model in training, with its memory kept from step to step and from task to task.
///
/// One is enough for many tenants in turn: [`load`](Self::load) starts the next one. Two trainers of
/// one specification give the same result to the bit, whatever they did before and whatever
/// `threads` is.
///
/// ```
/// use tributary_agent::{data::Dataset, train::Trainer};
/// use tributary_protocol::model::{MlpSpec, ModelSpec};
///
/// let spec = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 });
/// let data = Dataset::from_floats(vec![1.0, 0.5, -1.0, 0.5], 2, vec![0, 1], 2);
/// let mut trainer = Trainer::new(&spec, 1)?;
/// let base = [0.0; 6];
/// trainer.load(&base)?;
/// trainer.step(&data, &[0, 1], 0.1)?;
/// let update = trainer.update(&base)?;
/// assert!((update[0] - 0.05).abs() < 1e-6 && (update[2] + 0.05).abs() < 1e-6);
/// # Ok::<(), tributary_agent::train::TrainError>(())
/// ```
pub struct Trainer {
    spec: ModelSpec,
    part: FederatedPart,
    clip: ExampleClip,
    pub(super) learner: Box<dyn Learner>,
    /// The federated parameters that a task starts from; kept only where steps are pulled to them.
    origin: Vec<f32>,
    /// By which SCAFFOLD corrects every step; empty for none.
    correction: Vec<f32>,
    /// Sums of gradients, when there are several physical batches in a step.
    sum: Vec<f32>,
    /// Steps since the parameters were loaded.
    pub(super) steps: u32,
}

impl Trainer {
    /// Makes a trainer of all parameters of a model.
    ///
    /// - `threads`: see [`of`](Self::of)
    ///
    /// # Errors
    /// As there.
    pub fn new(spec: &ModelSpec, threads: usize) -> Result<Self, TrainError> {
        Self::of(spec, FederatedPart::All, threads)
    }

    /// Makes a trainer of a part of a model's parameters, which [`load`](Self::load) brings.
    ///
    /// - `threads`: that a matrix product may use, of the process-wide pool; 1 keeps all work on
    ///   the calling thread
    ///
    /// # Errors
    /// [`TrainError::Model`] for impossible sizes.
    pub fn of(spec: &ModelSpec, part: FederatedPart, threads: usize) -> Result<Self, TrainError> {
        let checked = spec.validate().and_then(|()| part.validate(spec));
        checked.map_err(|error| ModelError::Parameters(error.into()))?;
        let learner: Box<dyn Learner> = match (spec, part) {
            (ModelSpec::Mlp(mlp), FederatedPart::All) => Box::new(Dense::new(mlp, threads)),
            _ => Box::new(Graph::new(spec, part)),
        };
        let clip = ExampleClip::Flat;
        let (origin, correction, sum) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { spec: spec.clone(), part, clip, learner, origin, correction, sum, steps: 0 })
    }

    /// Corrects every step of jobs with SCAFFOLD by this vector from now on; see
    /// [`correction`](super::correction()).
    ///
    /// - `correction`: shape `[num_parameters]`; empty corrects by nothing
    pub fn correct_by(&mut self, correction: Vec<f32>) {
        self.correction = correction;
    }

    /// Clips each example's gradient in this way from now on; at first flat.
    #[must_use]
    pub const fn clipping(mut self, clip: ExampleClip) -> Self {
        self.clip = clip;
        self
    }

    /// Starts from other parameters, all of the model's in the order of [`ModelSpec::tensors`].
    ///
    /// # Errors
    /// [`TrainError::Model`] for a wrong number of parameters or a non-finite one.
    pub fn load(&mut self, parameters: &[f32]) -> Result<(), TrainError> {
        check_parameters(&self.spec, parameters).map_err(ModelError::Parameters)?;
        self.learner.load(parameters)?;
        self.steps = 0;
        Ok(())
    }

    /// The federated parameters as they are now.
    #[must_use]
    pub fn parameters(&self) -> &[f32] {
        self.learner.parameters()
    }

    /// Takes one plain step: subtracts `rate` times the mean gradient of the records.
    ///
    /// No record is no step.
    ///
    /// # Errors
    /// [`TrainError`] for records that do not fit the model, or gradients that are not finite; the
    /// parameters are then of no use.
    pub fn step(&mut self, data: &Dataset, indices: &[u32], rate: f64) -> Result<(), TrainError> {
        check_data(&self.spec, data, indices)?;
        self.plain_step(data, indices, rate)
    }

    /// The client update of the federated part, trained − base.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] if a parameter is not finite.
    ///
    /// # Panics
    /// If `base` has another length than the model.
    pub fn update(&self, base: &[f32]) -> Result<Vec<f32>, TrainError> {
        let trained = self.parameters();
        if !all_finite(trained) {
            return Err(TrainError::Diverged { step: self.steps });
        }
        assert_eq!(base.len(), self.spec.num_parameters(), "the base is that of the model");
        let start = match self.part.span(&self.spec) {
            Some(span) => Cow::Borrowed(&base[span]),
            None => Cow::Owned(self.part.start(&self.spec, base)),
        };
        Ok(trained.iter().zip(&*start).map(|(trained, start)| trained - start).collect())
    }

    /// [`local_sgd`](super::local_sgd()) in this trainer's memory.
    ///
    /// # Errors
    /// As there.
    pub fn local_sgd(
        &mut self,
        task: &LocalTask<'_>,
        source: &mut impl Rng,
        progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
    ) -> Result<Vec<f32>, TrainError> {
        self.start(task)?;
        for step in 1..=task.plan.local_steps {
            let batch = poisson_batch(task.train, task.plan.sampling_rate, source);
            self.steps = step - 1;
            self.plain_step(task.data, &batch, task.plan.client_learning_rate)?;
            self.restrain(task)?;
            task.report(step, progress)?;
        }
        self.update(task.base)
    }

    /// [`dp_sgd`](super::dp_sgd()) in this trainer's memory.
    ///
    /// # Errors
    /// As there.
    pub fn dp_sgd(
        &mut self,
        task: &LocalTask<'_>,
        mechanism: &NoisyGradientSum,
        noise: &mut impl NoiseSource,
        progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
    ) -> Result<Vec<f32>, TrainError> {
        let plan = task.plan;
        self.check_dimension(mechanism.dimension())?;
        self.start(task)?;
        let clipping_norm = mechanism.float_clipping_norm();
        let rate = plan.client_learning_rate / f64::from(plan.batch_size_expected);
        let mut memory = Vec::new();
        for step in 1..=plan.local_steps {
            self.steps = step;
            let batch = poisson_batch(task.train, plan.sampling_rate, noise);
            let mut sum = mechanism.begin_in(memory);
            self.add_clipped(task.data, &batch, clipping_norm, &mut sum)?;
            memory = match self.learner.in_place() {
                Some((parameters, threads)) => {
                    mechanism.release_into(sum, noise, parameters, -rate as f32, |parts| {
                        if threads > 1 {
                            parts.par_iter_mut().for_each(StepPart::run);
                        } else {
                            parts.iter_mut().for_each(StepPart::run);
                        }
                    })?
                }
                None => {
                    let noisy_sum = mechanism.release(sum, noise)?;
                    self.learner.add_scaled(&noisy_sum, -rate as f32)?;
                    noisy_sum
                }
            };
            // After the noise: it depends on no record.
            self.restrain(task)?;
            task.report(step, progress)?;
        }
        self.update(task.base)
    }

    /// [`clipped_gradient`](super::clipped_gradient()) in this trainer's memory.
    ///
    /// # Errors
    /// As there.
    pub fn clipped_gradient(
        &mut self,
        task: &LocalTask<'_>,
        clipped: &ClippedGradientSum,
        noise: &mut impl NoiseSource,
    ) -> Result<Vec<i64>, TrainError> {
        self.check_dimension(clipped.dimension())?;
        self.start(task)?;
        self.steps = 1;
        let batch = poisson_batch(task.train, task.plan.sampling_rate, noise);
        let mut sum = clipped.begin();
        self.add_clipped(task.data, &batch, clipped.float_clipping_norm(), &mut sum)?;
        let mut grid = clipped.quantize(sum, noise)?;
        for units in &mut grid {
            *units = -*units;
        }
        Ok(grid)
    }

    /// Moves the parameters after a step as the plan says.
    pub(super) fn restrain(&mut self, task: &LocalTask<'_>) -> Result<(), TrainError> {
        let parameters = self.learner.parameters();
        match restraint(task.plan, &self.origin, &self.correction, parameters) {
            Some(step) => self.learner.add_scaled(&step, 1.0),
            None => Ok(()),
        }
    }

    pub(super) fn start(&mut self, task: &LocalTask<'_>) -> Result<(), TrainError> {
        check_data(task.spec, task.data, task.train)?;
        self.load(task.base)?;
        self.origin.clear();
        if matches!(task.plan.algorithm, LocalAlgorithm::Fedprox { .. }) {
            self.origin.extend_from_slice(self.learner.parameters());
        }
        Ok(())
    }

    pub(super) fn check_dimension(&self, mechanism: usize) -> Result<(), TrainError> {
        let model = self.parameters().len();
        if mechanism == model {
            Ok(())
        } else {
            Err(TrainError::MechanismDimension { mechanism, model })
        }
    }

    fn plain_step(&mut self, data: &Dataset, indices: &[u32], rate: f64) -> Result<(), TrainError> {
        self.steps = self.steps.saturating_add(1);
        if indices.is_empty() {
            return Ok(());
        }
        let rate = (rate / indices.len() as f64) as f32;
        let step = self.steps;
        let batch_max = self.learner.plain_batch_max();
        if indices.len() <= batch_max {
            let finite = self.learner.descend(data, indices, rate)?;
            return if finite { Ok(()) } else { Err(TrainError::NonFiniteGradient { step }) };
        }
        let mut sum = std::mem::take(&mut self.sum);
        sum.clear();
        sum.resize(self.parameters().len(), 0.0);
        for indices in indices.chunks(batch_max) {
            self.learner.add_sum(data, indices, &mut sum)?;
        }
        if !all_finite(&sum) {
            return Err(TrainError::NonFiniteGradient { step });
        }
        self.learner.add_scaled(&sum, -rate)?;
        self.sum = sum;
        Ok(())
    }

    /// Adds the clipped gradients of a batch in micro-batches that the mechanism's slack covers.
    pub(super) fn add_clipped(
        &mut self,
        data: &Dataset,
        batch: &[u32],
        clipping_norm: f64,
        sum: &mut GradientSum,
    ) -> Result<(), TrainError> {
        let size = micro_batch_size(batch.len(), self.learner.micro_batch_max());
        self.add_clipped_in(size, data, batch, clipping_norm, sum)
    }

    pub(super) fn add_clipped_in(
        &mut self,
        micro_batch: usize,
        data: &Dataset,
        batch: &[u32],
        clipping_norm: f64,
        sum: &mut GradientSum,
    ) -> Result<(), TrainError> {
        let (step, clip) = (self.steps, (self.clip, clipping_norm));
        for indices in batch.chunks(micro_batch) {
            sum.place(indices.len(), |sum, held| {
                self.learner.add_clipped_sum(data, indices, clip, step, sum, held)
            })?;
        }
        Ok(())
    }
}

/// The size of micro-batches of nearly equal size, as large as the mechanism's slack covers.
pub(super) fn micro_batch_size(batch: usize, micro_batch_max: usize) -> usize {
    let largest = ClippedGradientSum::micro_batch_max(batch).clamp(1, micro_batch_max);
    batch.div_ceil(batch.div_ceil(largest).max(1)).max(1)
}

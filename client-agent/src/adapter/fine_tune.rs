use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use tributary_protocol::{id::Digest, model::ModelSpec};

use super::{Adapter, AdapterError, AdapterPlan, optimizer::Optimizer};
use crate::{
    data::{Dataset, Split},
    model::{Factors, Model, Tape},
    train::{Evaluation, TrainError, check_data, evaluate, evaluate_model},
};

/// What an adapter is trained from, on and how.
#[derive(Debug, Clone, Copy)]
pub struct FineTune<'a> {
    /// What the model is.
    pub spec: &'a ModelSpec,
    /// The flat parameters of the frozen base.
    pub base: &'a [f32],
    /// The base's digest, recorded in the adapter.
    pub base_digest: Digest,
    /// The adapter to continue from; one of another rank is ignored, and so is one with a larger loss on
    /// the validation records than the base alone.
    pub start: Option<&'a Adapter>,
    /// All records of the tenant.
    pub data: &'a Dataset,
    /// Which of them train and which stop the training.
    pub split: &'a Split,
    /// Sizes and step sizes.
    pub plan: &'a AdapterPlan,
    /// Seed of the starting factors and of the order of records.
    pub seed: u64,
}

/// A trained adapter and whether it earns its place.
#[derive(Debug, Clone)]
pub struct AdapterOutcome {
    /// The best adapter seen, by validation.
    pub adapter: Adapter,
    /// The base with the adapter on the validation records.
    pub validation: Evaluation,
    /// The base alone on the validation records.
    pub base_validation: Evaluation,
    /// Whether the adapter is not worse than the base alone on the validation records.
    pub accepted: bool,
    /// Passes over the training records, the last perhaps cut short.
    pub epochs: u32,
}

/// Records that pass through the model at once, at most: what bounds the memory.
const PHYSICAL_BATCH_MAX: usize = 64;

/// The best adapter so far.
struct Best {
    adapter: Adapter,
    validation: Evaluation,
}

/// Trains an adapter on a frozen base, keeping the best snapshot by validation.
///
/// - `expired`: asked before each mini-batch whether to stop; the driver answers from
///   `plan.time_budget_ms` and its clock
///
/// # Errors
/// [`AdapterError`] for a plan, records or parameters that do not fit, or a gradient that is not
/// finite.
pub fn fine_tune(
    request: &FineTune<'_>,
    expired: &mut dyn FnMut() -> bool,
) -> Result<AdapterOutcome, AdapterError> {
    let FineTune { spec, data, split, plan, .. } = *request;
    plan.validate()?;
    check_data(spec, data, &split.train)?;
    let purposes =
        [(&split.train, "train an adapter on"), (&split.validation, "validate an adapter on")];
    for (part, purpose) in purposes {
        if part.is_empty() {
            return Err(AdapterError::NoRecords { purpose });
        }
    }
    let model = Model::new(spec, request.base)?;
    let base_validation = evaluate_model(&model, data, &split.validation)?;
    let validate =
        |adapter: &Adapter| evaluate(spec, request.base, Some(adapter), data, &split.validation);
    let mut start = starting_adapter(request)?;
    let mut validation = validate(&start)?;
    if validation.loss > base_validation.loss {
        // What it has learnt no longer holds; from as sure a mistake descent may not lead back.
        start = fresh_adapter(request);
        validation = validate(&start)?;
    }
    let mut best = Best { validation, adapter: start.clone() };

    let factors = start.factors(spec).map_err(TrainError::from)?;
    let mut optimizer = Optimizer::new(plan.optimizer, factors.num_parameters());
    let mut order = split.train.clone();
    let mut source = Xoshiro256PlusPlus::seed_from_u64(request.seed ^ 1);
    let (mut epochs, mut stale_epochs, mut stopped) = (0, 0, false);
    while epochs < plan.epochs_max && stale_epochs <= plan.patience && !stopped {
        order.shuffle(&mut source);
        stopped = train_epoch(&model, &factors, &mut optimizer, request, &order, expired)?;
        epochs += 1;
        let adapter = start.snapshot(spec, &factors).map_err(TrainError::from)?;
        let validation = validate(&adapter)?;
        if validation.beats(&best.validation, spec) {
            best = Best { adapter, validation };
            stale_epochs = 0;
        } else {
            stale_epochs += 1;
        }
    }
    let accepted = best.validation.is_not_worse(&base_validation, spec);
    let Best { adapter, validation } = best;
    Ok(AdapterOutcome { adapter, validation, base_validation, accepted, epochs })
}

/// One pass over the records in the given order; true if the time ran out.
fn train_epoch(
    model: &Model,
    factors: &Factors,
    optimizer: &mut Optimizer,
    request: &FineTune<'_>,
    order: &[u32],
    expired: &mut dyn FnMut() -> bool,
) -> Result<bool, TrainError> {
    let plan = request.plan;
    let mut gradient = vec![0.0_f32; factors.num_parameters()];
    for (batch, step) in order.chunks(plan.batch_size as usize).zip(1..) {
        if expired() {
            return Ok(true);
        }
        gradient.fill(0.0);
        for part in batch.chunks(PHYSICAL_BATCH_MAX) {
            let (examples, tape) = (request.data.examples(part)?, Tape::default());
            let flow = model.frozen().with_factors(factors, Some(&tape));
            examples.loss(&model.outputs(&examples.inputs, flow)?)?.backward()?;
            tape.add_sum(&mut gradient)?;
        }
        let mean = 1.0 / batch.len() as f32;
        let mut finite = true;
        for value in &mut gradient {
            *value *= mean;
            finite &= value.is_finite();
        }
        if !finite {
            return Err(TrainError::NonFiniteGradient { step });
        }
        optimizer.precondition(&mut gradient);
        factors.add_scaled(&gradient, -plan.learning_rate as f32)?;
    }
    Ok(false)
}

/// An adapter that changes nothing yet.
fn fresh_adapter(request: &FineTune<'_>) -> Adapter {
    Adapter::new(request.spec, request.base_digest, request.plan, request.seed)
}

/// The adapter to continue from, re-based, or a fresh one.
fn starting_adapter(request: &FineTune<'_>) -> Result<Adapter, AdapterError> {
    let plan = request.plan;
    let start = request.start.filter(|start| start.rank == plan.rank as usize);
    let Some(start) = start else { return Ok(fresh_adapter(request)) };
    start.check_shapes(request.spec)?;
    // Keeps the product when the plan's alpha changed since.
    let mut rebased = start.clone();
    rebased.base = request.base_digest;
    let factor = (start.alpha / plan.alpha) as f32;
    rebased.alpha = plan.alpha;
    for value in rebased.layers.iter_mut().flatten().flat_map(|layer| &mut layer.b) {
        *value *= factor;
    }
    Ok(rebased)
}

//! A small federation with hostile tenants, for the attacks on the shared model.

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_agent::{
    data::Dataset,
    train::{LocalTask, TrainError, Trainer, evaluate},
};
use tributary_coordinator::{
    aggregation::{self, PackedUpdates},
    registry::initial_parameters,
};
use tributary_privacy::{
    accountant::{Delta, epsilon},
    clip::{ClippingNorm, clip_l2},
    lattice::{Lattice, LatticeError, LatticeRequest, ModularSum},
    mechanism::{NoisyUpdate, PrivacyEvent},
    noise::SeededNoise,
};
use tributary_protocol::{
    job::{AggregationRule, TrainingPlan},
    model::ModelSpec,
};

use super::{AttackError, Images, Size, proceed};

const HIDDEN: u32 = 32;
const DELTA: f64 = 1e-5;
/// Bound of an update where nothing clips it: so large that it only sizes the lattice.
const NORM_MAX: f64 = 1e3;
const WRAP_PROBABILITY_MAX: f64 = 1e-9;

/// What stands between updates and model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Defence {
    /// The plain mean.
    None,
    /// Every update is clipped to this norm before the mean.
    Clipping { norm: f64 },
    /// Clipped, and the sum is noised as for tenant-level privacy.
    Noise { norm: f64, multiplier: f64 },
    /// The coordinator's rule in place of the mean, on updates that nobody clips.
    Rule(AggregationRule),
}

impl Defence {
    /// What every attack on the shared model is tried against. The rules are told to expect a fifth
    /// of hostile tenants.
    pub(super) fn all(tenants: usize) -> Vec<Self> {
        let tenants = tenants as u32;
        let byzantine_max = tenants / 5;
        vec![
            Self::None,
            Self::Clipping { norm: 1.0 },
            Self::Noise { norm: 1.0, multiplier: 0.5 },
            Self::Rule(AggregationRule::Median),
            Self::Rule(AggregationRule::TrimmedMean { trim: 0.25 }),
            Self::Rule(AggregationRule::Krum { byzantine_max }),
            Self::Rule(AggregationRule::MultiKrum {
                byzantine_max,
                selected: tenants - byzantine_max,
            }),
        ]
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::None => "mean".to_owned(),
            Self::Clipping { norm } => format!("clipping to {norm}"),
            Self::Noise { norm, multiplier } => {
                format!("clipping to {norm}, noise {multiplier}")
            }
            Self::Rule(AggregationRule::Mean) => Self::None.name(),
            Self::Rule(AggregationRule::Median) => "median".to_owned(),
            Self::Rule(AggregationRule::TrimmedMean { trim }) => format!("trimmed mean, {trim}"),
            Self::Rule(AggregationRule::Krum { byzantine_max }) => {
                format!("Krum, {byzantine_max} hostile")
            }
            Self::Rule(AggregationRule::MultiKrum { byzantine_max, selected }) => {
                format!("multi-Krum, {byzantine_max} hostile, {selected} selected")
            }
        }
    }

    /// ε of one tenant after so many rounds, if the defence has one.
    fn epsilon(self, rounds: u32) -> Result<Option<f64>, AttackError> {
        let Self::Noise { multiplier, .. } = self else { return Ok(None) };
        let count = rounds.into();
        let event = PrivacyEvent::Gaussian { noise_multiplier: multiplier, count };
        Ok(Some(epsilon(&[event], Delta::new(DELTA)?)?))
    }
}

/// What a hostile tenant does.
pub(super) trait Hostile {
    /// The records that it trains on instead of its own.
    fn records(&self, own: Dataset) -> Dataset {
        own
    }

    /// The update that it sends instead of its own.
    fn bend(&self, update: &mut [f32], tenants: usize, hostile: usize);
}

/// The packed updates of a round, one by one.
struct Singles(Vec<Vec<u8>>);

impl PackedUpdates for Singles {
    type Error = LatticeError;

    fn count(&self) -> usize {
        self.0.len()
    }

    fn read(&self, update: usize, offset: usize, bytes: &mut [u8]) -> Result<(), LatticeError> {
        bytes.copy_from_slice(&self.0[update][offset..offset + bytes.len()]);
        Ok(())
    }
}

/// Tenants with equal shares of the training images; the first ones are hostile.
pub(super) struct Federation<'a> {
    pub(super) images: &'a Images,
    pub(super) spec: ModelSpec,
    tenants: usize,
    pub(super) hostile: usize,
    rounds: u32,
    records: usize,
    seed: u64,
}

/// A model that came out, and what it cost each tenant.
pub(super) struct Outcome {
    pub(super) parameters: Vec<f32>,
    pub(super) accuracy: f64,
    pub(super) epsilon: Option<f64>,
}

impl<'a> Federation<'a> {
    pub(super) fn new(images: &'a Images, size: Size, hostile: usize, seed: u64) -> Self {
        let (tenants, rounds, records) = match size {
            Size::Full => (20, 20, 300),
            Size::Small => (10, 12, 40),
        };
        let hostile = hostile.min(tenants);
        Self { images, spec: images.model(HIDDEN), tenants, hostile, rounds, records, seed }
    }

    pub(super) const fn tenants(&self) -> usize {
        self.tenants
    }

    /// Trains with hostile tenants, or with honest ones only.
    pub(super) fn train(
        &self,
        hostile: Option<&dyn Hostile>,
        defence: Defence,
    ) -> Result<Outcome, AttackError> {
        let mut base = initial_parameters(&self.spec, self.seed);
        let plan: TrainingPlan = toml::from_str(
            "local_steps = 10\nsampling_rate = 0.2\nbatch_size_expected = 16\n\
             client_learning_rate = 0.1\nupdate_norm_max = 1e6\n",
        )
        .expect("the plan is well-formed");
        let shares: Vec<Dataset> =
            (0..self.tenants).map(|tenant| self.share(tenant, hostile)).collect();
        let mut trainer = Trainer::new(&self.spec, 1)?;
        let mut draw = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        for round in 0..self.rounds {
            let mut updates = Vec::with_capacity(self.tenants);
            for (tenant, data) in shares.iter().enumerate() {
                let train: Vec<u32> = (0..data.len() as u32).collect();
                let task =
                    LocalTask { spec: &self.spec, base: &base, data, train: &train, plan: &plan };
                let mut update = match trainer.local_sgd(&task, &mut draw, &mut proceed) {
                    Ok(update) => update,
                    // A model that was ruined has nothing more to teach.
                    Err(TrainError::Diverged { .. } | TrainError::NonFiniteGradient { .. }) => {
                        vec![0.0; base.len()]
                    }
                    Err(error) => return Err(error.into()),
                };
                if let Some(hostile) = hostile.filter(|_| tenant < self.hostile) {
                    hostile.bend(&mut update, self.tenants, self.hostile);
                }
                updates.push(update);
            }
            let mean = self.aggregate(updates, defence, round)?;
            for (parameter, step) in base.iter_mut().zip(mean) {
                *parameter += step as f32;
            }
        }
        let test: Vec<u32> = (0..self.images.test.len().min(2_000) as u32).collect();
        // A ruined model guesses.
        let measured = evaluate(&self.spec, &base, None, &self.images.test, &test);
        let accuracy = measured.map_or(0.0, |measured| measured.accuracy);
        Ok(Outcome { parameters: base, accuracy, epsilon: defence.epsilon(self.rounds)? })
    }

    fn share(&self, tenant: usize, hostile: Option<&dyn Hostile>) -> Dataset {
        let all = &self.images.train;
        let first = tenant * self.records % all.len().max(1);
        let places: Vec<usize> =
            (first..first + self.records).map(|place| place % all.len()).collect();
        let features = places.iter().flat_map(|&place| all.features(place)).collect();
        let labels = places.iter().map(|&place| all.labels()[place]).collect();
        let own = Dataset::from_floats(features, all.num_features(), labels, all.num_classes());
        match hostile.filter(|_| tenant < self.hostile) {
            Some(hostile) => hostile.records(own),
            None => own,
        }
    }

    /// The step of the shared model, by the same lattice sums as a coordinator's.
    fn aggregate(
        &self,
        updates: Vec<Vec<f32>>,
        defence: Defence,
        round: u32,
    ) -> Result<Vec<f64>, AttackError> {
        let (dimension, count) = (self.spec.num_parameters(), updates.len());
        let (norm, multiplier) = match defence {
            Defence::None | Defence::Rule(_) => (NORM_MAX, 0.0),
            Defence::Clipping { norm } => (norm, 0.0),
            Defence::Noise { norm, multiplier } => (norm, multiplier),
        };
        let share = multiplier / (count as f64).sqrt();
        let lattice = Lattice::plan(&LatticeRequest {
            dimension,
            norm_max: norm,
            noise_sigma: norm * share,
            contributors_max: count as u32,
            bits: 32,
            wrap_probability_max: WRAP_PROBABILITY_MAX,
        })?;
        let clipping_norm = ClippingNorm::new(norm)?;
        let mut sum = ModularSum::new(lattice, dimension);
        let mut singles = Singles(Vec::new());
        for (tenant, mut update) in updates.into_iter().enumerate() {
            clip_l2(&mut update, clipping_norm)?;
            let grid = if share > 0.0 {
                let mechanism = NoisyUpdate::new(lattice, clipping_norm, share, dimension)?;
                let mut key = [0; 32];
                key[..8].copy_from_slice(&self.seed.to_le_bytes());
                key[8..12].copy_from_slice(&round.to_le_bytes());
                key[12..16].copy_from_slice(&(tenant as u32).to_le_bytes());
                mechanism.noised(&mut update, &mut SeededNoise::from_seed(key))?
            } else {
                lattice.quantize(&update, clipping_norm)?
            };
            match defence {
                Defence::Rule(_) => singles.0.push(lattice.pack(&grid)),
                _ => sum.add_grid(&grid)?,
            }
        }
        if let Defence::Rule(rule) = defence {
            return Ok(aggregation::combine(&rule, &singles, lattice, dimension)?);
        }
        let total = lattice.dequantize_sum(sum.values());
        Ok(total.into_iter().map(|value| value / count as f64).collect())
    }
}

//! Membership inference: a model's losses tell which records it was trained on.
//!
//! Many models are trained on random halves of one pool. Each is attacked in turn, the others being
//! what the attacker trained itself to know how models look with and without a record.
//!
//! Sources: Yeom et al. 2018, arXiv:1709.01604 (threshold on the loss, advantage); Carlini et al.
//! 2022, arXiv:2112.03570 (likelihood ratio, true positives at few false ones).

use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_agent::train::{LocalTask, Trainer, outcomes};
use tributary_coordinator::registry::initial_parameters;
use tributary_privacy::{
    accountant::{Delta, calibrate_noise_multiplier, epsilon},
    clip::ClippingNorm,
    mechanism::NoisyGradientSum,
    noise::SeededNoise,
};
use tributary_protocol::{job::TrainingPlan, model::ModelSpec};

use super::{AttackError, AttackName, Findings, Images, Row, Size, proceed};

const HIDDEN: u32 = 32;
const DELTA: f64 = 1e-5;
const CLIPPING_NORM: f64 = 1.0;
const SAMPLING_RATE: f64 = 0.25;
const EPSILONS: [f64; 3] = [8.0, 2.0, 0.5];
/// The false positives at which true ones are counted.
const FALSE_POSITIVES: f64 = 0.01;

/// Guesses members of models with and without differential privacy.
///
/// Measures, for the threshold on the loss (`loss_…`) and the likelihood ratio (`ratio_…`):
/// `advantage`, true less false positives at the best threshold, and `tpr`, true positives at 1 %
/// false ones; beside them what ε allows (`advantage_max`, `tpr_max`), and the model's accuracy on
/// other images.
///
/// # Errors
/// [`AttackError`].
pub fn run(images: &Images, size: Size, seed: u64) -> Result<Findings, AttackError> {
    let (pool, models, steps) = match size {
        Size::Full => (300, 24, 120),
        Size::Small => (80, 12, 80),
    };
    let spec = images.model(HIDDEN);
    let scene = Scene { images, spec: &spec, pool, models, steps, seed };
    let mut rows = vec![scene.attack("none", None)?];
    for target in EPSILONS {
        rows.push(scene.attack(&format!("record DP, epsilon {target}"), Some(target))?);
    }
    Ok(Findings {
        attack: AttackName::Membership,
        setting: format!(
            "{models} models, each trained on a random half of {pool} images; each is attacked by \
             the losses that it and the others have."
        ),
        rows,
        pictures: Vec::new(),
    })
}

struct Scene<'a> {
    images: &'a Images,
    spec: &'a ModelSpec,
    pool: u32,
    models: u32,
    steps: u32,
    seed: u64,
}

/// One trained model: who was in, and how sure it is of each record's class.
struct Trained {
    members: Vec<bool>,
    /// ln(p / (1 − p)) of the true class.
    confidence: Vec<f64>,
    accuracy: f64,
}

impl Scene<'_> {
    fn attack(&self, defence: &str, target: Option<f64>) -> Result<Row, AttackError> {
        let mechanism = target.map(|target| self.mechanism(target)).transpose()?;
        let trained: Vec<Trained> = (0..self.models)
            .map(|model| self.train(model, mechanism.as_ref()))
            .collect::<Result<_, _>>()?;
        let (mut by_loss, mut by_ratio) = (Vec::new(), Vec::new());
        for (place, model) in trained.iter().enumerate() {
            for record in 0..self.pool as usize {
                let is_member = model.members[record];
                by_loss.push((model.confidence[record], is_member));
                let ratio = likelihood_ratio(&trained, place, record);
                by_ratio.extend(ratio.map(|ratio| (ratio, is_member)));
            }
        }
        let accuracy = trained.iter().map(|model| model.accuracy).sum::<f64>();
        let mut measures = vec![
            ("loss_advantage", advantage(&mut by_loss)),
            ("loss_tpr", true_positives(&mut by_loss, FALSE_POSITIVES)),
            ("ratio_advantage", advantage(&mut by_ratio)),
            ("ratio_tpr", true_positives(&mut by_ratio, FALSE_POSITIVES)),
        ];
        let mut spent = None;
        if let Some(mechanism) = &mechanism {
            let event = mechanism.event(SAMPLING_RATE).with_count(self.steps.into());
            let epsilon = epsilon(&[event], Delta::new(DELTA)?)?;
            spent = Some(epsilon);
            measures.push(("advantage_max", advantage_max(epsilon)));
            measures.push(("tpr_max", true_positives_max(epsilon, FALSE_POSITIVES)));
        }
        measures.push(("accuracy", accuracy / f64::from(self.models)));
        Ok(Row { defence: defence.to_owned(), epsilon: spent, measures })
    }

    fn mechanism(&self, target: f64) -> Result<NoisyGradientSum, AttackError> {
        let (delta, steps) = (Delta::new(DELTA)?, u64::from(self.steps));
        let multiplier = calibrate_noise_multiplier(target, delta, SAMPLING_RATE, steps)?;
        let norm = ClippingNorm::new(CLIPPING_NORM)?;
        Ok(NoisyGradientSum::new(norm, multiplier, self.spec.num_parameters())?)
    }

    fn train(
        &self,
        model: u32,
        mechanism: Option<&NoisyGradientSum>,
    ) -> Result<Trained, AttackError> {
        let mut draw =
            Xoshiro256PlusPlus::seed_from_u64(self.seed ^ (u64::from(model) + 1).rotate_left(32));
        let members: Vec<bool> = (0..self.pool).map(|_| draw.random_bool(0.5)).collect();
        let train: Vec<u32> = (0..self.pool).filter(|&record| members[record as usize]).collect();
        let batch_size_expected = ((self.pool / 2) as f64 * SAMPLING_RATE) as u32;
        let plan: TrainingPlan = toml::from_str(&format!(
            "local_steps = {}\nsampling_rate = {SAMPLING_RATE}\n\
             batch_size_expected = {batch_size_expected}\nclient_learning_rate = 0.3\n\
             update_norm_max = 1e6\n",
            self.steps
        ))
        .expect("the plan is well-formed");
        let mut key = [0; 32];
        draw.fill_bytes(&mut key);
        let mut noise = SeededNoise::from_seed(key);
        let base = initial_parameters(self.spec, self.seed);
        let data = &self.images.train;
        let task = LocalTask { spec: self.spec, base: &base, data, train: &train, plan: &plan };
        let mut trainer = Trainer::new(self.spec, 1)?;
        match mechanism {
            Some(mechanism) => trainer.dp_sgd(&task, mechanism, &mut noise, &mut proceed)?,
            None => trainer.local_sgd(&task, &mut noise, &mut proceed)?,
        };
        let pool: Vec<u32> = (0..self.pool).collect();
        let own = outcomes(self.spec, trainer.parameters(), data, &pool)?;
        let confidence = own.iter().map(|outcome| {
            let probability = (-outcome.loss).exp().clamp(1e-12, 1.0 - 1e-12);
            (probability / (1.0 - probability)).ln()
        });
        let test = &self.images.test;
        let others: Vec<u32> = (0..test.len().min(1_000) as u32).collect();
        let tested = outcomes(self.spec, trainer.parameters(), test, &others)?;
        let correct: f64 = tested.iter().map(|outcome| outcome.accuracy).sum();
        Ok(Trained {
            members,
            confidence: confidence.collect(),
            accuracy: correct / others.len() as f64,
        })
    }
}

/// How much likelier a model's confidence is if a record was in, by what the other models say.
fn likelihood_ratio(trained: &[Trained], target: usize, record: usize) -> Option<f64> {
    let side = |is_in: bool| -> Vec<f64> {
        trained
            .iter()
            .enumerate()
            .filter(|(place, model)| *place != target && model.members[record] == is_in)
            .map(|(_, model)| model.confidence[record])
            .collect()
    };
    let (with, without) = (side(true), side(false));
    if with.len() < 2 || without.len() < 2 {
        return None;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_with, mean_without) = (mean(&with), mean(&without));
    // One variance for both sides: there are few models.
    let squares =
        |values: &[f64], mean: f64| values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let spread = squares(&with, mean_with) + squares(&without, mean_without);
    let variance = spread / (with.len() + without.len() - 2) as f64 + 1e-6;
    let seen = trained[target].confidence[record];
    Some(((seen - mean_without).powi(2) - (seen - mean_with).powi(2)) / (2.0 * variance))
}

fn sort(scores: &mut [(f64, bool)]) -> (f64, f64) {
    scores.sort_by(|one, other| other.0.total_cmp(&one.0));
    let members = scores.iter().filter(|(_, is_member)| *is_member).count();
    (members.max(1) as f64, (scores.len() - members).max(1) as f64)
}

/// True less false positives at the best threshold.
fn advantage(scores: &mut [(f64, bool)]) -> f64 {
    let (members, others) = sort(scores);
    let (mut best, mut now) = (0.0_f64, 0.0);
    for (_, is_member) in scores.iter() {
        now += if *is_member { 1.0 / members } else { -1.0 / others };
        best = best.max(now);
    }
    best
}

/// True positives at the largest threshold with at most this share of false ones.
fn true_positives(scores: &mut [(f64, bool)], false_positives: f64) -> f64 {
    let (members, others) = sort(scores);
    let (mut found, mut wrong) = (0.0, 0.0);
    for (_, is_member) in scores.iter() {
        if *is_member {
            found += 1.0;
        } else {
            wrong += 1.0;
            if wrong > false_positives * others {
                break;
            }
        }
    }
    found / members
}

/// The largest advantage that (ε, δ)-DP allows.
///
/// Source: Humphries et al. 2023, arXiv:2010.12112.
fn advantage_max(epsilon: f64) -> f64 {
    ((epsilon.exp() - 1.0 + 2.0 * DELTA) / (epsilon.exp() + 1.0)).min(1.0)
}

/// The most true positives that (ε, δ)-DP allows at a share of false ones.
///
/// Source: Kairouz et al. 2015, arXiv:1311.0776.
fn true_positives_max(epsilon: f64, false_positives: f64) -> f64 {
    let one = epsilon.exp() * false_positives + DELTA;
    let other = 1.0 - (-epsilon).exp() * (1.0 - DELTA - false_positives);
    one.min(other).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantage_and_true_positives_are_counted_by_threshold() {
        let mut scores = vec![(4.0, true), (3.0, true), (2.0, false), (1.0, true), (0.0, false)];
        assert!((advantage(&mut scores) - 2.0 / 3.0).abs() < 1e-12);
        assert!((true_positives(&mut scores, 0.01) - 2.0 / 3.0).abs() < 1e-12);
        assert!((true_positives(&mut scores, 0.5) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn without_privacy_loss_nothing_can_be_told() {
        assert!(advantage_max(0.0) < 1e-4 && true_positives_max(0.0, 0.01) < 0.0101);
        assert!(advantage_max(20.0) > 0.999 && true_positives_max(20.0, 0.01) > 0.999);
    }
}

//! Private training without sampling: whole groups in a fixed order, and correlated noise.

use std::ops::ControlFlow;

use tributary_privacy::{mechanism::CorrelatedGradientSum, noise::NoiseSource};

use super::{LocalTask, TrainError, Trainer};

impl Trainer {
    /// Takes the next `plan.local_steps` steps of a run with correlated noise (DP-FTRL) and returns
    /// the client update `trained − base`, in model units.
    ///
    /// Step t of the run takes all records of group t modulo the number of groups, which is the
    /// separation of the run's schedule. A record's group is its position in the dataset modulo
    /// that number: it follows from nothing else, so one record takes part once in so many steps
    /// whatever the others are. The noisy sum is divided by the fixed, public
    /// `plan.batch_size_expected`; an empty group is a step of pure noise.
    ///
    /// - `task.train`: positions in the dataset, the same ones for the whole run, or further ones
    ///   behind them
    /// - `run`: moved on by the steps taken
    /// - Neighbouring relation: one record of `task.train` contributes or not.
    /// - Sensitivity: that of the run as a whole, see [`CorrelatedGradientSum`].
    /// - Randomness: `noise`.
    /// - `progress`: called after each step with its number in this round, from 1, and their number;
    ///   may stop the training
    ///
    /// # Errors
    /// [`TrainError`]; nothing is released then, and `run` is of no use.
    ///
    /// Source: Kairouz, McMahan, Song, Thakkar, Thakurta, Xu 2021, arXiv:2103.00039 (training
    /// without sampling).
    pub fn correlated_sgd(
        &mut self,
        task: &LocalTask<'_>,
        run: &mut CorrelatedGradientSum,
        noise: &mut impl NoiseSource,
        progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
    ) -> Result<Vec<f32>, TrainError> {
        let plan = task.plan;
        self.check_dimension(run.sums().dimension())?;
        self.start(task)?;
        let clipping_norm = run.sums().float_clipping_norm();
        let rate = plan.client_learning_rate / f64::from(plan.batch_size_expected);
        for step in 1..=plan.local_steps {
            self.steps = step;
            let batch = group(task.train, run.step(), run.schedule().separation());
            let mut sum = run.begin()?;
            self.add_clipped(task.data, &batch, clipping_norm, &mut sum)?;
            let noisy_sum = run.release(sum, noise)?;
            self.learner.add_scaled(&noisy_sum, -rate as f32)?;
            // After the noise: it depends on no record.
            self.restrain(task)?;
            task.report(step, progress)?;
        }
        self.update(task.base)
    }
}

/// The records of a step's group.
fn group(records: &[u32], step: u64, groups: u32) -> Vec<u32> {
    let group = step % u64::from(groups);
    records.iter().copied().filter(|&record| u64::from(record % groups) == group).collect()
}

#[cfg(test)]
mod tests {
    use tributary_privacy::{
        clip::ClippingNorm,
        mechanism::{BandedMatrix, ParticipationSchedule},
        noise::SecureNoise,
    };
    use tributary_protocol::{
        job::TrainingPlan,
        model::{MlpSpec, ModelSpec},
    };

    use super::*;
    use crate::data::Dataset;

    #[test]
    fn every_record_takes_part_once_in_as_many_steps_as_there_are_groups() {
        let records: Vec<u32> = (0..50).filter(|record| record % 7 != 3).collect();
        let mut last = [None; 50];
        for step in 0..40_u64 {
            for record in group(&records, step, 6) {
                let before = last[record as usize].replace(step);
                assert!(before.is_none_or(|before| step - before == 6), "{record} at {step}");
            }
        }
        assert!(records.iter().all(|&record| last[record as usize].is_some()));
        // A further record moves no other.
        let further = [&records[..], &[50]].concat();
        for step in 0..6 {
            let with = group(&further, step, 6);
            assert!(with.starts_with(&group(&records, step, 6)));
        }
        assert!(group(&[], 3, 6).is_empty() && group(&[5], u64::MAX, u32::MAX).is_empty());
    }

    /// Without noise to speak of, rounds of correlated steps are gradient descent on the groups.
    #[test]
    fn rounds_of_one_run_train_and_end_with_it() {
        let spec = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 });
        let features: Vec<f32> = (0..240).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let labels = features.chunks(2).map(|row| u32::from(row[0] > row[1])).collect();
        let data = Dataset::from_floats(features, 2, labels, 2);
        let train: Vec<u32> = (0..120).collect();
        let plan = TrainingPlan {
            local_steps: 10,
            sampling_rate: 1.0,
            batch_size_expected: 30,
            client_learning_rate: 0.5,
            update_norm_max: 16.0,
            algorithm: tributary_protocol::job::LocalAlgorithm::Sgd,
        };
        let norm = ClippingNorm::new(10.0).expect("positive");
        let matrix = BandedMatrix::new(4).expect("valid");
        let schedule = ParticipationSchedule::cyclic(30, 4).expect("valid");
        let mut run = CorrelatedGradientSum::new(norm, 0.01, 6, matrix, schedule).expect("valid");
        let mut trainer = Trainer::new(&spec, 1).expect("valid");
        let mut noise = SecureNoise::new().expect("entropy");
        let mut base = vec![0.0; 6];
        let mut go_on = |_, _| ControlFlow::Continue(());
        for _ in 0..3 {
            let task =
                LocalTask { spec: &spec, base: &base, data: &data, train: &train, plan: &plan };
            let update =
                trainer.correlated_sgd(&task, &mut run, &mut noise, &mut go_on).expect("trains");
            base.iter_mut().zip(update).for_each(|(value, moved)| *value += moved);
        }
        let measured = crate::train::evaluate(&spec, &base, None, &data, &train).expect("measures");
        assert!(measured.accuracy > 0.9, "{measured:?}");
        let task = LocalTask { spec: &spec, base: &base, data: &data, train: &train, plan: &plan };
        let error =
            trainer.correlated_sgd(&task, &mut run, &mut noise, &mut go_on).expect_err("over");
        assert!(error.to_string().contains("released nothing"), "{error}");
    }
}

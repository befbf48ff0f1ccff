//! How good a run's base model is: on the test records, and for each tenant.

use std::collections::BTreeMap;

use tributary_agent::{
    data::{Dataset, Texts},
    train::{Evaluation, evaluate},
};

use super::{
    super::{
        HarnessError, TenantRow,
        personal::{Personal, Personalisation},
        pool::share,
        population::Population,
    },
    Simulation,
};

/// Test records that one thread measures at a time.
const EVALUATION_BATCH: usize = 500;

impl Simulation<'_> {
    /// Measures the base model on the test records, all threads and processes together.
    ///
    /// # Errors
    /// [`HarnessError::Evaluate`].
    pub fn evaluate(&self) -> Result<Evaluation, HarnessError> {
        let test: Vec<u32> = (0..self.population.records.test.len() as u32).collect();
        let batches: Vec<&[u32]> = test.chunks(EVALUATION_BATCH).collect();
        let parts = self.measure(&self.population.records.test, &batches)?;
        let (mut correct, mut loss, mut count) = (0.0, 0.0, 0);
        // In a fixed order, so that the float sum does not depend on the threads.
        for part in parts {
            let right = part.accuracy * part.num_examples as f64;
            // Of classifiers a whole number, which the division lost.
            correct +=
                if self.population.records.test.texts().is_some() { right } else { right.round() };
            loss += part.loss * part.num_examples as f64;
            count += part.num_examples;
        }
        let total = count as f64;
        Ok(Evaluation { accuracy: correct / total, loss: loss / total, num_examples: count })
    }

    /// The tenants' part in the run, and if asked for, base model and adapters on their own records.
    ///
    /// # Errors
    /// [`HarnessError::Evaluate`], [`HarnessError::Adapter`] or [`HarnessError::Accountant`].
    pub fn tenants(&self) -> Result<Vec<TenantRow>, HarnessError> {
        let Population { experiment, records, release, .. } = &self.population;
        let shares: Vec<&[u32]> = records.shares.iter().map(Vec::as_slice).collect();
        let own: Vec<Option<Evaluation>> = match experiment.evaluation.per_tenant {
            true => self.measure(&records.train, &shares)?.into_iter().map(Some).collect(),
            false => vec![None; shares.len()],
        };
        let personal = self.personalise()?;
        // Most tenants share one of a few counts.
        let mut costs = BTreeMap::new();
        for &count in &self.participations {
            if let std::collections::btree_map::Entry::Vacant(entry) = costs.entry(count) {
                entry.insert(release.epsilon(self.round, count.into())?);
            }
        }
        let continues = records.test.texts().is_some_and(Texts::continued);
        let perplexity = |found: Evaluation| continues.then(|| found.loss.exp());
        let row = |tenant: usize| {
            let (own, personal) = (own[tenant], personal[tenant]);
            let participations = self.participations[tenant];
            TenantRow {
                tenant: records.names[tenant].clone(),
                num_examples: shares[tenant].len(),
                participations,
                epsilon: costs[&participations],
                attacker: self.population.attacks(tenant as u32),
                accuracy: own.map(|own| own.accuracy),
                loss: own.map(|own| own.loss),
                held_out_accuracy: personal.map(|personal| personal.base.accuracy),
                adapter_accuracy: personal.map(|personal| personal.served.accuracy),
                held_out_perplexity: personal.and_then(|personal| perplexity(personal.base)),
                adapter_perplexity: personal.and_then(|personal| perplexity(personal.served)),
            }
        };
        Ok((0..shares.len()).map(row).collect())
    }

    /// Adapters of all tenants, where the experiment has them.
    fn personalise(&self) -> Result<Vec<Option<Personal>>, HarnessError> {
        let Population { experiment, records, splits, seeds, .. } = &self.population;
        let tenants = records.shares.len();
        let Some((adapters, splits)) = experiment.adapters.as_ref().zip(splits.as_ref()) else {
            return Ok(vec![None; tenants]);
        };
        let personalisation = Personalisation {
            spec: &experiment.model,
            adapters,
            base: &self.base,
            data: &records.train,
            seeds: *seeds,
        };
        let found = self.spread(tenants, |tenant| {
            let personal = personalisation.tenant(tenant as u32, &splits[tenant])?;
            Ok(personal.map_or([0.0; 5], |Personal { base, served }| {
                let count = base.num_examples as f64;
                [count, base.accuracy, base.loss, served.accuracy, served.loss]
            }))
        })?;
        let personal = |[count, base, base_loss, served, served_loss]: [f64; 5]| {
            let num_examples = count as usize;
            let evaluation = |accuracy, loss| Evaluation { accuracy, loss, num_examples };
            (num_examples > 0).then(|| Personal {
                base: evaluation(base, base_loss),
                served: evaluation(served, served_loss),
            })
        };
        Ok(found.into_iter().map(personal).collect())
    }

    fn measure(&self, data: &Dataset, parts: &[&[u32]]) -> Result<Vec<Evaluation>, HarnessError> {
        let (spec, base) = (&self.population.experiment.model, self.base());
        let found = self.spread(parts.len(), |job| {
            let evaluation = evaluate(spec, base, None, data, parts[job]);
            let Evaluation { accuracy, loss, num_examples } =
                evaluation.map_err(HarnessError::Evaluate)?;
            Ok([accuracy, loss, num_examples as f64])
        })?;
        let evaluation = |[accuracy, loss, count]: [f64; 3]| Evaluation {
            accuracy,
            loss,
            num_examples: count as usize,
        };
        Ok(found.into_iter().map(evaluation).collect())
    }

    /// Does independent jobs on all threads and processes; everybody gets all answers, in order.
    fn spread<const N: usize>(
        &self,
        jobs: usize,
        work: impl Fn(usize) -> Result<[f64; N], HarnessError> + Sync,
    ) -> Result<Vec<[f64; N]>, HarnessError> {
        let own = self.ranks.own(jobs);
        let mut found: Vec<Vec<(usize, [f64; N])>> = vec![Vec::new(); self.workers.len()];
        let done = share(&mut found, own.len(), |found, job| -> Result<(), HarnessError> {
            found.push((own[job], work(own[job])?));
            Ok(())
        });
        if self.ranks.any(done.is_err()) {
            done?;
            return Err(HarnessError::OtherRank);
        }
        let mut flat = vec![0.0; jobs * N];
        for (job, answer) in found.concat() {
            flat[job * N..][..N].copy_from_slice(&answer);
        }
        self.ranks.gather(&mut flat);
        Ok(flat.as_chunks::<N>().0.to_vec())
    }
}

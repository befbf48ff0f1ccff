use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::Region,
    job::{
        AggregationRule, CohortSampling, LocalAlgorithm, PrivacyPlan, PrivacyUnit, RoundPlan,
        ServerOptimizerSpec, TrainingPlan, Trust,
    },
    message::{BlobRef, UploadOffer},
    model::{MlpSpec, ModelSpec},
};

use super::*;
use crate::{
    aggregation,
    blobs::BlobStore,
    registry,
    round::Phase,
    tenants::{TenantContext, invite},
};

pub(crate) const NOW: Timestamp = Timestamp(5_000_000);

pub(crate) fn job() -> JobSpec {
    JobSpec {
        name: JobId::new("job").expect("valid"),
        dataset: tributary_protocol::id::DatasetName::new("data").expect("valid"),
        regions: vec![Region::new("eu").expect("valid")],
        tokenizer: None,
        model: ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 }),
        federated: tributary_protocol::model::FederatedPart::All,
        training: TrainingPlan {
            local_steps: 1,
            sampling_rate: 0.5,
            batch_size_expected: 4,
            client_learning_rate: 0.1,
            update_norm_max: 4.0,
            algorithm: LocalAlgorithm::Sgd,
        },
        privacy: PrivacyPlan {
            trust: Trust::Local,
            unit: PrivacyUnit::Record,
            clipping_norm: 1.0,
            noise_multiplier: 1.0,
            delta: 1e-5,
            clipping: tributary_protocol::job::Clipping::Flat,
            rotation: false,
            lattice_bits: 24,
            correlated: None,
        },
        round: RoundPlan {
            rounds: 2,
            cohort_size: 2,
            cohort_size_min: 1,
            report_goal: 2,
            selection_timeout_ms: 1_000,
            configuration_timeout_ms: 1_000,
            report_timeout_ms: 5_000,
            sampling: CohortSampling::Fixed,
            asynchronous: None,
        },
        server_optimizer: ServerOptimizerSpec::default(),
        secagg: None,
        evaluation: None,
        aggregation: AggregationRule::Mean,
        early_stop: None,
    }
}

pub(super) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("valid")
}

/// A scheduler with its store of files; actions are carried out at once, like the driver does.
pub(crate) struct Bench {
    pub(crate) scheduler: Scheduler,
    pub(crate) blobs: BlobStore,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = BlobStore::open(folder.path()).expect("opens");
        let mut scheduler = Scheduler::default();
        for (name, region) in [("alpha", "eu"), ("beta", "eu"), ("gamma", "us")] {
            let context = TenantContext::new(tenant(name), Region::new(region).expect("valid"));
            scheduler.put_tenant(invite(context, None, [1; 32], Digest::of(b"ca"), NOW).0);
        }
        Self { scheduler, blobs, _folder: folder }
    }

    pub(crate) fn submit(&mut self) {
        self.submit_job(job());
    }

    pub(super) fn submit_job(&mut self, spec: JobSpec) {
        let initial = registry::initial_model(&spec, 1, NOW, &self.blobs).expect("makes");
        let lattice = aggregation::plan_lattice(&spec).expect("plans");
        self.scheduler.submit(spec, lattice, initial, 9, NOW).expect("valid");
    }

    pub(super) fn run(&mut self) -> Vec<Action> {
        let mut done = Vec::new();
        while let Some(action) = self.scheduler.poll_action() {
            if let Action::Commit(commit) = &action {
                let job = self.scheduler.job(&commit.job).expect("known");
                let committing = aggregation::Committing {
                    job: &job.record().spec,
                    lattice: job.record().lattice,
                    round: job.round(),
                    base: self.scheduler.models().latest(&commit.job).expect("a version"),
                    contributors: &commit.contributors,
                    unmask: commit.unmask.as_deref(),
                };
                let model = aggregation::make(committing, None, &self.blobs).expect("makes");
                self.scheduler.committed(commit, model, NOW);
            }
            done.push(action);
        }
        done
    }

    /// Forgets what is not in the records, as a crash does.
    pub(super) fn restart(&mut self) {
        let tenants = self.scheduler.tenants().cloned().collect();
        let jobs = self.scheduler.jobs().map(|job| job.record().clone()).collect();
        let models = self.scheduler.models().clone();
        self.scheduler = Scheduler::restore(tenants, jobs, models, NOW);
    }

    pub(super) fn offer(&self, round: u64, fill: u8) -> UploadOffer {
        let length = self.scheduler.jobs().next().expect("submitted").update_bytes();
        let update = self.blobs.put(&vec![fill; length as usize]).expect("stores");
        UploadOffer {
            job: job().name,
            round: RoundNumber(round),
            update: BlobRef { digest: update, length },
            ledger_head: LedgerHead { sequence: round, hash: Digest::of(&[fill]) },
            evaluation: Vec::new(),
        }
    }

    pub(super) fn play_round(&mut self, round: u64) {
        for (name, fill) in [("alpha", 1), ("beta", 2)] {
            self.scheduler
                .accepted(&tenant(name), &job().name, RoundNumber(round), b"", NOW)
                .expect("invited");
            let offer = self.offer(round, fill + round as u8);
            self.scheduler.reported(&tenant(name), &offer, NOW).expect("counts");
            self.run();
        }
    }
}

pub(super) fn sent(actions: &[Action], to: &str) -> Vec<CoordinatorMessage> {
    let to = tenant(to);
    let is_for = |action: &Action| match action {
        Action::Send(who, message) if *who == to => Some(message.clone()),
        _ => None,
    };
    actions.iter().filter_map(is_for).collect()
}

#[test]
fn a_job_runs_to_its_end_with_tenants_of_its_region_only() {
    let mut bench = Bench::new();
    bench.submit();
    for name in ["alpha", "beta", "gamma"] {
        bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
    }
    let actions = bench.run();
    assert!(sent(&actions, "beta").iter().any(|m| matches!(m, CoordinatorMessage::Configure(_))));
    assert!(sent(&actions, "gamma").is_empty());
    assert!(actions.contains(&Action::Welcome(tenant("gamma"), LedgerHead::EMPTY)));
    bench.play_round(1);
    assert_eq!(bench.scheduler.jobs().next().expect("one").round().number, RoundNumber(2));
    bench.play_round(2);
    let finished = bench.scheduler.jobs().next().expect("one");
    assert_eq!(finished.record().state, JobState::Finished);
    let versions: Vec<_> = bench.scheduler.models().iter().collect();
    assert_eq!(versions.len(), 3);
    assert_eq!(versions[2].parent, Some(versions[1].file.digest));
    assert!(matches!(
        bench.scheduler.offered(&tenant("alpha"), &bench.offer(1, 2)),
        Err(SchedulerError::JobFinished { .. })
    ));
}

#[test]
fn the_model_is_durable_before_anyone_hears_of_it() {
    let mut bench = Bench::new();
    bench.submit();
    bench.scheduler.connected(&tenant("alpha"), LedgerHead::EMPTY, NOW);
    bench.scheduler.connected(&tenant("beta"), LedgerHead::EMPTY, NOW);
    bench.run();
    for name in ["alpha", "beta"] {
        bench
            .scheduler
            .accepted(&tenant(name), &job().name, RoundNumber(1), b"", NOW)
            .expect("invited");
    }
    let (first, second) = (bench.offer(1, 1), bench.offer(1, 2));
    bench.scheduler.reported(&tenant("alpha"), &first, NOW).expect("counts");
    bench.run();
    bench.scheduler.reported(&tenant("beta"), &second, NOW).expect("counts");
    let actions = bench.run();
    let commit = actions.iter().position(|a| matches!(a, Action::Commit(_))).expect("commits");
    let told = actions
        .iter()
        .position(|a| {
            matches!(
                a,
                Action::Send(
                    _,
                    CoordinatorMessage::RoundClosed { .. } | CoordinatorMessage::NewBase(_)
                )
            )
        })
        .expect("tells");
    let durable =
        actions[commit..].iter().position(|a| matches!(a, Action::Persist(_))).expect("persists")
            + commit;
    assert!(commit < durable && durable < told, "{actions:?}");
}

#[test]
fn wrong_round_length_and_certificate_are_refused() {
    let mut bench = Bench::new();
    bench.submit();
    bench.scheduler.connected(&tenant("alpha"), LedgerHead::EMPTY, NOW);
    bench.scheduler.connected(&tenant("beta"), LedgerHead::EMPTY, NOW);
    let refused = |offer: &UploadOffer, scheduler: &Scheduler| {
        scheduler.offered(&tenant("alpha"), offer).expect_err("refused").code()
    };
    let mut offer = bench.offer(7, 1);
    assert_eq!(refused(&offer, &bench.scheduler), ErrorCode::WrongRound);
    offer.round = RoundNumber(1);
    offer.update.length += 1;
    assert_eq!(refused(&offer, &bench.scheduler), ErrorCode::UpdateLength);
    let stranger =
        bench.scheduler.offered(&tenant("gamma"), &bench.offer(1, 1)).expect_err("other region");
    assert_eq!(stranger.code(), ErrorCode::NotInCohort);
    let error = bench
        .scheduler
        .authenticate(&tenant("alpha"), Digest::of(b"old"), NOW)
        .expect_err("not registered");
    assert_eq!(error.code(), ErrorCode::CertificateNotRegistered);
}

#[test]
fn a_refusing_tenant_is_left_out_until_it_reconnects_and_the_reason_is_shown() {
    let mut bench = Bench::new();
    bench.submit();
    bench.scheduler.connected(&tenant("alpha"), LedgerHead::EMPTY, NOW);
    bench.scheduler.connected(&tenant("beta"), LedgerHead::EMPTY, NOW);
    bench.run();
    let refusal = Refusal::new(ErrorCode::PolicyForbids, "noise_multiplier 1 is below 2");
    let (name, round) = (job().name, RoundNumber(1));
    bench.scheduler.declined(&tenant("beta"), &name, round, refusal, NOW).expect("invited");
    bench.scheduler.accepted(&tenant("alpha"), &name, round, b"", NOW).expect("invited");
    let offer = bench.offer(1, 1);
    bench.scheduler.reported(&tenant("alpha"), &offer, NOW).expect("counts");
    let actions = bench.run();
    assert!(!sent(&actions, "beta").iter().any(|m| matches!(m, CoordinatorMessage::Configure(_))));
    let waiting = bench.scheduler.jobs().next().expect("one").waiting_for();
    assert!(waiting.contains("beta refuses") && waiting.contains("below 2"), "{waiting}");
}

#[test]
fn the_base_of_another_round_refused_leaves_nobody_out_and_a_late_policy_does() {
    let mut bench = Bench::new();
    bench.submit();
    bench.scheduler.connected(&tenant("alpha"), LedgerHead::EMPTY, NOW);
    bench.scheduler.connected(&tenant("beta"), LedgerHead::EMPTY, NOW);
    let name = job().name;
    for (code, refuses) in [(ErrorCode::BaseModelInvalid, 0), (ErrorCode::PolicyForbids, 1)] {
        let refusal = Refusal::new(code, "in words");
        let (beta, another) = (tenant("beta"), RoundNumber(5));
        let declined = bench.scheduler.declined(&beta, &name, another, refusal, NOW);
        assert!(matches!(declined, Err(SchedulerError::WrongRound { .. })), "{declined:?}");
        assert_eq!(bench.scheduler.job(&name).unwrap().refusals().len(), refuses, "{code}");
    }
}

#[test]
fn a_restored_scheduler_commits_what_was_reported() {
    let mut bench = Bench::new();
    bench.submit();
    bench.scheduler.connected(&tenant("alpha"), LedgerHead::EMPTY, NOW);
    bench.scheduler.connected(&tenant("beta"), LedgerHead::EMPTY, NOW);
    bench.run();
    for name in ["alpha", "beta"] {
        bench
            .scheduler
            .accepted(&tenant(name), &job().name, RoundNumber(1), b"", NOW)
            .expect("invited");
    }
    let offer = bench.offer(1, 1);
    bench.scheduler.reported(&tenant("alpha"), &offer, NOW).expect("counts");
    bench.run();
    let tenants: Vec<_> = bench.scheduler.tenants().cloned().collect();
    assert_eq!(tenants[0].acknowledged_head.sequence, 1);
    let jobs = bench.scheduler.jobs().map(|job| job.record().clone()).collect();
    let models = bench.scheduler.models().clone();
    bench.scheduler = Scheduler::restore(tenants, jobs, models, NOW);
    bench.scheduler.connected(&tenant("beta"), LedgerHead::EMPTY, NOW);
    assert!(
        sent(&bench.run(), "beta").iter().any(|m| matches!(m, CoordinatorMessage::Configure(_)))
    );
    assert_eq!(
        bench.scheduler.offered(&tenant("alpha"), &offer).expect("known"),
        OfferAnswer::Stored
    );
    let offer = bench.offer(1, 2);
    bench.scheduler.reported(&tenant("beta"), &offer, NOW).expect("counts");
    bench.run();
    let job = bench.scheduler.jobs().next().expect("one");
    assert_eq!(job.record().rounds_committed, 1);
    assert!(matches!(job.round().phase, Phase::Configuration(_) | Phase::Selection(_)));
}

/// Two tenants whose updates have known norms, as their agents would send them: clipped, rotated,
/// noised and with a vote.
#[test]
fn an_adaptive_norm_finds_the_quantile_and_survives_restarts() {
    use tributary_privacy::{
        clip::{ClippingNorm, clip_l2, l2_norm},
        lattice::Rotation,
        mechanism::{ClipVote, NoisyUpdate},
        noise::SecureNoise,
    };
    for start in [0.01, 100.0] {
        let mut spec = job();
        spec.privacy.unit = PrivacyUnit::Tenant;
        spec.privacy.clipping_norm = start;
        spec.privacy.rotation = true;
        let adaptive = tributary_protocol::job::AdaptiveClipping {
            target_quantile: 0.5,
            learning_rate: 0.4,
            count_noise_multiplier: 0.2,
        };
        spec.privacy.clipping = tributary_protocol::job::Clipping::Adaptive(adaptive);
        spec.round.rounds = 60;
        let mut bench = Bench::new();
        bench.submit_job(spec);
        let names = ["alpha", "beta"];
        for name in names {
            bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
        }
        bench.run();
        let mut noise = SecureNoise::new().expect("entropy");
        for round in 1..=60 {
            if round % 20 == 0 {
                // A crash: everything comes back from the records.
                let scheduler = &bench.scheduler;
                bench.scheduler = Scheduler::restore(
                    scheduler.tenants().cloned().collect(),
                    scheduler.jobs().map(|job| job.record().clone()).collect(),
                    scheduler.models().clone(),
                    NOW,
                );
                for name in names {
                    bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
                }
                bench.run();
            }
            let record = bench.scheduler.jobs().next().expect("one").record().clone();
            let spec = record.spec;
            let lattice = aggregation::lattice(record.lattice).expect("planned");
            let norm = ClippingNorm::new(spec.privacy.clipping_norm).expect("positive");
            let mechanism =
                NoisyUpdate::new(lattice, norm, spec.privacy.noise_multiplier, 6).expect("fine");
            let vote =
                ClipVote::new(lattice, norm, spec.privacy.noise_multiplier, 0.2).expect("fine");
            for (name, length) in names.into_iter().zip([0.5, 2.0_f32]) {
                let mut update = vec![length / 6.0_f32.sqrt(); 6];
                let unclipped = l2_norm(&update).expect("finite") <= norm.value();
                clip_l2(&mut update, norm).expect("finite");
                let seed = spec.rotation_seed(RoundNumber(round)).expect("rotated");
                Rotation::new(seed, 6).apply(&mut update);
                let mut grid = mechanism.noised(&mut update, &mut noise).expect("finite");
                grid.push(vote.cast(unclipped, &mut noise));
                let packed = lattice.pack(&grid);
                let digest = bench.blobs.put(&packed).expect("stores");
                let offer = UploadOffer {
                    update: BlobRef { digest, length: packed.len() as u64 },
                    ..bench.offer(round, 0)
                };
                let who = tenant(name);
                let accepted =
                    bench.scheduler.accepted(&who, &spec.name, RoundNumber(round), &[], NOW);
                accepted.expect("invited");
                bench.scheduler.reported(&who, &offer, NOW).expect("counts");
                bench.run();
            }
        }
        let finished = bench.scheduler.jobs().next().expect("one");
        assert_eq!(finished.record().state, JobState::Finished);
        // Anywhere between the two norms one of two is unclipped, and the norm stays.
        let norm = finished.record().spec.privacy.clipping_norm;
        assert!((0.4..2.5).contains(&norm), "{norm} from {start}");
    }
}

#[test]
fn metrics_are_added_once_an_update_and_shown_with_their_error() {
    use tributary_protocol::job::{EvaluationSpec, Metric, MetricSum};
    let mut spec = job();
    let evaluation = EvaluationSpec {
        every_rounds: 2,
        metrics: vec![Metric::Accuracy],
        noise_multiplier: 1.0,
        loss_max: 4.0,
    };
    spec.evaluation = Some(evaluation.clone());
    let mut bench = Bench::new();
    bench.submit_job(spec);
    for name in ["alpha", "beta"] {
        bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
        bench.run();
    }
    let metrics =
        |centred_sum| vec![MetricSum { metric: Metric::Accuracy, centred_sum, count: 100.0 }];
    let report = |bench: &mut Bench, name, round, fill, evaluation| {
        let who = tenant(name);
        let _ = bench.scheduler.accepted(&who, &job().name, RoundNumber(round), &[], NOW);
        let offer = UploadOffer { evaluation, ..bench.offer(round, fill) };
        let outcome = bench.scheduler.reported(&who, &offer, NOW);
        bench.run();
        outcome
    };
    assert!(matches!(
        report(&mut bench, "alpha", 1, 1, metrics(f64::NAN)),
        Err(SchedulerError::Metrics { .. })
    ));
    for _ in 0..2 {
        report(&mut bench, "alpha", 1, 1, metrics(50.0)).expect("counts, once");
    }
    report(&mut bench, "beta", 1, 2, metrics(0.0)).expect("counts");
    let record = bench.scheduler.jobs().next().expect("one").record().clone();
    assert_eq!((record.metrics.len(), record.metrics[0].releases), (1, 2));
    assert_eq!(record.metrics[0].version, 0);
    let estimate = record.metrics[0].estimates(&evaluation)[0];
    assert!((estimate.value.expect("loud") - 0.625).abs() < 1e-12, "50 of 200 from the middle");
    assert!(estimate.standard_error.expect("loud") > 0.0);
    // Version 1 is not due: whoever sends metrics of it did not read the job.
    assert!(report(&mut bench, "alpha", 2, 3, metrics(1.0)).is_err());
    report(&mut bench, "alpha", 2, 3, Vec::new()).expect("counts");
}

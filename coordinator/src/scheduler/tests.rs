use tributary_protocol::{
    id::Region,
    job::{PrivacyPlan, PrivacyUnit, RoundPlan, ServerOptimizerSpec, TrainingPlan, Trust},
    message::BlobRef,
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

pub(super) const NOW: Timestamp = Timestamp(5_000_000);

pub(crate) fn job() -> JobSpec {
    JobSpec {
        name: JobId::new("job").expect("valid"),
        dataset: tributary_protocol::id::DatasetName::new("data").expect("valid"),
        regions: vec![Region::new("eu").expect("valid")],
        model: ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 }),
        training: TrainingPlan {
            local_steps: 1,
            sampling_rate: 0.5,
            batch_size_expected: 4,
            client_learning_rate: 0.1,
            update_norm_max: 4.0,
        },
        privacy: PrivacyPlan {
            trust: Trust::Local,
            unit: PrivacyUnit::Record,
            clipping_norm: 1.0,
            noise_multiplier: 1.0,
            delta: 1e-5,
        },
        round: RoundPlan {
            rounds: 2,
            cohort_size: 2,
            cohort_size_min: 1,
            report_goal: 2,
            selection_timeout_ms: 1_000,
            configuration_timeout_ms: 1_000,
            report_timeout_ms: 5_000,
        },
        server_optimizer: ServerOptimizerSpec::default(),
        secagg: None,
    }
}

pub(super) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("valid")
}

/// A scheduler with its store of files; actions are carried out at once, like the driver does.
pub(super) struct Bench {
    pub(super) scheduler: Scheduler,
    pub(super) blobs: BlobStore,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = BlobStore::open(folder.path()).expect("opens");
        let mut scheduler = Scheduler::default();
        for (name, region) in [("alpha", "eu"), ("beta", "eu"), ("gamma", "us")] {
            let context = TenantContext::new(tenant(name), Region::new(region).expect("valid"));
            scheduler.put_tenant(invite(context, None, [1; 32], Digest::of(b"ca"), NOW).0);
        }
        Self { scheduler, blobs, _folder: folder }
    }

    pub(super) fn submit(&mut self) {
        let spec = job();
        let initial = registry::initial_model(&spec, 1, NOW, &self.blobs).expect("makes");
        let lattice = aggregation::plan_lattice(&spec).expect("plans");
        self.scheduler.submit(spec, lattice, initial, 9, NOW).expect("valid");
    }

    pub(super) fn run(&mut self) -> Vec<Action> {
        let mut done = Vec::new();
        while let Some(action) = self.scheduler.poll_action() {
            if let Action::Commit(commit) = &action {
                let job = self.scheduler.job(&commit.job).expect("known");
                let (spec, dimension) =
                    (job.record().spec.clone(), job.record().spec.model.num_parameters());
                let lattice = aggregation::lattice(job.record().lattice).expect("planned");
                let sum = aggregation::RoundSum::new(commit.round, lattice, dimension)
                    .finish(&commit.contributors, None, &self.blobs)
                    .expect("sums");
                let base = job.round().base;
                let model =
                    aggregation::next_model(&spec, base, None, sum, &self.blobs).expect("makes");
                self.scheduler.committed(commit, model, NOW);
            }
            done.push(action);
        }
        done
    }

    pub(super) fn offer(&self, round: u64, fill: u8) -> UploadOffer {
        let length = self.scheduler.jobs().next().expect("submitted").update_bytes();
        let update = self.blobs.put(&vec![fill; length as usize]).expect("stores");
        UploadOffer {
            job: job().name,
            round: RoundNumber(round),
            update: BlobRef { digest: update, length },
            ledger_head: LedgerHead { sequence: round, hash: Digest::of(&[fill]) },
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

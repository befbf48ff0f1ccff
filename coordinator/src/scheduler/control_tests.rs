use super::{
    tests::{Bench, NOW, job, sent, tenant},
    *,
};
use crate::{
    aggregation,
    registry::{self, Promotion},
    round::Phase,
};

fn connect(bench: &mut Bench) {
    for name in ["alpha", "beta"] {
        bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
    }
    bench.run();
}

fn control(bench: &mut Bench, what: JobControl) -> Vec<Action> {
    bench.scheduler.control(&job().name, what, NOW).expect("it has not ended");
    bench.run()
}

fn only(bench: &Bench) -> &Job {
    bench.scheduler.jobs().next().expect("submitted")
}

#[test]
fn a_paused_job_finishes_its_round_and_begins_no_other_until_resumed() {
    let mut bench = Bench::new();
    bench.submit();
    connect(&mut bench);
    control(&mut bench, JobControl::Pause);
    assert!(only(&bench).waiting_for().contains("then to be resumed"));
    bench.play_round(1);
    assert_eq!(only(&bench).record().rounds_committed, 1);
    assert_eq!(only(&bench).round().number, RoundNumber(1), "no second round was opened");
    assert_eq!(
        (only(&bench).waiting_for().as_str(), only(&bench).waits_until()),
        ("to be resumed", None)
    );
    let jobs = bench.scheduler.jobs().map(|job| job.record().clone()).collect();
    let tenants = bench.scheduler.tenants().cloned().collect();
    let models = bench.scheduler.models().clone();
    bench.scheduler = Scheduler::restore(tenants, jobs, models, NOW);
    connect(&mut bench);
    assert_eq!(only(&bench).record().state, JobState::Paused, "a restart resumes nothing");
    control(&mut bench, JobControl::Resume);
    bench.play_round(2);
    assert_eq!(only(&bench).record().state, JobState::Finished);
    let error = bench.scheduler.control(&job().name, JobControl::Pause, NOW).expect_err("ended");
    assert!(matches!(error, SchedulerError::JobFinished { .. }));
}

#[test]
fn a_job_paused_before_it_invited_anybody_waits_without_a_deadline() {
    let mut bench = Bench::new();
    bench.submit();
    bench.run();
    control(&mut bench, JobControl::Pause);
    connect(&mut bench);
    bench.scheduler.handle_timeout(NOW.after_ms(1_000_000));
    assert!(bench.run().is_empty());
    assert!(matches!(only(&bench).round().phase, Phase::Selection(_)));
    assert_eq!(bench.scheduler.poll_timeout(), None);
    let actions = control(&mut bench, JobControl::Resume);
    assert!(sent(&actions, "alpha").iter().any(|m| matches!(m, CoordinatorMessage::Configure(_))));
}

#[test]
fn a_stopped_job_tells_its_cohort_and_takes_nothing_more() {
    let mut bench = Bench::new();
    bench.submit();
    connect(&mut bench);
    let offer = bench.offer(1, 1);
    let actions = control(&mut bench, JobControl::Stop);
    let told = sent(&actions, "alpha");
    assert!(
        matches!(&told[..], [CoordinatorMessage::RoundClosed { abandoned: Some(why), .. }] if why.contains("stopped")),
        "{told:?}"
    );
    let audited = actions
        .iter()
        .any(|action| matches!(action, Action::Audit(event) if event.act == Act::RoundAbandon));
    assert!(audited, "{actions:?}");
    assert!(bench.scheduler.offered(&tenant("alpha"), &offer).is_err());
    assert_eq!(only(&bench).waiting_for(), "nothing; the job was stopped");
    assert_eq!(bench.scheduler.poll_timeout(), None);
}

#[test]
fn a_job_of_higher_priority_gets_the_tenants_first() {
    let mut bench = Bench::new();
    bench.submit();
    let mut second = job();
    second.name = JobId::new("urgent").expect("valid");
    let initial = registry::initial_model(&second, 1, NOW, &bench.blobs).expect("makes");
    let lattice = aggregation::plan_lattice(&second).expect("plans");
    let urgent = second.name.clone();
    bench.scheduler.submit(second, lattice, initial, 9, NOW).expect("valid");
    bench.scheduler.control(&urgent, JobControl::Priority(1), NOW).expect("open");
    connect(&mut bench);
    let phase =
        |bench: &Bench, id: &JobId| bench.scheduler.job(id).expect("known").round().phase.name();
    assert_eq!(phase(&bench, &urgent), "configuration");
    assert_eq!(phase(&bench, &job().name), "selection", "its tenants are busy");
    bench.scheduler.control(&urgent, JobControl::Stop, NOW).expect("open");
    bench.run();
    assert_eq!(phase(&bench, &job().name), "configuration", "the tenants are free");
}

#[test]
fn agents_serve_the_promoted_version_until_they_follow_the_newest_again() {
    let mut bench = Bench::new();
    bench.submit();
    connect(&mut bench);
    bench.play_round(1);
    let served = |actions: &[Action]| -> Vec<u64> {
        let versions = sent(actions, "alpha").into_iter().filter_map(|message| match message {
            CoordinatorMessage::NewBase(base) => Some(base.version),
            _ => None,
        });
        versions.collect()
    };
    let promotion = |version| Promotion { job: job().name, version };
    let back = bench.scheduler.version_before(&job().name).expect("version 1 is served");
    bench.scheduler.promote(promotion(Some(back))).expect("exists");
    assert_eq!(served(&bench.run()), [0]);
    let error = bench.scheduler.version_before(&job().name).expect_err("the first");
    assert!(matches!(error, SchedulerError::NothingBefore { .. }));
    let error = bench.scheduler.promote(promotion(Some(7))).expect_err("no such version");
    assert!(matches!(error, SchedulerError::VersionUnknown { version: 7, .. }));
    bench.scheduler.connected(&tenant("alpha"), LedgerHead::EMPTY, NOW);
    assert_eq!(served(&bench.run()), [0], "who connects hears of the promoted version");
    bench.play_round(2);
    assert_eq!(bench.scheduler.models().latest(&job().name).expect("made").version, 2);
    assert_eq!(bench.scheduler.models().served(&job().name).expect("made").version, 0);
    bench.scheduler.promote(promotion(None)).expect("always possible");
    assert_eq!(served(&bench.run()), [2]);
}

//! Resuming from a version, and stopping early.

use tributary_protocol::job::{EarlyStop, EvaluationSpec, Metric, MetricSum};

use super::{
    tests::{Bench, NOW, job, tenant},
    *,
};
use crate::round::Phase;

fn connect(bench: &mut Bench) {
    for name in ["alpha", "beta"] {
        bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
    }
    bench.run();
}

#[test]
fn a_job_goes_on_from_an_older_version_with_the_rounds_that_are_left() {
    let mut bench = Bench::new();
    let mut spec = job();
    spec.round.rounds = 3;
    bench.submit_job(spec);
    connect(&mut bench);
    bench.play_round(1);
    bench.play_round(2);
    let name = job().name;
    let first = bench.scheduler.models().version(&name, 1).expect("committed").clone();
    bench.scheduler.resume_from(&name, 1, NOW).expect("it has a round left");
    bench.run();
    let open = bench.scheduler.job(&name).expect("known");
    assert_eq!((open.record().rounds_committed, open.round().number), (1, RoundNumber(4)));
    assert_eq!(open.round().base, first.file.digest);
    let copy = bench.scheduler.models().latest(&name).expect("a version").clone();
    assert_eq!((copy.version, copy.file, copy.parent), (3, first.file, Some(first.file.digest)));
    bench.play_round(4);
    bench.play_round(5);
    let done = bench.scheduler.job(&name).expect("known");
    assert_eq!((done.record().state, done.record().rounds_committed), (JobState::Finished, 3));
    let error = bench.scheduler.resume_from(&name, 5, NOW).expect_err("no round is left");
    assert!(error.to_string().contains("all 3 rounds"), "{error}");
    bench.scheduler.resume_from(&name, 2, NOW).expect("version 2 of the first line has one left");
    assert_eq!(bench.scheduler.models().rounds_until(&name, 6), 2);
    let unknown = bench.scheduler.resume_from(&name, 99, NOW).expect_err("no such version");
    assert!(matches!(unknown, SchedulerError::VersionUnknown { version: 99, .. }));
}

#[test]
fn an_open_round_is_given_up_and_a_stopped_job_runs_again() {
    let mut bench = Bench::new();
    bench.submit();
    connect(&mut bench);
    let name = job().name;
    bench.scheduler.control(&name, JobControl::Stop, NOW).expect("runs");
    bench.run();
    bench.scheduler.resume_from(&name, 0, NOW).expect("rounds are left");
    let actions = bench.run();
    let open = bench.scheduler.job(&name).expect("known");
    assert_eq!((open.record().state, open.round().number), (JobState::Running, RoundNumber(2)));
    assert!(
        actions.iter().any(|action| matches!(
            action,
            Action::Send(_, CoordinatorMessage::Configure(assignment)) if assignment.round.0 == 2
        )),
        "{actions:?}"
    );
    bench.scheduler.resume_from(&name, 0, NOW).expect("also while a round is open");
    let again = bench.run();
    let closed = CoordinatorMessage::RoundClosed {
        job: name.clone(),
        round: RoundNumber(2),
        abandoned: Some("training goes on from version 2".to_owned()),
    };
    assert!(
        again.iter().any(|action| matches!(action, Action::Send(_, message) if *message == closed))
    );
    assert!(matches!(
        bench.scheduler.job(&name).expect("known").round().phase,
        Phase::Configuration(_)
    ));
}

#[test]
fn a_job_whose_metric_gets_no_better_ends_and_can_be_resumed() {
    let mut bench = Bench::new();
    let mut spec = job();
    spec.round.rounds = 9;
    spec.evaluation = Some(EvaluationSpec {
        every_rounds: 1,
        metrics: vec![Metric::Accuracy],
        noise_multiplier: 1.0,
        loss_max: 4.0,
    });
    spec.early_stop =
        Some(EarlyStop { metric: Metric::Accuracy, patience: 2, min_change: 0.0, target: None });
    bench.submit_job(spec);
    connect(&mut bench);
    let name = job().name;
    for (round, accuracy) in [(1, 0.5), (2, 0.6), (3, 0.6), (4, 0.55)] {
        assert_eq!(bench.scheduler.job(&name).expect("known").record().state, JobState::Running);
        for (who, fill) in [("alpha", 1), ("beta", 2)] {
            bench
                .scheduler
                .accepted(&tenant(who), &name, RoundNumber(round), b"", NOW)
                .expect("invited");
            let mut offer = bench.offer(round, fill + round as u8);
            let centred_sum = (accuracy - 0.5) * 2.0 * 1e6;
            let metric = Metric::Accuracy;
            offer.evaluation = vec![MetricSum { metric, centred_sum, count: 1e6 }];
            bench.scheduler.reported(&tenant(who), &offer, NOW).expect("counts");
            bench.run();
        }
    }
    let ended = bench.scheduler.job(&name).expect("known");
    assert_eq!((ended.record().state, ended.record().rounds_committed), (JobState::Finished, 4));
    let line = ended.waiting_for();
    assert!(line.contains("stopped early: accuracy has not become better than 0.6000"), "{line}");
    bench.scheduler.resume_from(&name, 4, NOW).expect("five rounds are left");
    let running = bench.scheduler.job(&name).expect("known");
    assert_eq!(running.record().state, JobState::Running, "old metrics count no more");
}

//! Asynchronous rounds in the whole coordinator.

use tributary_protocol::job::AsynchronousPlan;

use super::{
    tests::{Bench, NOW, job, sent, tenant},
    *,
};

/// A buffer of two among three tenants.
fn asynchronous() -> Bench {
    let mut bench = Bench::new();
    let mut spec = job();
    spec.regions.clear();
    spec.round.rounds = 3;
    (spec.round.cohort_size, spec.round.report_goal) = (3, 2);
    spec.round.asynchronous = Some(AsynchronousPlan { staleness_max: 2, staleness_exponent: 0.5 });
    bench.submit_job(spec);
    for name in ["alpha", "beta", "gamma"] {
        bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
    }
    bench.run();
    bench
}

fn report(bench: &mut Bench, who: &str, round: u64, fill: u8) -> Vec<Action> {
    let offer = bench.offer(round, fill);
    bench.scheduler.reported(&tenant(who), &offer, NOW).expect("counts");
    bench.run()
}

#[test]
fn a_slow_tenant_reports_from_its_old_base_while_the_others_go_on() {
    let mut bench = asynchronous();
    let name = job().name;
    report(&mut bench, "alpha", 1, 1);
    let actions = report(&mut bench, "beta", 1, 2);
    let open = bench.scheduler.job(&name).expect("known");
    assert_eq!((open.record().rounds_committed, open.round().number), (1, RoundNumber(2)));
    let second = sent(&actions, "alpha").into_iter().find_map(|message| match message {
        CoordinatorMessage::Configure(assignment) => Some(assignment),
        _ => None,
    });
    let second = second.expect("invited again at once");
    assert_eq!((second.round, second.base.version), (RoundNumber(2), 1));
    let closed =
        |message: &CoordinatorMessage| matches!(message, CoordinatorMessage::RoundClosed { .. });
    assert!(!sent(&actions, "gamma").iter().any(closed), "the slow one goes on");
    let wrong = bench.scheduler.reported(&tenant("gamma"), &bench.offer(2, 9), NOW);
    assert!(
        matches!(wrong, Err(SchedulerError::WrongRound { open: RoundNumber(1), .. })),
        "{wrong:?}"
    );
    report(&mut bench, "gamma", 1, 3);
    report(&mut bench, "alpha", 2, 4);
    let open = bench.scheduler.job(&name).expect("known");
    assert_eq!(open.record().rounds_committed, 2);
    // The reconnecting tenant hears of its ticket, which is of the round before.
    bench.scheduler.disconnected(&tenant("beta"), NOW);
    bench.scheduler.connected(&tenant("beta"), LedgerHead::EMPTY, NOW);
    let actions = bench.run();
    let again = sent(&actions, "beta").into_iter().find_map(|message| match message {
        CoordinatorMessage::Configure(assignment) => Some(assignment),
        _ => None,
    });
    let again = again.expect("its ticket is still good");
    assert_eq!((again.round, again.base.version), (RoundNumber(2), 1));
    let actions = [report(&mut bench, "beta", 2, 5), report(&mut bench, "gamma", 3, 6)].concat();
    let done = bench.scheduler.job(&name).expect("known");
    assert_eq!(done.record().state, JobState::Finished);
    let dismissed = sent(&actions, "alpha").into_iter().find_map(|message| match message {
        CoordinatorMessage::RoundClosed { abandoned, .. } => abandoned,
        _ => None,
    });
    assert_eq!(dismissed.as_deref(), Some("the job is finished"));
}

#[test]
fn a_restart_between_any_two_reports_gives_the_same_model() {
    let reports = [
        ("alpha", 1, 1),
        ("beta", 1, 2),
        ("gamma", 1, 3),
        ("alpha", 2, 4),
        ("beta", 2, 5),
        ("gamma", 3, 6),
    ];
    let model = |restart_at: Option<usize>| {
        let mut bench = asynchronous();
        for (at, (who, round, fill)) in reports.into_iter().enumerate() {
            if restart_at == Some(at) {
                bench.restart();
                for name in ["alpha", "beta", "gamma"] {
                    bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
                }
                bench.run();
            }
            report(&mut bench, who, round, fill);
        }
        let latest = bench.scheduler.models().latest(&job().name).expect("a model");
        (latest.version, latest.file)
    };
    let undisturbed = model(None);
    assert_eq!(undisturbed.0, 3);
    for at in 0..reports.len() {
        assert_eq!(model(Some(at)), undisturbed, "restarted before report {at}");
    }
}

#[test]
fn a_paused_job_still_takes_what_its_tickets_bring() {
    let mut bench = asynchronous();
    let name = job().name;
    bench.scheduler.control(&name, JobControl::Pause, NOW).expect("runs");
    bench.run();
    report(&mut bench, "alpha", 1, 1);
    report(&mut bench, "beta", 1, 2);
    let actions = report(&mut bench, "gamma", 1, 3);
    let invited = actions
        .iter()
        .any(|action| matches!(action, Action::Send(_, CoordinatorMessage::Configure(_))));
    assert!(!invited, "{actions:?}");
    let paused = bench.scheduler.job(&name).expect("known");
    assert_eq!((paused.record().rounds_committed, paused.round().updates().len()), (1, 1));
    assert_eq!(paused.waiting_for(), "to be resumed");
    bench.scheduler.control(&name, JobControl::Resume, NOW).expect("paused");
    bench.run();
    report(&mut bench, "alpha", 2, 4);
    assert_eq!(bench.scheduler.job(&name).expect("known").record().rounds_committed, 2);
}

use proptest::prelude::*;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    job::CohortSampling,
};

use super::*;

const START: Timestamp = Timestamp(1_000_000);

fn tenant(index: usize) -> TenantId {
    TenantId::new(format!("t{index}")).expect("valid")
}

fn tenants(count: usize) -> BTreeSet<TenantId> {
    (0..count).map(tenant).collect()
}

fn available(count: usize) -> Input {
    Input::Available { tenants: tenants(count), population: count }
}

fn accepted(index: usize) -> Input {
    Input::Accepted { tenant: tenant(index), credential: None }
}

fn update(index: usize) -> Digest {
    Digest::of(&index.to_le_bytes())
}

fn plan(cohort_size: u32, report_goal: u32, cohort_size_min: u32) -> RoundPlan {
    RoundPlan {
        rounds: 1,
        cohort_size,
        cohort_size_min,
        report_goal,
        selection_timeout_ms: 1_000,
        configuration_timeout_ms: 2_000,
        report_timeout_ms: 10_000,
        sampling: CohortSampling::Fixed,
        asynchronous: None,
    }
}

fn round(plan: RoundPlan) -> Round {
    Round::new(RoundNumber(1), Digest::of(b"base"), plan, None, 42, START)
}

fn drain(round: &mut Round) -> Vec<Output> {
    std::iter::from_fn(|| round.poll_output()).collect()
}

fn refusal() -> Refusal {
    Refusal::new(ErrorCode::PolicyForbids, "epsilon would be 9 of at most 8")
}

/// A round of four in Reporting.
fn reporting() -> Round {
    let mut round = round(plan(4, 4, 3));
    round.handle(START, available(4)).expect("selects");
    for index in 0..4 {
        round.handle(START, accepted(index)).expect("in cohort");
    }
    assert_eq!(round.record().phase.name(), "reporting");
    drain(&mut round);
    round
}

#[test]
fn everyone_hears_the_assignment_only_after_it_is_durable() {
    let mut round = round(plan(2, 2, 1));
    round.handle(START, available(3)).expect("selects");
    let outputs = drain(&mut round);
    assert!(
        matches!(&outputs[1], Output::Persist(record) if record.phase.name() == "configuration")
    );
    assert_eq!(outputs[2..].iter().filter(|o| matches!(o, Output::Configure(..))).count(), 2);
}

#[test]
fn an_update_counts_once() {
    let mut round = reporting();
    round.handle(START, Input::Reported(tenant(0), update(0))).expect("first");
    round.handle(START, Input::Reported(tenant(0), update(0))).expect("the same bytes again");
    assert!(matches!(
        round.handle(START, Input::Reported(tenant(0), update(9))),
        Err(RoundError::Conflict { .. })
    ));
    assert_eq!(drain(&mut round).len(), 1, "only the first report is persisted");
    for index in 1..4 {
        round.handle(START, Input::Reported(tenant(index), update(index))).expect("counts");
    }
    let contributors = (0..4).map(|i| (tenant(i), update(i))).collect();
    assert!(drain(&mut round).contains(&Output::Commit { contributors, unmask: None }));
    round.handle(START, Input::Reported(tenant(3), update(3))).expect("repeated after the commit");
}

#[test]
fn strangers_and_declined_tenants_are_refused() {
    let mut round = reporting();
    let stranger = Input::Reported(tenant(7), update(7));
    assert!(matches!(round.handle(START, stranger), Err(RoundError::NotInCohort { .. })));
    round.handle(START, Input::Declined(tenant(1), refusal())).expect("in cohort");
    let late = Input::Reported(tenant(1), update(1));
    assert!(matches!(round.handle(START, late), Err(RoundError::NotInCohort { .. })));
}

#[test]
fn a_smaller_cohort_starts_after_the_selection_deadline() {
    let mut round = round(plan(4, 4, 2));
    round.handle(START, Input::Available { tenants: tenants(2), population: 4 }).expect("counts");
    assert_eq!(round.waiting_for(), "waiting for 4 tenants, 2 available");
    round.handle_timeout(START);
    assert_eq!(round.record().phase.name(), "selection", "not before the deadline");
    round.handle_timeout(START.after_ms(1_000));
    assert_eq!(round.record().phase.name(), "configuration");
}

#[test]
fn nobody_waits_for_tenants_that_do_not_exist() {
    let mut round = round(plan(4, 4, 2));
    round.handle(START, available(3)).expect("selects");
    assert_eq!(round.record().phase.name(), "configuration");
}

#[test]
fn the_report_deadline_commits_with_enough_and_abandons_with_less() {
    for (reports, phase) in [(3, "committed"), (2, "abandoned")] {
        let mut round = reporting();
        for index in 0..reports {
            round.handle(START, Input::Reported(tenant(index), update(index))).expect("counts");
        }
        round.handle_timeout(round.poll_timeout().expect("a deadline"));
        assert_eq!(round.record().phase.name(), phase);
        let outputs = drain(&mut round);
        assert!(
            matches!(outputs.last(), Some(Output::Close { tenants, .. }) if tenants.len() == 4),
            "late tenants hear that it is over: {outputs:?}"
        );
    }
}

#[test]
fn declines_that_leave_too_few_abandon_at_once_with_the_reason() {
    let mut round = round(plan(4, 4, 3));
    round.handle(START, available(4)).expect("selects");
    round.handle(START, Input::Declined(tenant(0), refusal())).expect("in cohort");
    round.handle(START, Input::Declined(tenant(2), refusal())).expect("in cohort");
    let Phase::Abandoned { reason } = &round.record().phase else { panic!("not abandoned") };
    assert!(reason.contains("t2") && reason.contains("epsilon"), "{reason}");
}

#[test]
fn a_returning_tenant_is_configured_again_until_it_reported() {
    let mut round = reporting();
    round.handle(START, Input::Connected(tenant(2))).expect("fits always");
    assert!(matches!(&drain(&mut round)[..], [Output::Configure(who, _)] if *who == tenant(2)));
    round.handle(START, Input::Reported(tenant(2), update(2))).expect("counts");
    drain(&mut round);
    round.handle(START, Input::Connected(tenant(2))).expect("fits always");
    assert!(drain(&mut round).is_empty());
}

#[derive(Debug, Clone)]
enum Event {
    Available(usize),
    Accepted(usize),
    Declined(usize),
    Reported(usize, usize),
    Connected(usize),
    Deadline,
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..6_usize).prop_map(Event::Available),
        (0..6_usize).prop_map(Event::Accepted),
        (0..6_usize).prop_map(Event::Declined),
        (0..6_usize, 0..8_usize).prop_map(|(who, what)| Event::Reported(who, what)),
        (0..6_usize).prop_map(Event::Connected),
        Just(Event::Deadline),
        Just(Event::Crash),
    ]
}

fn play(events: &[Event], crashes: bool) -> (Vec<Output>, RoundRecord) {
    let mut round = round(plan(4, 3, 2));
    let (mut outputs, mut durable, mut now) = (Vec::new(), round.record().clone(), START);
    let mut last_available = available(0);
    for event in events {
        let input = match event.clone() {
            Event::Available(count) => {
                last_available = available(count);
                Some(last_available.clone())
            }
            Event::Accepted(who) => Some(accepted(who)),
            Event::Declined(who) => Some(Input::Declined(tenant(who), refusal())),
            Event::Reported(who, what) => Some(Input::Reported(tenant(who), update(what))),
            Event::Connected(who) => Some(Input::Connected(tenant(who))),
            Event::Deadline => {
                now = round.poll_timeout().unwrap_or(now);
                round.handle_timeout(now);
                None
            }
            Event::Crash if crashes => {
                round = Round::restore(durable.clone(), now);
                // Tenants reconnect, so the driver announces them again.
                Some(last_available.clone())
            }
            Event::Crash => None,
        };
        if let Some(input) = input {
            let _ = round.handle(now, input);
        }
        for output in drain(&mut round) {
            match &output {
                Output::Persist(record) => durable = (**record).clone(),
                Output::Note(answer) => assert!(durable.take(answer), "it was just taken"),
                Output::Commit { .. } => durable = round.record().clone(),
                _ => {}
            }
            outputs.push(output);
        }
    }
    (outputs, round.record().clone())
}

proptest! {
    #[test]
    fn no_history_counts_an_update_twice_or_commits_with_too_few(events in proptest::collection::vec(event(), 0..60)) {
        let (outputs, _) = play(&events, true);
        let commits: Vec<_> =
            outputs.iter().filter_map(|o| if let Output::Commit { contributors, .. } = o { Some(contributors) } else { None }).collect();
        prop_assert!(commits.len() <= 1);
        for contributors in commits {
            prop_assert!(contributors.len() >= 2 && contributors.len() <= 4);
            for (who, what) in contributors {
                let reported = events.iter().any(|e| matches!(e, Event::Reported(w, u) if tenant(*w) == *who && update(*u) == *what));
                prop_assert!(reported, "{who} never reported {what:?}");
            }
        }
    }

    #[test]
    fn recovery_equals_no_crash(events in proptest::collection::vec(event(), 0..60)) {
        let durable_phase = |record: RoundRecord| match record.phase {
            Phase::Committed { .. } | Phase::Abandoned { .. } => Some(record.phase),
            // Deadlines are armed anew by a restart, so unfinished phases compare by name.
            other => { let _ = other.name(); None }
        };
        let without_deadlines: Vec<_> = events.into_iter().filter(|e| !matches!(e, Event::Deadline)).collect();
        let (_, crashed) = play(&without_deadlines, true);
        let (_, undisturbed) = play(&without_deadlines, false);
        prop_assert_eq!(crashed.phase.name(), undisturbed.phase.name());
        prop_assert_eq!(durable_phase(crashed), durable_phase(undisturbed));
    }
}

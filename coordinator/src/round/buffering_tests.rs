use proptest::prelude::*;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    job::{AsynchronousPlan, CohortSampling},
};

use super::*;

const START: Timestamp = Timestamp(1_000_000);

fn tenant(index: usize) -> TenantId {
    TenantId::new(format!("t{index}")).expect("valid")
}

fn available(count: usize) -> Input {
    Input::Available { tenants: (0..count).map(tenant).collect(), population: count }
}

fn update(round: u64, index: usize) -> Digest {
    Digest::of(format!("{round} {index}").as_bytes())
}

/// At most `concurrency` train at a time; `goal` updates fill the buffer.
fn plan(concurrency: u32, goal: u32, staleness_max: u32) -> RoundPlan {
    RoundPlan {
        rounds: 100,
        cohort_size: concurrency,
        cohort_size_min: 1,
        report_goal: goal,
        selection_timeout_ms: 1_000,
        configuration_timeout_ms: 1_000,
        report_timeout_ms: 10_000,
        sampling: CohortSampling::Fixed,
        asynchronous: Some(AsynchronousPlan { staleness_max, staleness_exponent: 0.5 }),
    }
}

/// Rounds that follow each other, as a job opens them; every commit is taken to succeed.
#[derive(Debug)]
struct Line {
    round: Round,
    /// What each commit summed: tenant, update, staleness.
    commits: Vec<Vec<(TenantId, Digest, u32)>>,
    outputs: Vec<Output>,
}

impl Line {
    fn new(plan: RoundPlan) -> Self {
        let round = Round::new(RoundNumber(1), update(0, 99), plan, None, 7, START);
        let mut line = Self { round, commits: Vec::new(), outputs: Vec::new() };
        line.settle(START);
        line
    }

    fn settle(&mut self, now: Timestamp) {
        loop {
            while let Some(output) = self.round.poll_output() {
                self.outputs.push(output);
            }
            let record = self.round.record();
            let Phase::Committed { contributors } = &record.phase else { return };
            let staleness = record.staleness();
            let summed = contributors.iter();
            let summed = summed.map(|(who, update)| (who.clone(), *update, staleness[who]));
            self.commits.push(summed.collect());
            let next = RoundNumber(record.number.0 + 1);
            let base = update(next.0, 99);
            let (plan, carried) = (record.plan.clone(), record.carried.clone());
            self.round = Round::carrying(next, base, plan, None, 7, carried, now);
        }
    }

    fn handle(&mut self, now: Timestamp, input: Input) -> Result<(), RoundError> {
        let outcome = self.round.handle(now, input);
        self.settle(now);
        outcome
    }

    fn report(&mut self, index: usize) -> Result<(), RoundError> {
        let round = self.round.record().number_of(&tenant(index)).0;
        self.handle(START, Input::Reported(tenant(index), update(round, index)))
    }

    fn training(&self) -> BTreeSet<TenantId> {
        match &self.round.record().phase {
            Phase::Buffering(buffering) => buffering.training().cloned().collect(),
            other => panic!("{}", other.name()),
        }
    }

    /// Forgets everything that is not in the record, as a crash does.
    fn restart(&mut self) {
        let text = serde_json::to_string(self.round.record()).expect("a record");
        let record = serde_json::from_str(&text).expect("its own record");
        self.round = Round::restore(record, START);
        self.settle(START);
    }
}

#[test]
fn a_straggler_counts_in_a_later_buffer_from_its_own_base() {
    let mut line = Line::new(plan(3, 2, 2));
    line.handle(START, available(3)).expect("invites all");
    assert_eq!(line.training().len(), 3);
    line.report(0).expect("counts");
    line.report(1).expect("fills the buffer");
    assert_eq!(line.commits.len(), 1);
    let record = line.round.record();
    assert_eq!((record.number, record.number_of(&tenant(2))), (RoundNumber(2), RoundNumber(1)));
    assert_eq!(record.base_of(&tenant(2)), update(0, 99), "it trains from the older base");
    line.handle(START, available(3)).expect("invites the two again");
    line.report(2).expect("late, but within the largest staleness");
    line.report(0).expect("fills the buffer");
    let staleness: Vec<u32> = line.commits[1].iter().map(|(_, _, behind)| *behind).collect();
    assert_eq!(staleness, [0, 1]);
    let told = Output::Dismiss { tenant: tenant(2), round: RoundNumber(1), abandoned: None };
    assert!(line.outputs.contains(&told), "{:?}", line.outputs);
}

#[test]
fn a_ticket_that_became_too_old_is_dismissed_and_its_update_refused() {
    let mut line = Line::new(plan(3, 2, 1));
    line.handle(START, available(3)).expect("invites");
    for _ in 0..2 {
        line.report(0).expect("counts");
        line.report(1).expect("counts");
        line.handle(START, available(2)).expect("invites");
    }
    let dismissed = line.outputs.iter().find_map(|output| match output {
        Output::Dismiss { tenant: who, round, abandoned: Some(reason) } if *who == tenant(2) => {
            Some((*round, reason.clone()))
        }
        _ => None,
    });
    let (round, reason) = dismissed.expect("told");
    assert!(round == RoundNumber(1) && reason.contains("more than 1 versions old"), "{reason}");
    let late = line.handle(START, Input::Reported(tenant(2), update(1, 2)));
    assert!(matches!(late, Err(RoundError::NotInCohort { .. })), "{late:?}");
}

#[test]
fn an_update_counts_once_and_a_tenant_once_in_a_buffer() {
    let mut line = Line::new(plan(2, 2, 2));
    line.handle(START, available(2)).expect("invites");
    line.report(0).expect("counts");
    line.handle(START, Input::Reported(tenant(0), update(1, 0))).expect("the same bytes again");
    let other = line.handle(START, Input::Reported(tenant(0), update(9, 9)));
    assert!(matches!(other, Err(RoundError::Conflict { .. })), "{other:?}");
    line.handle(START, available(2)).expect("nobody is free");
    assert_eq!(line.training(), [tenant(1)].into());
    assert!(line.commits.is_empty());
}

#[test]
fn a_buffer_that_does_not_fill_commits_with_the_fewest_and_invites_the_late_again() {
    let mut line = Line::new(RoundPlan { cohort_size_min: 2, ..plan(3, 3, 4) });
    line.handle(START, available(3)).expect("invites");
    line.report(0).expect("counts");
    let later = START.after_ms(10_000);
    assert_eq!(line.round.poll_timeout(), Some(later));
    line.round.handle_timeout(later);
    line.settle(later);
    assert!(line.commits.is_empty() && line.training().is_empty(), "one is not enough");
    line.handle(later, available(3)).expect("invites");
    assert_eq!(line.training(), [tenant(1), tenant(2)].into());
    line.report(1).expect("is enough now");
    assert_eq!(line.commits[0].len(), 2);
}

#[test]
fn giving_up_dismisses_everybody() {
    let mut line = Line::new(plan(3, 3, 1));
    line.handle(START, available(3)).expect("invites");
    line.report(0).expect("counts");
    line.round.give_up("the job was stopped".to_owned(), START);
    line.outputs.clear();
    line.settle(START);
    let told = line.outputs.iter().filter(|output| matches!(output, Output::Dismiss { .. }));
    assert_eq!(told.count(), 3, "{:?}", line.outputs);
}

#[derive(Debug, Clone, Copy)]
enum Happening {
    Available(usize),
    Report(usize),
    Decline(usize),
    Accept(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (0..7_usize).prop_map(Happening::Available),
        5 => (0..7_usize).prop_map(Happening::Report),
        1 => (0..7_usize).prop_map(Happening::Decline),
        1 => (0..7_usize).prop_map(Happening::Accept),
    ]
}

fn step(line: &mut Line, happening: Happening) {
    // What does not fit is refused, in both lines alike.
    let _ = match happening {
        Happening::Available(count) => line.handle(START, available(count)),
        Happening::Report(index) => line.report(index),
        Happening::Decline(index) => {
            let refusal = Refusal::new(ErrorCode::TimedOut, "busy");
            line.handle(START, Input::Declined(tenant(index), refusal))
        }
        Happening::Accept(index) => {
            line.handle(START, Input::Accepted { tenant: tenant(index), credential: None })
        }
    };
}

proptest! {
    #[test]
    fn a_restart_anywhere_changes_nothing(
        happenings in prop::collection::vec((happening(), any::<bool>()), 0..60),
    ) {
        let mut straight = Line::new(plan(4, 3, 2));
        let mut restarted = Line::new(plan(4, 3, 2));
        for (happening, restart) in happenings {
            step(&mut straight, happening);
            step(&mut restarted, happening);
            if restart {
                restarted.restart();
            }
            prop_assert_eq!(straight.round.record(), restarted.round.record());
        }
        prop_assert_eq!(straight.commits, restarted.commits);
    }

    #[test]
    fn no_update_counts_twice_nor_beyond_the_largest_staleness(
        happenings in prop::collection::vec(happening(), 0..120),
    ) {
        let mut line = Line::new(plan(4, 3, 2));
        for happening in happenings {
            step(&mut line, happening);
            prop_assert!(line.training().len() <= 4);
        }
        let mut seen = BTreeSet::new();
        for commit in &line.commits {
            prop_assert_eq!(commit.len(), 3);
            let tenants: BTreeSet<_> = commit.iter().map(|(who, ..)| who).collect();
            prop_assert_eq!(tenants.len(), 3);
            for (_, update, staleness) in commit {
                prop_assert!(*staleness <= 2 && seen.insert(*update));
            }
        }
    }
}

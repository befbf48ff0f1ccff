//! Answers are stored by themselves, and read back with the record that they came after.

use tributary_protocol::id::Region;

use super::{
    tests::{Bench, NOW, job, tenant},
    *,
};
use crate::store::{MemoryStore, Store, StoreError, Table};

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// All three tenants are invited to the first round.
fn invited(store: &mut MemoryStore) -> Bench {
    let mut bench = Bench::new();
    let mut spec = job();
    spec.regions.push(Region::new("us").expect("valid"));
    (spec.round.cohort_size, spec.round.report_goal) = (3, 3);
    bench.submit_job(spec);
    for name in NAMES {
        bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
    }
    persist(store, &bench.run());
    bench
}

/// Makes durable what the actions say; returns the tables that were written to.
fn persist(store: &mut MemoryStore, actions: &[Action]) -> Vec<Table> {
    let mut tables = Vec::new();
    for action in actions {
        if let Action::Persist(batch) = action {
            store.apply(batch).expect("memory");
            tables.extend(batch.tables());
        }
    }
    tables
}

fn accept(bench: &mut Bench, name: &str, round: u64) -> Vec<Action> {
    let accepted =
        bench.scheduler.accepted(&tenant(name), &job().name, RoundNumber(round), b"", NOW);
    accepted.expect("invited");
    bench.run()
}

fn report(bench: &mut Bench, name: &str, round: u64, fill: u8) -> Vec<Action> {
    let offer = bench.offer(round, fill);
    bench.scheduler.reported(&tenant(name), &offer, NOW).expect("counts");
    bench.run()
}

fn assert_same(store: &MemoryStore, bench: &Bench) {
    let found = JobRecord::load_all(store).expect("whole");
    let expected: Vec<_> = bench.scheduler.jobs().map(|job| job.record().clone()).collect();
    assert_eq!(found, expected);
}

#[test]
fn only_the_answers_that_end_a_phase_write_the_record_of_the_job() {
    let mut store = MemoryStore::default();
    let mut bench = invited(&mut store);
    for round in 1..=2 {
        for (name, last) in NAMES.into_iter().zip([false, false, true]) {
            let tables = persist(&mut store, &accept(&mut bench, name, round));
            assert_eq!(tables.contains(&Table::Jobs), last, "{name} accepts: {tables:?}");
            assert_eq!(tables.contains(&Table::Answers), !last, "{name} accepts: {tables:?}");
            assert_same(&store, &bench);
        }
        for (name, last) in NAMES.into_iter().zip([false, false, true]) {
            let fill = round as u8 * 10 + name.len() as u8;
            let tables = persist(&mut store, &report(&mut bench, name, round, fill));
            assert_eq!(tables.contains(&Table::Jobs), last, "{name} reports: {tables:?}");
            assert_eq!(tables.contains(&Table::Answers), !last, "{name} reports: {tables:?}");
            assert_same(&store, &bench);
        }
    }
    assert_eq!(bench.scheduler.jobs().next().expect("one").record().state, JobState::Finished);
}

#[test]
fn a_record_that_is_stored_for_another_reason_has_the_answers_before_it() {
    let mut store = MemoryStore::default();
    let mut bench = invited(&mut store);
    persist(&mut store, &accept(&mut bench, "beta", 1));
    bench.scheduler.control(&job().name, JobControl::Pause, NOW).expect("runs");
    persist(&mut store, &bench.run());
    assert_same(&store, &bench);
    persist(&mut store, &accept(&mut bench, "alpha", 1));
    assert_same(&store, &bench);
}

#[test]
fn a_lost_answer_is_noticed() {
    let mut store = MemoryStore::default();
    let mut bench = invited(&mut store);
    accept(&mut bench, "alpha", 1);
    persist(&mut store, &accept(&mut bench, "beta", 1));
    let lost = JobRecord::load_all(&store).expect_err("alpha's answer is not there");
    assert!(matches!(lost, StoreError::Missing { table: "answers", .. }), "{lost}");
}

#[test]
fn records_are_made_durable_together_but_not_past_anything_else() {
    let mut store = MemoryStore::default();
    let mut bench = invited(&mut store);
    for name in ["alpha", "beta"] {
        let job = job().name;
        bench.scheduler.accepted(&tenant(name), &job, RoundNumber(1), b"", NOW).expect("invited");
    }
    assert!(bench.scheduler.may_wait());
    assert!(matches!(bench.scheduler.poll_action(), Some(Action::Persist(_))));
    assert!(bench.scheduler.poll_persist().is_some() && bench.scheduler.poll_persist().is_none());
    bench.scheduler.control(&job().name, JobControl::Stop, NOW).expect("runs");
    assert!(!bench.scheduler.may_wait(), "the end of the round goes to the audit log first");
    assert!(bench.scheduler.poll_persist().is_none());
    assert!(matches!(bench.scheduler.poll_action(), Some(Action::Audit(_))));
}

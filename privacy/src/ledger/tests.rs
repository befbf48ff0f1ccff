//! Unit tests of the ledger, crashes at every byte included.

use proptest::prelude::*;

use super::*;
use crate::mechanism::PrivacyEvent;

const DAY: u64 = 86_400_000;

fn budget() -> Budget {
    Budget { epsilon_max: 8.0, delta: 1e-5, window_days: None }
}

fn request(round: u64) -> DebitRequest {
    DebitRequest {
        dataset: "digits".into(),
        job: "job".into(),
        round,
        kind: ReleaseKind::Update,
        unit: "record".into(),
        // A closed formula, so that thousands of debits take no time.
        events: vec![PrivacyEvent::Gaussian { noise_multiplier: 10.0, count: 2 }],
        run: None,
        release: [round as u8; 32],
    }
}

fn open(store: &MemoryChainStore) -> Result<Ledger<MemoryChainStore>, LedgerError> {
    Ledger::open(store.clone(), "alpha")
}

fn ledger_of(rounds: u64) -> (MemoryChainStore, Ledger<MemoryChainStore>) {
    let store = MemoryChainStore::new();
    let mut ledger = open(&store).expect("empty");
    for round in 1..=rounds {
        ledger.debit(request(round), &budget(), 1000 * round).expect("fits");
    }
    (store, ledger)
}

#[test]
fn what_was_debited_is_there_after_reopening() {
    let (store, ledger) = ledger_of(5);
    let reopened = open(&store).expect("intact");
    assert_eq!(reopened.entries(), ledger.entries());
    assert_eq!(reopened.head(), ledger.head());
    let spent = reopened.spent("digits", 0, &budget()).expect("valid");
    assert!(spent > 0.5 && spent < 8.0);
    assert_eq!(reopened.spent("other", 0, &budget()).expect("valid"), 0.0);
    assert_eq!(reopened.release("job", 3).expect("debited").release, [3; 32]);
    assert!(reopened.release("job", 9).is_none());
}

/// The format is a promise: this line was written out by hand, its hash by the `b3sum` rule over
/// the bytes before `,"hash"`.
#[test]
fn a_line_has_this_exact_form() {
    let (store, ledger) = ledger_of(1);
    let text = String::from_utf8(store.bytes()).expect("text");
    let genesis = data_encoding::HEXLOWER.encode(&record::genesis("alpha"));
    let head = data_encoding::HEXLOWER.encode(&ledger.head().hash);
    let release = "01".repeat(32);
    let body = format!(
        r#"{{"sequence":1,"previous":"{genesis}","recorded_ms":1000,"tenant":"alpha","dataset":"digits","job":"job","round":1,"unit":"record","events":[{{"gaussian":{{"noise_multiplier":10.0,"count":2}}}}],"release":"{release}""#
    );
    assert_eq!(head, blake3::hash(body.as_bytes()).to_hex().as_str());
    assert_eq!(text, format!("{body},\"hash\":\"{head}\"}}\n"));
}

#[test]
fn the_same_round_is_never_debited_twice() {
    let (store, mut ledger) = ledger_of(2);
    let before = store.bytes();
    let again = DebitRequest { release: [9; 32], ..request(2) };
    assert!(matches!(
        ledger.debit(again, &budget(), 0),
        Err(LedgerError::AlreadyDebited { round: 2, sequence: 2, release, .. }) if release == [2; 32]
    ));
    assert_eq!(store.bytes(), before);
}

#[test]
fn a_debit_beyond_the_budget_writes_nothing() {
    let (store, mut ledger) = ledger_of(1);
    let before = store.bytes();
    let spent = ledger.spent("digits", 0, &budget()).expect("valid");
    let tight = Budget { epsilon_max: spent * 1.01, ..budget() };
    for attempt in [
        ledger.quote(&request(2), &tight, 0).map(|_| ()),
        ledger.debit(request(2), &tight, 0).map(|_| ()),
    ] {
        assert!(matches!(
            attempt,
            Err(LedgerError::BudgetExceeded { epsilon_before, epsilon_after, .. })
                if epsilon_before == spent && epsilon_after > spent * 1.01
        ));
    }
    assert_eq!(store.bytes(), before);
    for epsilon_max in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let bad = Budget { epsilon_max, ..budget() };
        assert!(matches!(ledger.debit(request(2), &bad, 0), Err(LedgerError::Budget { .. })));
    }
    let noiseless = DebitRequest {
        events: vec![PrivacyEvent::Gaussian { noise_multiplier: 0.0, count: 1 }],
        ..request(2)
    };
    assert!(matches!(
        ledger.debit(noiseless, &budget(), 0),
        Err(LedgerError::BudgetExceeded { .. })
    ));
}

#[test]
fn releases_leave_the_window_and_no_clock_brings_them_back() {
    let (_, mut ledger) = ledger_of(0);
    let window = Budget { window_days: Some(30), ..budget() };
    ledger.debit(request(1), &window, 100 * DAY).expect("fits");
    let spent =
        |ledger: &Ledger<_>, day| ledger.spent("digits", day * DAY, &window).expect("valid");
    assert!(spent(&ledger, 129) > 0.0);
    assert_eq!(spent(&ledger, 130), 0.0);
    // A clock set back still sees the release, and records no earlier time.
    assert!(spent(&ledger, 1) > 0.0);
    let entry = ledger.debit(request(2), &window, DAY).expect("fits");
    assert_eq!(entry.recorded_ms, 100 * DAY);
}

/// Three jobs on two datasets, each with its own window: nothing of one shows in the other.
#[test]
fn datasets_and_windows_are_counted_apart_and_jobs_together() {
    let (store, mut ledger) = ledger_of(0);
    let month = Budget { window_days: Some(30), ..budget() };
    let ever = budget();
    let event = PrivacyEvent::Gaussian { noise_multiplier: 10.0, count: 2 };
    let plan = [
        ("one", "digits", 0),
        ("two", "digits", 10),
        ("three", "letters", 5),
        ("one", "digits", 40),
    ];
    for (index, (job, dataset, day)) in plan.into_iter().enumerate() {
        let request = DebitRequest {
            job: job.into(),
            dataset: dataset.into(),
            round: index as u64,
            ..request(1)
        };
        let limit = if dataset == "digits" { &month } else { &ever };
        // Clocks never run backwards in the file.
        ledger.debit(request, limit, day * DAY).expect("fits");
    }
    let ledger = open(&store).expect("intact");
    let epsilon = |count| {
        let events = [event.with_count(count)];
        crate::accountant::epsilon(&events, Delta::new(1e-5).expect("valid")).expect("valid")
    };
    let spent = |dataset, day, budget| ledger.spent(dataset, day * DAY, budget).expect("valid");
    assert_eq!(spent("digits", 20, &month), epsilon(6), "both jobs, and what came later");
    assert_eq!(spent("digits", 30, &month), epsilon(4), "round 0 left");
    assert_eq!(spent("digits", 40, &month), epsilon(2), "job two left, recorded on day 10");
    assert_eq!(spent("digits", 40, &ever), epsilon(6), "the same file under another window");
    assert_eq!(spent("letters", 99, &ever), epsilon(2));
    assert_eq!(spent("digits", 70, &month), 0.0);
    assert_eq!(ledger.next_leaves("digits", 20 * DAY, &month), Some(30 * DAY));
    assert_eq!(ledger.next_leaves("letters", 20 * DAY, &ever), None);

    let jobs = ledger.spent_by_job("digits", 20 * DAY, &month).expect("valid");
    let shown: Vec<_> = jobs.iter().map(|job| (job.job.as_str(), job.rounds)).collect();
    assert_eq!(shown, [("one", 2), ("two", 1)]);
    assert_eq!(jobs[0].epsilon_alone, epsilon(4));
    assert_eq!(jobs[0].round_events, [event]);
}

#[test]
fn an_update_and_an_evaluation_of_one_round_are_two_debits() {
    let (store, mut ledger) = ledger_of(1);
    let evaluation = DebitRequest { kind: ReleaseKind::Evaluation, release: [8; 32], ..request(1) };
    ledger.debit(evaluation.clone(), &budget(), 0).expect("another kind");
    assert!(matches!(
        ledger.debit(evaluation, &budget(), 0),
        Err(LedgerError::AlreadyDebited { round: 1, sequence: 2, release, .. }) if release == [8; 32]
    ));
    let ledger = open(&store).expect("intact");
    let found = ledger.release_of("job", 1, ReleaseKind::Evaluation).expect("debited");
    assert_eq!((found.sequence, ledger.release("job", 1).expect("debited").sequence), (2, 1));
    let spent = ledger.spent_by_job("digits", 0, &budget()).expect("valid");
    assert_eq!((spent[0].rounds, spent[0].round_events.len()), (1, 2));
}

#[test]
fn a_forecast_counts_the_rounds_that_then_really_fit() {
    let (_, mut ledger) = ledger_of(2);
    let tight = Budget { epsilon_max: 1.5, ..budget() };
    let left = |ledger: &Ledger<_>, most| {
        let jobs = ledger.spent_by_job("digits", 0, &tight).expect("valid");
        ledger.rounds_left("digits", &jobs[0], &tight, 0, most).expect("valid")
    };
    let forecast = left(&ledger, 1000);
    assert!(forecast > 2 && forecast < 100, "{forecast}");
    assert_eq!(left(&ledger, 2), 2);
    for round in 0..forecast {
        ledger.debit(request(10 + round), &tight, 0).expect("forecast");
    }
    assert_eq!(left(&ledger, 1000), 0);
    assert!(ledger.debit(request(99), &tight, 0).is_err());
}

#[test]
fn a_refused_debit_says_from_when_on_it_fits() {
    let (_, mut ledger) = ledger_of(0);
    let window = Budget { window_days: Some(30), epsilon_max: 1.0, ..budget() };
    let mut round = 1;
    while ledger.debit(request(round), &window, round * DAY).is_ok() {
        round += 1;
    }
    let fits = |ledger: &Ledger<_>, budget, now| {
        ledger.fits_from(&request(round), budget, now).expect("valid")
    };
    assert_eq!(fits(&ledger, &window, round * DAY), Some(31 * DAY), "when round 1 leaves");
    assert_eq!(fits(&ledger, &window, 40 * DAY), Some(40 * DAY), "at once");
    let ever = Budget { window_days: None, ..window };
    assert_eq!(fits(&ledger, &ever, 40 * DAY), None);
}

#[test]
fn a_restored_backup_and_a_fork_are_told_apart() {
    let (store, mut ledger) = ledger_of(2);
    let backup = MemoryChainStore::with_bytes(store.bytes());
    let middle = ledger.head();
    ledger.debit(request(3), &budget(), 0).expect("fits");
    let acknowledged = ledger.head();
    assert!(ledger.compare(acknowledged).is_ok() && ledger.compare(middle).is_ok());

    let mut restored = open(&backup).expect("intact in itself");
    assert!(restored.compare(middle).is_ok());
    assert!(matches!(
        restored.compare(acknowledged),
        Err(LedgerError::RestoredBackup { sequence: 2, acknowledged: 3 })
    ));
    let other = DebitRequest { release: [77; 32], ..request(3) };
    restored.debit(other, &budget(), 0).expect("fits");
    assert!(matches!(restored.compare(acknowledged), Err(LedgerError::Forked { sequence: 3 })));
}

#[test]
fn damage_is_an_error_with_its_line() {
    let (store, _) = ledger_of(3);
    let bytes = store.bytes();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let reason = |bytes: Vec<u8>| match open(&MemoryChainStore::with_bytes(bytes)) {
        Err(LedgerError::Damaged { line, reason }) => (line, reason),
        other => panic!("{other:?}"),
    };
    let mut edited = bytes.clone();
    let steps = bytes.windows(3).rposition(|window| window == b":2}").expect("there");
    edited[steps + 1] = b'9';
    assert_eq!(reason(edited), (3, DamageReason::Hash));
    assert_eq!(reason([lines[0], lines[2]].concat()), (2, DamageReason::Chain));
    assert_eq!(reason([lines[1], lines[2]].concat()), (1, DamageReason::Chain));
    assert_eq!(reason([lines[0], lines[0]].concat()), (2, DamageReason::Chain));
    assert_eq!(reason([lines[0], b"\n", lines[1]].concat()), (2, DamageReason::Form));
    assert_eq!(reason(b"{}\n".to_vec()), (1, DamageReason::Form));
    assert!(matches!(
        Ledger::open(store, "beta"),
        Err(LedgerError::Damaged { line: 1, reason: DamageReason::Tenant })
    ));
}

#[test]
fn a_crash_at_any_byte_costs_budget_at_most_and_never_privacy() {
    let (full, _) = ledger_of(3);
    let (two, _) = ledger_of(2);
    let record_length = full.bytes().len() - two.bytes().len();
    for written in 0..=record_length {
        let (store, mut ledger) = ledger_of(2);
        store.crash_after(written);
        let crashed = ledger.debit(request(3), &budget(), 3000);
        assert!(matches!(crashed, Err(LedgerError::Store { .. })), "nothing may be released");
        assert!(matches!(ledger.debit(request(4), &budget(), 3000), Err(LedgerError::NeedsReopen)));

        // The repair on reopening may itself crash, before or after its one change.
        for repair_crash in [Some(0), Some(1), None] {
            store.restart();
            if let Some(allowance) = repair_crash {
                store.crash_after(allowance);
            }
            let mut reopened = match open(&store) {
                Ok(reopened) => reopened,
                Err(error) => {
                    assert!(repair_crash.is_some(), "{error:?} at {written}");
                    continue;
                }
            };
            store.restart();
            match reopened.debit(request(3), &budget(), 3000) {
                Ok(_) => {}
                Err(LedgerError::AlreadyDebited { release, .. }) => assert_eq!(release, [3; 32]),
                Err(error) => panic!("{error:?} at {written}"),
            }
            assert_eq!(reopened.entries().len(), 3);
        }
        let last = open(&store).expect("repaired");
        assert_eq!(last.entries().len(), 3);
        assert_eq!(store.bytes(), full.bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No change of bytes goes unnoticed, save cutting whole records off the end (which only the
    /// acknowledged head can show).
    #[test]
    fn any_flipped_bit_is_noticed(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (store, ledger) = ledger_of(3);
        let mut bytes = store.bytes();
        let position = position.index(bytes.len());
        bytes[position] ^= 1 << bit;
        let last_line_feed = position == bytes.len() - 1;
        match open(&MemoryChainStore::with_bytes(bytes)) {
            Err(LedgerError::Damaged { .. }) => {}
            // Without its line feed the last record looks like an append that never finished; the
            // acknowledged head shows that it had.
            Ok(reopened) => {
                prop_assert!(last_line_feed);
                prop_assert!(reopened.compare(ledger.head()).is_err());
            }
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn spending_only_grows_and_never_passes_the_limit(
        steps in prop::collection::vec(1u64..2000, 1..6),
    ) {
        let (_, mut ledger) = ledger_of(0);
        let mut last = 0.0;
        for (round, steps) in steps.into_iter().enumerate() {
            let mut request = request(round as u64);
            request.events = vec![PrivacyEvent::Gaussian { noise_multiplier: 20.0, count: steps }];
            let quote = ledger.quote(&request, &budget(), 0);
            let debited = ledger.debit(request, &budget(), 0).is_ok();
            prop_assert_eq!(quote.is_ok(), debited);
            let spent = ledger.spent("digits", 0, &budget()).expect("valid");
            prop_assert!(spent >= last && spent <= 8.0);
            if let Ok(quote) = quote {
                prop_assert_eq!((quote.epsilon_before, quote.epsilon_after), (last, spent));
            }
            last = spent;
        }
    }
}

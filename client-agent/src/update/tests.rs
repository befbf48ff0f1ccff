use std::{ops::ControlFlow, path::Path};

use tributary_privacy::{
    ledger::{LedgerStore, MemoryLedgerStore},
    mechanism::PrivacyEvent,
};
use tributary_protocol::{
    id::{DatasetName, Digest},
    job::JobSpec,
    message::{Assignment, BaseModel, LatticeSpec, LedgerHead},
};

use super::*;
use crate::{data::Dataset, ledger_file::FileLedgerStore, policy::Approved};

fn assignment(round: u64, unit: &str) -> Assignment {
    let text = format!(
        "name = \"census\"\ndataset = \"adult\"\n[model.mlp]\ninputs = 3\nclasses = 2\n\
         [training]\nlocal_steps = 4\nsampling_rate = 0.5\nbatch_size_expected = 10\n\
         client_learning_rate = 0.1\n[privacy]\ntrust = \"local\"\nunit = \"{unit}\"\n\
         clipping_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-5\n[round]\nrounds = 3\n\
         cohort_size = 4\ncohort_size_min = 2\nreport_goal = 3\n"
    );
    let job: JobSpec = toml::from_str(&text).unwrap();
    let base = BaseModel {
        job: job.name.clone(),
        dataset: job.dataset.clone(),
        model: job.model.clone(),
        version: 0,
        file: BlobRef { digest: Digest::of(b"base"), length: 4 },
    };
    let lattice = LatticeSpec { step: 1e-6, bits: 32 };
    Assignment { job, round: RoundNumber(round), base, lattice, report_within_ms: 1000 }
}

fn approved(epsilon_max: f64) -> Approved {
    Approved {
        dataset: DatasetName::new("adult").unwrap(),
        budget: tributary_privacy::ledger::Budget { epsilon_max, delta: 1e-5, window_days: None },
        events: vec![PrivacyEvent::Gaussian { noise_multiplier: 1.0, count: 1 }],
        examples_max: None,
    }
}

fn records() -> Dataset {
    let features = (0..60).map(|index| (index as f32 * 0.7).sin()).collect();
    Dataset::from_floats(features, 3, (0..20).map(|index| index % 2).collect(), 2)
}

fn open<S: LedgerStore + Clone>(store: &S, directory: &Path) -> (SharedLedger<S>, ReleaseFiles) {
    let ledger = SharedLedger::open(store.clone(), "ash").unwrap();
    (ledger, ReleaseFiles::open(directory.join("releases")).unwrap())
}

#[test]
fn both_units_give_packed_updates_of_the_announced_length() {
    let (data, train) = (records(), (0..20).collect::<Vec<_>>());
    let base = [0.1; 8];
    for unit in ["record", "tenant"] {
        let mut steps = Vec::new();
        let round = RoundData { base: &base, data: &data, train: &train };
        let packed = noisy_update(&assignment(1, unit), round, &mut |step, _| {
            steps.push(step);
            ControlFlow::Continue(())
        });
        assert_eq!(packed.unwrap().len(), 8 * 4, "{unit}");
        assert_eq!(steps, [1, 2, 3, 4]);
    }
}

#[test]
fn poisoned_records_give_no_update_and_a_clear_code() {
    let data = Dataset::from_floats(vec![f32::NAN; 60], 3, vec![0; 20], 2);
    let train: Vec<u32> = (0..20).collect();
    let round = RoundData { base: &[0.1; 8], data: &data, train: &train };
    let error =
        noisy_update(&assignment(1, "record"), round, &mut |_, _| ControlFlow::Continue(()))
            .unwrap_err();
    assert_eq!(error.code(), ErrorCode::UpdateNotFinite);
}

#[test]
fn a_released_round_is_sent_again_as_it_is_and_never_debited_twice() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileLedgerStore::open(&directory.path().join("ledger.jsonl")).unwrap();
    let (ledger, files) = open(&store, directory.path());
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    assert_eq!(ledger.head(), LedgerHead::EMPTY);
    assert_eq!(standing(&ledger, &files, &asked, &allowed, 1).unwrap(), Standing::Fresh);
    let first = release(&ledger, &files, &asked, &allowed, b"first", &|| false, 1).unwrap();
    let error = release(&ledger, &files, &asked, &allowed, b"second", &|| false, 2).unwrap_err();
    assert!(matches!(error, UpdateError::Ledger(LedgerError::AlreadyDebited { .. })), "{error}");
    drop((ledger, files));

    let (ledger, files) = open(&store, directory.path());
    let again = standing(&ledger, &files, &asked, &allowed, 3).unwrap();
    assert_eq!(again, Standing::Released(first.clone()));
    assert_eq!(std::fs::read(files.path(first.update.digest)).unwrap(), b"first");
    assert_eq!(ledger.head().sequence, 1);
    std::fs::remove_file(files.path(first.update.digest)).unwrap();
    let error = standing(&ledger, &files, &asked, &allowed, 4).unwrap_err();
    assert!(matches!(error, UpdateError::Lost { .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::TrainingFailed);
}

#[test]
fn a_damaged_release_counts_as_lost() {
    let directory = tempfile::tempdir().unwrap();
    let store = MemoryLedgerStore::new();
    let (ledger, files) = open(&store, directory.path());
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    let done = release(&ledger, &files, &asked, &allowed, b"bytes", &|| false, 1).unwrap();
    std::fs::write(files.path(done.update.digest), b"other").unwrap();
    assert!(standing(&ledger, &files, &asked, &allowed, 2).is_err());
}

#[test]
fn a_cancelled_round_is_not_debited() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, files) = open(&MemoryLedgerStore::new(), directory.path());
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    let error = release(&ledger, &files, &asked, &allowed, b"bytes", &|| true, 1).unwrap_err();
    assert!(matches!(error, UpdateError::Cancelled));
    assert_eq!(ledger.head(), LedgerHead::EMPTY);
}

#[test]
fn a_spent_budget_is_refused_before_and_at_the_release() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, files) = open(&MemoryLedgerStore::new(), directory.path());
    let (asked, allowed) = (assignment(1, "record"), approved(0.1));
    let error = standing(&ledger, &files, &asked, &allowed, 1).unwrap_err();
    assert_eq!(error.code(), ErrorCode::BudgetExhausted);
    assert!(error.refusal().message.contains("above 0.1"), "{}", error.refusal());
    assert!(release(&ledger, &files, &asked, &allowed, b"bytes", &|| false, 1).is_err());
    assert_eq!(ledger.head(), LedgerHead::EMPTY);
}

#[test]
fn old_releases_go_once_a_newer_round_is_debited() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, files) = open(&MemoryLedgerStore::new(), directory.path());
    let allowed = approved(100.0);
    let first = assignment(1, "record");
    let old = release(&ledger, &files, &first, &allowed, b"old", &|| false, 1).unwrap();
    files.put(b"never debited").unwrap();
    let second = assignment(2, "record");
    let new = release(&ledger, &files, &second, &allowed, b"new", &|| false, 2).unwrap();
    assert_eq!(files.find(old.update.digest), None);
    assert_eq!(files.find(new.update.digest), Some(new.update));
    assert_eq!(std::fs::read_dir(directory.path().join("releases")).unwrap().count(), 1);
}

/// Crashes at every byte of the ledger's append, and between all durable steps.
#[test]
fn no_crash_gives_a_release_without_debit_or_a_second_debit() {
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    let record_length = {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryLedgerStore::new();
        let (ledger, files) = open(&store, directory.path());
        release(&ledger, &files, &asked, &allowed, b"trained", &|| false, 1).unwrap();
        store.bytes().len()
    };
    for crash_after in 0..=record_length {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryLedgerStore::new();
        let (ledger, files) = open(&store, directory.path());
        store.crash_after(crash_after);
        release(&ledger, &files, &asked, &allowed, b"trained", &|| false, 1)
            .expect_err("the store is gone, so nothing may leave");
        drop((ledger, files));
        store.restart();

        let (ledger, files) = open(&store, directory.path());
        let debits = ledger.head().sequence;
        match standing(&ledger, &files, &asked, &allowed, 2).unwrap() {
            Standing::Fresh => {
                assert_eq!(debits, 0);
                let done = release(&ledger, &files, &asked, &allowed, b"anew", &|| false, 3);
                assert_eq!(done.unwrap().update.digest, Digest::of(b"anew"));
            }
            Standing::Released(kept) => {
                assert_eq!((debits, kept.update.digest), (1, Digest::of(b"trained")));
            }
        }
        assert_eq!(ledger.head().sequence, 1, "crash after {crash_after} bytes");
    }
}

/// A store whose disk fails once and works again, without a restart of the process.
#[test]
fn a_passing_disk_failure_is_settled_by_reading_the_ledger_again() {
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    let directory = tempfile::tempdir().unwrap();
    let store = MemoryLedgerStore::new();
    let (ledger, files) = open(&store, directory.path());
    store.crash_after(10);
    release(&ledger, &files, &asked, &allowed, b"trained", &|| false, 1).unwrap_err();
    store.restart();
    release(&ledger, &files, &asked, &allowed, b"trained", &|| false, 2)
        .expect_err("the ledger must be read again first");
    let done = release(&ledger, &files, &asked, &allowed, b"trained", &|| false, 3).unwrap();
    assert_eq!(ledger.head().sequence, 1);
    assert_eq!(files.find(done.update.digest), Some(done.update));
}

#[test]
fn a_disk_that_cannot_hold_the_bytes_debits_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, files) = open(&MemoryLedgerStore::new(), directory.path());
    std::fs::remove_dir(directory.path().join("releases")).unwrap();
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    let error = release(&ledger, &files, &asked, &allowed, b"bytes", &|| false, 1).unwrap_err();
    assert!(matches!(error, UpdateError::File(_)), "{error}");
    assert_eq!(ledger.head(), LedgerHead::EMPTY);
}

use std::{ops::ControlFlow, path::Path};

use tributary_privacy::{
    ledger::{ChainStore, MemoryChainStore},
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
    Assignment {
        job,
        round: RoundNumber(round),
        base,
        lattice,
        report_within_ms: 1000,
        control: None,
    }
}

fn approved(epsilon_max: f64) -> Approved {
    Approved {
        dataset: DatasetName::new("adult").unwrap(),
        budget: tributary_privacy::ledger::Budget { epsilon_max, delta: 1e-5, window_days: None },
        events: vec![PrivacyEvent::Gaussian { noise_multiplier: 1.0, count: 1 }],
        run: None,
        evaluation: Vec::new(),
        examples_max: None,
    }
}

fn records() -> Dataset {
    let features = (0..60).map(|index| (index as f32 * 0.7).sin()).collect();
    Dataset::from_floats(features, 3, (0..20).map(|index| index % 2).collect(), 2)
}

fn open<S: ChainStore + Clone>(store: &S, directory: &Path) -> (SharedLedger<S>, ReleaseFiles) {
    let ledger = SharedLedger::open(store.clone(), "ash").unwrap();
    (ledger, ReleaseFiles::open(directory.join("releases"), directory.join("runs")).unwrap())
}

#[test]
fn both_units_give_packed_updates_of_the_announced_length() {
    let (data, train) = (records(), (0..20).collect::<Vec<_>>());
    let base = [0.1; 8];
    for unit in ["record", "tenant"] {
        let mut steps = Vec::new();
        let round = RoundData { base: &base, data: &data, train: &train, correction: &[] };
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
    let round = RoundData { base: &[0.1; 8], data: &data, train: &train, correction: &[] };
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
    assert_eq!(error.code(), ErrorCode::ReleaseLost);
}

#[test]
fn a_damaged_release_counts_as_lost() {
    let directory = tempfile::tempdir().unwrap();
    let store = MemoryChainStore::new();
    let (ledger, files) = open(&store, directory.path());
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    let done = release(&ledger, &files, &asked, &allowed, b"bytes", &|| false, 1).unwrap();
    std::fs::write(files.path(done.update.digest), b"other").unwrap();
    assert!(standing(&ledger, &files, &asked, &allowed, 2).is_err());
}

#[test]
fn a_cancelled_round_is_not_debited() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, files) = open(&MemoryChainStore::new(), directory.path());
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    let error = release(&ledger, &files, &asked, &allowed, b"bytes", &|| true, 1).unwrap_err();
    assert!(matches!(error, UpdateError::Cancelled));
    assert_eq!(ledger.head(), LedgerHead::EMPTY);
}

#[test]
fn a_spent_budget_is_refused_before_and_at_the_release() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, files) = open(&MemoryChainStore::new(), directory.path());
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
    let (ledger, files) = open(&MemoryChainStore::new(), directory.path());
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
        let store = MemoryChainStore::new();
        let (ledger, files) = open(&store, directory.path());
        release(&ledger, &files, &asked, &allowed, b"trained", &|| false, 1).unwrap();
        store.bytes().len()
    };
    for crash_after in 0..=record_length {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryChainStore::new();
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
    let store = MemoryChainStore::new();
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
    let (ledger, files) = open(&MemoryChainStore::new(), directory.path());
    std::fs::remove_dir(directory.path().join("releases")).unwrap();
    let (asked, allowed) = (assignment(1, "record"), approved(100.0));
    let error = release(&ledger, &files, &asked, &allowed, b"bytes", &|| false, 1).unwrap_err();
    assert!(matches!(error, UpdateError::File(_)), "{error}");
    assert_eq!(ledger.head(), LedgerHead::EMPTY);
}

fn changed(unit: &str, privacy: &str) -> Assignment {
    let mut assignment = assignment(1, unit);
    let text = toml::to_string(&assignment.job).unwrap();
    let text = text.replace("lattice_bits = 24", privacy);
    let text =
        if privacy.contains("clipping") { text.replace("clipping = \"flat\"\n", "") } else { text };
    let text =
        if privacy.contains("rotation") { text.replace("rotation = false\n", "") } else { text };
    assignment.job = toml::from_str(&text).unwrap();
    assignment.job.validate().unwrap();
    assignment
}

#[test]
fn every_clipping_with_and_without_rotation_gives_a_vector_of_the_jobs_dimension() {
    let (data, train) = (records(), (0..20).collect::<Vec<_>>());
    let base = [0.1; 8];
    for (unit, privacy, coordinates) in [
        ("record", "clipping = \"per-layer\"", 8),
        ("record", "rotation = true", 8),
        ("tenant", "clipping = \"per-layer\"\nrotation = true", 8),
        ("tenant", "clipping.adaptive = { count_noise_multiplier = 3.0 }", 9),
        ("tenant", "rotation = true\nclipping.adaptive = { count_noise_multiplier = 3.0 }", 9),
    ] {
        let assignment = changed(unit, privacy);
        assert_eq!(assignment.job.wire_dimension(), coordinates, "{privacy}");
        let round = RoundData { base: &base, data: &data, train: &train, correction: &[] };
        let packed =
            noisy_update(&assignment, round, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(packed.len(), coordinates * 4, "{unit} {privacy}");
    }
}

/// Bad input at the agent: nothing that is empty, zero or broken panics, and what is released of it
/// is noise.
#[test]
fn empty_batches_and_zero_updates_release_noise_and_broken_numbers_nothing() {
    let (data, base) = (records(), [0.1; 8]);
    for unit in ["record", "tenant"] {
        // Nobody is sampled, or there is nobody.
        for train in [(0..20).collect::<Vec<_>>(), Vec::new()] {
            let mut rare = assignment(1, unit);
            rare.job.training.sampling_rate = 1e-12;
            let round = RoundData { base: &base, data: &data, train: &train, correction: &[] };
            let packed = noisy_update(&rare, round, &mut |_, _| ControlFlow::Continue(())).unwrap();
            assert!(packed.iter().any(|&byte| byte != 0), "{unit}: a zero update without noise");
        }
        let broken: [fn(&mut Assignment); 6] = [
            |job| job.job.privacy.clipping_norm = 0.0,
            |job| job.job.privacy.clipping_norm = f64::NAN,
            |job| job.job.privacy.noise_multiplier = 0.0,
            |job| job.job.privacy.noise_multiplier = f64::INFINITY,
            |job| job.lattice.step = f64::NAN,
            |job| job.lattice.bits = 99,
        ];
        for (index, break_it) in broken.into_iter().enumerate() {
            let mut assignment = assignment(1, unit);
            break_it(&mut assignment);
            let train: Vec<u32> = (0..20).collect();
            let round = RoundData { base: &base, data: &data, train: &train, correction: &[] };
            noisy_update(&assignment, round, &mut |_, _| ControlFlow::Continue(()))
                .expect_err(&format!("{unit}: number {index} is broken"));
        }
    }
}

fn evaluating() -> (Assignment, Approved) {
    let mut asked = assignment(1, "record");
    asked.job.evaluation = Some(tributary_protocol::job::EvaluationSpec {
        every_rounds: 1,
        metrics: vec![
            tributary_protocol::job::Metric::Accuracy,
            tributary_protocol::job::Metric::Loss,
        ],
        noise_multiplier: 5.0,
        loss_max: 4.0,
    });
    let evaluation = vec![PrivacyEvent::Gaussian { noise_multiplier: 5.0, count: 2 }];
    (asked, Approved { evaluation, ..approved(100.0) })
}

#[test]
fn metrics_are_debited_once_and_the_same_in_every_offer() {
    let directory = tempfile::tempdir().unwrap();
    let store = MemoryChainStore::new();
    let (ledger, files) = open(&store, directory.path());
    let (asked, allowed) = evaluating();
    let spec = asked.job.evaluation.clone().unwrap();
    let (data, held_out) = (records(), (0..20).collect::<Vec<_>>());
    let measure = || noisy_evaluation(&asked.job, &spec, &[0.1; 8], &data, &held_out, &[]).unwrap();
    let (job, round) = (&asked.job.name, asked.round);
    assert!(released_evaluation(&ledger, &files, job, round).is_empty());
    let first = measure();
    release_evaluation(&ledger, &files, &asked, &allowed, &first, 1).unwrap();
    let second = measure();
    assert_ne!(first, second, "fresh noise");
    release_evaluation(&ledger, &files, &asked, &allowed, &second, 2).unwrap();
    release(&ledger, &files, &asked, &allowed, b"update", &|| false, 3).unwrap();
    assert_eq!(released_evaluation(&ledger, &files, job, round), first);
    assert_eq!(ledger.head().sequence, 2);
    drop((ledger, files));
    let (ledger, files) = open(&store, directory.path());
    assert_eq!(released_evaluation(&ledger, &files, job, round), first, "after a restart too");
    // No record, no error: that there are none is private.
    let empty = noisy_evaluation(&asked.job, &spec, &[0.1; 8], &data, &[], &[]).unwrap();
    assert_eq!(empty.len(), 2);
    // Records that do not fit are one.
    let error = noisy_evaluation(&asked.job, &spec, &[0.1; 7], &data, &held_out, &[]).unwrap_err();
    assert_eq!(error.code(), ErrorCode::BaseModelInvalid);
}

#[test]
fn a_tenants_metrics_count_once_under_the_tenant_unit() {
    let (mut asked, _) = evaluating();
    asked.job.privacy.unit = tributary_protocol::job::PrivacyUnit::Tenant;
    let mut spec = asked.job.evaluation.clone().unwrap();
    spec.noise_multiplier = 0.01;
    let (data, held_out) = (records(), (0..20).collect::<Vec<_>>());
    let sums = noisy_evaluation(&asked.job, &spec, &[0.1; 8], &data, &held_out, &[]).unwrap();
    for sum in sums {
        assert!((sum.count - 1.0).abs() < 0.2 && sum.centred_sum.abs() < 1.2, "{sum:?}");
    }
}

#[test]
fn outcomes_of_predictions_leave_only_as_a_noisy_sum() {
    let (asked, _) = evaluating();
    let mut spec = asked.job.evaluation.clone().unwrap();
    spec.metrics = vec![tributary_protocol::job::Metric::FeedbackAccuracy];
    spec.noise_multiplier = 0.01;
    let (data, held_out) = (records(), (0..20).collect::<Vec<_>>());
    let measure = |spec: &tributary_protocol::job::EvaluationSpec, outcomes: &[bool]| {
        let base = &[0.1; 8];
        noisy_evaluation(&asked.job, spec, base, &data, &held_out, outcomes).unwrap()[0]
    };
    // Nine of twelve right: nine halves up, three down, whatever the records say.
    let outcomes = [[true; 9].as_slice(), &[false; 3]].concat();
    let sum = measure(&spec, &outcomes);
    assert!((sum.count - 12.0).abs() < 0.3 && (sum.centred_sum - 6.0).abs() < 0.3, "{sum:?}");
    let none = measure(&spec, &[]);
    assert!(none.count.abs() < 0.3 && none.centred_sum.abs() < 0.3, "{none:?}");
    spec.noise_multiplier = 50.0;
    assert_ne!(measure(&spec, &outcomes), measure(&spec, &outcomes), "fresh noise");
}

/// Crashes at every byte of both debits of a round.
#[test]
fn no_crash_gives_metrics_without_debit_or_a_second_debit() {
    let (asked, allowed) = evaluating();
    let (job, round) = (&asked.job.name, asked.round);
    let metrics = |value| {
        let metric = tributary_protocol::job::Metric::Accuracy;
        vec![tributary_protocol::job::MetricSum { metric, centred_sum: value, count: 1.0 }]
    };
    let both = |ledger: &SharedLedger<MemoryChainStore>, files: &ReleaseFiles, value: f64| {
        release_evaluation(ledger, files, &asked, &allowed, &metrics(value), 1)?;
        release(ledger, files, &asked, &allowed, b"trained", &|| false, 1)
    };
    let length = {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryChainStore::new();
        let (ledger, files) = open(&store, directory.path());
        both(&ledger, &files, 1.0).unwrap();
        store.bytes().len()
    };
    for crash_after in 0..=length {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryChainStore::new();
        let (ledger, files) = open(&store, directory.path());
        store.crash_after(crash_after);
        both(&ledger, &files, 1.0).expect_err("the store is gone, so nothing may leave");
        drop((ledger, files));
        store.restart();

        let (ledger, files) = open(&store, directory.path());
        let before = released_evaluation(&ledger, &files, job, round);
        if let Standing::Fresh = standing(&ledger, &files, &asked, &allowed, 2).unwrap() {
            both(&ledger, &files, 2.0).unwrap();
        }
        let after = released_evaluation(&ledger, &files, job, round);
        assert!(before.is_empty() || before == after, "crash after {crash_after}");
        assert_eq!((ledger.head().sequence, after.len()), (2, 1), "crash after {crash_after}");
    }
}

#[test]
fn a_control_variate_counts_only_once_its_release_is_debited() {
    let directory = tempfile::tempdir().unwrap();
    let store = MemoryChainStore::new();
    let (ledger, files) = open(&store, directory.path());
    let controls = ControlFiles::new(directory.path().join("controls"));
    let (first, second, allowed) =
        (assignment(1, "record"), assignment(2, "record"), approved(100.0));
    let newest =
        || controls.newest(&first.job.name, &first.job.model, &ledger).expect("the disk works");
    assert_eq!(newest(), None);
    controls.put(&first, Digest::of(b"first"), &[1.0; 8]).unwrap();
    assert_eq!(newest(), None, "nothing was debited");
    controls.put(&first, Digest::of(b"first"), &[1.0; 8]).unwrap();
    release(&ledger, &files, &first, &allowed, b"first", &|| false, 1).unwrap();
    assert_eq!(newest(), Some(vec![1.0; 8]));
    // A crash between the next variate and its debit leaves the one before.
    controls.put(&second, Digest::of(b"lost"), &[2.0; 8]).unwrap();
    assert_eq!(newest(), Some(vec![1.0; 8]));
    controls.put(&second, Digest::of(b"second"), &[3.0; 8]).unwrap();
    release(&ledger, &files, &second, &allowed, b"second", &|| false, 2).unwrap();
    assert_eq!(newest(), Some(vec![3.0; 8]));
    let folder = directory.path().join("controls/census");
    let kept: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    std::fs::write(&kept[0], b"damaged").unwrap();
    assert_eq!(newest(), None, "it begins anew");
    assert!(controls.put(&second, Digest::of(b"third"), &[f32::NAN; 8]).is_err());
}

#[test]
fn what_was_released_is_read_back_from_its_bytes() {
    let (data, train) = (records(), (0..20).collect::<Vec<_>>());
    let round = RoundData { base: &[0.1; 8], data: &data, train: &train, correction: &[] };
    for rotation in [false, true] {
        let mut asked = assignment(1, "record");
        asked.job.privacy.rotation = rotation;
        // As little noise as there may be, so that two updates hardly differ.
        asked.job.privacy.noise_multiplier = 0.01;
        asked.job.training.sampling_rate = 1.0;
        let packed = noisy_update(&asked, round, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let released = released_update(&asked, &packed).unwrap();
        asked.job.privacy.rotation = false;
        let other = noisy_update(&asked, round, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let other = released_update(&asked, &other).unwrap();
        assert!(released.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-2), "{released:?}");
        assert!(released.iter().any(|value| value.abs() > 1e-2));
        assert!(released_update(&asked, &packed[1..]).is_err());
    }
}

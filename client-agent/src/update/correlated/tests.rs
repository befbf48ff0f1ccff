//! Runs over several rounds, with everything that can happen in between.

use std::path::Path;

use tributary_privacy::ledger::{Budget, LedgerError, MemoryChainStore};
use tributary_protocol::{
    id::{DatasetName, RoundNumber},
    message::{BaseModel, BlobRef, LatticeSpec},
};

use super::{
    super::{Standing, noisy_update, release_run, standing},
    *,
};

const BASE: [f32; 8] = [0.1; 8];

/// Three rounds a run, of four steps each.
fn assignment(round: u64) -> Assignment {
    let text = "name = \"census\"\ndataset = \"adult\"\n[model.mlp]\ninputs = 3\nclasses = 2\n\
         [training]\nlocal_steps = 4\nsampling_rate = 1.0\nbatch_size_expected = 5\n\
         client_learning_rate = 0.1\n[privacy]\ntrust = \"local\"\nunit = \"record\"\n\
         clipping_norm = 1.0\nnoise_multiplier = 8.0\ndelta = 1e-5\n\
         correlated = { bands = 4, groups = 4, rounds_max = 3 }\n[round]\nrounds = 3\n\
         cohort_size = 4\ncohort_size_min = 2\nreport_goal = 3\n";
    let job: JobSpec = toml::from_str(text).unwrap();
    job.validate().unwrap();
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

fn approved(assignment: &Assignment, epsilon_max: f64) -> Approved {
    Approved {
        dataset: DatasetName::new("adult").unwrap(),
        budget: Budget { epsilon_max, delta: 1e-5, window_days: None },
        events: Vec::new(),
        run: Some(planned_run(&assignment.job).unwrap().unwrap().event()),
        evaluation: Vec::new(),
        examples_max: None,
    }
}

fn records(count: usize) -> Dataset {
    let features = (0..3 * count).map(|index| (index as f32 * 0.7).sin()).collect();
    Dataset::from_floats(features, 3, (0..count as u32).map(|index| index % 2).collect(), 2)
}

/// An agent's disk, and what it does in a round.
struct Bench {
    store: MemoryChainStore,
    ledger: SharedLedger<MemoryChainStore>,
    files: ReleaseFiles,
}

impl Bench {
    fn open(store: &MemoryChainStore, directory: &Path) -> Self {
        let ledger = SharedLedger::open(store.clone(), "ash").unwrap();
        let files = ReleaseFiles::open(directory.join("releases"), directory.join("runs")).unwrap();
        Self { store: store.clone(), ledger, files }
    }

    fn train(&self, asked: &Assignment, data: &Dataset) -> Result<RunUpdate, UpdateError> {
        let train: Vec<u32> = (0..data.len() as u32).collect();
        let round = RoundData { base: &BASE, data, train: &train, correction: &[] };
        let allowed = approved(asked, 1e6);
        let go_on = &mut |_, _| ControlFlow::Continue(());
        correlated_update(&self.ledger, &self.files, asked, &allowed, round, go_on)
    }

    fn release(&self, asked: &Assignment, update: &RunUpdate) -> Result<Digest, UpdateError> {
        let allowed = approved(asked, 1e6);
        release_run(&self.ledger, &self.files, asked, &allowed, update, &|| false, 1)
            .map(|release| release.update.digest)
    }

    /// Trains and releases; returns (run, first step, end step).
    fn round(&self, round: u64, data: &Dataset) -> (u64, u64, u64) {
        let asked = assignment(round);
        let update = self.train(&asked, data).unwrap();
        self.release(&asked, &update).unwrap();
        let ledger = self.ledger.lock();
        let (entry, steps) = ledger.newest_of_runs("census").unwrap();
        assert_eq!(entry.round, round);
        assert_eq!(steps, &update.steps);
        (steps.run, steps.first_step, steps.end_step)
    }

    fn spent(&self) -> f64 {
        let budget = approved(&assignment(1), 1e6).budget;
        self.ledger.lock().spent("adult", 1, &budget).unwrap()
    }

    fn states(&self) -> Vec<std::path::PathBuf> {
        let release = self.files.path(Digest::of(b""));
        let site = release.ancestors().nth(2).unwrap();
        std::fs::read_dir(site.join("runs")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn bench() -> (tempfile::TempDir, Bench) {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::open(&MemoryChainStore::new(), directory.path());
    (directory, bench)
}

#[test]
fn rounds_go_on_with_one_run_which_is_paid_once() {
    let (directory, mut bench) = bench();
    let data = records(20);
    let mut costs = Vec::new();
    for (round, expected) in [(1, (1, 0, 4)), (2, (1, 4, 8)), (5, (1, 8, 12)), (6, (2, 0, 4))] {
        // A restart between any two rounds changes nothing.
        bench = Bench::open(&bench.store.clone(), directory.path());
        assert_eq!(bench.round(round, &data), expected);
        costs.push(bench.spent());
        let kept = usize::from(expected.2 < 12);
        assert_eq!(
            bench.states().len(),
            kept,
            "the newest state alone is kept, of unfinished runs"
        );
    }
    assert!(costs[0] > 0.0 && costs[0] == costs[1] && costs[1] == costs[2]);
    assert!(costs[3] > costs[2], "the second run is paid too");
}

#[cfg(unix)]
#[test]
fn states_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, bench) = bench();
    bench.round(1, &records(20));
    let mode = std::fs::metadata(&bench.states()[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_round_that_was_released_is_sent_again_as_it_is() {
    let (directory, bench) = bench();
    let asked = assignment(1);
    let update = bench.train(&asked, &records(20)).unwrap();
    let digest = bench.release(&asked, &update).unwrap();
    let again = bench.release(&asked, &bench.train(&asked, &records(20)).unwrap());
    assert!(matches!(again, Err(UpdateError::Ledger(LedgerError::AlreadyDebited { .. }))));
    let bench = Bench::open(&bench.store, directory.path());
    let standing = standing(&bench.ledger, &bench.files, &asked, &approved(&asked, 1e6), 2);
    let Standing::Released(kept) = standing.unwrap() else { panic!("it was debited") };
    assert_eq!((kept.update.digest, bench.files.read(digest)), (digest, Some(update.packed)));
}

/// Crashes throughout the second round's debit: the third goes on with the steps that follow
/// those in the ledger, whichever these are.
#[test]
fn no_crash_releases_a_step_twice_or_loses_the_run() {
    let (data, asked) = (records(20), assignment(2));
    let (length, cost) = {
        let (_directory, bench) = bench();
        bench.round(1, &data);
        let before = bench.store.bytes().len();
        bench.round(2, &data);
        (bench.store.bytes().len() - before, bench.spent())
    };
    for crash_after in (0..=length).step_by(7).chain(length - 2..=length) {
        let (directory, bench) = bench();
        bench.round(1, &data);
        let update = bench.train(&asked, &data).unwrap();
        bench.store.crash_after(crash_after);
        bench.release(&asked, &update).expect_err("the store is gone, so nothing may leave");
        bench.store.restart();
        let bench = Bench::open(&bench.store, directory.path());
        let expected = match bench.ledger.head().sequence {
            1 => (1, 4, 8),
            2 => (1, 8, 12),
            other => panic!("{other} debits"),
        };
        assert_eq!(bench.round(3, &data), expected, "crash after {crash_after} bytes");
        assert_eq!(bench.spent(), cost, "one run");
    }
}

#[test]
fn a_run_that_cannot_go_on_is_followed_by_a_new_one_that_is_paid_anew() {
    let data = records(20);
    type Damage = fn(&Bench);
    let damage: [(&str, Damage); 4] = [
        ("lost", |bench| std::fs::remove_file(&bench.states()[0]).unwrap()),
        ("empty", |bench| std::fs::write(&bench.states()[0], b"").unwrap()),
        ("cut", |bench| {
            let bytes = std::fs::read(&bench.states()[0]).unwrap();
            std::fs::write(&bench.states()[0], &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("flipped", |bench| {
            let mut bytes = std::fs::read(&bench.states()[0]).unwrap();
            bytes[100] ^= 1;
            std::fs::write(&bench.states()[0], bytes).unwrap();
        }),
    ];
    for (name, damage) in damage {
        let (_directory, bench) = bench();
        bench.round(1, &data);
        let once = bench.spent();
        damage(&bench);
        assert_eq!(bench.round(2, &data), (2, 0, 4), "{name}");
        assert!(bench.spent() > once, "{name}");
        assert_eq!(bench.round(3, &data), (2, 4, 8), "{name}: and the new run goes on");
    }
    // A state of an earlier step, as from a backup.
    let (_directory, bench) = bench();
    bench.round(1, &data);
    let old = std::fs::read(&bench.states()[0]).unwrap();
    bench.round(2, &data);
    std::fs::write(&bench.states()[0], old).unwrap();
    assert_eq!(bench.round(3, &data), (2, 0, 4));
}

#[test]
fn changed_records_end_a_run_and_further_ones_do_not() {
    let data = records(20);
    let relabelled = data.relabelled((0..20).map(|index| u32::from(index == 7)).collect());
    for (name, changed, expected) in [
        ("the same", records(20), (1, 4, 8)),
        ("further records", records(23), (1, 4, 8)),
        ("fewer records", records(19), (2, 0, 4)),
        ("another label", relabelled, (2, 0, 4)),
    ] {
        let (_directory, bench) = bench();
        bench.round(1, &data);
        assert_eq!(bench.round(2, &changed), expected, "{name}");
    }
}

#[test]
fn a_job_that_changes_its_noise_begins_a_new_run() {
    let (_directory, bench) = bench();
    let data = records(20);
    bench.round(1, &data);
    let mut louder = assignment(2);
    louder.job.privacy.noise_multiplier = 9.0;
    let update = bench.train(&louder, &data).unwrap();
    assert_eq!((update.steps.run, update.steps.first_step), (2, 0));
    bench.release(&louder, &update).unwrap();
    // And back: what was paid for the first run does not cover it any more.
    assert_eq!(bench.round(3, &data), (3, 0, 4));
}

/// The ledger, not the training, has the last word on which steps follow.
#[test]
fn an_update_trained_from_a_state_that_was_overtaken_is_not_released() {
    let (_directory, bench) = bench();
    let data = records(20);
    bench.round(1, &data);
    let slow = bench.train(&assignment(2), &data).unwrap();
    bench.round(3, &data);
    let error = bench.release(&assignment(2), &slow).unwrap_err();
    assert!(matches!(error, UpdateError::Ledger(LedgerError::Run { run: 1, .. })), "{error}");
    assert_eq!(bench.ledger.head().sequence, 2);
}

#[test]
fn a_run_is_refused_before_its_first_round_if_the_budget_does_not_cover_it_all() {
    let (_directory, bench) = bench();
    let data = records(20);
    bench.round(1, &data);
    let cost = bench.spent();
    let asked = |round, epsilon_max| {
        let asked = assignment(round);
        standing(&bench.ledger, &bench.files, &asked, &approved(&asked, epsilon_max), 2)
    };
    assert_eq!(asked(2, cost * 1.001).unwrap(), Standing::Fresh, "it is paid for");
    std::fs::remove_file(&bench.states()[0]).unwrap();
    let error = asked(2, cost * 1.001).unwrap_err();
    assert!(matches!(error, UpdateError::Ledger(LedgerError::BudgetExceeded { .. })), "{error}");
    assert_eq!(asked(2, cost * 3.0).unwrap(), Standing::Fresh);
}

#[test]
fn a_round_of_a_run_is_never_trained_as_one_that_stands_alone() {
    let (asked, data) = (assignment(1), records(20));
    let round = RoundData { base: &BASE, data: &data, train: &[0, 1], correction: &[] };
    let error = noisy_update(&asked, round, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, UpdateError::Mechanism(MechanismError::RunState { .. })), "{error}");
}

#[test]
fn poisoned_records_release_nothing_and_leave_the_run_as_it_was() {
    let (_directory, bench) = bench();
    let poisoned = Dataset::from_floats(vec![f32::NAN; 60], 3, vec![0; 20], 2);
    let error = bench.train(&assignment(1), &poisoned).unwrap_err();
    assert_eq!(error.code(), tributary_protocol::error_code::ErrorCode::UpdateNotFinite);
    assert!(bench.states().is_empty() && bench.ledger.head().sequence == 0);
    assert_eq!(bench.round(1, &records(20)), (1, 0, 4));
}

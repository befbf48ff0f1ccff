use std::path::Path;

use super::*;
use crate::{
    deadline::Stop,
    experiment::{Experiment, PartitionSpec, Records},
};

struct Silent;

impl Progress for Silent {
    fn round(&mut self, _: &RoundRow, _: u64) {}
}

fn experiment(privacy: &str) -> Experiment {
    let text = format!(
        r#"
        name = "test"
        rounds = 6
        tenants = 20
        checkpoint_every = 2
        [dataset.synthetic]
        examples = 1000
        features = 8
        classes = 4
        [partition.dirichlet]
        alpha = 0.5
        [cohort]
        size = 8
        size_min = 3
        report_goal = 6
        dropout_rate = 0.1
        [model.mlp]
        inputs = 8
        hidden = [12]
        classes = 4
        [server_optimizer.adam]
        server_learning_rate = 0.05
        [evaluation]
        every = 3
        per_tenant = true
        {privacy}
        "#
    );
    Experiment::parse(&text, Path::new("")).expect("valid")
}

const EPOCHS: &str = "[training.epochs]\nbatch_size = 10\nclient_learning_rate = 0.1\n";
const STEPS: &str = "[training.steps]\nlocal_steps = 3\nsampling_rate = 0.2\n\
                     batch_size_expected = 10\nclient_learning_rate = 0.2\n";
const TENANT_NOISE: &str = "clipping_norm = 1.0\nepsilon = 20.0\ndelta = 1e-5\n";
const ADAPTIVE: &str = "adaptive = { count_noise_multiplier = 8.0 }\n";

const SECAGG: &str = "[secagg]\ndropout_max = 0.3\ncorrupt_max = 0.1\n";
const CLOCK: &str = "[clock]\nspread = 0.4\nstraggler_share = 0.2\n";
const ASYNCHRONOUS: &str =
    "[clock]\nspread = 0.4\nstraggler_share = 0.2\n[asynchronous]\nstaleness_max = 3\n";

/// Every privacy mode that an experiment can ask for.
fn modes() -> Vec<(String, &'static str)> {
    vec![
        (format!("{EPOCHS}[privacy.none]"), "none"),
        (format!("{STEPS}[privacy.local]\nunit = \"record\"\n{TENANT_NOISE}"), "record"),
        (format!("{EPOCHS}[privacy.local]\nunit = \"tenant\"\n{TENANT_NOISE}"), "tenant"),
        (format!("{EPOCHS}[privacy.central]\n{TENANT_NOISE}"), "tenant"),
        (format!("{EPOCHS}[privacy.central]\n{TENANT_NOISE}{ADAPTIVE}"), "tenant"),
        (format!("{EPOCHS}[privacy.distributed]\n{TENANT_NOISE}corrupt_max = 1"), "tenant"),
        ("[training.null]\n[privacy.none]".to_owned(), "none"),
        (
            format!("{EPOCHS}[privacy.none]\n[adversary]\nshare = 0.2\nattack = \"label-flip\""),
            "none",
        ),
        (format!("{EPOCHS}[privacy.distributed]\n{TENANT_NOISE}{SECAGG}"), "tenant"),
        (format!("{EPOCHS}[privacy.none]\n{CLOCK}report_timeout_s = 8.0"), "none"),
        (
            format!("{EPOCHS}[privacy.local]\nunit = \"tenant\"\n{TENANT_NOISE}{ASYNCHRONOUS}"),
            "tenant",
        ),
        (format!("{EPOCHS}[privacy.none]\n[adapters]\nepochs_max = 2"), "none"),
    ]
}

fn options(folder: &Path, threads: usize) -> RunOptions<'static> {
    let (folder, stop) = (folder.to_owned(), Stop::default());
    RunOptions { folder, threads, resume: false, stop, ranks: &Alone }
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    ["rounds.csv", "tenants.csv", "result.json", "model.safetensors"]
        .iter()
        .map(|name| std::fs::read(folder.join(name)).expect("written"))
        .collect()
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    for (mode, (privacy, unit)) in modes().into_iter().enumerate() {
        let experiment = experiment(&privacy);
        let records = Records::load(&experiment, 1).expect("loads");
        let results = [1, 2, 3].map(|threads| {
            let folder = folder.path().join(format!("{mode}-{threads}"));
            let options = options(&folder, threads);
            let summary = run(&experiment, &records, 1, &options, &mut Silent).expect(&privacy);
            assert_eq!(summary.unit.as_deref().unwrap_or("none"), unit);
            assert_eq!(summary.epsilon.is_some(), unit != "none");
            assert!(summary.epsilon.is_none_or(|epsilon| (10.0..=20.0).contains(&epsilon)));
            files(&folder)
        });
        assert!(results[0] == results[1] && results[1] == results[2], "{privacy}");
        let folder = folder.path().join(format!("{mode}-other"));
        run(&experiment, &records, 2, &options(&folder, 1), &mut Silent).expect("runs");
        assert_ne!(files(&folder), results[0], "{privacy}");
    }
}

#[test]
fn any_number_of_processes_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    for (mode, (privacy, _)) in modes().into_iter().enumerate() {
        let experiment = experiment(&privacy);
        let records = Records::load(&experiment, 1).expect("loads");
        let alone = folder.path().join(format!("{mode}-alone"));
        run(&experiment, &records, 1, &options(&alone, 1), &mut Silent).expect("runs");
        let shared = folder.path().join(format!("{mode}-shared"));
        let all = ranks::tests::Threads::new(3);
        let summaries: Vec<RunSummary> = std::thread::scope(|scope| {
            let run = |ranks| {
                let options = RunOptions { ranks, ..options(&shared, 1) };
                run(&experiment, &records, 1, &options, &mut Silent).expect(&privacy)
            };
            let running: Vec<_> = all.iter().map(|ranks| scope.spawn(move || run(ranks))).collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(files(&shared) == files(&alone), "{privacy}");
        assert!(summaries.iter().all(|summary| *summary == summaries[0]), "{privacy}");
    }
}

#[test]
fn an_adaptive_norm_leaves_a_start_that_is_far_off_within_the_wanted_epsilon() {
    let folder = tempfile::tempdir().expect("a folder");
    let noise = TENANT_NOISE.replace("clipping_norm = 1.0", "clipping_norm = 1e-3");
    let rates = "adaptive = { learning_rate = 1.0, count_noise_multiplier = 8.0 }\n";
    let experiment = experiment(&format!("{EPOCHS}[privacy.central]\n{noise}{rates}"));
    let records = Records::load(&experiment, 1).expect("loads");
    let summary = run(&experiment, &records, 1, &options(folder.path(), 2), &mut Silent);
    let epsilon = summary.expect("runs").epsilon.expect("there is noise");
    assert!((19.0..=20.0).contains(&epsilon), "sum and votes together: {epsilon}");
    let rows = std::fs::read_to_string(folder.path().join("rounds.csv")).expect("written");
    let norms: Vec<f64> = rows
        .lines()
        .skip(2)
        .map(|row| row.rsplit(',').next().and_then(|last| last.parse().ok()).expect("a norm"))
        .collect();
    assert!((norms[0] - 1e-3).abs() < 1e-12 && norms[5] > 3e-3, "{norms:?}");
    // Votes that cost more than all of ε leave nothing for the sum.
    let loud = rates.replace("8.0", "0.1");
    let experiment = self::experiment(&format!("{EPOCHS}[privacy.central]\n{noise}{loud}"));
    let refused = Simulation::new(&experiment, &records, 1, 1).err().expect("refused").to_string();
    assert!(
        refused.contains("count_noise_multiplier") && refused.contains("more than"),
        "{refused}"
    );
}

#[test]
fn a_process_that_fails_does_not_leave_the_others_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    // One tenant's training overflows; the others have no records of the class that does it.
    let text = format!("{EPOCHS}[privacy.none]").replace("0.1", "1e38");
    let experiment = experiment(&text);
    let records = Records::load(&experiment, 1).expect("loads");
    let all = ranks::tests::Threads::new(2);
    let failures = std::thread::scope(|scope| {
        let run = |ranks| {
            let options = RunOptions { ranks, ..options(folder.path(), 1) };
            run(&experiment, &records, 1, &options, &mut Silent).expect_err("diverges").to_string()
        };
        let running: Vec<_> = all.iter().map(|ranks| scope.spawn(move || run(ranks))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(failures.iter().any(|failure| failure.contains("tenant")), "{failures:?}");
}

#[test]
fn secure_aggregation_changes_no_bit_of_the_model_and_costs_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let outcome = |name: &str, more: &str| {
        let mut experiment = experiment(&format!("{EPOCHS}[privacy.none]\n{more}"));
        // What a secure sum needs at least, so that both commit the same rounds.
        (experiment.cohort.size_min, experiment.cohort.dropout_rate) = (6, 0.15);
        let records = Records::load(&experiment, 1).expect("loads");
        run(&experiment, &records, 1, &options(&folder.path().join(name), 2), &mut Silent)
            .expect("runs")
    };
    let plain = outcome("plain", "");
    for adversary in ["semi-honest", "malicious-coordinator"] {
        let secure = outcome(adversary, &format!("{SECAGG}adversary = \"{adversary}\"\n"));
        assert_eq!(secure.model, plain.model);
        assert!(secure.bytes_up > plain.bytes_up && secure.bytes_down > plain.bytes_down);
    }
}

#[test]
fn buffered_rounds_take_less_virtual_time_than_those_that_wait_for_stragglers() {
    let folder = tempfile::tempdir().expect("a folder");
    let outcome = |name: &str, mode: &str| {
        let mut experiment = experiment(&format!("{EPOCHS}[privacy.none]\n{mode}"));
        experiment.server_optimizer = Default::default();
        (experiment.cohort.dropout_rate, experiment.cohort.report_goal) = (0.0, Some(8));
        experiment.rounds = 12;
        let records = Records::load(&experiment, 1).expect("loads");
        run(&experiment, &records, 1, &options(&folder.path().join(name), 2), &mut Silent)
            .expect("runs")
    };
    let (waiting, buffered) = (outcome("waiting", CLOCK), outcome("buffered", ASYNCHRONOUS));
    let time = |summary: &RunSummary| summary.virtual_s.expect("there is a clock");
    assert!(time(&buffered) < 0.5 * time(&waiting), "{} {}", time(&buffered), time(&waiting));
    assert!(buffered.accuracy > 0.8, "{}", buffered.accuracy);
}

#[test]
fn adapters_gain_where_tenants_differ_and_train_apart_from_what_measures_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "{EPOCHS}[privacy.none]\n[adapters]\nheld_out_fraction = 0.4\nlearning_rate = 0.02\n"
    );
    let mut experiment = experiment(&text);
    experiment.partition = PartitionSpec::Dirichlet { alpha: 0.1 };
    experiment.rounds = 1;
    let records = Records::load(&experiment, 1).expect("loads");
    let folder = folder.path();
    let summary = run(&experiment, &records, 1, &options(folder, 2), &mut Silent).expect("runs");
    let (base, adapted) = (summary.held_out_accuracy, summary.adapter_accuracy);
    let (base, adapted) = base.zip(adapted).expect("measured");
    assert!(adapted > base + 0.1, "{base} {adapted}");
    let simulation = Simulation::new(&experiment, &records, 1, 1).expect("plans");
    let trained: usize =
        simulation.tenants().expect("measures").iter().map(|t| t.num_examples).sum();
    assert_eq!(trained, 1000);
}

#[test]
fn adapters_lower_the_perplexity_of_every_speaker() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut play = String::new();
    for (speaker, words) in [("Ash", "aabb"), ("Elm", "ccdd"), ("Oak", "eeff")] {
        for _ in 0..12 {
            play += &format!("{speaker}:\n{}\n\n", words.repeat(9));
        }
    }
    std::fs::write(folder.path().join("play.txt"), play).expect("writes");
    let text = format!(
        r#"
        name = "play"
        rounds = 40
        [dataset.speakers]
        path = "play.txt"
        length = 12
        [cohort]
        size = 3
        [model.decoder]
        vocab_size = 128
        hidden_size = 16
        intermediate_size = 24
        num_layers = 1
        num_heads = 2
        context_max = 12
        [server_optimizer.adam]
        server_learning_rate = 0.03
        {STEPS}
        [privacy.local]
        unit = "record"
        {TENANT_NOISE}
        [adapters]
        learning_rate = 0.05
        epochs_max = 20
        patience = 20
        batch_size = 8
        "#
    );
    let experiment = Experiment::parse(&text, folder.path()).expect("valid");
    let records = Records::load(&experiment, 1).expect("loads");
    let results = folder.path().join("run");
    let summary = run(&experiment, &records, 1, &options(&results, 2), &mut Silent).expect("runs");
    let mut tenants = csv::Reader::from_path(results.join("tenants.csv")).expect("a table");
    let tenants: Vec<TenantRow> =
        tenants.deserialize().collect::<Result<_, _>>().expect("a line a tenant");
    assert_eq!(tenants.len(), 3);
    let both = |base: Option<f64>, adapted: Option<f64>| base.zip(adapted).expect("measured");
    for tenant in tenants {
        let (base, adapted) = both(tenant.held_out_perplexity, tenant.adapter_perplexity);
        assert!(adapted < 0.7 * base && adapted >= 1.0, "{}: {base} {adapted}", tenant.tenant);
    }
    let (base, adapted) = both(summary.held_out_perplexity, summary.adapter_perplexity);
    assert!(adapted < 0.7 * base, "{base} {adapted}");
}

#[test]
fn a_folder_belongs_to_one_process_at_a_time() {
    /// Tries to run in the same folder while a run is at work.
    struct Intruder<'a>(&'a dyn Fn() -> HarnessError, bool);
    impl Progress for Intruder<'_> {
        fn round(&mut self, _: &RoundRow, _: u64) {
            self.1 |= matches!((self.0)(), HarnessError::Busy { .. });
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let experiment = experiment(&format!("{EPOCHS}[privacy.none]"));
    let records = Records::load(&experiment, 1).expect("loads");
    let resume = RunOptions { resume: true, ..options(folder.path(), 1) };
    let again =
        || run(&experiment, &records, 1, &resume, &mut Silent).expect_err("somebody is at work");
    let mut intruder = Intruder(&again, false);
    run(&experiment, &records, 1, &resume, &mut intruder).expect("runs");
    assert!(intruder.1);
    run(&experiment, &records, 1, &resume, &mut Silent).expect("nobody is any more");
}

#[test]
fn an_interrupted_run_continues_to_the_same_bytes() {
    /// Asks to stop after some rounds.
    struct StopAt(u64, Stop);
    impl Progress for StopAt {
        fn round(&mut self, row: &RoundRow, _: u64) {
            if row.round == self.0 {
                self.1.request();
            }
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let experiment = experiment(&format!("{EPOCHS}[privacy.none]\n{ASYNCHRONOUS}"));
    let records = Records::load(&experiment, 1).expect("loads");
    let whole = folder.path().join("whole");
    run(&experiment, &records, 1, &options(&whole, 2), &mut Silent).expect("runs");

    let parts = folder.path().join("parts");
    for (stop_at, resume) in [(1, false), (5, true)] {
        let options = RunOptions { resume, ..options(&parts, 2) };
        let mut progress = StopAt(stop_at, options.stop.clone());
        let error = run(&experiment, &records, 1, &options, &mut progress).expect_err("stopped");
        assert!(matches!(error, HarnessError::Interrupted { round } if round == stop_at));
    }
    let error = run(&experiment, &records, 1, &options(&parts, 2), &mut Silent);
    assert!(error.expect_err("occupied").to_string().contains("--resume"));
    let resume = RunOptions { resume: true, ..options(&parts, 1) };
    let error = run(&experiment, &records, 2, &resume, &mut Silent).expect_err("other seed");
    assert!(error.to_string().contains("another experiment"), "{error}");
    let finished = run(&experiment, &records, 1, &resume, &mut Silent).expect("finishes");
    assert_eq!(files(&parts), files(&whole));
    assert_eq!(run(&experiment, &records, 1, &resume, &mut Silent).expect("kept"), finished);
    let other = run(&experiment, &records, 2, &resume, &mut Silent).expect_err("other seed");
    assert!(matches!(other, HarnessError::Occupied { .. }), "{other}");
}

#[test]
fn training_learns_and_attackers_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let accuracy = |name: &str, privacy: String| {
        let text = format!("{EPOCHS}[privacy.none]\n{privacy}");
        let mut experiment = experiment(&text);
        experiment.server_optimizer = Default::default();
        let records = Records::load(&experiment, 1).expect("loads");
        let folder = folder.path().join(name);
        run(&experiment, &records, 1, &options(&folder, 2), &mut Silent).expect("runs").accuracy
    };
    let honest = accuracy("honest", String::new());
    let attack = "[adversary]\nshare = 0.5\nattack = { sign-flip = { scale = 2.0 } }";
    let attacked = accuracy("attacked", attack.to_owned());
    assert!(honest > 0.8 && attacked < honest - 0.1, "{honest} {attacked}");
}

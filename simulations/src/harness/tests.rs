use std::path::Path;

use super::*;
use crate::{
    deadline::Stop,
    experiment::{Experiment, Records},
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

/// Every privacy mode that an experiment can ask for.
fn modes() -> Vec<(String, &'static str)> {
    vec![
        (format!("{EPOCHS}[privacy.none]"), "none"),
        (format!("{STEPS}[privacy.local]\nunit = \"record\"\n{TENANT_NOISE}"), "record"),
        (format!("{EPOCHS}[privacy.local]\nunit = \"tenant\"\n{TENANT_NOISE}"), "tenant"),
        (format!("{EPOCHS}[privacy.central]\n{TENANT_NOISE}"), "tenant"),
        (format!("{EPOCHS}[privacy.distributed]\n{TENANT_NOISE}corrupt_max = 1"), "tenant"),
        ("[training.null]\n[privacy.none]".to_owned(), "none"),
        (
            format!("{EPOCHS}[privacy.none]\n[adversary]\nshare = 0.2\nattack = \"label-flip\""),
            "none",
        ),
    ]
}

fn options(folder: &Path, threads: usize) -> RunOptions {
    RunOptions { folder: folder.to_owned(), threads, resume: false, stop: Stop::default() }
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
    let experiment = experiment(&format!("{EPOCHS}[privacy.none]"));
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
        let options = options(&folder.path().join(name), 2);
        run(&experiment, &records, 1, &options, &mut Silent).expect("runs").accuracy
    };
    let honest = accuracy("honest", String::new());
    let attack = "[adversary]\nshare = 0.5\nattack = { sign-flip = { scale = 2.0 } }";
    let attacked = accuracy("attacked", attack.to_owned());
    assert!(honest > 0.8 && attacked < honest - 0.1, "{honest} {attacked}");
}

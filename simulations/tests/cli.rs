//! The command line as a user meets it: the real binary, its output and its exit codes.

use std::{
    path::Path,
    process::{Command, Output},
};

const BINARY: &str = env!("CARGO_BIN_EXE_tributary-sim");

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().expect("the binary starts")
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let output = run(arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "one JSON object, nothing else: {text}");
    serde_json::from_str(&text).expect("JSON")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const RELEASES: [&str; 6] =
    ["--sampling-rate", "0.01", "--noise-multiplier", "1.1", "--steps", "1000"];

#[test]
fn account_and_calibrate_are_inverse() {
    let calibrated = json(&[
        "calibrate",
        "--target-epsilon",
        "2",
        "--delta",
        "1e-5",
        "--sampling-rate",
        "0.01",
        "--steps",
        "1000",
        "--json",
    ]);
    let noise_multiplier = calibrated["noise_multiplier"].as_f64().expect("a number").to_string();
    let answer = json(&[
        "account",
        "--mechanism",
        "poisson-gaussian",
        "--sampling-rate",
        "0.01",
        "--noise-multiplier",
        &noise_multiplier,
        "--steps",
        "1000",
        "--delta",
        "1e-5",
        "--json",
    ]);
    let epsilon = answer["epsilon"].as_f64().expect("a number");
    assert!((1.9..=2.05).contains(&epsilon), "{epsilon}");
}

#[test]
fn events_add_to_the_cost() {
    let account = |more: &[&str]| {
        let arguments = [&["account", "--delta", "1e-5", "--json"], &RELEASES[..], more].concat();
        json(&arguments)["epsilon"].as_f64().expect("a number")
    };
    assert!(account(&["--event", "0.01:1.1:500", "--event", "1:9:1"]) > account(&[]));
}

#[test]
fn the_plain_answer_names_mechanism_and_neighbouring_relation() {
    let output = run(&[&["account", "--delta", "1e-5"], &RELEASES[..]].concat());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("poisson-gaussian") && text.contains("add-or-remove-one"), "{text}");
}

#[test]
fn impossible_questions_fail_with_the_flag_and_its_range() {
    for (arguments, expected) in [
        (&["account", "--delta", "2", "--event", "0.1:1:1"][..], "delta"),
        (&["account", "--delta", "1e-5", "--event", "0.1:-1:1"], "--noise-multiplier is -1"),
        (&["account", "--delta", "1e-5", "--event", "0.1:1"], "q:sigma:steps"),
        (&["account", "--delta", "1e-5"], "--event q:sigma:steps"),
        (&["data", "partition", "fashion-mnist", "--output", "x", "--alpha", "-1"], "alpha"),
        (&["data", "fetch", "fashion-mnist", "--from", "/nonexistent"], "/nonexistent"),
        (&["audit", "--canaries", "3"], "10 to 5000"),
        (&["audit", "--noise-multiplier", "-1"], "mechanism"),
        (&["audit", "--confidence", "2"], "confidence"),
        (&["demo", "--tenants", "0"], "1 to 64 tenants"),
        (&["demo", "--rounds", "0"], "round.rounds"),
    ] {
        // Nothing is downloaded for a request that cannot work.
        let output = Command::new(BINARY)
            .args(arguments)
            .env("PATH", "")
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", "relative")
            .output()
            .expect("the binary starts");
        let text = stderr(&output);
        assert!(!output.status.success() && text.contains(expected), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// Every number of the three privacy commands, out of its range: the error names it, and nothing is
/// computed or printed as a result.
#[test]
fn bad_numbers_of_privacy_questions_are_named() {
    const ACCOUNT: &[&str] = &[
        "account",
        "--sampling-rate=0.01",
        "--noise-multiplier=1.1",
        "--steps=10",
        "--delta=1e-5",
    ];
    const CALIBRATE: &[&str] =
        &["calibrate", "--target-epsilon=2", "--delta=1e-5", "--sampling-rate=0.01", "--steps=10"];
    const SHARES: &[&str] = &[
        "account",
        "--mechanism=distributed-discrete-gaussian",
        "--noise-multiplier=1",
        "--steps=10",
        "--delta=1e-5",
        "--sigma-share=1000",
        "--clients=10",
        "--dimension=1000",
    ];
    const BANDED: &[&str] = &[
        "account",
        "--mechanism=banded-matrix",
        "--noise-multiplier=4",
        "--steps=100",
        "--delta=1e-5",
        "--bands=8",
        "--participations=10",
        "--separation=10",
    ];
    const FIXED: &[&str] = &[
        "account",
        "--mechanism=without-replacement-gaussian",
        "--sampling-rate=0.01",
        "--noise-multiplier=1",
        "--steps=10",
        "--delta=1e-5",
        "--num-examples=1000",
    ];
    const DISCRETE: &[&str] = &[
        "account",
        "--mechanism=discrete-gaussian",
        "--noise-multiplier=2",
        "--steps=3",
        "--delta=1e-5",
    ];
    const AUDIT: &[&str] =
        &["audit", "--canaries=20", "--noise-multiplier=3", "--delta=1e-5", "--confidence=0.9"];
    let above_zero = ["0", "-1", "nan", "inf", "-inf"];
    let tables: [(&[&str], &str, &[&str], &str); 21] = [
        (ACCOUNT, "--sampling-rate", &["0", "-0.1", "1.0001", "nan", "inf"], "sampling-rate"),
        (ACCOUNT, "--noise-multiplier", &above_zero, "noise-multiplier"),
        (ACCOUNT, "--delta", &["0", "1", "-1e-5", "1.5", "nan", "inf"], "delta"),
        (ACCOUNT, "--steps", &["-1", "1.5", "nan", "99999999999999999999"], "--steps"),
        (CALIBRATE, "--target-epsilon", &above_zero, "target_epsilon"),
        (CALIBRATE, "--delta", &["0", "1", "-1e-5", "nan"], "delta"),
        (CALIBRATE, "--sampling-rate", &["0", "-0.1", "1.0001", "nan"], "sampling-rate"),
        (CALIBRATE, "--steps", &["-1", "0.5", "many"], "--steps"),
        (SHARES, "--sigma-share", &["0", "0.49", "-1", "nan", "1e10"], "sigma_share"),
        (SHARES, "--clients", &["0"], "clients"),
        (SHARES, "--clients", &["-1", "5000000000"], "--clients"),
        (SHARES, "--dimension", &["0"], "dimension"),
        (SHARES, "--dimension", &["-1", "1e3", "99999999999999999999"], "--dimension"),
        (BANDED, "--bands", &["0", "1025", "4000000000"], "bands"),
        (BANDED, "--participations", &["0", "11", "4000000000"], "participations"),
        (BANDED, "--separation", &["0", "4000000000"], "separation"),
        (BANDED, "--steps", &["0", "2000000"], "steps"),
        (FIXED, "--num-examples", &["0", "1050", "-3"], "num"),
        (DISCRETE, "--noise-multiplier", &["0.01", "1e300"], "sigma"),
        (AUDIT, "--noise-multiplier", &above_zero, "noise"),
        (AUDIT, "--delta", &["0", "1", "nan"], "delta"),
    ];
    for (good, flag, values, expected) in tables {
        for value in values {
            let changed: Vec<String> = good
                .iter()
                .map(|word| match word.split_once('=') {
                    Some((name, _)) if name == flag => format!("{flag}={value}"),
                    _ => (*word).to_owned(),
                })
                .collect();
            assert_ne!(changed, good, "{flag} is among the arguments");
            let words: Vec<&str> = changed.iter().map(String::as_str).collect();
            let output = run(&words);
            let text = stderr(&output);
            assert!(!output.status.success() && output.stdout.is_empty(), "{words:?}");
            assert!(text.contains(expected) && !text.contains("panicked"), "{words:?}: {text}");
        }
        let output = run(good);
        assert!(output.status.success(), "{good:?}: {}", stderr(&output));
    }
}

#[test]
fn an_audit_fails_exactly_if_the_claim_is_refuted() {
    let arguments =
        ["audit", "--canary", "blank", "--canaries", "400", "--seed", "3", "--json", "--fault"];
    let honest = json(&arguments[..8]);
    assert_eq!(honest["refuted"], false, "{honest}");
    for fault in ["noise-tenth", "clip-skipped"] {
        let output = run(&[&arguments[..], &[fault]].concat());
        assert!(!output.status.success() && stderr(&output).contains("leaks more"));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let number = |name: &str| report[name].as_f64().expect("a number");
        assert!(number("lower_bound") > number("claimed_epsilon"), "{report}");
        assert_eq!(report["fault"], fault);
    }
}

const EXPERIMENT: &str = r#"
    name = "small"
    seeds = [1, 2]
    rounds = 4
    tenants = 6
    [dataset.synthetic]
    examples = 300
    features = 5
    classes = 3
    [cohort]
    size = 4
    [model.mlp]
    inputs = 5
    classes = 3
    [training.epochs]
    batch_size = 10
    client_learning_rate = 0.1
    [privacy.distributed]
    clipping_norm = 1.0
    epsilon = 8.0
    delta = 1e-5
"#;

#[test]
fn an_experiment_leaves_its_results_and_is_not_run_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("small.toml");
    std::fs::write(&file, EXPERIMENT).expect("written");
    let output = folder.path().join("results");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let arguments = ["run", &path(&file), "--output", &path(&output), "--json"];
    let answer = json(&arguments);
    let runs = answer["runs"].as_array().expect("an array");
    assert_eq!(runs.len(), 2);
    assert!(runs.iter().all(|run| run["epsilon"].as_f64().expect("a number") <= 8.0), "{answer}");
    for name in ["rounds.csv", "tenants.csv", "timing.csv", "result.json", "model.safetensors"] {
        assert!(output.join("seed-2").join(name).is_file(), "{name}");
    }
    // The copy of the experiment gives the same results.
    let copy = output.join("experiment.toml");
    let again = folder.path().join("again");
    let repeated =
        json(&["run", &path(&copy), "--output", &path(&again), "--json", "--threads", "1"]);
    assert_eq!(repeated["runs"], answer["runs"]);
    let occupied = run(&arguments);
    assert!(!occupied.status.success() && stderr(&occupied).contains("--resume"));
    assert_eq!(json(&[&arguments[..], &["--resume"]].concat())["runs"], answer["runs"]);
}

#[test]
fn wrong_experiments_are_named_with_what_would_work() {
    let folder = tempfile::tempdir().expect("a folder");
    for (from, to, expected) in [
        ("tenants = 6", "tenantz = 6", "did you mean `tenants`?"),
        ("size = 4", "size = 7", "at most 6"),
        ("epsilon = 8.0", "epsilon = -8.0", "privacy.epsilon"),
        ("inputs = 5", "inputs = 6", "the dataset has 5"),
        ("classes = 3\n    [cohort]", "classes = 0\n    [cohort]", "dataset.synthetic.classes"),
        ("tenants = 6", "tenants = 600", "ask for at most 300"),
        (
            "tenants = 6",
            "tenants = 6\n    partition = { shards = { shards_per_tenant = 100 } }",
            "600 shards cannot be cut from 300 examples; ask for fewer",
        ),
        (
            "tenants = 6",
            "tenants = 6\n    partition = { dirichlet = { alpha = -1.0 } }",
            "it must be in [0.000001, 1000000]",
        ),
        ("tenants = 6", "tenants = 6\n    partition = \"idd\"", "did you mean `iid`?"),
        ("tenants = 6", "tenants = 6\n    aggregation = \"medain\"", "did you mean `median`?"),
        ("dataset.synthetic", "dataset.sinthetic", "did you mean `synthetic`?"),
        ("model.mlp", "model.mpl", "did you mean `mlp`?"),
        ("privacy.distributed", "privacy.distibuted", "did you mean `distributed`?"),
        ("epsilon = 8.0", "epsilon = 8.0\n    noise_multiplier = 1.0", "give either"),
        ("epsilon = 8.0", "epsilon = 1e-9", "can be met; ask for that or more"),
        (
            "[privacy.distributed]",
            "[privacy.central]\n    adaptive = { count_noise_multiplier = 0.1 }",
            "privacy.central.adaptive.count_noise_multiplier` is 0.1",
        ),
    ] {
        let file = folder.path().join("wrong.toml");
        assert!(EXPERIMENT.contains(from), "{from}");
        std::fs::write(&file, EXPERIMENT.replace(from, to)).expect("written");
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let output = run(&["run", &path(&file), "--output", &path(&folder.path().join("results"))]);
        let text = stderr(&output);
        assert!(!output.status.success() && text.contains(expected), "{to}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

const SWEEP: &str = r#"
    name = "small-sweep"
    base = "small.toml"
    [[variants]]
    name = "distributed"
    [[variants]]
    name = "none"
    set = { privacy = { none = {} }, seeds = [1] }
    [grid]
    "training.epochs.client_learning_rate" = [0.1, 0.2]
"#;

/// A folder with a small experiment and a sweep over it.
fn sweep_folder() -> (tempfile::TempDir, String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("small.toml"), EXPERIMENT).expect("written");
    std::fs::write(folder.path().join("sweep.toml"), SWEEP).expect("written");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (file, output) = (path("sweep.toml"), path("results"));
    (folder, file, output)
}

#[test]
fn a_sweep_runs_every_cell_once_and_its_report_needs_nothing_else() {
    let (folder, file, output) = sweep_folder();
    let arguments = ["sweep", &file, "--output", &output, "--json"];
    let answer = json(&arguments);
    let cells = answer["cells"].as_array().expect("an array");
    assert_eq!(cells.len(), 4);
    assert_eq!(answer["columns"][1], "training.epochs.client_learning_rate");
    assert_eq!((&cells[3]["settings"][0], &cells[3]["settings"][1]), (&"none".into(), &0.2.into()));
    assert_eq!(cells[0]["series"]["runs"].as_array().expect("an array").len(), 2);
    let table = std::fs::read_to_string(folder.path().join("results/sweep.csv")).expect("a table");
    assert_eq!(table.lines().count(), 5, "{table}");
    // Nothing is run again: the rows of time would differ.
    let timing = |cell: &serde_json::Value| {
        let name = cell["folder"].as_str().expect("a name");
        let path = folder.path().join("results").join(name).join("seed-1/timing.csv");
        std::fs::read(path).expect("written")
    };
    let before: Vec<Vec<u8>> = cells.iter().map(timing).collect();
    // A further value keeps what is there.
    let set = "training.epochs.client_learning_rate=0.1,0.2,0.3";
    let more = json(&[&arguments[..], &["--set", set]].concat());
    assert_eq!(more["cells"].as_array().expect("an array").len(), 6);
    assert_eq!(cells.iter().map(timing).collect::<Vec<_>>(), before);

    let report = json(&["report", &output, "--json"]);
    let read = |name: &str| {
        std::fs::read_to_string(report[name].as_str().expect("a path")).expect("written")
    };
    let page = read("page");
    for part in
        ["none, client_learning_rate=0.3", "Over the grid", "tenant-5", "tributary-sim sweep"]
    {
        assert!(page.contains(part), "{part}");
    }
    for address in ["http://", "https://", "src=\"/", "<link", "@import"] {
        assert!(!page.contains(address), "{address}");
    }
    let rows = 3 * (2 * 5 + 5);
    assert_eq!(read("csv").lines().count(), 1 + rows);
    let all: serde_json::Value = serde_json::from_str(&read("json")).expect("JSON");
    assert_eq!(all["entries"].as_array().expect("an array").len(), 6);
}

#[test]
fn processes_share_a_sweep_without_repeating_a_cell() {
    let (_folder, file, output) = sweep_folder();
    let arguments = ["sweep", &file, "--output", &output, "--threads", "1", "--json"];
    let start = || {
        Command::new(BINARY)
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("starts")
    };
    let running: Vec<_> = (0..3).map(|_| start()).collect();
    let answers: Vec<serde_json::Value> = running
        .into_iter()
        .map(|process| {
            let output = process.wait_with_output().expect("ends");
            assert!(output.status.success(), "{}", stderr(&output));
            serde_json::from_slice(&output.stdout).expect("JSON")
        })
        .collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
}

#[test]
fn wrong_sweeps_and_reports_are_named_with_what_would_work() {
    let (folder, file, output) = sweep_folder();
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let wrong = path("wrong.toml");
    std::fs::write(&wrong, SWEEP.replace("variants", "variant")).expect("written");
    for (arguments, expected) in [
        (&["sweep", &file, "--output", &output, "--set", "cohort.sice=1"][..], "mean `size`?"),
        (&["sweep", &file, "--output", &output, "--set", "cohort.size"], "KEY=VALUE"),
        (&["sweep", &file, "--output", &output, "--set", "cohort.size=7"], "at most 6"),
        (&["sweep", &wrong], "variant"),
        (&["report", &path("nothing")], "nothing"),
        (&["report", folder.path().to_str().expect("UTF-8")], "no finished run"),
    ] {
        let output = run(arguments);
        let text = format!("{}{}", stderr(&output), String::from_utf8_lossy(&output.stdout));
        assert!(!output.status.success() && text.contains(expected), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
#[cfg(not(feature = "mpi"))]
fn a_build_without_mpi_says_how_to_get_it() {
    let (folder, ..) = sweep_folder();
    let file = folder.path().join("small.toml");
    let output = run(&["run", file.to_str().expect("UTF-8"), "--mpi"]);
    assert!(!output.status.success() && stderr(&output).contains("--features mpi"));
}

#[test]
fn the_demo_says_how_to_build_what_it_starts() {
    let binary = Path::new(BINARY);
    // A second name for the same file: a fresh copy may still be open for writing in a child that
    // another test is just starting, and cannot be executed then.
    let folder = tempfile::tempdir_in(binary.parent().expect("a folder")).expect("a folder");
    let alone = folder.path().join(binary.file_name().expect("a file"));
    std::fs::hard_link(binary, &alone).expect("linked");
    let output = Command::new(alone).arg("demo").env("PATH", "").output().expect("starts");
    let text = stderr(&output);
    assert!(text.contains("tributary-coordinator") && text.contains("cargo build --release"));
}

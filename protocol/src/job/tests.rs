use super::*;

const EXAMPLE: &str = r#"
    name = "census"
    dataset = "adult"
    [model.mlp]
    inputs = 104
    hidden = [32]
    classes = 2
    [training]
    local_steps = 10
    sampling_rate = 0.02
    batch_size_expected = 64
    client_learning_rate = 0.1
    [privacy]
    trust = "local"
    unit = "record"
    clipping_norm = 1.0
    noise_multiplier = 1.0
    delta = 1e-5
    [round]
    rounds = 3
    cohort_size = 4
    cohort_size_min = 2
    report_goal = 3
"#;

#[test]
fn a_job_file_parses_with_defaults() {
    let job: JobSpec = toml::from_str(EXAMPLE).expect("valid");
    job.validate().expect("valid");
    assert_eq!(job.server_optimizer, ServerOptimizerSpec::default());
}

#[test]
fn secure_aggregation_and_distributed_trust_come_together() {
    let table = "[secagg]\nadversary = \"malicious-coordinator\"\ndropout_max = 0.3\n\
                 corrupt_max = 0.1\n";
    let distributed = EXAMPLE
        .replace("trust = \"local\"", "trust = \"distributed\"")
        .replace("local_steps = 10", "local_steps = 1")
        .replace("cohort_size_min = 2", "cohort_size_min = 3");
    let validated = |text: &str| toml::from_str::<JobSpec>(text).expect("parses").validate();
    validated(&(distributed.clone() + table)).expect("valid");
    for (text, expected) in [
        (distributed.clone(), "needs a table `[secagg]`"),
        (EXAMPLE.to_owned() + table, "`privacy.trust` \"distributed\""),
        (distributed.clone() + &table.replace("0.3", "1.0"), "secagg.dropout_max"),
        (distributed.clone() + &table.replace("0.1", "0.7"), "secagg.corrupt_max"),
        (distributed.clone() + &table.replace("0.1", "nan"), "secagg.corrupt_max"),
        (distributed.clone() + table + "bits = 33\n", "secagg.bits"),
        (distributed.clone() + table + "step_timeout_ms = 0\n", "secagg.step_timeout_ms"),
        (distributed.replace("local_steps = 1", "local_steps = 2") + table, "training.local_steps"),
        (
            distributed.replace("cohort_size_min = 3", "cohort_size_min = 2") + table,
            "round.cohort_size_min",
        ),
    ] {
        let error = validated(&text).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_sample_jobs_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/jobs");
    for entry in std::fs::read_dir(folder).expect("samples") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("reads");
        let job: JobSpec =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        job.validate().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn unknown_keys_are_named() {
    let text = EXAMPLE.replace("local_steps", "local_stepz");
    let error = toml::from_str::<JobSpec>(&text).expect_err("typo").to_string();
    assert!(error.contains("local_stepz"), "{error}");
}

#[test]
fn bad_numbers_are_named() {
    let evaluation = "report_goal = 3\n[evaluation]\nevery_rounds = 2\n\
         metrics = [\"accuracy\"]\nnoise_multiplier = 20.0\n";
    let with = |from: &str, to: &str| evaluation.replace(from, to);
    let adaptive = |field: &str| {
        format!("delta = 1e-5\nclipping.adaptive = {{ count_noise_multiplier = 5.0, {field} }}")
    };
    let counts = |text: &str| format!("delta = 1e-5\nclipping.adaptive = {{ {text} }}");
    for (from, to, field) in [
        ("sampling_rate = 0.02", "sampling_rate = nan", "training.sampling_rate"),
        ("sampling_rate = 0.02", "sampling_rate = 0.0", "training.sampling_rate"),
        ("sampling_rate = 0.02", "sampling_rate = -0.1", "training.sampling_rate"),
        ("sampling_rate = 0.02", "sampling_rate = 1.01", "training.sampling_rate"),
        ("local_steps = 10", "local_steps = 0", "training.local_steps"),
        ("batch_size_expected = 64", "batch_size_expected = 0", "batch_size_expected"),
        ("client_learning_rate = 0.1", "client_learning_rate = inf", "client_learning_rate"),
        ("noise_multiplier = 1.0", "noise_multiplier = 0.0", "privacy.noise_multiplier"),
        ("noise_multiplier = 1.0", "noise_multiplier = -1.0", "privacy.noise_multiplier"),
        ("noise_multiplier = 1.0", "noise_multiplier = inf", "privacy.noise_multiplier"),
        ("delta = 1e-5", "delta = 1.0", "privacy.delta"),
        ("delta = 1e-5", "delta = 0.0", "privacy.delta"),
        ("delta = 1e-5", "delta = nan", "privacy.delta"),
        ("delta = 1e-5", "delta = 1e-5\nlattice_bits = 7", "privacy.lattice_bits"),
        ("delta = 1e-5", "delta = 1e-5\nlattice_bits = 33", "privacy.lattice_bits"),
        ("report_goal = 3", "report_goal = 5", "cohort_size"),
        ("report_goal = 3", "report_goal = 1", "cohort_size"),
        ("rounds = 3", "rounds = 0", "round.rounds"),
        ("clipping_norm = 1.0", "clipping_norm = inf", "privacy.clipping_norm"),
        ("clipping_norm = 1.0", "clipping_norm = 0.0", "privacy.clipping_norm"),
        ("clipping_norm = 1.0", "clipping_norm = -2.0", "privacy.clipping_norm"),
        ("inputs = 104", "inputs = 4000000000", "`model` is not usable"),
        ("hidden = [32]", "hidden = [0]", "`model` is not usable"),
        ("classes = 2", "classes = 1", "`model` is not usable"),
        ("report_goal = 3", &with("= 20.0", "= 0.0"), "evaluation.noise_multiplier"),
        ("report_goal = 3", &with("= 20.0", "= nan"), "evaluation.noise_multiplier"),
        ("report_goal = 3", &with("every_rounds = 2", "every_rounds = 0"), "every_rounds"),
        ("report_goal = 3", &with("\"accuracy\"", ""), "evaluation.metrics"),
        ("report_goal = 3", &with("\"accuracy\"", "\"loss\", \"loss\""), "evaluation.metrics"),
        (
            "report_goal = 3",
            &with("every_rounds", "loss_max = -1.0\nevery_rounds"),
            "evaluation.loss_max",
        ),
        ("delta = 1e-5", &adaptive("target_quantile = 1.0"), "target_quantile"),
        ("delta = 1e-5", &adaptive("learning_rate = nan"), "learning_rate"),
        ("delta = 1e-5", &counts("count_noise_multiplier = 0.0"), "count_noise_multiplier"),
    ] {
        let text = EXAMPLE.replace(from, to);
        // Adaptive clipping is for the other unit.
        let text = if to.contains("adaptive") {
            text.replace("unit = \"record\"", "unit = \"tenant\"")
        } else {
            text
        };
        let job: JobSpec = toml::from_str(&text).unwrap_or_else(|error| panic!("{to}: {error}"));
        let error = job.validate().expect_err(to).to_string();
        assert!(error.contains(field), "{to}: {error}");
    }
}

#[test]
fn correlated_noise_goes_with_local_record_jobs_of_whole_groups() {
    let with = |fields: &str| {
        EXAMPLE
            .replace("sampling_rate = 0.02", "sampling_rate = 1.0")
            .replace("delta = 1e-5", &format!("delta = 1e-5\ncorrelated = {{ {fields} }}"))
    };
    let good = with("bands = 8, groups = 10, rounds_max = 3");
    let parsed = |text: &str| toml::from_str::<JobSpec>(text).expect("parses");
    parsed(&good).validate().expect("valid");
    assert_eq!(parsed(&good).steps_of_run(), Some(30));
    assert_eq!(parsed(EXAMPLE).steps_of_run(), None);
    for (text, expected) in [
        (with("bands = 0, groups = 10, rounds_max = 3"), "`privacy.correlated.bands` is 0"),
        (with("bands = 1025, groups = 10, rounds_max = 3"), "`privacy.correlated.bands` is 1025"),
        (with("bands = 8, groups = 0, rounds_max = 3"), "`privacy.correlated.groups` is 0"),
        (with("bands = 8, groups = 10, rounds_max = 0"), "`privacy.correlated.rounds_max` is 0"),
        (with("bands = 8, groups = 10, rounds_max = 104858"), "rounds_max` is 104858"),
        (with("bands = 8, groups = 10, rounds_max = 9000000000000000000"), "rounds_max` is 9"),
        (good.replace("sampling_rate = 1.0", "sampling_rate = 0.5"), "sampling_rate` is 0.5"),
        (good.replace("unit = \"record\"", "unit = \"tenant\""), "use unit \"record\""),
        (
            good.replace("trust = \"local\"", "trust = \"distributed\"")
                .replace("local_steps = 10", "local_steps = 1")
                .replace("cohort_size_min = 2", "cohort_size_min = 3"),
            "use trust \"local\"",
        ),
    ] {
        let error = parsed(&text).validate().expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let error = toml::from_str::<JobSpec>(&with("bands = 8, groups = 10")).expect_err("a key less");
    assert!(error.to_string().contains("rounds_max"), "{error}");
}

/// Every clipping with every unit and trust, with and without rotation and evaluation: it is
/// valid, or refused with the choices and the reason.
#[test]
fn every_combination_works_or_says_why_not() {
    let secagg = "[secagg]\nadversary = \"semi-honest\"\ndropout_max = 0.3\n\
         corrupt_max = 0.1\n[evaluation]\nevery_rounds = 2\nmetrics = [\"accuracy\"]\n\
         noise_multiplier = 20.0\n";
    let (mut valid, mut refused) = (0, 0);
    for unit in ["record", "tenant"] {
        for trust in ["local", "distributed"] {
            for clipping in
                ["\"flat\"", "\"per-layer\"", "{ adaptive = { count_noise_multiplier = 9.0 } }"]
            {
                for rotation in [false, true] {
                    let text = EXAMPLE
                        .replace("unit = \"record\"", &format!("unit = \"{unit}\""))
                        .replace("trust = \"local\"", &format!("trust = \"{trust}\""))
                        .replace(
                            "delta = 1e-5",
                            &format!("delta = 1e-5\nclipping = {clipping}\nrotation = {rotation}"),
                        );
                    let text = if trust == "distributed" {
                        text.replace("local_steps = 10", "local_steps = 1")
                            .replace("cohort_size_min = 2", "cohort_size_min = 3")
                            + secagg
                    } else {
                        text
                    };
                    match toml::from_str::<JobSpec>(&text).expect("parses").validate() {
                        Ok(()) => valid += 1,
                        Err(JobSpecError::Combination { what, reason }) => {
                            assert!(what.contains("privacy.") && reason.len() > 20);
                            refused += 1;
                        }
                        Err(error) => panic!("{text}: {error}"),
                    }
                }
            }
        }
    }
    assert_eq!((valid, refused), (12, 12));
}

/// The example with more in it, checked.
fn changed(changes: &[(&str, &str)], more: &str) -> Result<(), String> {
    let mut text = EXAMPLE.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let job: JobSpec = toml::from_str(&(text + more)).map_err(|error| error.to_string())?;
    job.validate().map_err(|error| error.to_string())
}

const COHORT: (&str, &str) = (
    "cohort_size = 4\n    cohort_size_min = 2\n    report_goal = 3",
    "cohort_size = 20\n    cohort_size_min = 9\n    report_goal = 12",
);

#[test]
fn every_algorithm_rule_and_schedule_is_accepted_where_it_works() {
    let evaluated =
        "[evaluation]\nevery_rounds = 2\nmetrics = [\"loss\"]\nnoise_multiplier = 20.0\n";
    for more in [
        "[training.algorithm.fedprox]\nproximal = 0.1",
        "[training.algorithm.scaffold]\npopulation = 20",
        "[aggregation.trimmed-mean]\ntrim = 0.2",
        "[aggregation.krum]\nbyzantine_max = 3",
        "[aggregation.multi-krum]\nbyzantine_max = 3\nselected = 6",
        "[round.asynchronous]\nstaleness_max = 4",
        &format!("{evaluated}[early_stop]\nmetric = \"loss\"\npatience = 3"),
    ] {
        changed(&[COHORT], more).unwrap_or_else(|error| panic!("{more}: {error}"));
    }
    let named = [COHORT, ("dataset = \"adult\"", "dataset = \"adult\"\naggregation = \"median\"")];
    changed(&named, "").expect("valid");
    changed(&[("rounds = 3", "rounds = 3\nsampling = \"poisson\"")], "").expect("valid");
}

#[test]
fn bad_numbers_of_algorithms_rules_and_schedules_are_named() {
    let evaluated =
        "[evaluation]\nevery_rounds = 2\nmetrics = [\"loss\"]\nnoise_multiplier = 20.0\n";
    let early = |text: &str| format!("{evaluated}[early_stop]\n{text}");
    for (more, expected) in [
        ("[training.algorithm.fedprox]\nproximal = 0.0".to_owned(), "fedprox.proximal"),
        ("[training.algorithm.fedprox]\nproximal = nan".to_owned(), "fedprox.proximal"),
        ("[training.algorithm.scaffold]\npopulation = 19".to_owned(), "scaffold.population"),
        ("[training.algorithm.scafold]\npopulation = 20".to_owned(), "scafold"),
        ("[aggregation.trimmed-mean]\ntrim = 0.5".to_owned(), "trimmed-mean.trim"),
        ("[aggregation.trimmed-mean]\ntrim = 0.1".to_owned(), "at least one of"),
        ("[aggregation.trimmed-mean]\ntrim = nan".to_owned(), "trimmed-mean.trim"),
        ("[aggregation.krum]\nbyzantine_max = 4".to_owned(), "krum.byzantine_max"),
        ("[aggregation.krum]\nbyzantine_max = 4294967295".to_owned(), "krum.byzantine_max"),
        (
            "[aggregation.multi-krum]\nbyzantine_max = 3\nselected = 7".to_owned(),
            "multi-krum.selected",
        ),
        (
            "[aggregation.multi-krum]\nbyzantine_max = 3\nselected = 0".to_owned(),
            "multi-krum.selected",
        ),
        ("[round.asynchronous]\nstaleness_max = 17".to_owned(), "asynchronous.staleness_max"),
        (
            "[round.asynchronous]\nstaleness_max = 1\nstaleness_exponent = -1.0".to_owned(),
            "staleness_exponent",
        ),
        ("[early_stop]\nmetric = \"loss\"\npatience = 3".to_owned(), "evaluation.metrics"),
        (early("metric = \"accuracy\"\npatience = 3"), "evaluation.metrics"),
        (early("metric = \"loss\"\npatience = 0"), "early_stop.patience"),
        (early("metric = \"loss\"\npatience = 1\nmin_change = -0.1"), "early_stop.min_change"),
        (early("metric = \"loss\"\npatience = 1\ntarget = inf"), "early_stop.target"),
    ] {
        let error = changed(&[COHORT], &more).expect_err(&more);
        assert!(error.contains(expected), "{more}: {error}");
    }
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    let secagg = "[secagg]\nadversary = \"malicious-coordinator\"\ndropout_max = 0.3\n\
                  corrupt_max = 0.1\n";
    let tenant = [
        COHORT,
        ("trust = \"local\"", "trust = \"distributed\""),
        ("unit = \"record\"", "unit = \"tenant\""),
    ];
    let record = [COHORT, tenant[1], ("local_steps = 10", "local_steps = 1")];
    let scaffold = "[training.algorithm.scaffold]\npopulation = 20\n";
    let fedprox = "[training.algorithm.fedprox]\nproximal = 0.1\n";
    let asynchronous = "[round.asynchronous]\nstaleness_max = 2\n";
    let krum = "[aggregation.krum]\nbyzantine_max = 1\n";
    let trimmed = "[aggregation.trimmed-mean]\ntrim = 0.2\n";
    let poisson = ("rounds = 3", "rounds = 3\n    sampling = \"poisson\"");
    let rotated = ("delta = 1e-5", "delta = 1e-5\n    rotation = true");
    let adaptive =
        ("delta = 1e-5", "delta = 1e-5\n    clipping.adaptive = { count_noise_multiplier = 5.0 }");
    changed(&tenant, &format!("{secagg}{fedprox}")).expect("FedProx works under masks");
    changed(&[COHORT, rotated], krum).expect("distances do not change by a rotation");
    for (changes, more, expected) in [
        (&tenant[..], format!("{secagg}{krum}"), "compares the updates one by one"),
        (&tenant[..], format!("{secagg}{asynchronous}"), "masks cancel only among a cohort"),
        (&tenant[..], format!("{secagg}{scaffold}"), "masked release"),
        (&[tenant[0], tenant[1], tenant[2], poisson][..], secagg.to_owned(), "Poisson draw"),
        (&record[..], format!("{secagg}{fedprox}"), "has not drifted"),
        (&[COHORT][..], format!("{asynchronous}{scaffold}"), "belongs to one base"),
        (&[COHORT][..], format!("{asynchronous}{krum}"), "not comparable"),
        (&[COHORT, poisson][..], asynchronous.to_owned(), "invited one by one"),
        (&[COHORT, tenant[2], adaptive][..], asynchronous.to_owned(), "one lattice"),
        (&[COHORT, rotated][..], trimmed.to_owned(), "mixture of all parameters"),
        (&[COHORT][..], format!("{scaffold}{trimmed}"), "robust rule does not give"),
    ] {
        let error = changed(changes, &more).expect_err(expected);
        assert!(error.contains("cannot be") && error.contains(expected), "{error}");
    }
}

#[test]
fn older_updates_weigh_less() {
    let plan = AsynchronousPlan { staleness_max: 4, staleness_exponent: 0.5 };
    assert_eq!((plan.weight(0), plan.weight(3)), (1.0, 0.5));
    let equal = AsynchronousPlan { staleness_exponent: 0.0, ..plan };
    assert_eq!(equal.weight(4), 1.0);
}

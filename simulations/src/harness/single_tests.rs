use std::path::Path;

use super::*;
use crate::experiment::{Experiment, Records};

fn experiment(head: &str, more: &str) -> Experiment {
    let text = format!(
        r#"
        name = "test"
        rounds = 12
        tenants = 20
        {head}
        [dataset.synthetic]
        examples = 2000
        features = 8
        classes = 4
        [cohort]
        size = 15
        size_min = 15
        [model.mlp]
        inputs = 8
        classes = 4
        {more}
        "#
    );
    Experiment::parse(&text, Path::new("")).unwrap_or_else(|error| panic!("{more}: {error}"))
}

const TRAINING: &str = "[training.epochs]\nbatch_size = 20\nlocal_epochs = 2\n\
                        client_learning_rate = 0.2\n[privacy.none]\n";
const STEPS: &str = "[privacy.none]\n[training.steps]\nlocal_steps = 10\nsampling_rate = 0.3\n\
                     batch_size_expected = 30\nclient_learning_rate = 0.1\n";
const ATTACK: &str = "[adversary]\nshare = 0.2\nattack = { sign-flip = { scale = 6.0 } }\n";

fn finished<'a>(
    experiment: &'a Experiment,
    records: &'a Records,
    threads: usize,
) -> Simulation<'a> {
    let mut simulation = Simulation::new(experiment, records, 1, threads).expect("plans");
    for _ in 0..experiment.rounds {
        simulation.step().expect("finite");
    }
    simulation
}

fn accuracy(aggregation: &str, attack: &str) -> f64 {
    let experiment = experiment(aggregation, &format!("{TRAINING}{attack}"));
    let records = Records::load(&experiment, 1).expect("loads");
    finished(&experiment, &records, 2).evaluate().expect("measures").accuracy
}

#[test]
fn a_fifth_of_sign_flipping_tenants_ruins_the_mean_and_no_robust_rule() {
    let honest = accuracy("", "");
    let ruined = accuracy("", ATTACK);
    assert!(ruined < honest - 0.3, "the mean: {ruined} of {honest}");
    for rule in [
        "aggregation = \"median\"",
        "aggregation = { trimmed-mean = { trim = 0.3 } }",
        "aggregation = { krum = { byzantine_max = 5 } }",
        "aggregation = { multi-krum = { byzantine_max = 5, selected = 8 } }",
    ] {
        let robust = accuracy(rule, ATTACK);
        assert!(robust > honest - 0.1, "{rule}: {robust} of {honest}");
    }
}

#[test]
fn the_populations_control_variate_is_the_mean_of_the_tenants() {
    let scaffold = format!("{STEPS}[training.steps.algorithm.scaffold]\npopulation = 20\n");
    let scaffold = experiment("partition = { dirichlet = { alpha = 0.2 } }", &scaffold);
    let records = Records::load(&scaffold, 1).expect("loads");
    let state = finished(&scaffold, &records, 2).state();
    assert!(state.controls.own.len() > 15 && state.controls.own.len() <= 20);
    let mut largest = 0.0_f32;
    for (coordinate, &value) in state.controls.population.iter().enumerate() {
        let own = state.controls.own.values().map(|own| own[coordinate]);
        let mean = own.sum::<f32>() / 20.0;
        assert!((value - mean).abs() < 1e-3, "{value} is not {mean}");
        largest = largest.max(value.abs());
    }
    assert!(largest > 1e-2, "they have moved: {largest}");
}

#[test]
fn algorithms_change_the_model_and_threads_do_not() {
    let mut models = Vec::new();
    for more in [
        STEPS.to_owned(),
        format!("{STEPS}[training.steps.algorithm.fedprox]\nproximal = 1.0\n"),
        format!("{STEPS}[training.steps.algorithm.scaffold]\npopulation = 20\n"),
        format!("{STEPS}[aggregation.multi-krum]\nbyzantine_max = 2\nselected = 5\n"),
    ] {
        let experiment = experiment("partition = { dirichlet = { alpha = 0.2 } }", &more);
        let records = Records::load(&experiment, 1).expect("loads");
        let [one, three] =
            [1, 3].map(|threads| finished(&experiment, &records, threads).base().to_vec());
        assert_eq!(one, three, "{more}");
        assert!(!models.contains(&one), "{more}");
        models.push(one);
    }
}

#[test]
fn an_interrupted_run_with_control_variates_goes_on_to_the_same_model() {
    let scaffold = format!("{STEPS}[training.steps.algorithm.scaffold]\npopulation = 20\n");
    let scaffold = experiment("", &scaffold);
    let records = Records::load(&scaffold, 1).expect("loads");
    let whole = finished(&scaffold, &records, 1);
    let mut first = Simulation::new(&scaffold, &records, 1, 1).expect("plans");
    for _ in 0..5 {
        first.step().expect("finite");
    }
    let mut second = Simulation::new(&scaffold, &records, 1, 1).expect("plans");
    second.restore(first.state()).expect("restores");
    for _ in 5..scaffold.rounds {
        second.step().expect("finite");
    }
    assert_eq!(second.base(), whole.base());
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    let central = "clipping_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-5\n";
    let epochs = "[training.epochs]\nbatch_size = 10\nclient_learning_rate = 0.1\n";
    let scaffold = "[training.steps.algorithm.scaffold]\npopulation = 20\n";
    let krum = "[aggregation.krum]\nbyzantine_max = 1\n";
    for (more, expected) in [
        (format!("{epochs}[privacy.central]\n{central}{krum}"), "made for the sum"),
        (
            format!("{epochs}algorithm = {{ scaffold = {{ population = 20 }} }}\n[privacy.none]\n"),
            "needs `training.steps`",
        ),
        (format!("{STEPS}{scaffold}{krum}"), "is a mean"),
        (format!("{STEPS}{krum}[clock]\n[asynchronous]\nstaleness_max = 2\n"), "not comparable"),
        (format!("{STEPS}[aggregation.krum]\nbyzantine_max = 9\n"), "byzantine_max"),
        (format!("{STEPS}[training.steps.algorithm.fedprox]\nproximal = -1.0\n"), "proximal"),
    ] {
        let text = format!(
            "name = \"test\"\nrounds = 2\ntenants = 20\n[dataset.synthetic]\nexamples = 200\n\
             features = 8\nclasses = 4\n[cohort]\nsize = 15\nsize_min = 15\n[model.mlp]\n\
             inputs = 8\nclasses = 4\n{more}"
        );
        let error = Experiment::parse(&text, Path::new("")).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

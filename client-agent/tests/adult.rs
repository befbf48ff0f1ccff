//! The census-income tables: real CSV files through loading, private training and evaluation.
//!
//! The files are not part of the project; without them beside the checkout the test only says so.

use std::{ops::ControlFlow, path::PathBuf};

use tributary_agent::{
    data::{CsvColumn, CsvColumnKind, CsvSource, DataSource, Dataset},
    train::{LocalTask, dp_sgd, evaluate},
};
use tributary_privacy::{clip::ClippingNorm, mechanism::NoisyGradientSum, noise::SecureNoise};
use tributary_protocol::{
    job::{LocalAlgorithm, TrainingPlan},
    model::{MlpSpec, ModelSpec},
};

fn numeric(name: &str, min: f64, max: f64) -> CsvColumn {
    CsvColumn { name: name.to_owned(), kind: CsvColumnKind::Numeric { min, max } }
}

fn categorical(name: &str, categories: &[&str]) -> CsvColumn {
    let categories = categories.iter().map(ToString::to_string).collect();
    CsvColumn { name: name.to_owned(), kind: CsvColumnKind::Categorical { categories } }
}

/// The two files differ in how they write the label.
fn source(path: PathBuf, labels: [&str; 2]) -> DataSource {
    let jobs = [
        "?",
        "Adm-clerical",
        "Armed-Forces",
        "Craft-repair",
        "Exec-managerial",
        "Farming-fishing",
        "Handlers-cleaners",
        "Machine-op-inspct",
        "Other-service",
        "Priv-house-serv",
        "Prof-specialty",
        "Protective-serv",
        "Sales",
        "Tech-support",
        "Transport-moving",
    ];
    let families = ["Husband", "Not-in-family", "Other-relative", "Own-child", "Unmarried", "Wife"];
    DataSource::Csv(CsvSource {
        path,
        has_header: false,
        label: "15".to_owned(),
        labels: labels.map(str::to_owned).to_vec(),
        columns: vec![
            numeric("1", 17.0, 90.0),
            numeric("5", 1.0, 16.0),
            categorical("7", &jobs),
            categorical("8", &families),
            categorical("10", &["Female", "Male"]),
            numeric("11", 0.0, 20_000.0),
            numeric("12", 0.0, 3_000.0),
            numeric("13", 1.0, 80.0),
        ],
    })
}

#[test]
fn census_income_is_learned_privately() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let (train, test) = (directory.join("adult-train.csv"), directory.join("adult-test.csv"));
    if !train.exists() || !test.exists() {
        println!("skipped: no census tables in {}", directory.display());
        return;
    }
    let train = Dataset::load(&source(train, ["<=50K", ">50K"]), None).expect("whole file");
    let test = Dataset::load(&source(test, ["<=50K.", ">50K."]), None).expect("whole file");
    assert_eq!((train.len(), test.len()), (32_561, 16_281));
    assert_eq!(train.num_features(), 28);

    let spec = ModelSpec::Mlp(MlpSpec { inputs: 28, hidden: vec![], classes: 2 });
    let base = vec![0.0; spec.num_parameters()];
    let plan = TrainingPlan {
        local_steps: 120,
        sampling_rate: 0.02,
        batch_size_expected: 650,
        client_learning_rate: 2.0,
        update_norm_max: 16.0,
        algorithm: LocalAlgorithm::Sgd,
    };
    let norm = ClippingNorm::new(1.0).expect("positive");
    let mechanism = NoisyGradientSum::new(norm, 1.0, spec.num_parameters()).expect("valid");
    let mut noise = SecureNoise::new().expect("entropy");
    let indices: Vec<u32> = (0..train.len() as u32).collect();
    let task = LocalTask { spec: &spec, base: &base, data: &train, train: &indices, plan: &plan };
    let update = dp_sgd(&task, &mechanism, &mut noise, &mut |_, _| ControlFlow::Continue(()))
        .expect("trains");
    let indices: Vec<u32> = (0..test.len() as u32).collect();
    let found = evaluate(&spec, &update, None, &test, &indices).expect("fits");
    // Always answering "<=50K" is right for 76.4 % of the people.
    assert!(found.accuracy > 0.80, "{found:?}");
}

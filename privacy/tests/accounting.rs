//! The accountants against `vectors/privacy_accounting.csv`.

use std::{collections::HashMap, time::Instant};

use tributary_privacy::{
    accountant::{Delta, calibrate_noise_multiplier, epsilon, epsilon_rdp},
    mechanism::PrivacyEvent,
};

const VECTORS: &str = include_str!("vectors/privacy_accounting.csv");

struct Row(HashMap<String, String>);

impl Row {
    fn text(&self, column: &str) -> &str {
        &self.0[column]
    }

    fn number(&self, column: &str) -> Option<f64> {
        self.text(column).parse().ok()
    }

    /// A number from the `notes`, such as `rho=0.5`.
    fn note(&self, key: &str) -> Option<f64> {
        let find = |part: &str| part.split_once('=').filter(|(k, _)| *k == key)?.1.parse().ok();
        self.text("notes").split(';').find_map(find)
    }

    fn delta(&self) -> Delta {
        Delta::new(self.number("delta").expect("every row has a delta")).expect("valid")
    }

    /// Events of rows that list `|`-separated parameters.
    fn events(&self) -> Vec<PrivacyEvent> {
        let list = |column: &str| -> Vec<f64> {
            self.text(column).split('|').map(|value| value.parse().expect("a number")).collect()
        };
        let (rates, sigmas, steps) = (list("q"), list("sigma"), list("steps"));
        (0..rates.len())
            .map(|index| PrivacyEvent::PoissonGaussian {
                sampling_rate: rates[index],
                noise_multiplier: sigmas[index],
                steps: steps[index] as u64,
            })
            .collect()
    }
}

fn rows(mechanism: &str, neighbouring: &str) -> Vec<Row> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(VECTORS.as_bytes());
    let headers = reader.headers().expect("a header").clone();
    let to_row = |record: csv::StringRecord| {
        Row(headers.iter().map(str::to_owned).zip(record.iter().map(str::to_owned)).collect())
    };
    let wanted =
        |row: &Row| row.text("mechanism") == mechanism && row.text("neighbouring") == neighbouring;
    let found: Vec<Row> = reader
        .records()
        .map(|record| to_row(record.expect("well formed")))
        .filter(wanted)
        .collect();
    assert!(!found.is_empty(), "no row of {mechanism} {neighbouring}");
    found
}

/// Never below the exact value where there is one, else at most 0.1 % below the PLD column; at
/// most 1 % above.
fn assert_tight(row: &Row, ours: f64) {
    let id = row.text("id");
    if let Some(exact) = row.number("eps_exact") {
        assert!(ours >= exact, "{id}: {ours} is below the exact {exact}");
        assert!(ours <= exact * 1.01 || ours == exact, "{id}: {ours} is far above {exact}");
    } else {
        let reference = row.number("eps_pld_dp_accounting").expect("a reference");
        let ratio = ours / reference;
        assert!((0.999..=1.01).contains(&ratio), "{id}: {ours} for {reference}");
    }
}

#[expect(clippy::disallowed_methods, reason = "the time an answer takes is part of the promise")]
fn timed<T>(id: &str, answer: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = answer();
    let seconds = start.elapsed().as_secs_f64();
    println!("{id}: {seconds:.3} s");
    assert!(seconds < 2.0, "{id} took {seconds} s");
    result
}

#[test]
fn add_or_remove_rows_are_tight_upper_bounds() {
    for mechanism in ["poisson_gaussian", "gaussian", "composed"] {
        for row in rows(mechanism, "add_remove") {
            let (events, delta) = (row.events(), row.delta());
            let ours = timed(row.text("id"), || epsilon(&events, delta).expect("valid"));
            println!("  {ours} for {:?}", row.number("eps_exact"));
            assert_tight(&row, ours);
        }
    }
}

#[test]
fn renyi_figures_are_upper_bounds_near_the_reference() {
    for mechanism in ["poisson_gaussian", "gaussian", "composed"] {
        for row in rows(mechanism, "add_remove") {
            let ours = epsilon_rdp(&row.events(), row.delta()).expect("valid");
            assert!(ours >= row.number("eps_exact").expect("exact"));
            if let Some(reference) = row.number("eps_rdp_dp_accounting") {
                assert!(ours <= reference * 1.005, "{}: {ours}", row.text("id"));
            }
        }
    }
}

#[test]
fn calibration_finds_the_minimal_noise() {
    for mechanism in ["calibrate_gaussian", "calibrate_poisson_gaussian"] {
        for row in rows(mechanism, "add_remove") {
            let target = row.note("target_eps").expect("given");
            let (rate, steps) =
                (row.number("q").expect("given"), row.number("steps").expect("given"));
            let ours = timed(row.text("id"), || {
                calibrate_noise_multiplier(target, row.delta(), rate, steps as u64)
                    .expect("reachable")
            });
            let exact = row.note("sigma_exact").expect("given");
            println!("  {ours} for {exact}");
            assert!(ours >= exact && ours <= exact * 1.001, "{}: {ours}", row.text("id"));
        }
    }
}

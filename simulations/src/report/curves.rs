//! Curves of runs.

use std::collections::BTreeMap;

use super::{Chart, Entry, Results, Series, Unit, results::SeedResults};
use crate::harness::{RoundRow, RunSummary};

/// Curves in a chart, at most; more cannot be told apart.
const CURVES_MAX: usize = 24;

/// A key's value, and mean, smallest and largest accuracy there.
type GridPoint = (f64, f64, f64, f64);

/// What goes along and up in a chart of measured rounds.
type Quantity = fn(&RoundRow) -> Option<f64>;

/// Charts of what was measured after rounds; those of what nobody measured are empty.
pub(super) fn of_rounds(results: &Results) -> Vec<Chart> {
    let round: Quantity = |row| Some(row.round as f64);
    let accuracy: Quantity = |row| row.accuracy;
    let loss: Quantity = |row| row.loss;
    let epsilon: Quantity = |row| row.epsilon;
    let up: Quantity = |row| Some(row.bytes_up as f64);
    let virtual_s: Quantity = |row| row.virtual_s;
    let charts: [(&str, &str, Quantity, Unit, Quantity, Unit); 7] = [
        ("Accuracy", "round", round, Unit::Count, accuracy, Unit::Percent),
        ("Loss", "round", round, Unit::Count, loss, Unit::Plain),
        (
            "ε of the tenant that took part most often",
            "round",
            round,
            Unit::Count,
            epsilon,
            Unit::Plain,
        ),
        ("Accuracy by ε", "ε", epsilon, Unit::Plain, accuracy, Unit::Percent),
        ("Bytes sent to the coordinator", "round", round, Unit::Count, up, Unit::Bytes),
        (
            "Accuracy by bytes sent",
            "sent to the coordinator",
            up,
            Unit::Bytes,
            accuracy,
            Unit::Percent,
        ),
        (
            "Accuracy by virtual time",
            "virtual time",
            virtual_s,
            Unit::Seconds,
            accuracy,
            Unit::Percent,
        ),
    ];
    let draw = |(title, x_label, x, x_unit, y, y_unit)| {
        let chart = Chart::new(title, x_label, x_unit, y_unit);
        shown(results).fold(chart, |chart, entry| chart.series(curve(entry, x, y)))
    };
    let mut charts: Vec<Chart> = charts.into_iter().map(draw).collect();
    charts.push(time(results));
    charts
}

/// The entries that get curves.
fn shown(results: &Results) -> impl Iterator<Item = &Entry> {
    results.entries.iter().take(CURVES_MAX)
}

/// How many entries have no curves.
pub(super) fn left_out(results: &Results) -> usize {
    results.entries.len().saturating_sub(CURVES_MAX)
}

/// The mean over seeds, and the range from the smallest to the largest.
fn curve(entry: &Entry, x: Quantity, y: Quantity) -> Series {
    // By round: what every seed measured there.
    let mut rounds: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for row in entry.runs.iter().flat_map(|run| &run.rounds) {
        // What costs nothing yet, such as ε before the first round, is where curves begin.
        if let (Some(x), Some(y), true) = (x(row), y(row), row.accuracy.is_some()) {
            rounds.entry(row.round).or_default().push((x, y));
        }
    }
    rounds.retain(|_, points| points.len() == entry.runs.len());
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / count, sum.1 / count)
    };
    let band = |points: &Vec<(f64, f64)>| {
        let low = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
        (mean(points).0, low, high)
    };
    let series = Series::new(&entry.label, rounds.values().map(|points| mean(points)).collect());
    match entry.runs.len() {
        1 => series,
        _ => series.band(rounds.values().map(band).collect()),
    }
}

/// Processor time of rounds, which differs every time.
fn time(results: &Results) -> Chart {
    let chart = Chart::new("Processor time of a round", "round", Unit::Count, Unit::Seconds);
    shown(results).fold(chart, |chart, entry| {
        let timing = entry.runs.first().map(|run| &run.timing[..]).unwrap_or_default();
        let points = timing.iter().map(|timing| (timing.round as f64, timing.cpu_s)).collect();
        chart.series(Series::new(&entry.label, points))
    })
}

/// The last accuracy over each key of a sweep with several numbers.
pub(super) fn of_grid(results: &Results) -> Vec<Chart> {
    let columns = results.columns.iter().enumerate();
    let charts = columns.map(|(column, key)| {
        let number = |entry: &Entry| entry.settings.get(column).and_then(serde_json::Value::as_f64);
        let name = key.rsplit('.').next().unwrap_or(key);
        let chart = Chart::new(format!("Last accuracy by {name}"), key, Unit::Plain, Unit::Percent);
        // One curve for each choice of the other keys.
        let mut curves: Vec<(String, Vec<GridPoint>)> = Vec::new();
        for entry in &results.entries {
            let Some(x) = number(entry) else { continue };
            let others = entry.settings.iter().zip(&results.columns).enumerate();
            let others = others.filter(|(other, _)| *other != column).map(|(_, (value, key))| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                match key.as_str() {
                    "variant" => text,
                    key => format!("{}={text}", key.rsplit('.').next().unwrap_or(key)),
                }
            });
            let name = others.collect::<Vec<_>>().join(", ");
            let accuracies = || entry.runs.iter().map(|run| run.summary.accuracy);
            let mean = accuracies().sum::<f64>() / entry.runs.len() as f64;
            let (low, high) = (accuracies().fold(1.0, f64::min), accuracies().fold(0.0, f64::max));
            match curves.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push((x, mean, low, high)),
                None => curves.push((name, vec![(x, mean, low, high)])),
            }
        }
        curves.retain(|(_, points)| points.len() > 1);
        curves.into_iter().take(CURVES_MAX).fold(chart, |chart, (name, mut points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let name = if name.is_empty() { "all".to_owned() } else { name };
            let mean = points.iter().map(|&(x, mean, ..)| (x, mean)).collect();
            let band = points.iter().map(|&(x, _, low, high)| (x, low, high)).collect();
            chart.series(Series::new(name, mean).band(band))
        })
    });
    charts.collect()
}

/// How evenly the tenants fare: their accuracies in ascending order, of the first seed.
pub(super) fn of_tenants(results: &Results) -> Chart {
    let chart = Chart::new(
        "Accuracy of tenants on their own records, in ascending order",
        "share of the tenants",
        Unit::Percent,
        Unit::Percent,
    );
    shown(results).fold(chart, |chart, entry| {
        let Some(run) = entry.runs.first() else { return chart };
        let sorted = |value: fn(&crate::harness::TenantRow) -> Option<f64>| {
            let mut values: Vec<f64> = run.tenants.iter().filter_map(value).collect();
            values.sort_by(f64::total_cmp);
            let count = values.len() as f64;
            let place = |(place, value)| ((place as f64 + 0.5) / count, value);
            values.into_iter().enumerate().map(place).collect::<Vec<(f64, f64)>>()
        };
        let label = &entry.label;
        chart
            .series(Series::new(label, sorted(|tenant| tenant.accuracy)))
            .series(Series::new(
                format!("{label}: base"),
                sorted(|tenant| tenant.held_out_accuracy),
            ))
            .series(Series::new(
                format!("{label}: with adapters"),
                sorted(|tenant| tenant.adapter_accuracy),
            ))
    })
}

/// The mean of a number over the seeds that have it.
pub(super) fn mean(entry: &Entry, value: impl Fn(&RunSummary) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = entry.runs.iter().filter_map(|run| value(&run.summary)).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Processor milliseconds of an update, over all rounds of all seeds.
pub(super) fn cpu_ms_per_update(entry: &Entry) -> Option<f64> {
    let timed = |run: &SeedResults| run.timing.iter().map(|timing| timing.cpu_s).sum::<f64>();
    let seconds: f64 = entry.runs.iter().map(timed).sum();
    let rows = entry.runs.iter().flat_map(|run| &run.rounds);
    let updates: usize = rows.map(|row| row.reported).sum();
    (updates > 0 && seconds > 0.0).then(|| seconds * 1e3 / updates as f64)
}

//! The report of runs: page, CSV and JSON.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Cell, Entry, Page, ReportError, Results, Section, Table, Unit, curves};
use crate::harness::TenantRow;

/// Runs whose tenants get a table, at most.
const TENANT_TABLES_MAX: usize = 8;

/// Where a report is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportFiles {
    /// The page.
    pub page: PathBuf,
    /// A line for each round of each run.
    pub csv: PathBuf,
    /// Everything that the page shows.
    pub json: PathBuf,
}

/// Writes a report of `results` at `path`, and its rows beside it.
///
/// # Errors
/// [`ReportError::File`].
pub fn write(results: &Results, title: &str, path: &Path) -> Result<ReportFiles, ReportError> {
    let files = ReportFiles {
        page: path.to_owned(),
        csv: path.with_extension("csv"),
        json: path.with_extension("json"),
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReportError::File { path, source }
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed(folder))?;
    }
    fs::write(path, page(results, title).html()).map_err(failed(path))?;
    write_rows(results, &files.csv).map_err(failed(&files.csv))?;
    let json = serde_json::to_vec(results).map_err(|error| failed(&files.json)(error.into()))?;
    fs::write(&files.json, json).map_err(failed(&files.json))?;
    Ok(files)
}

/// The page of runs; callers may add sections of their own.
#[must_use]
pub fn page(results: &Results, title: &str) -> Page {
    let version = env!("CARGO_PKG_VERSION");
    let runs: usize = results.entries.iter().map(|entry| entry.runs.len()).sum();
    let plural = if runs == 1 { "run" } else { "runs" };
    let page = Page::new(title).subtitle(format!("{runs} {plural}, tributary-sim {version}"));
    let page = page.section(result_section(results));
    let grid = curves::of_grid(results);
    let page = match grid.iter().all(super::Chart::is_empty) {
        true => page,
        false => page.section(Section::new("Over the grid").charts(grid)),
    };
    page.section(curve_section(results))
        .section(tenant_section(results))
        .section(repeat_section(results))
}

fn percent(value: f64) -> String {
    format!("{:.2} %", value * 100.0)
}

fn perplexity(value: f64) -> String {
    format!("{value:.2}")
}

fn result_section(results: &Results) -> Section {
    let section = Section::new("Result");
    if let [entry] = &results.entries[..] {
        return section.figures(figures(entry)).table(seed_table(entry));
    }
    section
        .paragraph("Means over seeds. A click on a column sorts by it.")
        .table(comparison(results))
}

/// The figures of one experiment that matter most.
fn figures(entry: &Entry) -> Vec<(String, String)> {
    let first = &entry.runs[0].summary;
    let mut figures = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            figures.push((name.to_owned(), value));
        }
    };
    let mean = |value: fn(&crate::harness::RunSummary) -> Option<f64>| curves::mean(entry, value);
    add("accuracy", mean(|run| Some(run.accuracy)).map(percent));
    add("loss", mean(|run| Some(run.loss)).map(|loss| format!("{loss:.4}")));
    add("ε, at most", mean(|run| run.epsilon).map(|epsilon| format!("{epsilon:.3}")));
    add("δ", first.delta.map(|delta| format!("{delta:e}")));
    add("trust", Some(first.trust.clone()));
    add("privacy unit", first.unit.clone());
    add("noise multiplier", mean(|run| run.noise_multiplier).map(|noise| format!("{noise:.3}")));
    add("tenants", Some(first.tenants.to_string()));
    add("rounds", Some(first.rounds.to_string()));
    let bytes = |value: Option<f64>| value.map(|value| Unit::Bytes.format(value));
    add("sent up", bytes(mean(|run| Some(run.bytes_up as f64))));
    add("sent down", bytes(mean(|run| Some(run.bytes_down as f64))));
    add("virtual time", mean(|run| run.virtual_s).map(|time| Unit::Seconds.format(time)));
    add("held out, base", mean(|run| run.held_out_accuracy).map(percent));
    add("held out, adapters", mean(|run| run.adapter_accuracy).map(percent));
    add("perplexity, base", mean(|run| run.held_out_perplexity).map(perplexity));
    add("perplexity, adapters", mean(|run| run.adapter_perplexity).map(perplexity));
    let time = curves::cpu_ms_per_update(entry);
    add("processor time an update", time.map(|ms| Unit::Seconds.format(ms / 1e3)));
    figures
}

fn seed_table(entry: &Entry) -> Table {
    let mut table = Table::new(["seed", "accuracy", "loss", "ε", "sent up", "model (BLAKE3)"]);
    for run in &entry.runs {
        let run = &run.summary;
        table.row([
            Cell::number(run.seed as f64, run.seed.to_string()),
            Cell::number(run.accuracy, percent(run.accuracy)),
            Cell::number(run.loss, format!("{:.4}", run.loss)),
            Cell::optional(run.epsilon, |epsilon| format!("{epsilon:.3}")),
            Cell::number(run.bytes_up as f64, Unit::Bytes.format(run.bytes_up as f64)),
            Cell::text(&run.model),
        ]);
    }
    table
}

fn comparison(results: &Results) -> Table {
    let mut table = Table::new([
        "experiment",
        "seeds",
        "accuracy",
        "±",
        "loss",
        "trust",
        "ε",
        "noise multiplier",
        "sent up",
        "virtual time",
        "held out, base",
        "held out, adapters",
        "perplexity, base",
        "perplexity, adapters",
        "processor time an update",
    ]);
    for entry in &results.entries {
        let mean =
            |value: fn(&crate::harness::RunSummary) -> Option<f64>| curves::mean(entry, value);
        let accuracies: Vec<f64> = entry.runs.iter().map(|run| run.summary.accuracy).collect();
        let count = accuracies.len() as f64;
        let accuracy = accuracies.iter().sum::<f64>() / count;
        let squares: f64 = accuracies.iter().map(|value| (value - accuracy).powi(2)).sum();
        let deviation = (accuracies.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        let first = &entry.runs[0].summary;
        let trust = match &first.unit {
            Some(unit) => format!("{}, {unit}", first.trust),
            None => first.trust.clone(),
        };
        table.row([
            Cell::text(&entry.label),
            Cell::number(count, count.to_string()),
            Cell::number(accuracy, percent(accuracy)),
            Cell::optional(deviation, percent),
            Cell::optional(mean(|run| Some(run.loss)), |loss| format!("{loss:.4}")),
            Cell::text(trust),
            Cell::optional(mean(|run| run.epsilon), |epsilon| format!("{epsilon:.3}")),
            Cell::optional(mean(|run| run.noise_multiplier), |noise| format!("{noise:.3}")),
            Cell::optional(mean(|run| Some(run.bytes_up as f64)), |v| Unit::Bytes.format(v)),
            Cell::optional(mean(|run| run.virtual_s), |value| Unit::Seconds.format(value)),
            Cell::optional(mean(|run| run.held_out_accuracy), percent),
            Cell::optional(mean(|run| run.adapter_accuracy), percent),
            Cell::optional(mean(|run| run.held_out_perplexity), perplexity),
            Cell::optional(mean(|run| run.adapter_perplexity), perplexity),
            Cell::optional(curves::cpu_ms_per_update(entry), |ms| Unit::Seconds.format(ms / 1e3)),
        ]);
    }
    table.without_empty_columns()
}

fn curve_section(results: &Results) -> Section {
    let mut section = Section::new("Curves");
    let seeds = results.entries.iter().any(|entry| entry.runs.len() > 1);
    if seeds {
        section = section.paragraph(
            "Lines are means over seeds, the shade around them reaches from the smallest to the largest.",
        );
    }
    let left_out = curves::left_out(results);
    if left_out > 0 {
        let text = format!("{left_out} experiments are in the table only: too many curves.");
        section = section.paragraph(text);
    }
    section.charts(curves::of_rounds(results))
}

fn tenant_section(results: &Results) -> Section {
    let mut section = Section::new("Tenants")
        .paragraph("Of the first seed. ε is what a tenant's own participations cost it.")
        .charts(vec![curves::of_tenants(results)]);
    for (place, entry) in results.entries.iter().take(TENANT_TABLES_MAX).enumerate() {
        let table = tenant_table(&entry.runs[0].tenants);
        let title = format!("{}: {} tenants", entry.label, table.len());
        section = match (place, results.entries.len()) {
            (0, 1) => section.table(table),
            _ => section.folded_table(title, table),
        };
    }
    if results.entries.len() > TENANT_TABLES_MAX {
        let text = format!("Only the first {TENANT_TABLES_MAX} have tables; all are in the JSON.");
        section = section.paragraph(text);
    }
    section
}

fn tenant_table(tenants: &[TenantRow]) -> Table {
    let mut table = Table::new([
        "tenant",
        "records",
        "took part",
        "ε",
        "accuracy",
        "loss",
        "held out, base",
        "held out, adapter",
        "perplexity, base",
        "perplexity, adapter",
        "attacker",
    ]);
    for tenant in tenants {
        table.row([
            Cell::text(&tenant.tenant),
            Cell::number(tenant.num_examples as f64, tenant.num_examples.to_string()),
            Cell::number(tenant.participations.into(), tenant.participations.to_string()),
            Cell::optional(tenant.epsilon, |epsilon| format!("{epsilon:.3}")),
            Cell::optional(tenant.accuracy, percent),
            Cell::optional(tenant.loss, |loss| format!("{loss:.4}")),
            Cell::optional(tenant.held_out_accuracy, percent),
            Cell::optional(tenant.adapter_accuracy, percent),
            Cell::optional(tenant.held_out_perplexity, perplexity),
            Cell::optional(tenant.adapter_perplexity, perplexity),
            if tenant.attacker { Cell::text("yes") } else { Cell::Empty },
        ]);
    }
    table.without_empty_columns()
}

fn repeat_section(results: &Results) -> Section {
    let mut section = Section::new("How to repeat it").paragraph(
        "The same experiment and seed give the same model to the bit, on any number of threads and \
         processes. Save an experiment below as a file to run it again.",
    );
    // The cells of a sweep have one command.
    let mut said: &[String] = &[];
    for entry in &results.entries {
        let seeds: Vec<String> =
            entry.runs.iter().map(|run| run.summary.seed.to_string()).collect();
        let mut text = match said == entry.commands {
            true => "# the same command".to_owned(),
            false => entry.commands.join("\n"),
        };
        said = &entry.commands;
        for run in &entry.runs {
            let summary = &run.summary;
            text += &format!("\n# seed {}: model {}", summary.seed, summary.model);
        }
        let title = match results.entries.len() {
            1 => format!("Command; seeds {}", seeds.join(", ")),
            _ => format!("{}: command; seeds {}", entry.label, seeds.join(", ")),
        };
        section = section.listing(title, text.trim());
        if !entry.experiment.is_empty() {
            section =
                section.folded_listing(format!("{}: experiment", entry.label), &entry.experiment);
        }
    }
    section
}

fn write_rows(results: &Results, path: &Path) -> io::Result<()> {
    let mut table = csv::Writer::from_path(path)?;
    table.write_record([
        "experiment",
        "seed",
        "round",
        "invited",
        "reported",
        "accuracy",
        "loss",
        "epsilon",
        "bytes_down",
        "bytes_up",
        "virtual_s",
        "wall_s",
        "cpu_s",
    ])?;
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for entry in &results.entries {
        for run in &entry.runs {
            for row in &run.rounds {
                let timing = run.timing.iter().find(|timing| timing.round == row.round);
                table.write_record([
                    entry.label.clone(),
                    run.summary.seed.to_string(),
                    row.round.to_string(),
                    row.invited.to_string(),
                    row.reported.to_string(),
                    number(row.accuracy),
                    number(row.loss),
                    number(row.epsilon),
                    row.bytes_down.to_string(),
                    row.bytes_up.to_string(),
                    number(row.virtual_s),
                    number(timing.map(|timing| timing.wall_s)),
                    number(timing.map(|timing| timing.cpu_s)),
                ])?;
            }
        }
    }
    table.flush()
}

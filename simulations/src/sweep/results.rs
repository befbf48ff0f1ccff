//! What a sweep found: a table, CSV and JSON.

use std::{fs, io, path::Path};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::{Deserialize, Serialize};
use toml::Value;

use super::{Cell, cell};
use crate::harness::Series;

/// File of a sweep: its [`SweepResults`].
pub(crate) const RESULTS: &str = "sweep.json";
/// File of a sweep: its table.
const TABLE: &str = "sweep.csv";

/// The results of all cells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepResults {
    /// Name of the sweep.
    pub name: String,
    /// What differs between cells.
    pub columns: Vec<String>,
    /// The cells, in the order of the grid.
    pub cells: Vec<CellResult>,
}

/// The result of one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Its settings in words.
    pub label: String,
    /// Its settings, one a column.
    pub settings: Vec<serde_json::Value>,
    /// Its folder inside the sweep's.
    pub folder: String,
    /// What it found.
    pub series: Option<Series>,
    /// Why it found nothing.
    pub error: Option<String>,
}

impl CellResult {
    pub(super) fn new(cell: &Cell, outcome: Result<Series, String>) -> Self {
        let value = |(_, value): &(String, Value)| match value {
            Value::Integer(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::Boolean(flag) => (*flag).into(),
            other => cell::text(other).into(),
        };
        let (series, error) = match outcome {
            Ok(series) => (Some(series), None),
            Err(error) => (None, Some(error)),
        };
        let settings = cell.settings.iter().map(value).collect();
        Self { label: cell.label.clone(), settings, folder: cell.folder.clone(), series, error }
    }
}

fn setting(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl SweepResults {
    /// Cells without a result.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.cells.iter().filter(|cell| cell.error.is_some()).count()
    }

    /// The table for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        let own = ["accuracy", "±", "loss", "ε", "sent up"].map(str::to_owned);
        table.set_header(self.columns.iter().cloned().chain(own));
        for cell in &self.cells {
            let mut row: Vec<String> = cell.settings.iter().map(setting).collect();
            match &cell.series {
                Some(series) => {
                    let loss = series.mean(|run| run.loss);
                    let epsilon = series.epsilon().map_or("–".to_owned(), |e| format!("{e:.2}"));
                    let sent = series.mean(|run| run.bytes_up as f64) / 1e6;
                    row.extend([
                        format!("{:.4}", series.accuracy_mean),
                        match series.runs.len() {
                            1 => "–".to_owned(),
                            _ => format!("{:.4}", series.accuracy_deviation),
                        },
                        format!("{loss:.4}"),
                        epsilon,
                        format!("{sent:.1} MB"),
                    ]);
                }
                None => row.push(cell.error.clone().unwrap_or_default()),
            }
            table.add_row(row);
        }
        table.column_iter_mut().skip(self.columns.len()).for_each(|column| {
            column.set_cell_alignment(CellAlignment::Right);
        });
        table.to_string()
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join(RESULTS), serde_json::to_vec_pretty(self)?)?;
        let mut table = csv::Writer::from_path(folder.join(TABLE))?;
        let own = [
            "accuracy_mean",
            "accuracy_deviation",
            "loss_mean",
            "epsilon_max",
            "bytes_up_mean",
            "bytes_down_mean",
            "held_out_accuracy_mean",
            "adapter_accuracy_mean",
            "held_out_perplexity_mean",
            "adapter_perplexity_mean",
            "virtual_s_mean",
            "seeds",
            "folder",
            "error",
        ];
        table.write_record(self.columns.iter().map(String::as_str).chain(own))?;
        for cell in &self.cells {
            let number = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
            let series = cell.series.as_ref();
            let mean = |value: fn(&crate::harness::RunSummary) -> f64| {
                number(series.map(|series| series.mean(value)))
            };
            let optional = |value: fn(&crate::harness::RunSummary) -> Option<f64>| {
                number(series.and_then(|series| series.mean_of(value)))
            };
            let settings = cell.settings.iter().map(setting);
            let results = [
                number(series.map(|series| series.accuracy_mean)),
                number(series.map(|series| series.accuracy_deviation)),
                mean(|run| run.loss),
                number(series.and_then(Series::epsilon)),
                mean(|run| run.bytes_up as f64),
                mean(|run| run.bytes_down as f64),
                optional(|run| run.held_out_accuracy),
                optional(|run| run.adapter_accuracy),
                optional(|run| run.held_out_perplexity),
                optional(|run| run.adapter_perplexity),
                optional(|run| run.virtual_s),
                series.map_or(0, |series| series.runs.len()).to_string(),
                cell.folder.clone(),
                cell.error.clone().unwrap_or_default(),
            ];
            table.write_record(settings.chain(results))?;
        }
        table.flush()
    }
}

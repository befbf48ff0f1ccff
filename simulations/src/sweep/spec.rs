//! The sweep file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::{Cell, SweepError, cell};

/// A base experiment and what is changed in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// What it is called in results.
    pub name: String,
    /// The experiment that every cell starts from.
    pub base: Table,
    /// Where relative paths of the base experiment start.
    pub base_folder: PathBuf,
    /// Where relative paths of other base experiments start.
    pub folder: PathBuf,
    /// Named changes; every variant goes through the whole grid. Without one, the base does.
    pub variants: Vec<Variant>,
    /// The grid.
    pub axes: Vec<Axis>,
}

/// A named change of the base, or another base.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name in results.
    pub name: String,
    /// An experiment file that it starts from instead.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// What is changed, by key.
    #[serde(default)]
    pub set: Table,
}

/// A key, and the values it takes in turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Names on the way to the value, with dots; `*` stands for the only one there is.
    pub key: String,
    /// The values.
    pub values: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SweepFile {
    name: String,
    base: PathBuf,
    #[serde(default)]
    variants: Vec<Variant>,
    #[serde(default)]
    grid: Table,
}

impl Sweep {
    /// Reads a sweep file, or an experiment file as a sweep of one cell.
    ///
    /// # Errors
    /// [`SweepError`] naming the file and what is wrong.
    pub fn load(path: &Path) -> Result<Self, SweepError> {
        let table = read(path)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        if !["base", "grid", "variants"].iter().any(|key| table.contains_key(*key)) {
            let name = table.get("name").and_then(Value::as_str).unwrap_or("sweep").to_owned();
            let base_folder = folder.clone();
            let (variants, axes) = (Vec::new(), Vec::new());
            return Ok(Self { name, base: table, base_folder, folder, variants, axes });
        }
        let parsed: Result<SweepFile, _> = table.try_into();
        let SweepFile { name, base, variants, grid } = parsed.map_err(|reason| {
            SweepError::Parse { path: path.to_owned(), reason: Box::new(reason) }
        })?;
        let axes = grid.into_iter().map(|(key, values)| {
            let values = match values {
                Value::Array(values) => values,
                one => vec![one],
            };
            Axis { key, values }
        });
        let path = folder.join(base);
        Ok(Self {
            name,
            base: read(&path)?,
            base_folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            folder,
            variants,
            axes: axes.collect(),
        })
    }

    /// Adds an axis as on the command line, or replaces the one of the same key.
    ///
    /// - `text`: `KEY=VALUE,VALUE,…`; a value that is no TOML is taken as a name
    ///
    /// # Errors
    /// [`SweepError::Setting`].
    pub fn set(&mut self, text: &str) -> Result<(), SweepError> {
        let wrong = || SweepError::Setting { text: text.to_owned() };
        let (key, values) = text.split_once('=').ok_or_else(wrong)?;
        let (key, values) = (key.trim().to_owned(), values.trim());
        if key.is_empty() || values.is_empty() {
            return Err(wrong());
        }
        let list = |text: &str| {
            let table: Table = toml::from_str(&format!("values = [{text}]")).ok()?;
            table.get("values").and_then(Value::as_array).cloned()
        };
        let value = |text: &str| match list(text) {
            Some(mut values) if values.len() == 1 => values.remove(0),
            _ => Value::String(text.trim().to_owned()),
        };
        let values = list(values).unwrap_or_else(|| values.split(',').map(value).collect());
        self.axes.retain(|axis| axis.key != key);
        self.axes.push(Axis { key, values });
        Ok(())
    }

    /// All cells, each checked.
    ///
    /// # Errors
    /// [`SweepError`] naming the first cell that cannot work, and why.
    pub fn cells(&self) -> Result<Vec<Cell>, SweepError> {
        cell::all(self)
    }
}

pub(super) fn read(path: &Path) -> Result<Table, SweepError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SweepError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|reason| SweepError::Parse { path: path.to_owned(), reason: Box::new(reason) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_sweeps_are_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/sweeps");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let cells = Sweep::load(&path).and_then(|sweep| sweep.cells());
            let cells = cells.unwrap_or_else(|error| panic!("{path:?}: {error}: {error:?}"));
            assert!(cells.len() > 1, "{path:?}");
            count += 1;
        }
        assert!(count >= 2, "{count}");
    }

    #[test]
    fn an_experiment_is_a_sweep_of_one_cell() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/fedavg-iid.toml");
        let sweep = Sweep::load(&path).expect("an experiment");
        assert_eq!(sweep.cells().expect("valid").len(), 1);
    }
}

//! One combination of settings.

use std::path::Path;

use toml::{Table, Value};

use super::{Axis, Sweep, SweepError, Variant, spec::read};
use crate::experiment::Experiment;

/// Characters of a folder's name that say which experiment it is.
const NAME_MAX: usize = 60;

/// One combination of settings, as an experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The settings in words, for people.
    pub label: String,
    /// The variant and the values of the grid, by column of the result table.
    pub settings: Vec<(String, Value)>,
    /// The experiment.
    pub experiment: Experiment,
    /// Name of its folder, a matter of the experiment alone: its name and a digest.
    pub folder: String,
}

pub(super) fn all(sweep: &Sweep) -> Result<Vec<Cell>, SweepError> {
    if let Some(axis) = sweep.axes.iter().find(|axis| axis.values.is_empty()) {
        return Err(SweepError::NoValues { key: axis.key.clone() });
    }
    let variants: Vec<Option<&Variant>> = match sweep.variants.is_empty() {
        true => vec![None],
        false => sweep.variants.iter().map(Some).collect(),
    };
    let mut cells: Vec<Cell> = Vec::new();
    for variant in variants {
        for values in combinations(&sweep.axes) {
            let cell = cell(sweep, variant, &values)?;
            if let Some(same) =
                cells.iter().find(|other| other.folder_digest() == cell.folder_digest())
            {
                let (first, second) = (same.label.clone(), cell.label);
                return Err(SweepError::Repeated { first, second });
            }
            cells.push(cell);
        }
    }
    Ok(cells)
}

impl Cell {
    fn folder_digest(&self) -> &str {
        self.folder.rsplit('-').next().unwrap_or_default()
    }
}

/// Every choice of one value an axis; the last axis changes fastest.
fn combinations(axes: &[Axis]) -> Vec<Vec<&Value>> {
    axes.iter().fold(vec![Vec::new()], |begun, axis| {
        let extended = begun.iter().flat_map(|values: &Vec<&_>| {
            axis.values.iter().map(move |value| [values.as_slice(), &[value]].concat())
        });
        extended.collect()
    })
}

fn cell(sweep: &Sweep, variant: Option<&Variant>, values: &[&Value]) -> Result<Cell, SweepError> {
    let (mut table, mut folder) = (sweep.base.clone(), sweep.base_folder.clone());
    let mut settings = Vec::new();
    if let Some(variant) = variant {
        if let Some(base) = &variant.base {
            let path = sweep.folder.join(base);
            table = read(&path)?;
            folder = path.parent().unwrap_or(Path::new("")).to_owned();
        }
        for (key, value) in &variant.set {
            set(&mut table, key, value.clone())?;
        }
        settings.push(("variant".to_owned(), Value::String(variant.name.clone())));
    }
    for (axis, value) in sweep.axes.iter().zip(values) {
        set(&mut table, &axis.key, (*value).clone())?;
        settings.push((axis.key.clone(), (*value).clone()));
    }
    let one = |key: &str| sweep.axes.iter().any(|axis| axis.key == key && axis.values.len() == 1);
    let differing: Vec<_> = settings.iter().filter(|(key, _)| !one(key)).cloned().collect();
    // What is the same everywhere tells nothing, unless there is nothing else.
    let label = label(if differing.is_empty() { &settings } else { &differing });
    let experiment = Experiment::from_table(table, &folder)
        .map_err(|source| SweepError::Cell { label: label.clone(), source: source.into() })?;
    let name: String = experiment.name.chars().take(NAME_MAX).map(folder_character).collect();
    let digest = experiment.digest().to_string();
    let folder = format!("{name}-{}", &digest[..12]);
    Ok(Cell { label, settings, experiment, folder })
}

fn folder_character(character: char) -> char {
    match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '=' => character,
        _ => '_',
    }
}

/// The settings in words: the variant's name, and the last name of each key with its value.
fn label(settings: &[(String, Value)]) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let word = |(key, value): &(String, Value)| match key.as_str() {
        "variant" => text(value),
        // Two keys with one last name are told apart by all of it.
        _ if settings.iter().filter(|(other, _)| last(other) == last(key)).count() > 1 => {
            format!("{key}={}", text(value))
        }
        _ => format!("{}={}", last(key), text(value)),
    };
    let words: Vec<String> = settings.iter().map(word).collect();
    if words.is_empty() { "base".to_owned() } else { words.join(", ") }
}

/// A value in words; a table with one name is called by it.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Table(table) => {
            let words = table.iter().map(|(key, value)| match value {
                Value::Table(inner) if inner.is_empty() => key.clone(),
                Value::Table(_) => format!("{key}({})", text(value)),
                _ => format!("{key}={}", text(value)),
            });
            words.collect::<Vec<_>>().join(" ")
        }
        Value::Array(values) => {
            let words: Vec<String> = values.iter().map(text).collect();
            format!("[{}]", words.join(" "))
        }
        other => other.to_string(),
    }
}

/// Sets the value at a key with dots; tables on the way are made if there are none.
fn set(table: &mut Table, key: &str, value: Value) -> Result<(), SweepError> {
    let wrong = |part: &str, problem| SweepError::Path {
        key: key.to_owned(),
        part: part.to_owned(),
        problem,
    };
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().expect("splitting gives at least one part");
    let mut at = table;
    for part in parts {
        let name = match part {
            "*" if at.len() == 1 => at.keys().next().cloned().expect("one key"),
            "*" => return Err(wrong(part, "needs exactly one key there; write its name")),
            "" => return Err(wrong(part, "is an empty name")),
            part => part.to_owned(),
        };
        let next = at.entry(name).or_insert_with(|| Value::Table(Table::new()));
        at = next.as_table_mut().ok_or_else(|| {
            wrong(
                part,
                "is no table; give the whole value, such as [{ dirichlet = { alpha = 1.0 } }]",
            )
        })?;
    }
    if last.is_empty() || last == "*" {
        return Err(wrong(last, "is no name of a value"));
    }
    // Whole numbers are fine where the file has a fraction.
    let value = match (at.get(last), value) {
        (Some(Value::Float(_)), Value::Integer(whole)) => Value::Float(whole as f64),
        (_, value) => value,
    };
    at.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const BASE: &str = r#"
        name = "base"
        rounds = 2
        tenants = 10
        dataset = { synthetic = { examples = 100, features = 4, classes = 2 } }
        model = { mlp = { inputs = 4, classes = 2 } }
        training = { epochs = { batch_size = 5, client_learning_rate = 0.1 } }
        [cohort]
        size = 5
        [privacy.local]
        unit = "tenant"
        clipping_norm = 1.0
        epsilon = 8.0
        delta = 1e-5
    "#;

    fn sweep() -> Sweep {
        Sweep {
            name: "test".to_owned(),
            base: toml::from_str(BASE).expect("TOML"),
            base_folder: PathBuf::new(),
            folder: PathBuf::new(),
            variants: Vec::new(),
            axes: Vec::new(),
        }
    }

    #[test]
    fn every_combination_is_a_cell_with_a_folder_of_its_own() {
        let mut sweep = sweep();
        sweep.set("privacy.*.epsilon=1, 2").expect("understood");
        sweep.set("cohort.size = 4,5,6").expect("understood");
        sweep.variants = vec![
            Variant { name: "few".to_owned(), base: None, set: Table::new() },
            Variant {
                name: "many".to_owned(),
                base: None,
                set: toml::from_str("rounds = 9").expect("TOML"),
            },
        ];
        let cells = sweep.cells().expect("valid");
        assert_eq!(cells.len(), 12);
        assert_eq!(cells[1].label, "few, epsilon=1, size=5");
        assert_eq!((cells[11].experiment.rounds, cells[11].experiment.cohort.size), (9, 6));
        let folders: std::collections::BTreeSet<&str> =
            cells.iter().map(|cell| cell.folder.as_str()).collect();
        assert_eq!(folders.len(), 12);
        assert!(cells[1].folder.starts_with("base-"), "{}", cells[1].folder);
        // A folder is named by what is in it, whatever else is in the sweep.
        sweep.set("cohort.size=6").expect("understood");
        assert_eq!(sweep.cells().expect("valid")[0].experiment, cells[2].experiment);
        assert_eq!(sweep.cells().expect("valid")[0].folder, cells[2].folder);
        assert_eq!(sweep.cells().expect("valid")[0].label, "few, epsilon=1");
    }

    #[test]
    fn values_on_the_command_line_are_numbers_names_and_tables() {
        let mut sweep = sweep();
        sweep.set("partition=iid,{ dirichlet = { alpha = 0.3 } }").expect("understood");
        let cells = sweep.cells().expect("valid");
        assert_eq!(cells[0].label, "partition=iid");
        assert_eq!(cells[1].label, "partition=dirichlet(alpha=0.3)");
        sweep.set("partition=iid").expect("replaces");
        sweep.set("server_optimizer={adam={server_learning_rate=0.1}}").expect("understood");
        assert_eq!(sweep.cells().expect("valid").len(), 1);
    }

    #[test]
    fn what_cannot_work_is_named_before_anything_runs() {
        let message = |settings: &[&str]| {
            let mut sweep = sweep();
            let result = settings.iter().try_for_each(|setting| sweep.set(setting));
            let error = result.and_then(|()| sweep.cells()).expect_err("wrong");
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error} {}", cause.unwrap_or_default())
        };
        for (settings, expected) in [
            (&["cohort.size"][..], "KEY=VALUE"),
            (&["cohort.size="], "KEY=VALUE"),
            (&["cohort.size=5,5"], "the same experiment"),
            (&["cohort.sice=5"], "did you mean `size`?"),
            (&["cohort.size=5,0"], "the cell `size=0`"),
            (&["rounds.x=1"], "`rounds` is no table"),
            (&["*.size=1"], "exactly one key"),
            (&["cohort.size=[]"], "size"),
        ] {
            let text = message(settings);
            assert!(text.contains(expected), "{settings:?}: {text}");
        }
        let mut empty = sweep();
        empty.axes.push(Axis { key: "rounds".to_owned(), values: vec![] });
        assert!(matches!(empty.cells(), Err(SweepError::NoValues { .. })));
    }
}

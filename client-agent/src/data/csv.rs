//! Tables: every column's bounds or categories are configuration, so reading measures nothing.

use std::{collections::HashMap, path::Path};

use csv::{ReaderBuilder, StringRecord, Trim};

use super::{
    CsvColumn, CsvColumnKind, CsvSource, DataError, Dataset, error::printable, idx::read_maybe_gzip,
};

/// A column with its position in the file and its categories indexed.
struct Column<'a> {
    config: &'a CsvColumn,
    position: usize,
    categories: HashMap<&'a str, usize>,
}

pub(super) fn load(source: &CsvSource, examples_max: usize) -> Result<Dataset, DataError> {
    let bytes = read_maybe_gzip(&source.path)?;
    let mut reader = ReaderBuilder::new()
        .has_headers(source.has_header)
        .flexible(true)
        .trim(Trim::All)
        .from_reader(bytes.as_slice());
    let first = reader.headers().map_err(|error| row_error(&source.path, error))?.clone();
    let names: Vec<String> = if source.has_header {
        first.iter().map(str::to_owned).collect()
    } else {
        (1..=first.len()).map(|position| position.to_string()).collect()
    };
    let mut table = Table::new(source, &names)?;
    for record in reader.records() {
        if table.len() == examples_max {
            break;
        }
        let record = record.map_err(|error| row_error(&source.path, error))?;
        table.push(record.position().map_or(0, csv::Position::line), &record)?;
    }
    table.finish()
}

/// Records made of the rows of a table.
pub(super) struct Table<'a> {
    source: &'a CsvSource,
    width: usize,
    label: usize,
    columns: Vec<Column<'a>>,
    classes: HashMap<&'a str, u32>,
    features: Vec<f32>,
    labels: Vec<u32>,
}

impl<'a> Table<'a> {
    /// A table with these columns, in the order of its rows' values.
    pub(super) fn new(source: &'a CsvSource, names: &[String]) -> Result<Self, DataError> {
        validate(source)?;
        Ok(Self {
            source,
            width: names.len(),
            label: position(source, names, &source.label)?,
            columns: columns(source, names)?,
            classes: source.labels.iter().map(String::as_str).zip(0..).collect(),
            features: Vec::new(),
            labels: Vec::new(),
        })
    }

    /// Number of records so far.
    pub(super) const fn len(&self) -> usize {
        self.labels.len()
    }

    /// Takes a row.
    ///
    /// - `row`: its number, for messages
    pub(super) fn push(&mut self, row: u64, record: &StringRecord) -> Result<(), DataError> {
        let source = self.source;
        if record.len() != self.width {
            return Err(DataError::Ragged {
                path: source.path.clone(),
                row,
                found: record.len(),
                expected: self.width,
            });
        }
        let label = &record[self.label];
        let class = self
            .classes
            .get(label)
            .ok_or_else(|| unknown(source, row, &source.label, label, &source.labels))?;
        self.labels.push(*class);
        for column in &self.columns {
            push_features(source, column, row, record, &mut self.features)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Dataset, DataError> {
        if self.labels.is_empty() {
            return Err(DataError::Empty { path: self.source.path.clone() });
        }
        let num_features = self.features.len() / self.labels.len();
        let num_classes = self.source.labels.len() as u32;
        Ok(Dataset::from_floats(self.features, num_features, self.labels, num_classes))
    }
}

fn push_features(
    source: &CsvSource,
    column: &Column<'_>,
    row: u64,
    record: &StringRecord,
    features: &mut Vec<f32>,
) -> Result<(), DataError> {
    let value = &record[column.position];
    match &column.config.kind {
        CsvColumnKind::Numeric { min, max } => {
            let number = value.parse::<f64>().ok().filter(|number| number.is_finite());
            let number = number.ok_or_else(|| DataError::NotANumber {
                path: source.path.clone(),
                row,
                column: column.config.name.clone(),
                value: printable(value),
            })?;
            features.push(((number.clamp(*min, *max) - min) / (max - min)) as f32);
        }
        CsvColumnKind::Categorical { categories } => {
            let category = column
                .categories
                .get(value)
                .ok_or_else(|| unknown(source, row, &column.config.name, value, categories))?;
            let start = features.len();
            features.resize(start + categories.len(), 0.0);
            features[start + category] = 1.0;
        }
    }
    Ok(())
}

fn validate(source: &CsvSource) -> Result<(), DataError> {
    let config = |field: String, value: String, range| DataError::Config { field, value, range };
    if source.labels.len() < 2 {
        let value = format!("{:?}", source.labels);
        return Err(config("labels".to_owned(), value, "a list of at least two values"));
    }
    if source.columns.is_empty() {
        return Err(config("columns".to_owned(), "empty".to_owned(), "a list of features"));
    }
    for column in &source.columns {
        let field = format!("columns.{}", column.name);
        match &column.kind {
            CsvColumnKind::Numeric { min, max } => {
                if !(min.is_finite() && max.is_finite() && min < max) {
                    let value = format!("min {min}, max {max}");
                    return Err(config(field, value, "finite with min below max"));
                }
            }
            CsvColumnKind::Categorical { categories } => {
                if categories.is_empty() {
                    return Err(config(field, "empty".to_owned(), "a list of categories"));
                }
            }
        }
    }
    Ok(())
}

fn columns<'a>(source: &'a CsvSource, names: &[String]) -> Result<Vec<Column<'a>>, DataError> {
    let column = |config: &'a CsvColumn| {
        let categories = match &config.kind {
            CsvColumnKind::Categorical { categories } => {
                categories.iter().map(String::as_str).zip(0..).collect()
            }
            CsvColumnKind::Numeric { .. } => HashMap::new(),
        };
        Ok(Column { config, position: position(source, names, &config.name)?, categories })
    };
    source.columns.iter().map(column).collect()
}

fn position(source: &CsvSource, names: &[String], column: &str) -> Result<usize, DataError> {
    names.iter().position(|name| name == column).ok_or_else(|| DataError::MissingColumn {
        path: source.path.clone(),
        column: column.to_owned(),
        available: names.to_vec(),
    })
}

fn unknown(source: &CsvSource, row: u64, column: &str, value: &str, known: &[String]) -> DataError {
    DataError::UnknownValue {
        path: source.path.clone(),
        row,
        column: column.to_owned(),
        value: printable(value),
        known: known.to_vec(),
    }
}

fn row_error(path: &Path, source: csv::Error) -> DataError {
    let row = source.position().map_or(1, csv::Position::line);
    DataError::Row { path: path.to_owned(), row, source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load_text(text: &[u8], has_header: bool) -> Result<Dataset, DataError> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("people.csv");
        std::fs::write(&path, text).expect("write");
        let name = |header: &str, position: &str| {
            if has_header { header.to_owned() } else { position.to_owned() }
        };
        let source = CsvSource {
            path,
            has_header,
            label: name("income", "3"),
            labels: vec!["low".to_owned(), "high".to_owned()],
            columns: vec![
                CsvColumn {
                    name: name("age", "1"),
                    kind: CsvColumnKind::Numeric { min: 20.0, max: 40.0 },
                },
                CsvColumn {
                    name: name("job", "2"),
                    kind: CsvColumnKind::Categorical {
                        categories: vec!["cook".to_owned(), "smith".to_owned()],
                    },
                },
            ],
        };
        load(&source, 100)
    }

    #[test]
    fn numbers_are_scaled_and_clamped_and_categories_are_one_hot() {
        let text = b"age, job, income\n30, smith, high\n99, cook, low\n";
        let data = load_text(text, true).expect("valid");
        let (x, y) = data.batch(&[0, 1]).expect("in range");
        assert_eq!(x.to_vec2::<f32>().expect("f32"), [[0.5, 0.0, 1.0], [1.0, 1.0, 0.0]]);
        assert_eq!(y.to_vec1::<u32>().expect("u32"), [1, 0]);
        let text = b"30,smith,high\n";
        assert_eq!(load_text(text, false).expect("columns by position").len(), 1);
    }

    #[test]
    fn bad_tables_name_row_column_and_remedy() {
        let cases: [(&[u8], &str); 8] = [
            (b"age,job,income\n30,smith\n", "row 2: 2 values where 3"),
            (b"age,job,income\n30,smith,high\nold,cook,low\n", "row 3, column \"age\": \"old\""),
            (b"age,job,income\nnan,cook,low\n", "\"nan\" is not a number"),
            (b"age,job,income\n30,baker,low\n", "\"baker\" is not one of [\"cook\", \"smith\"]"),
            (b"age,job,income\n30,cook,rich\n", "column \"income\": \"rich\""),
            (b"age,work,income\n30,cook,low\n", "no column \"job\""),
            (b"age,job,income\n30,\xff\xfe,low\n", "row 2: not readable"),
            (b"age,job,income\n", "no records"),
        ];
        for (text, wanted) in cases {
            let error = load_text(text, true).map(|_| ()).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error} lacks {wanted}");
            assert!(error.contains("people.csv"), "{error}");
        }
        assert!(load_text(b"", false).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_table_or_an_error(text in "(age|job|income|30|cook|low|,|\n|\"| |.){0,30}") {
            for has_header in [true, false] {
                if let Ok(data) = load_text(text.as_bytes(), has_header) {
                    prop_assert!(!data.is_empty() && data.num_features() == 3);
                }
            }
        }
    }
}

//! Parquet tables: the same columns as in tables of comma-separated values.

use std::fs::File;

use ::parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
};
use csv::StringRecord;

use super::{DataError, Dataset, ParquetSource, csv::Table};

pub(super) fn load(source: &ParquetSource, examples_max: usize) -> Result<Dataset, DataError> {
    let path = &source.path;
    let failed = |error| DataError::Parquet { path: path.clone(), source: error };
    let file =
        File::open(path).map_err(|error| DataError::Read { path: path.clone(), source: error })?;
    let reader = SerializedFileReader::new(file).map_err(failed)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let names: Vec<String> =
        schema.columns().iter().map(|column| column.name().to_owned()).collect();
    let table = source.table();
    let mut records = Table::new(&table, &names)?;
    for (row, number) in reader.get_row_iter(None).map_err(failed)?.zip(1_u64..) {
        if records.len() == examples_max {
            break;
        }
        let row = row.map_err(failed)?;
        let mut values = StringRecord::new();
        for (_, field) in row.get_column_iter() {
            values.push_field(&text(field));
        }
        records.push(number, &values)?;
    }
    records.finish()
}

/// A value as a table of text would have it.
fn text(field: &Field) -> String {
    match field {
        Field::Null => String::new(),
        Field::Str(text) => text.trim().to_owned(),
        Field::Float(value) => value.to_string(),
        Field::Double(value) => value.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::parquet::{
        data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type},
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };

    use super::*;

    /// Three people with age, work and income.
    fn write(path: &std::path::Path, work: [&str; 3]) {
        let message = "message people { required int32 age; required double hours; \
                       required binary work (UTF8); required binary income (UTF8); }";
        let schema = Arc::new(parse_message_type(message).expect("valid"));
        let file = File::create(path).expect("creates");
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(file, schema, properties).expect("opens");
        let mut group = writer.next_row_group().expect("begins");
        let texts = |values: [&str; 3]| values.map(ByteArray::from);
        let mut column = group.next_column().expect("writes").expect("age");
        column.typed::<Int32Type>().write_batch(&[20, 40, 60], None, None).expect("writes");
        column.close().expect("closes");
        let mut column = group.next_column().expect("writes").expect("hours");
        column.typed::<DoubleType>().write_batch(&[0.5, 8.0, 99.0], None, None).expect("writes");
        column.close().expect("closes");
        for values in [texts(work), texts(["low", "high", "low"])] {
            let mut column = group.next_column().expect("writes").expect("text");
            column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("writes");
            column.close().expect("closes");
        }
        group.close().expect("closes");
        writer.close().expect("closes");
    }

    fn load_file(work: [&str; 3], more: &str) -> Result<Dataset, DataError> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("people.parquet");
        write(&path, work);
        let text = format!(
            "path = {path:?}\nlabel = \"income\"\nlabels = [\"low\", \"high\"]\n\
             columns = [{{ name = \"age\", kind = {{ numeric = {{ min = 20, max = 60 }} }} }},\n\
             {{ name = \"hours\", kind = {{ numeric = {{ min = 0, max = 10 }} }} }},\n\
             {{ name = \"work\", kind = {{ categorical = {{ categories = [\"a\", \"b\"] }} }} }}{more}]"
        );
        load(&toml::from_str(&text).expect("valid"), usize::MAX)
    }

    #[test]
    fn columns_are_those_of_a_text_table() {
        let data = load_file(["a", "b", "a"], "").expect("valid");
        assert_eq!((data.len(), data.labels()), (3, &[0, 1, 0][..]));
        assert_eq!(data.features(0), [0.0, 0.05, 1.0, 0.0]);
        assert_eq!(data.features(2), [1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let error = load_file(["a", "c", "a"], "").map(|_| ()).expect_err("category").to_string();
        assert!(error.contains("row 2") && error.contains("\"c\""), "{error}");
        let more = ", { name = \"height\", kind = { numeric = { min = 0, max = 1 } } }";
        let error = load_file(["a", "b", "a"], more).map(|_| ()).expect_err("column").to_string();
        assert!(error.contains("height") && error.contains("hours"), "{error}");
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("people.parquet");
        std::fs::write(&path, "PAR1 and then nothing").expect("writes");
        let text = format!("path = {path:?}\nlabel = \"a\"\nlabels = [\"b\", \"c\"]\ncolumns = []");
        let error =
            load(&toml::from_str(&text).expect("valid"), 9).map(|_| ()).expect_err("broken");
        assert!(matches!(error, DataError::Parquet { .. }), "{error}");
    }
}

//! Splits made elsewhere: index files of NumPy and CSV.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use npyz::NpyFile;

use super::{PartitionError, check_size};

/// The most tenants that an index file may name.
const TENANTS_MAX: i64 = 10_000_000;

/// Reads who owns which example from a file.
///
/// - `*.npy`, one dimension: entry i is the tenant of example i; negative: nobody's
/// - `*.npy`, two dimensions: row i holds the indices of tenant i's examples; negative: padding
/// - `*.csv` with the header `example,tenant`: one line an owned example
///
/// Integers of any width. Tenants are numbered from 0 without gaps; an example has one owner at
/// most.
///
/// - `examples`: size of the dataset
///
/// # Errors
/// [`PartitionError::File`] naming the file and what would work.
pub fn read_owners(path: &Path, examples: usize) -> Result<Vec<Vec<u32>>, PartitionError> {
    check_size(1, examples)?;
    let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
    let pairs = match extension.as_deref().and_then(|extension| extension.to_str()) {
        Some("npy") => read_npy(path)?,
        Some("csv") => read_csv(path)?,
        _ => return Err(wrong(path, "the name must end in .npy or .csv")),
    };
    let mut shares: Vec<Vec<u32>> = Vec::new();
    let mut owned = vec![false; examples];
    for (example, tenant) in pairs {
        let index = usize::try_from(example).ok().filter(|&index| index < examples);
        let Some(index) = index else {
            let problem = format!("example {example} does not exist; there are {examples}, from 0");
            return Err(wrong(path, problem));
        };
        if !(0..TENANTS_MAX).contains(&tenant) {
            let problem = format!("tenant {tenant} is out of range; number them from 0");
            return Err(wrong(path, problem));
        }
        if std::mem::replace(&mut owned[index], true) {
            return Err(wrong(path, format!("example {index} has two owners")));
        }
        let tenant = tenant as usize;
        if shares.len() <= tenant {
            shares.resize(tenant + 1, Vec::new());
        }
        shares[tenant].push(index as u32);
    }
    if let Some(tenant) = shares.iter().position(Vec::is_empty) {
        let problem = format!("tenant {tenant} has no example; number tenants without gaps");
        return Err(wrong(path, problem));
    }
    if shares.is_empty() {
        return Err(wrong(path, "nobody owns an example"));
    }
    shares.iter_mut().for_each(|share| share.sort_unstable());
    Ok(shares)
}

/// Pairs of example and tenant.
fn read_npy(path: &Path) -> Result<Vec<(i64, i64)>, PartitionError> {
    let failed = |error: std::io::Error| wrong(path, format!("cannot read: {error}"));
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let array = NpyFile::new(file).map_err(failed)?;
    let shape = array.shape().to_vec();
    if array.order() != npyz::Order::C && shape.len() > 1 {
        return Err(wrong(path, "the array is in Fortran order; save np.ascontiguousarray(a)"));
    }
    let values = integers(path, array)?;
    let pairs = |width: usize, by_row: bool| {
        let numbered = values.iter().copied().enumerate();
        let kept = numbered.filter(|&(_, value)| value >= 0);
        kept.map(move |(position, value)| match by_row {
            true => (value, (position / width) as i64),
            false => (position as i64, value),
        })
    };
    match shape[..] {
        [_] => Ok(pairs(1, false).collect()),
        [_, width] => Ok(pairs((width as usize).max(1), true).collect()),
        _ => {
            Err(wrong(path, format!("the shape is {shape:?}; it must have one or two dimensions")))
        }
    }
}

fn integers(path: &Path, array: NpyFile<BufReader<File>>) -> Result<Vec<i64>, PartitionError> {
    let failed = |error: std::io::Error| wrong(path, format!("cannot read: {error}"));
    macro_rules! read_as {
        ($array:expr, $($type:ty),*) => {{
            let array = $array;
            $(let array = match array.try_data::<$type>() {
                Ok(data) => {
                    return data
                        .map(|value| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX)))
                        .collect::<Result<_, _>>()
                        .map_err(failed);
                }
                Err(array) => array,
            };)*
            array
        }};
    }
    let array = read_as!(array, i64, i32, i16, i8, u64, u32, u16, u8);
    let found = array.dtype().descr();
    Err(wrong(path, format!("the elements are {found}; they must be integers")))
}

fn read_csv(path: &Path) -> Result<Vec<(i64, i64)>, PartitionError> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        example: i64,
        tenant: i64,
    }
    let failed = |error: std::io::Error| wrong(path, format!("cannot read: {error}"));
    let file = File::open(path).map_err(failed)?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
    let lines = reader.deserialize::<Line>();
    lines
        .map(|line| match line {
            Ok(Line { example, tenant }) => Ok((example, tenant)),
            Err(error) => {
                Err(wrong(path, format!("{error}; the columns are `example,tenant`, both numbers")))
            }
        })
        .collect()
}

fn wrong(path: &Path, problem: impl Into<String>) -> PartitionError {
    PartitionError::File { path: PathBuf::from(path), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use npyz::WriterBuilder;

    use super::*;

    fn npy(folder: &Path, shape: &[u64], values: &[i32]) -> PathBuf {
        let path = folder.join("owners.npy");
        let file = File::create(&path).unwrap();
        let mut writer =
            npyz::WriteOptions::new().default_dtype().shape(shape).writer(file).begin_nd().unwrap();
        writer.extend(values).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn arrays_of_owners_and_of_indices_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let owners = npy(folder.path(), &[5], &[1, 0, -1, 1, 0]);
        assert_eq!(read_owners(&owners, 5).unwrap(), [vec![1, 4], vec![0, 3]]);
        let indices = npy(folder.path(), &[2, 3], &[4, 1, -1, 0, 2, 3]);
        assert_eq!(read_owners(&indices, 5).unwrap(), [vec![1, 4], vec![0, 2, 3]]);
    }

    #[test]
    fn tables_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owners.csv");
        std::fs::write(&path, "tenant,example\n1,0\n 0, 2\n").unwrap();
        assert_eq!(read_owners(&path, 3).unwrap(), [vec![2], vec![0]]);
    }

    #[test]
    fn wrong_files_are_named_with_what_would_work() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| read_owners(path, 4).unwrap_err().to_string();
        let array = |shape: &[u64], values: &[i32]| message(&npy(folder.path(), shape, values));
        assert!(array(&[2], &[0, 2]).contains("tenant 1 has no example"));
        assert!(array(&[1, 2], &[0, 4]).contains("example 4 does not exist"));
        assert!(array(&[2, 1], &[3, 3]).contains("two owners"));
        assert!(array(&[1], &[-1]).contains("nobody"));
        assert!(array(&[1, 1, 1], &[0]).contains("one or two dimensions"));
        let table = folder.path().join("owners.csv");
        std::fs::write(&table, "example,tenant\n0,ash\n").unwrap();
        assert!(message(&table).contains("both numbers"));
        std::fs::write(&table, "example,tenant\n0,99999999999\n").unwrap();
        assert!(message(&table).contains("out of range"));
        std::fs::write(folder.path().join("bad.npy"), "no array").unwrap();
        assert!(message(&folder.path().join("bad.npy")).contains("cannot read"));
        assert!(message(Path::new("owners.txt")).contains(".npy or .csv"));
        assert!(message(Path::new("/nonexistent/owners.csv")).contains("cannot read"));
    }
}

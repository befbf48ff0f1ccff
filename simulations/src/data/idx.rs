//! Gzip-compressed IDX files of unsigned bytes, the format of the MNIST family.
//!
//! Layout: two zero bytes, the element type (0x08 = unsigned byte), the number of dimensions, each
//! dimension as a big-endian `u32`, then the elements row by row.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use thiserror::Error;

const UNSIGNED_BYTE: u8 = 0x08;
/// More elements than any dataset of this family has; a header beyond it is damage.
const ELEMENTS_MAX: u64 = 1 << 31;

/// An array of bytes with its dimensions, outermost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdxArray {
    shape: Vec<u32>,
    values: Vec<u8>,
}

/// Says what is wrong with an IDX file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdxError {
    /// The file cannot be read, is no gzip file, or ends too early.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The first bytes are not those of an IDX file of bytes.
    #[error(
        "{path} is no IDX file of unsigned bytes: it starts with {magic:02x?}, not [00, 00, 08, dimensions]"
    )]
    Magic {
        /// The file.
        path: PathBuf,
        /// Its first four bytes.
        magic: [u8; 4],
    },
    /// The header promises more than can be right.
    #[error(
        "{path} claims the dimensions {shape:?}; at most {ELEMENTS_MAX} elements are supported"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its dimensions.
        shape: Vec<u32>,
    },
    /// The file goes on after the last element.
    #[error("{path} has bytes after the last element of its dimensions {shape:?}")]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Its dimensions.
        shape: Vec<u32>,
    },
}

impl IdxArray {
    /// Pairs bytes with their dimensions.
    ///
    /// # Panics
    /// If the product of `shape` is not the number of values: the caller's bug.
    #[must_use]
    pub fn new(shape: Vec<u32>, values: Vec<u8>) -> Self {
        let elements: u64 = shape.iter().map(|&size| u64::from(size)).product();
        assert_eq!(elements, values.len() as u64, "shape {shape:?} must match the values");
        Self { shape, values }
    }

    /// The dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[u32] {
        &self.shape
    }

    /// All elements, row by row.
    #[must_use]
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// The elements themselves, row by row.
    #[must_use]
    pub fn into_values(self) -> Vec<u8> {
        self.values
    }

    /// A copy with only the given entries of the outermost dimension, in the given order.
    ///
    /// # Panics
    /// If an index is not below the outermost dimension: the caller's bug.
    #[must_use]
    pub fn select(&self, indices: &[u32]) -> Self {
        let width: usize = self.shape[1..].iter().map(|&size| size as usize).product();
        let mut values = Vec::with_capacity(indices.len() * width);
        for &index in indices {
            let start = index as usize * width;
            values.extend_from_slice(&self.values[start..start + width]);
        }
        let mut shape = self.shape.clone();
        shape[0] = u32::try_from(indices.len()).expect("a selection of u32 indices");
        Self { shape, values }
    }

    /// Reads a whole `.gz` file.
    ///
    /// # Errors
    /// [`IdxError`] naming the file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, IdxError> {
        let failed = |source| IdxError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut decoder = GzDecoder::new(BufReader::new(file));
        let mut magic = [0; 4];
        decoder.read_exact(&mut magic).map_err(failed)?;
        if magic[..3] != [0, 0, UNSIGNED_BYTE] || magic[3] == 0 {
            return Err(IdxError::Magic { path: path.to_owned(), magic });
        }
        let mut shape = Vec::new();
        for _ in 0..magic[3] {
            let mut size = [0; 4];
            decoder.read_exact(&mut size).map_err(failed)?;
            shape.push(u32::from_be_bytes(size));
        }
        let elements = shape
            .iter()
            .try_fold(1_u64, |product, &size| product.checked_mul(size.into()))
            .filter(|&elements| elements <= ELEMENTS_MAX);
        let Some(elements) = elements else {
            return Err(IdxError::TooLarge { path: path.to_owned(), shape });
        };
        // Grown while reading, so that a false header cannot reserve memory.
        let mut values = Vec::new();
        (&mut decoder).take(elements).read_to_end(&mut values).map_err(failed)?;
        if values.len() as u64 != elements {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        if decoder.read(&mut [0]).map_err(failed)? != 0 {
            return Err(IdxError::TrailingBytes { path: path.to_owned(), shape });
        }
        Ok(Self { shape, values })
    }

    /// Writes a `.gz` file; fast compression, for files that live as long as a demo.
    ///
    /// # Errors
    /// [`IdxError::Write`] naming the file.
    pub fn write(&self, path: &Path) -> Result<(), IdxError> {
        let failed = |source| IdxError::Write { path: path.to_owned(), source };
        let file = File::create(path).map_err(failed)?;
        let mut encoder = GzEncoder::new(BufWriter::new(file), Compression::fast());
        encoder.write_all(&self.header()).map_err(failed)?;
        encoder.write_all(&self.values).map_err(failed)?;
        encoder.finish().and_then(|mut writer| writer.flush()).map_err(failed)
    }

    /// The bytes before the elements.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let dimensions = u8::try_from(self.shape.len()).expect("a handful of dimensions");
        let mut header = vec![0, 0, UNSIGNED_BYTE, dimensions];
        header.extend(self.shape.iter().flat_map(|size| size.to_be_bytes()));
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("array.gz");
        let mut encoder = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap();
        (folder, path)
    }

    #[test]
    fn arrays_round_trip_and_rows_are_selected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.gz");
        let array = IdxArray::new(vec![3, 2, 2], (0..12).collect());
        array.write(&path).unwrap();
        assert_eq!(IdxArray::read(&path).unwrap(), array);
        let rows = array.select(&[2, 0]);
        assert_eq!(rows.shape(), [2, 2, 2]);
        assert_eq!(rows.values(), [8, 9, 10, 11, 0, 1, 2, 3]);
    }

    #[test]
    fn damage_is_named_with_the_file() {
        let cases: [(&[u8], &str); 5] = [
            (b"PNG!", "is no IDX file"),
            (&[0, 0, 8, 1, 0, 0, 0, 3, 1, 2], "cannot read"),
            (&[0, 0, 8, 1, 0, 0, 0, 1, 1, 2], "bytes after the last element"),
            (&[0, 0, 8, 2, 255, 255, 255, 255, 255, 255, 255, 255], "claims the dimensions"),
            (&[0, 0, 8], "cannot read"),
        ];
        for (bytes, expected) in cases {
            let (_folder, path) = written(bytes);
            let error = IdxArray::read(&path).expect_err(expected).to_string();
            assert!(error.contains(expected) && error.contains("array.gz"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_compressed_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plain");
        std::fs::write(&path, [0, 0, 8, 1, 0, 0, 0, 0]).unwrap();
        assert!(matches!(IdxArray::read(&path), Err(IdxError::Read { .. })));
    }
}

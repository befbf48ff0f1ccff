//! Fashion-MNIST: 70,000 grey images of 28×28 pixels in 10 classes of clothing.
//!
//! Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747; packaged by Debian as
//! `dataset-fashion-mnist`.

use std::path::{Path, PathBuf};

use thiserror::Error;
use tributary_protocol::id::Digest;

use super::idx::{IdxArray, IdxError};

/// Number of classes.
pub const CLASSES: usize = 10;
/// Height and width of an image, in pixels.
pub const IMAGE_SIDE: u32 = 28;
/// Number of training examples.
pub const TRAIN_EXAMPLES: u32 = 60_000;
/// Number of public test examples.
pub const TEST_EXAMPLES: u32 = 10_000;

/// One of the four files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    name: &'static str,
    examples: u32,
    images: bool,
    /// BLAKE3 of the elements without the IDX header, so that recompressed copies are accepted.
    digest: &'static str,
}

const TRAIN_IMAGES: Part = Part {
    name: "train-images-idx3-ubyte.gz",
    examples: TRAIN_EXAMPLES,
    images: true,
    digest: "df49e97997a0d965880777587234ea51c7385b6d5e6fa2849763fa90aadbef77",
};
const TRAIN_LABELS: Part = Part {
    name: "train-labels-idx1-ubyte.gz",
    examples: TRAIN_EXAMPLES,
    images: false,
    digest: "32fcc5c992292ad2bdad03c701be466e8fba20b38d37a4f59514aba5d872dc07",
};
const TEST_IMAGES: Part = Part {
    name: "t10k-images-idx3-ubyte.gz",
    examples: TEST_EXAMPLES,
    images: true,
    digest: "8ea90ef2b1691ab3333c7c5badcb667307e2f5c09cb7c78d0f3d3927ef580f02",
};
const TEST_LABELS: Part = Part {
    name: "t10k-labels-idx1-ubyte.gz",
    examples: TEST_EXAMPLES,
    images: false,
    digest: "46effff67f65a1a2ba684568341f9a34c0e0c344fee101842cc811422cf19f16",
};

/// The names of the four files.
pub const FILE_NAMES: [&str; 4] =
    [TRAIN_IMAGES.name, TRAIN_LABELS.name, TEST_IMAGES.name, TEST_LABELS.name];

/// Says why a folder does not hold Fashion-MNIST.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A file is not readable as IDX.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// A file holds an array of another size.
    #[error("{path} has the dimensions {found:?}; Fashion-MNIST has {expected:?} there")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its dimensions.
        found: Vec<u32>,
        /// The right dimensions.
        expected: Vec<u32>,
    },
    /// A file holds other elements.
    #[error(
        "{path} is damaged or another dataset: its content has the BLAKE3 checksum {found}, not {expected}"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Checksum of its elements.
        found: Digest,
        /// The right checksum.
        expected: &'static str,
    },
}

/// The 60,000 training examples.
#[derive(Debug, Clone)]
pub struct TrainingSet {
    /// Pixels, `[examples, 28, 28]`.
    pub images: IdxArray,
    /// Classes, `[examples]`.
    pub labels: IdxArray,
}

/// The images and labels of all examples.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Pixels and classes of the 60,000 training examples.
    pub train: (IdxArray, IdxArray),
    /// Pixels and classes of the 10,000 test examples.
    pub test: (IdxArray, IdxArray),
}

/// A folder with the four files, as the Debian package lays them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FashionMnist {
    folder: PathBuf,
}

impl FashionMnist {
    /// Reads all four files once and accepts them only if every byte is right.
    ///
    /// # Errors
    /// [`DatasetError`] naming the first file that is missing, damaged or of another dataset.
    pub fn verify(folder: &Path) -> Result<Self, DatasetError> {
        for part in [TEST_LABELS, TRAIN_LABELS, TEST_IMAGES, TRAIN_IMAGES] {
            part.read(folder)?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Reads all four files once, each checked as by [`Self::verify`]; two at a time.
    ///
    /// # Errors
    /// [`DatasetError`] naming the first file that is missing, damaged or of another dataset.
    pub fn load(folder: &Path) -> Result<Contents, DatasetError> {
        let (images, rest) = std::thread::scope(|scope| {
            let images = scope.spawn(|| TRAIN_IMAGES.read(folder));
            let rest = (|| -> Result<_, DatasetError> {
                let labels = TRAIN_LABELS.read(folder)?;
                Ok((labels, (TEST_IMAGES.read(folder)?, TEST_LABELS.read(folder)?)))
            })();
            (images.join().expect("reading does not panic"), rest)
        });
        let (labels, test) = rest?;
        Ok(Contents { train: (images?, labels), test })
    }

    /// The folder that holds the files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of the test images.
    #[must_use]
    pub fn test_images(&self) -> PathBuf {
        self.folder.join(TEST_IMAGES.name)
    }

    /// The file of the test labels.
    #[must_use]
    pub fn test_labels(&self) -> PathBuf {
        self.folder.join(TEST_LABELS.name)
    }

    /// Loads the training examples.
    ///
    /// # Errors
    /// [`DatasetError`] if the files changed since they were verified.
    pub fn training_set(&self) -> Result<TrainingSet, DatasetError> {
        Ok(TrainingSet {
            images: TRAIN_IMAGES.read(&self.folder)?,
            labels: TRAIN_LABELS.read(&self.folder)?,
        })
    }
}

impl Part {
    fn read(&self, folder: &Path) -> Result<IdxArray, DatasetError> {
        let path = folder.join(self.name);
        let array = IdxArray::read(&path)?;
        let expected = self.shape();
        if array.shape() != expected {
            return Err(DatasetError::Shape { path, found: array.shape().to_vec(), expected });
        }
        let found = Digest::of(array.values());
        if found.to_string() != self.digest {
            return Err(DatasetError::Checksum { path, found, expected: self.digest });
        }
        Ok(array)
    }

    fn shape(&self) -> Vec<u32> {
        if self.images { vec![self.examples, IMAGE_SIDE, IMAGE_SIDE] } else { vec![self.examples] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_with(shape: Vec<u32>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let elements = shape.iter().product::<u32>() as usize;
        let labels = IdxArray::new(shape, vec![0; elements]);
        labels.write(&folder.path().join(TEST_LABELS.name)).unwrap();
        FashionMnist::verify(folder.path()).expect_err("not the dataset").to_string()
    }

    #[test]
    fn other_data_is_refused_with_the_reason() {
        assert!(error_with(vec![7]).contains("has the dimensions [7]"));
        assert!(error_with(vec![TEST_EXAMPLES]).contains("checksum"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = FashionMnist::verify(folder.path()).expect_err("empty folder").to_string();
        assert!(error.contains(TEST_LABELS.name), "{error}");
    }
}

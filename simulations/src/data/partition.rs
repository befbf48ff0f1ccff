//! Writes each tenant's share of a dataset as files of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use thiserror::Error;
use tributary_protocol::id::TenantId;

use super::{
    fashion_mnist::{CLASSES, TrainingSet},
    idx::{IdxArray, IdxError},
};
use crate::population::{DirichletPartition, PartitionError};

/// The file of a tenant's images, in the tenant's folder.
pub const IMAGES_FILE: &str = "images.gz";
/// The file of a tenant's labels, in the tenant's folder.
pub const LABELS_FILE: &str = "labels.gz";

/// Names that are short and easy to tell apart; larger populations go on with numbers.
const TENANT_NAMES: [&str; 8] = ["ash", "birch", "cedar", "elm", "hazel", "larch", "oak", "willow"];

/// Says why the shares could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The request cannot be met.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// A file cannot be written.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// A folder cannot be made.
    #[error("cannot make the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// One tenant's share, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The tenant.
    pub tenant: TenantId,
    images: IdxArray,
    labels: IdxArray,
}

/// Names the tenants of a simulated population.
#[must_use]
pub fn tenant_ids(count: usize) -> Vec<TenantId> {
    let name = |index: usize| match TENANT_NAMES.get(index) {
        Some(name) => (*name).to_owned(),
        None => format!("tenant-{}", index + 1),
    };
    (0..count).map(|index| TenantId::new(name(index)).expect("made of allowed letters")).collect()
}

/// Splits the first `examples_max` training examples over the tenants.
///
/// # Errors
/// [`PartitionError`] naming the request that cannot be met.
pub fn split(
    training: &TrainingSet,
    partition: &DirichletPartition,
    examples_max: Option<usize>,
) -> Result<Vec<Share>, PartitionError> {
    let labels = training.labels.values();
    let examples = examples_max.map_or(labels.len(), |limit| limit.min(labels.len()));
    let shares = partition.assign(&labels[..examples], CLASSES)?;
    let share = |(tenant, indices): (TenantId, Vec<u32>)| Share {
        tenant,
        images: training.images.select(&indices),
        labels: training.labels.select(&indices),
    };
    Ok(tenant_ids(partition.tenants).into_iter().zip(shares).map(share).collect())
}

impl Share {
    /// Number of examples.
    #[must_use]
    pub fn num_examples(&self) -> usize {
        self.labels.values().len()
    }

    /// Number of examples of each class.
    #[must_use]
    pub fn class_counts(&self) -> [usize; CLASSES] {
        let mut counts = [0; CLASSES];
        self.labels.values().iter().for_each(|&label| counts[usize::from(label)] += 1);
        counts
    }

    /// Writes [`IMAGES_FILE`] and [`LABELS_FILE`] into `folder`, which is made if needed.
    ///
    /// # Errors
    /// [`WriteError`] naming the file or folder.
    pub fn write(&self, folder: &Path) -> Result<(), WriteError> {
        fs::create_dir_all(folder)
            .map_err(|source| WriteError::Folder { path: folder.to_owned(), source })?;
        self.images.write(&folder.join(IMAGES_FILE))?;
        self.labels.write(&folder.join(LABELS_FILE))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training_set(examples: u32) -> TrainingSet {
        let labels: Vec<u8> = (0..examples).map(|index| (index % 10) as u8).collect();
        let pixels = labels.iter().flat_map(|&label| [label; 4]).collect();
        TrainingSet {
            images: IdxArray::new(vec![examples, 2, 2], pixels),
            labels: IdxArray::new(vec![examples], labels),
        }
    }

    #[test]
    fn shares_keep_images_and_labels_together() {
        let partition = DirichletPartition { tenants: 3, alpha: 0.3, seed: 1 };
        let shares = split(&training_set(90), &partition, Some(60)).unwrap();
        assert_eq!(shares.iter().map(Share::num_examples).sum::<usize>(), 60);
        let folder = tempfile::tempdir().unwrap();
        for share in &shares {
            let place = folder.path().join(share.tenant.as_str());
            share.write(&place).unwrap();
            let images = IdxArray::read(&place.join(IMAGES_FILE)).unwrap();
            let labels = IdxArray::read(&place.join(LABELS_FILE)).unwrap();
            for (image, &label) in images.values().chunks(4).zip(labels.values()) {
                assert_eq!(image, [label; 4]);
            }
        }
    }

    #[test]
    fn tenants_have_distinct_names() {
        let mut ids = tenant_ids(20);
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 20);
    }
}

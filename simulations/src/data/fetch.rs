//! Finds Fashion-MNIST on this machine, or brings it here without root.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use thiserror::Error;

use super::{
    debian::{self, DebianError},
    fashion_mnist::{Contents, DatasetError, FILE_NAMES, FashionMnist},
};
use crate::deadline::Stop;

const PACKAGE: &str = "dataset-fashion-mnist";
const PACKAGE_FOLDER: &str = "usr/share/datasets/fashion-mnist";

/// Where the files came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The installed Debian package.
    Package,
    /// An earlier fetch of this user.
    Cache,
    /// Downloaded just now.
    Download,
    /// Copied just now from the folder that the user named.
    Given,
}

/// A verified dataset and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The files.
    pub dataset: FashionMnist,
    /// How they were had.
    pub origin: Origin,
}

/// Says why the dataset is not here and what to do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The folder that the user named does not hold the dataset.
    #[error("{} does not hold Fashion-MNIST; it needs the files {}", path.display(), FILE_NAMES.join(", "))]
    Given {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: DatasetError,
    },
    /// Neither found nor downloaded.
    #[error(
        "Fashion-MNIST is not on this machine and could not be downloaded. Either install it:\n    \
         sudo apt-get install {PACKAGE}\nor name a folder with its four .gz files:\n    \
         tributary-sim data fetch fashion-mnist --from DIR"
    )]
    Unavailable {
        /// Why the download failed.
        #[source]
        source: DebianError,
    },
    /// The download is not what it should be.
    #[error("the package {PACKAGE} that was downloaded holds other files than expected")]
    Downloaded {
        /// What is wrong.
        #[source]
        source: DatasetError,
    },
    /// There is no place for a cache.
    #[error(
        "neither XDG_CACHE_HOME nor HOME names an absolute folder, so there is no place for a cache; set one of them"
    )]
    NoCache,
    /// The cache cannot be written.
    #[error("cannot use {} as cache; set XDG_CACHE_HOME to a folder that you may write", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The places that are searched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locations {
    /// Where the installed package keeps its files.
    pub package: PathBuf,
    /// Where this user's fetched copy lies; `None` if the environment names no cache.
    pub cache: Option<PathBuf>,
}

impl Locations {
    /// The package's folder and the cache that the environment names.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let absolute =
            |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Self {
            package: Path::new("/").join(PACKAGE_FOLDER),
            cache: cache.map(|cache| cache.join("tributary/datasets/fashion-mnist")),
        }
    }

    /// The dataset if it is already on this machine; a damaged copy counts as absent.
    #[must_use]
    pub fn find(&self) -> Option<Fetched> {
        let places = [(Some(&self.package), Origin::Package), (self.cache.as_ref(), Origin::Cache)];
        places.into_iter().find_map(|(folder, origin)| {
            let dataset = FashionMnist::verify(folder?).ok()?;
            Some(Fetched { dataset, origin })
        })
    }

    /// Loads the dataset; downloads it into the cache first if it is not on this machine.
    ///
    /// Every file is read once. A damaged copy counts as absent.
    ///
    /// # Errors
    /// [`FetchError`] saying what to do.
    pub fn load(&self, stop: &Stop) -> Result<Contents, FetchError> {
        let places = [Some(self.package.as_path()), self.cache.as_deref()];
        let found = places.into_iter().flatten().find_map(|folder| FashionMnist::load(folder).ok());
        match found {
            Some(contents) => Ok(contents),
            None => {
                let fetched = self.find_or_download(stop)?;
                FashionMnist::load(fetched.dataset.folder())
                    .map_err(|source| FetchError::Downloaded { source })
            }
        }
    }

    /// Finds the dataset or downloads it into the cache.
    ///
    /// # Errors
    /// [`FetchError`] saying what to do.
    pub fn find_or_download(&self, stop: &Stop) -> Result<Fetched, FetchError> {
        if let Some(found) = self.find() {
            return Ok(found);
        }
        let cache = self.cache.as_deref().ok_or(FetchError::NoCache)?;
        let folder = folder_beside(cache)?;
        let unpacked = debian::unpack(PACKAGE, folder.path(), stop)
            .map_err(|source| FetchError::Unavailable { source })?;
        let files = unpacked.join(PACKAGE_FOLDER);
        FashionMnist::verify(&files).map_err(|source| FetchError::Downloaded { source })?;
        install(&files, cache, Origin::Download)
    }

    /// Copies the files of `folder` into the cache, where every later command finds them.
    ///
    /// # Errors
    /// [`FetchError::Given`] if the folder holds something else.
    pub fn adopt(&self, folder: &Path) -> Result<Fetched, FetchError> {
        let given = |source| FetchError::Given { path: folder.to_owned(), source };
        FashionMnist::verify(folder).map_err(given)?;
        let cache = self.cache.as_deref().ok_or(FetchError::NoCache)?;
        let copies = folder_beside(cache)?;
        let files = copies.path().join("files");
        create(&files)?;
        for name in FILE_NAMES {
            fs::copy(folder.join(name), files.join(name))
                .map_err(|source| FetchError::Cache { path: files.join(name), source })?;
        }
        install(&files, cache, Origin::Given)
    }
}

/// Moves finished files to the cache in one step, so that nobody ever sees half a dataset.
fn install(files: &Path, cache: &Path, origin: Origin) -> Result<Fetched, FetchError> {
    if FashionMnist::verify(cache).is_err() && cache.exists() {
        fs::remove_dir_all(cache)
            .map_err(|source| FetchError::Cache { path: cache.to_owned(), source })?;
    }
    let moved = fs::rename(files, cache);
    // Another process may have put the same files there first.
    match (FashionMnist::verify(cache), moved) {
        (Ok(dataset), _) => Ok(Fetched { dataset, origin }),
        (Err(_), Err(source)) => Err(FetchError::Cache { path: cache.to_owned(), source }),
        (Err(source), Ok(())) => Err(FetchError::Downloaded { source }),
    }
}

/// A temporary folder on the cache's own file system, removed when dropped.
fn folder_beside(cache: &Path) -> Result<tempfile::TempDir, FetchError> {
    let parent = cache.parent().ok_or(FetchError::NoCache)?;
    create(parent)?;
    tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(parent)
        .map_err(|source| FetchError::Cache { path: parent.to_owned(), source })
}

fn create(folder: &Path) -> Result<(), FetchError> {
    fs::create_dir_all(folder)
        .map_err(|source| FetchError::Cache { path: folder.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_files_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let places = Locations {
            package: folder.path().join("package"),
            cache: Some(folder.path().join("cache/fashion-mnist")),
        };
        assert_eq!(places.find(), None);
        let error = places.adopt(folder.path()).unwrap_err().to_string();
        assert!(error.contains("train-images-idx3-ubyte.gz"), "{error}");
        assert!(!folder.path().join("cache").exists(), "a refused folder must leave no trace");
    }

    #[test]
    fn without_a_cache_the_environment_is_blamed() {
        let places = Locations { package: "/nonexistent".into(), cache: None };
        let error = places.find_or_download(&Stop::default()).unwrap_err();
        assert!(matches!(error, FetchError::NoCache), "{error}");
    }

    #[test]
    fn a_given_folder_is_copied_and_found_again() {
        let Some(here) = Locations::of_this_machine().find() else {
            println!("skipped: Fashion-MNIST is not on this machine (tributary-sim data fetch)");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache/fashion-mnist");
        let places = Locations { package: folder.path().join("none"), cache: Some(cache.clone()) };
        // A damaged earlier copy is replaced.
        fs::create_dir_all(&cache).unwrap();
        fs::write(cache.join(FILE_NAMES[0]), b"damage").unwrap();
        assert_eq!(places.adopt(here.dataset.folder()).unwrap().origin, Origin::Given);
        assert_eq!(places.find().unwrap().origin, Origin::Cache);
        let leftovers = fs::read_dir(cache.parent().unwrap()).unwrap().count();
        assert_eq!(leftovers, 1, "the temporary folder must be gone");
    }
}

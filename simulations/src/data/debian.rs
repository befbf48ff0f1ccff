//! Downloads and unpacks a Debian package without root and without installing it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use thiserror::Error;

use crate::{
    command::{CommandError, run_to_end},
    deadline::Stop,
};

const UPDATE_LIMIT: Duration = Duration::from_secs(120);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);
const UNPACK_LIMIT: Duration = Duration::from_secs(60);

/// Says why a package could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DebianError {
    /// `apt-get` or `dpkg-deb` is missing, failed or took too long.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The folder for the download cannot be used.
    #[error("cannot use {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `apt-get download` reported success, but left no package.
    #[error("`apt-get download {package}` left no .deb file in {path}")]
    NoPackage {
        /// The package.
        package: String,
        /// Where it was to be.
        path: PathBuf,
    },
}

/// Downloads `package` and unpacks its files below `folder`, which is to be empty.
///
/// Falls back on package lists of its own where the system's are missing or old, since only root
/// may update those.
///
/// # Errors
/// [`DebianError`] with the failing program's last words.
pub fn unpack(package: &str, folder: &Path, stop: &Stop) -> Result<PathBuf, DebianError> {
    if let Err(error) = download(package, folder, &[], stop) {
        if !matches!(error, CommandError::Failed { .. }) {
            return Err(error.into());
        }
        let options = own_lists(folder)?;
        let mut update = apt_get(folder, &options);
        run_to_end(update.arg("update"), UPDATE_LIMIT, stop)?;
        download(package, folder, &options, stop)?;
    }
    let archive = downloaded(package, folder)?;
    let unpacked = folder.join("unpacked");
    run_to_end(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked), UNPACK_LIMIT, stop)?;
    Ok(unpacked)
}

fn download(
    package: &str,
    folder: &Path,
    options: &[String],
    stop: &Stop,
) -> Result<(), CommandError> {
    let mut command = apt_get(folder, options);
    run_to_end(command.args(["download", package]), DOWNLOAD_LIMIT, stop).map(|_| ())
}

fn apt_get(folder: &Path, options: &[String]) -> Command {
    let mut command = Command::new("apt-get");
    command.current_dir(folder).args(["-q", "-o", "Acquire::Retries=1"]);
    for option in options {
        command.args(["-o", option]);
    }
    command
}

/// Options that keep apt's lists and archives below `folder`, which an ordinary user may write.
fn own_lists(folder: &Path) -> Result<Vec<String>, DebianError> {
    let state = folder.join("apt");
    let partial = state.join("lists/partial");
    std::fs::create_dir_all(&partial)
        .map_err(|source| DebianError::Folder { path: partial, source })?;
    let state = state.display();
    Ok(vec![
        format!("Dir::State::lists={state}/lists"),
        format!("Dir::Cache={state}/cache"),
        "Acquire::Languages=none".to_owned(),
        // A failed update is to say so, and not to leave the download without a package.
        "APT::Update::Error-Mode=any".to_owned(),
    ])
}

fn downloaded(package: &str, folder: &Path) -> Result<PathBuf, DebianError> {
    let failed = |source| DebianError::Folder { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension() == Some(OsStr::new("deb")) {
            return Ok(path);
        }
    }
    Err(DebianError::NoPackage { package: package.to_owned(), path: folder.to_owned() })
}

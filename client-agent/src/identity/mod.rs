//! Who the agent is: its key, its certificate, and the coordinator it belongs to.

mod enroll;
mod renew;

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::TenantId,
    time::Timestamp,
    transport::{tls, validity},
};

pub use self::{
    enroll::{EnrollError, Enrollment, NewKey, enroll},
    renew::RenewalError,
};
use crate::{
    durable_file::{Access, FileError, create_directory, read_text, sync_directory, write_durably},
    site::Site,
};

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";
const AUTHORITY: &str = "authority.pem";
const COORDINATOR: &str = "coordinator.json";

/// The coordinator that an agent is enrolled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coordinator {
    /// `HOST:PORT` for QUIC.
    pub address: String,
    /// The tenant as which the agent is enrolled.
    pub tenant: TenantId,
}

/// Everything that an enrolled agent needs to connect.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Where to connect, and as whom.
    pub coordinator: Coordinator,
    /// Key and certificate chain.
    pub tls: tls::Identity,
    /// The authority that signed both sides' certificates.
    pub authority: CertificateDer<'static>,
    /// When the certificate ends.
    pub expires: Timestamp,
}

/// Says why the agent has no usable identity.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is none.
    #[error(
        "{} does not exist: this agent is not enrolled; run `tributary-agent enroll` with a token \
         from `tributary-coordinator tenant add`",
        path.display()
    )]
    NotEnrolled {
        /// Where it would be.
        path: PathBuf,
    },
    /// There is one already.
    #[error(
        "{} exists: this agent is enrolled as tenant {tenant}; use --force to replace its identity",
        path.display()
    )]
    Exists {
        /// Where it is.
        path: PathBuf,
        /// As whom.
        tenant: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not hold what it should.
    #[error("{} is damaged: {reason}; restore it or enrol again with a new token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        reason: String,
    },
}

impl Identity {
    /// Reads a site's identity.
    ///
    /// # Errors
    /// [`IdentityError`] naming the file and what to do.
    pub fn load(site: &Site) -> Result<Self, IdentityError> {
        let directory = site.identity();
        finish_replacement(&directory)?;
        if !directory.exists() {
            return Err(IdentityError::NotEnrolled { path: directory });
        }
        let path = directory.join(COORDINATOR);
        let coordinator: Coordinator = serde_json::from_str(&read_text(&path)?)
            .map_err(|error| damaged(&path, error.to_string()))?;
        let chain = certificates(&directory.join(CERTIFICATE))?;
        let path = directory.join(AUTHORITY);
        let authority = certificates(&path)?.remove(0);
        let path = directory.join(KEY);
        let key = PrivateKeyDer::from_pem_slice(read_text(&path)?.as_bytes())
            .map_err(|error| damaged(&path, error.to_string()))?;
        let path = directory.join(CERTIFICATE);
        let expires = validity::expires(&chain[0])
            .ok_or_else(|| damaged(&path, "it is no X.509 certificate".to_owned()))?;
        Ok(Self { coordinator, tls: tls::Identity { chain, key }, authority, expires })
    }

    /// Writes a new identity beside the old one, then puts it in its place.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] without `force` where there is one, else [`IdentityError::File`].
    pub fn save(site: &Site, enrollment: &Enrollment, force: bool) -> Result<(), IdentityError> {
        if !force {
            Self::expect_none(site)?;
        }
        let directory = site.identity();
        let new = directory.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new).map_err(FileError::on("remove", &new))?;
        }
        create_directory(&new)?;
        write_durably(&new.join(KEY), enrollment.key_pem.as_bytes(), Access::Owner)?;
        let chain: String = enrollment.chain.iter().map(pem).collect();
        write_durably(&new.join(CERTIFICATE), chain.as_bytes(), Access::Shared)?;
        let authority = pem(&enrollment.authority);
        write_durably(&new.join(AUTHORITY), authority.as_bytes(), Access::Shared)?;
        let text = serde_json::to_string_pretty(&enrollment.coordinator)
            .expect("strings always serialise");
        write_durably(&new.join(COORDINATOR), text.as_bytes(), Access::Shared)?;
        if directory.exists() {
            let previous = directory.with_extension("previous");
            if previous.exists() {
                fs::remove_dir_all(&previous).map_err(FileError::on("remove", &previous))?;
            }
            fs::rename(&directory, &previous).map_err(FileError::on("set aside", &directory))?;
        }
        fs::rename(&new, &directory).map_err(FileError::on("put in place", &directory))?;
        Ok(sync_directory(&directory)?)
    }

    /// Succeeds if the site has no identity yet.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] naming the tenant it was enrolled as.
    pub fn expect_none(site: &Site) -> Result<(), IdentityError> {
        let path = site.identity();
        if !path.exists() {
            return Ok(());
        }
        let tenant = read_text(&path.join(COORDINATOR))
            .ok()
            .and_then(|text| serde_json::from_str::<Coordinator>(&text).ok())
            .map_or_else(|| "(unreadable)".to_owned(), |found| found.tenant.to_string());
        Err(IdentityError::Exists { path, tenant })
    }

    /// When the certificate is to be renewed: after two thirds of its time.
    #[must_use]
    pub fn renewal_due(&self) -> Timestamp {
        validity::renewal_due(&self.tls.chain[0]).unwrap_or(self.expires)
    }

    /// Whether the certificate has ended.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires
    }
}

/// Goes on where a crash ended [`Identity::save`] between setting the old identity aside and putting the
/// new one, which is complete, in its place.
fn finish_replacement(directory: &Path) -> Result<(), IdentityError> {
    let new = directory.with_extension("new");
    let set_aside = directory.with_extension("previous").exists() && !directory.exists();
    if set_aside && new.join(COORDINATOR).exists() {
        fs::rename(&new, directory).map_err(FileError::on("put in place", directory))?;
        sync_directory(directory)?;
    }
    Ok(())
}

fn damaged(path: &Path, reason: String) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), reason }
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let text = read_text(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| damaged(path, error.to_string()))?;
    if chain.is_empty() {
        return Err(damaged(path, "it holds no certificate".to_owned()));
    }
    Ok(chain)
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = data_encoding::BASE64.encode(certificate);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests;

//! The coordinator's newest receipt for the ledger, kept durably beside it.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tributary_privacy::ledger::{ChainStore, Ledger, LedgerError};
use tributary_protocol::{
    id::TenantId,
    message::LedgerHead,
    receipt::{Receipt, ReceiptError},
};

use crate::durable_file::{Access, FileError, read_text, write_durably};

/// Says why the ledger cannot be relied on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReceiptFileError {
    /// The file is not a receipt.
    #[error("{} is damaged; restore it, or delete it once the ledger is known to be whole", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// The receipt proves nothing.
    #[error("a receipt for the ledger does not hold")]
    Receipt(#[from] ReceiptError),
    /// The ledger is older than the receipt, or another one.
    #[error("the ledger is not the one that the coordinator signed a receipt for")]
    Ledger(#[from] LedgerError),
    /// The disk failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// `receipt.json`.
///
/// The file only moves forward: a receipt takes the place of an older one after it was verified
/// against the authority and the ledger. So what it says is never ahead of a ledger that was not
/// cut back: a debit is durable before the coordinator can hear of it.
#[derive(Debug)]
pub struct ReceiptFile {
    path: PathBuf,
    tenant: TenantId,
    authority: CertificateDer<'static>,
    writing: Mutex<()>,
}

impl ReceiptFile {
    /// Names the file; touches nothing.
    ///
    /// - `authority`: signed the coordinator's certificate
    #[must_use]
    pub fn new(path: PathBuf, tenant: TenantId, authority: &CertificateDer<'static>) -> Self {
        Self { path, tenant, authority: authority.clone(), writing: Mutex::new(()) }
    }

    /// The newest receipt, with its signature verified; `None` if none ever came.
    ///
    /// # Errors
    /// [`ReceiptFileError`] if there is one that cannot be read or does not hold.
    pub fn newest(&self) -> Result<Option<Receipt>, ReceiptFileError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let text = read_text(&self.path)?;
        let receipt: Receipt = serde_json::from_str(&text)
            .map_err(|source| ReceiptFileError::Damaged { path: self.path.clone(), source })?;
        receipt.verify(&self.authority, &self.tenant)?;
        Ok(Some(receipt))
    }

    /// Checks the ledger against the newest receipt, without any coordinator.
    ///
    /// # Errors
    /// [`ReceiptFileError::Ledger`] for a ledger that is older or another one, else as
    /// [`Self::newest`].
    pub fn check<S: ChainStore>(
        &self,
        ledger: &Ledger<S>,
    ) -> Result<Option<Receipt>, ReceiptFileError> {
        let newest = self.newest()?;
        if let Some(receipt) = &newest {
            compare(ledger, receipt.head)?;
        }
        Ok(newest)
    }

    /// Checks the ledger against a receipt that just came and against the newest kept one; keeps
    /// whichever is newer, durably.
    ///
    /// # Errors
    /// [`ReceiptFileError`]; the file is then as before.
    pub fn take<S: ChainStore>(
        &self,
        receipt: &Receipt,
        ledger: &Ledger<S>,
    ) -> Result<(), ReceiptFileError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        receipt.verify(&self.authority, &self.tenant)?;
        let kept = self.check(ledger)?;
        compare(ledger, receipt.head)?;
        if receipt.head.sequence > kept.map_or(0, |kept| kept.head.sequence) {
            let text = serde_json::to_string_pretty(receipt).expect("a receipt has only text keys");
            write_durably(&self.path, text.as_bytes(), Access::Shared)?;
        }
        Ok(())
    }
}

fn compare<S: ChainStore>(ledger: &Ledger<S>, head: LedgerHead) -> Result<(), LedgerError> {
    // A ledger without entries has no hash on the wire.
    if head == LedgerHead::EMPTY {
        return Ok(());
    }
    let LedgerHead { sequence, hash } = head;
    ledger.compare(tributary_privacy::ledger::ChainHead { sequence, hash: *hash.as_bytes() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use rustls::pki_types::PrivateKeyDer;
    use tributary_privacy::{
        ledger::{Budget, DebitRequest, MemoryChainStore, ReleaseKind},
        mechanism::PrivacyEvent,
    };
    use tributary_protocol::{id::Digest, time::Timestamp, transport::tls::Identity};

    use super::*;

    const BUDGET: Budget = Budget { epsilon_max: 100.0, delta: 1e-5, window_days: None };

    struct Coordinator {
        identity: Identity,
        authority: CertificateDer<'static>,
    }

    impl Coordinator {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let authority = params.self_signed(&key).unwrap().der().clone();
            let issuer = Issuer::from_ca_cert_der(&authority, key).unwrap();
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let chain = vec![params.signed_by(&key, &issuer).unwrap().der().clone()];
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            Self { identity: Identity { chain, key }, authority }
        }

        fn sign<S: ChainStore>(&self, ledger: &Ledger<S>) -> Receipt {
            let head = ledger.head();
            let head = LedgerHead { sequence: head.sequence, hash: Digest::from_bytes(head.hash) };
            Receipt::sign(&self.identity, tenant(), head, Timestamp(1_700_000_000_000)).unwrap()
        }

        fn file(&self, directory: &Path) -> ReceiptFile {
            ReceiptFile::new(directory.join("receipt.json"), tenant(), &self.authority)
        }
    }

    fn tenant() -> TenantId {
        TenantId::new("ash").unwrap()
    }

    fn open(store: &MemoryChainStore) -> Ledger<MemoryChainStore> {
        Ledger::open(store.clone(), "ash").unwrap()
    }

    fn debit(ledger: &mut Ledger<MemoryChainStore>, round: u64) -> Result<(), LedgerError> {
        let request = DebitRequest {
            dataset: "adult".to_owned(),
            job: "census".to_owned(),
            round,
            kind: ReleaseKind::Update,
            unit: "record".to_owned(),
            events: vec![PrivacyEvent::Gaussian { noise_multiplier: 5.0, count: 1 }],
            run: None,
            release: [round as u8; 32],
        };
        ledger.debit(request, &BUDGET, round).map(|_| ())
    }

    #[test]
    fn a_restored_backup_is_named_without_a_coordinator() {
        let (coordinator, directory) = (Coordinator::new(), tempfile::tempdir().unwrap());
        let file = coordinator.file(directory.path());
        let store = MemoryChainStore::new();
        let mut ledger = open(&store);
        assert!(file.check(&ledger).unwrap().is_none());
        debit(&mut ledger, 1).unwrap();
        file.take(&coordinator.sign(&ledger), &ledger).unwrap();
        let (old, backup) = (coordinator.sign(&ledger), store.bytes());
        debit(&mut ledger, 2).unwrap();
        file.take(&coordinator.sign(&ledger), &ledger).unwrap();
        file.take(&old, &ledger).unwrap();
        assert_eq!(file.newest().unwrap().unwrap().head.sequence, 2, "it only moves forward");

        let restored = open(&MemoryChainStore::with_bytes(backup));
        let error = file.check(&restored).unwrap_err();
        let named = LedgerError::RestoredBackup { sequence: 1, acknowledged: 2 };
        assert!(
            matches!(&error, ReceiptFileError::Ledger(found) if found.to_string() == named.to_string())
        );
        // Even a coordinator that was restored as well does not hide it.
        assert!(file.take(&old, &restored).is_err());
    }

    #[test]
    fn nothing_but_the_coordinators_word_is_taken() {
        let (coordinator, directory) = (Coordinator::new(), tempfile::tempdir().unwrap());
        let file = coordinator.file(directory.path());
        let mut ledger = open(&MemoryChainStore::new());
        debit(&mut ledger, 1).unwrap();
        let stranger = Coordinator::new().sign(&ledger);
        assert!(matches!(file.take(&stranger, &ledger), Err(ReceiptFileError::Receipt(_))));
        let mut forged = coordinator.sign(&ledger);
        forged.head.sequence = 7;
        assert!(matches!(file.take(&forged, &ledger), Err(ReceiptFileError::Receipt(_))));
        assert!(file.newest().unwrap().is_none());
        std::fs::write(directory.path().join("receipt.json"), "{}").unwrap();
        assert!(matches!(file.check(&ledger), Err(ReceiptFileError::Damaged { .. })));
    }

    /// Every boundary of: debit (each byte), hand to the coordinator, receipt (each byte of the
    /// temporary file, then the rename). No honest crash looks like a restored backup, and each
    /// older ledger does once its receipt is in place.
    #[test]
    fn no_crash_looks_like_a_restored_backup() {
        let coordinator = Coordinator::new();
        let whole = {
            let store = MemoryChainStore::new();
            debit(&mut open(&store), 1).unwrap();
            store.bytes().len()
        };
        for written in 0..=whole {
            let directory = tempfile::tempdir().unwrap();
            let file = coordinator.file(directory.path());
            let store = MemoryChainStore::new();
            store.crash_after(written);
            debit(&mut open(&store), 1).unwrap_err();
            store.restart();
            // Nothing was released, so the coordinator heard of nothing.
            file.check(&open(&store)).unwrap();
        }
        let store = MemoryChainStore::new();
        let mut ledger = open(&store);
        debit(&mut ledger, 1).unwrap();
        let first = coordinator.sign(&ledger);
        debit(&mut ledger, 2).unwrap();
        let second = serde_json::to_string_pretty(&coordinator.sign(&ledger)).unwrap();
        for written in 0..=second.len() {
            let directory = tempfile::tempdir().unwrap();
            let file = coordinator.file(directory.path());
            file.take(&first, &ledger).unwrap();
            let temporary = directory.path().join(".receipt.json.new");
            std::fs::write(&temporary, &second.as_bytes()[..written]).unwrap();
            assert_eq!(file.check(&ledger).unwrap().unwrap(), first, "{written} bytes");
            if written == second.len() {
                std::fs::rename(temporary, directory.path().join("receipt.json")).unwrap();
                assert_eq!(file.check(&ledger).unwrap().unwrap().head.sequence, 2);
            }
            // The next one gets through whatever was left.
            file.take(&coordinator.sign(&ledger), &ledger).unwrap();
            assert_eq!(file.newest().unwrap().unwrap().head.sequence, 2);
        }
    }
}

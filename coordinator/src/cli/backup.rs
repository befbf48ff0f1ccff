//! `backup` and `restore`: copies of the whole coordinator. Work on its folder, beside a running
//! coordinator or without one.

use std::path::Path;

use serde_json::Value;

use super::{Common, client::Client, date, print, table};
use tributary_coordinator::{
    audit::AuditReader,
    backup::{self, JobMark, Manifest, Restored},
    blobs::BlobStore,
    store::SledStore,
};
use tributary_protocol::transport::process;

/// Copies the coordinator to a new folder.
pub(super) fn backup(common: &Common, to: &Path) -> anyhow::Result<()> {
    let folder = common.folder();
    folder.config()?;
    if folder.join("endpoints.json").exists() {
        let _: Value = Client::connect(common)?.post_json("/v1/snapshot", &Value::Null)?;
    } else {
        let store = SledStore::open(&folder.join("store"))?;
        let blobs = BlobStore::open(folder.path())?;
        let authority = folder.authority()?.fingerprint();
        let head = AuditReader::new(folder.path(), authority, None).verify()?;
        backup::snapshot(folder.path(), &store, &blobs, head, authority, process::now())?;
    }
    let copied = backup::copy(&folder, to);
    // Also if the copy failed: the links hold on to files that may be removed.
    backup::discard(folder.path())?;
    let manifest = copied?;
    print(common, &manifest, |manifest| {
        let Manifest { made, files, records, jobs, .. } = manifest;
        format!(
            "copied {records} records and {} files as of {} to {}; it holds keys: protect it like \
             the original\n{}",
            files.len(),
            date(*made),
            to.display(),
            marks(jobs)
        )
    });
    Ok(())
}

/// Makes a coordinator's folder from a copy.
pub(super) fn restore(
    common: &Common,
    from: &Path,
    skip_rounds: u64,
    newer: Option<&Path>,
) -> anyhow::Result<()> {
    let folder = common.folder();
    let restored = backup::restore(from, &folder, skip_rounds, newer, process::now())?;
    print(common, &restored, |restored| {
        let Restored { made, jobs, lost_rounds } = restored;
        let lost = match lost_rounds {
            None => "rounds that were committed after it are lost".to_owned(),
            Some(rounds) if rounds.is_empty() => "no round was committed after it".to_owned(),
            Some(rounds) => format!("committed after it, and lost: {}", rounds.join(", ")),
        };
        let dir = folder.path().display();
        format!("restored {dir} as of {}; {lost}\n{}", date(*made), marks(jobs))
    });
    Ok(())
}

fn marks(jobs: &[JobMark]) -> String {
    let row = |mark: &JobMark| {
        [mark.job.to_string(), mark.round.to_string(), mark.rounds_committed.to_string()]
    };
    table(["job", "round", "committed"], jobs.iter().map(row))
}

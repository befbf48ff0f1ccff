//! The handler that takes a snapshot for `backup`.

use axum::{Extension, Json, extract::State};

use super::{ApiError, ApiState, SnapshotTaken};
use crate::{access::Principal, audit::Act};

/// Takes a snapshot in the coordinator's own folder, from where the command copies it: keys do not
/// cross the network, and no request names a path.
pub(super) async fn snapshot(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
) -> Result<Json<SnapshotTaken>, ApiError> {
    let taken = state.act(&who, Act::CoordinatorBackup, String::new(), |core, now| {
        let manifest = core.snapshot(now).map_err(|error| ApiError::internal(&error))?;
        let taken = SnapshotTaken::new(&manifest);
        let detail = format!("{} records, {} files", taken.records, taken.files);
        Ok((taken, detail))
    });
    taken.await.map(Json)
}

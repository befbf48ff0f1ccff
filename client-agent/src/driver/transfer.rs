//! Files over the connection: base models down, releases up, both resumable.

use std::{
    io,
    path::{Path, PathBuf},
};

use quinn::Connection;
use thiserror::Error;
use tokio::{
    fs::{self, File, OpenOptions},
    task::spawn_blocking,
};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::Digest,
    message::{BlobRef, TransferRequest, TransferResponse, UploadOffer},
    tensor_stream::Cursor,
    transport::{TransportError, stream},
};

use crate::durable_file::{FileError, is_full_disk, sync_directory};

/// Says why a file did not arrive.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum DownloadError {
    /// The connection failed; what has arrived is kept.
    #[error("the transfer was interrupted")]
    Interrupted(#[from] TransportError),
    /// The coordinator refuses.
    #[error("the coordinator does not send it: {0}")]
    Refused(Refusal),
    /// The coordinator sends another file than it announced.
    #[error("{wanted} bytes were announced as a whole, but {found} are sent")]
    Length {
        /// In the announcement.
        wanted: u64,
        /// In the transfer.
        found: u64,
    },
    /// All bytes have arrived and are not the file.
    #[error("the bytes do not have the announced digest")]
    Digest,
    /// The disk failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl DownloadError {
    /// Whether another attempt on the same or the next connection may succeed.
    pub(super) fn may_heal(&self) -> bool {
        match self {
            Self::Interrupted(_) => true,
            Self::Refused(refusal) => refusal.code.is_transient(),
            Self::File(_) => is_full_disk(self),
            Self::Length { .. } | Self::Digest => false,
        }
    }

    pub(super) fn refusal(&self) -> Refusal {
        let code = match self {
            Self::File(_) => ErrorCode::Internal,
            _ => ErrorCode::BaseModelInvalid,
        };
        Refusal::from_error(code, self)
    }
}

fn partial(path: &Path) -> PathBuf {
    path.with_extension("partial")
}

/// Brings a file to `path`, going on from what an earlier attempt left.
///
/// A whole file with the wrong digest is thrown away and fetched once more from its start.
pub(super) async fn download(
    connection: &Connection,
    blob: BlobRef,
    path: &Path,
) -> Result<(), DownloadError> {
    match attempt(connection, blob, path).await {
        Err(DownloadError::Digest) => attempt(connection, blob, path).await,
        outcome => outcome,
    }
}

async fn attempt(connection: &Connection, blob: BlobRef, path: &Path) -> Result<(), DownloadError> {
    let partial = partial(path);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&partial).await.map_err(FileError::on("open", &partial))?;
    let present = file.metadata().await.map_err(FileError::on("read", &partial))?.len();
    let offset = Cursor::resumable(blob.length, present.min(blob.length));
    file.set_len(offset).await.map_err(FileError::on("cut", &partial))?;
    let mut found = None;
    if offset < blob.length {
        found = fetch(connection, blob, offset, &partial, &mut file).await?;
    }
    file.sync_all().await.map_err(FileError::on("flush", &partial))?;
    let found = match found {
        Some(found) => found,
        None => digest(&partial).await.map_err(FileError::on("read", &partial))?,
    };
    if found != blob.digest {
        fs::remove_file(&partial).await.map_err(FileError::on("remove", &partial))?;
        return Err(DownloadError::Digest);
    }
    fs::rename(&partial, path).await.map_err(FileError::on("put in place", path))?;
    Ok(sync_directory(path)?)
}

/// Of a file that was not received at one go.
async fn digest(path: &Path) -> io::Result<Digest> {
    let file = File::open(path).await?.into_std().await;
    let hash = spawn_blocking(|| Digest::of_reader(file));
    hash.await.expect("reading a file does not panic")
}

/// - returns: the digest of the whole file, if all of it was sent
async fn fetch(
    connection: &Connection,
    blob: BlobRef,
    offset: u64,
    partial: &Path,
    file: &mut File,
) -> Result<Option<Digest>, DownloadError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(TransportError::Connection)?;
    let request = TransferRequest::Download { digest: blob.digest, offset };
    stream::write_message(&mut send, &request).await?;
    // A peer that has closed the stream already says so in its answer.
    let _ = send.finish();
    match stream::expect_message(&mut receive).await? {
        TransferResponse::Sending { length } if length == blob.length => {
            let cursor = Cursor::new(length, offset).map_err(TransportError::from)?;
            stream::receive_file(&mut receive, file, cursor).await.map_err(|error| match error {
                TransportError::File(source) => FileError::on("write", partial)(source).into(),
                error => error.into(),
            })
        }
        TransferResponse::Sending { length } => {
            Err(DownloadError::Length { wanted: blob.length, found: length })
        }
        TransferResponse::Refused(refusal) => Err(DownloadError::Refused(refusal)),
        TransferResponse::SendFrom { .. } | TransferResponse::Stored => {
            let text = "the coordinator answered a download as if it were an upload";
            Err(DownloadError::Refused(Refusal::new(ErrorCode::UnexpectedMessage, text)))
        }
    }
}

/// Uploads a release from where the coordinator has it; returns `Stored` or `Refused`.
///
/// - `sent`: hears the payload bytes of each chunk
pub(super) async fn upload(
    connection: &Connection,
    offer: UploadOffer,
    path: &Path,
    sent: impl FnMut(usize) + Send,
) -> Result<TransferResponse, TransportError> {
    let length = offer.update.length;
    let mut file = File::open(path).await.map_err(TransportError::File)?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(TransportError::Connection)?;
    stream::write_message(&mut send, &TransferRequest::Upload(offer)).await?;
    let offset = match stream::expect_message(&mut receive).await? {
        TransferResponse::SendFrom { offset } => offset,
        answer => return Ok(answer),
    };
    let cursor = Cursor::new(length, offset)?;
    if let Err(error) = stream::send_file(&mut send, &mut file, cursor, sent).await {
        // A coordinator that stops reading says why.
        return match stream::expect_message(&mut receive).await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(error),
        };
    }
    send.finish().map_err(|_| TransportError::Closed)?;
    stream::expect_message(&mut receive).await
}

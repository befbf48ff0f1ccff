//! File streams: base models down, updates up.

use std::{
    fs::File,
    io::{self, Seek, Write},
    sync::Arc,
};

use quinn::{Connection, RecvStream, SendStream};
use tokio::task::spawn_blocking;
use tracing::{Span, field, info, warn};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{Digest, TenantId},
    message::{TransferRequest, TransferResponse, UploadOffer},
    tensor_stream::{CHUNK_BYTES, Cursor},
    transport::{
        TransportError,
        stream::{self, ChunkSink},
    },
};

use super::{
    CoreError, CoreHandle,
    room::{Room, Turn},
    telemetry,
};
use crate::{
    blobs::{BlobError, BlobStore, Keyspace, Seal},
    scheduler::OfferAnswer,
};

/// Says why a transfer failed.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("{0}")]
    Refused(Refusal),
}

impl From<tributary_protocol::tensor_stream::TensorStreamError> for TransferError {
    fn from(error: tributary_protocol::tensor_stream::TensorStreamError) -> Self {
        Self::Transport(error.into())
    }
}

impl TransferError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Transport(error) => Refusal::from_error(error.code(), error),
            Self::Core(error) => Refusal::from_error(ErrorCode::ShuttingDown, error),
            Self::Blob(BlobError::Digest { expected, found, .. }) => Refusal::new(
                ErrorCode::ChecksumMismatch,
                format!(
                    "the file has digest {found}, but {expected} was announced; it was discarded"
                ),
            ),
            Self::Blob(BlobError::Busy { .. }) => {
                let text = "another stream is still sending this file; try again once it has ended";
                Refusal::new(ErrorCode::Internal, text)
            }
            Self::Blob(_) => Refusal::new(ErrorCode::Internal, "the file could not be stored"),
            Self::Refused(refusal) => refusal.clone(),
        }
    }
}

/// What every transfer of a connection needs.
#[derive(Clone)]
pub(super) struct Transfers {
    pub(super) connection: Connection,
    pub(super) tenant: TenantId,
    pub(super) core: CoreHandle,
    pub(super) room: Room,
}

pub(super) async fn run(mut send: SendStream, mut receive: RecvStream, transfers: Transfers) {
    if let Err(error) = serve(&mut send, &mut receive, &transfers).await {
        let refusal = error.refusal();
        warn!(code = %refusal.code, reason = %refusal.message, "transfer refused");
        // The peer may be gone; then there is nobody to tell.
        let _ = stream::write_message(&mut send, &TransferResponse::Refused(refusal)).await;
        let _ = send.finish();
        let _ = receive.stop(quinn::VarInt::from_u32(0));
    }
}

async fn serve(
    send: &mut SendStream,
    receive: &mut RecvStream,
    transfers: &Transfers,
) -> Result<(), TransferError> {
    match stream::expect_message(receive).await? {
        TransferRequest::Download { digest, offset } => {
            download(send, transfers, digest, offset).await?
        }
        TransferRequest::Upload(offer) => {
            let span = Span::current();
            span.record("job", field::display(&offer.job));
            span.record("round", field::display(&offer.round));
            upload(send, receive, transfers, offer).await?;
        }
    }
    send.finish().map_err(|_| TransportError::Closed)?;
    Ok(())
}

async fn download(
    send: &mut SendStream,
    Transfers { connection, tenant, core, room }: &Transfers,
    digest: Digest,
    offset: u64,
) -> Result<(), TransferError> {
    let who = tenant.clone();
    let model = core.call(move |core, now| {
        let Some(file) = core.scheduler.models().file(digest) else {
            let message = format!("there is no model file {digest} here");
            return Err(Refusal::new(ErrorCode::BlobUnknown, message));
        };
        let (length, path) = (file.length, core.blobs.path(digest));
        core.scheduler
            .count_request(&who, now)
            .and_then(|()| {
                core.scheduler.download(&who, digest, length.saturating_sub(offset), now)
            })
            .map_err(|error| error.refusal())?;
        Ok((length, path))
    });
    let (length, path) = model.await?.map_err(TransferError::Refused)?;
    let cursor = Cursor::new(length, offset)?;
    stream::write_message(send, &TransferResponse::Sending { length }).await?;
    telemetry::count_download(tenant, length - offset);
    let mut file = room.shelf.file(digest, path);
    room.run(connection, |_| stream::send_chunks(send, &mut file, cursor, |_| ())).await?;
    Ok(())
}

async fn upload(
    send: &mut SendStream,
    receive: &mut RecvStream,
    Transfers { connection, tenant, core, room }: &Transfers,
    offer: UploadOffer,
) -> Result<(), TransferError> {
    let (who, offered) = (tenant.clone(), offer.clone());
    let (answer, blobs) = core
        .call(move |core, now| {
            let counted = core.scheduler.count_request(&who, now);
            let answer = counted.map_err(|error| error.refusal());
            let answer = answer.and_then(|()| core.offered(&who, &offered));
            (answer.map(|answer| (answer, core.keyspace(&who))), core.blobs.clone())
        })
        .await?;
    let (answer, keyspace) = answer.map_err(TransferError::Refused)?;
    let keyspace = keyspace?;
    let is_here = match &keyspace {
        Some(keyspace) => keyspace.contains(offer.update.digest),
        None => blobs.holds(offer.update),
    };
    if answer == OfferAnswer::Receive && !is_here {
        let place = Place { blobs: &blobs, keyspace: keyspace.as_deref(), tenant, offer: &offer };
        let (send, receive) = (&mut *send, &mut *receive);
        room.run(connection, move |turn| receive_update(send, receive, place, turn)).await?;
    }
    let (who, report) = (tenant.clone(), offer.clone());
    core.call(move |core, now| core.reported(&who, &report, now))
        .await?
        .map_err(TransferError::Refused)?;
    info!(bytes = offer.update.length, "update stored");
    stream::write_message(send, &TransferResponse::Stored).await?;
    Ok(())
}

/// Where an update belongs.
struct Place<'a> {
    blobs: &'a BlobStore,
    keyspace: Option<&'a Keyspace>,
    tenant: &'a TenantId,
    offer: &'a UploadOffer,
}

async fn receive_update(
    send: &mut SendStream,
    receive: &mut RecvStream,
    Place { blobs, keyspace, tenant, offer }: Place<'_>,
    turn: Turn,
) -> Result<(), TransferError> {
    let (job, round, digest) = (&offer.job, offer.round, offer.update.digest);
    let staged = blobs.stage(keyspace, job, round, tenant, digest)?;
    let offset = Cursor::resumable(offer.update.length, staged.length);
    let mut cursor = Cursor::new(offer.update.length, offset)?;
    stream::write_message(send, &TransferResponse::SendFrom { offset }).await?;
    let file = Arc::new(staged.file.try_clone().map_err(TransportError::File)?);
    let piece_max = move || turn.piece_max();
    let found = match staged.seal.clone() {
        None => {
            let mut plain = Plain::new(file, offset).map_err(TransportError::File)?;
            let received =
                stream::receive_chunks(receive, &mut plain, &mut cursor, piece_max).await;
            if received.is_err() {
                // The rest may be of a chunk that is damaged.
                staged.file.set_len(cursor.offset()).map_err(TransportError::File)?;
            }
            received?
        }
        Some(seal) => {
            let mut sealing =
                Sealing::new(file, seal, digest, offset).map_err(TransportError::File)?;
            stream::receive_chunks(receive, &mut sealing, &mut cursor, piece_max).await?;
            None
        }
    };
    let blobs = blobs.clone();
    let complete = spawn_blocking(move || blobs.complete(&staged, found)).await;
    complete.expect("completing an upload does not panic")?;
    Ok(())
}

/// Writes pieces as they are.
struct Plain {
    file: Arc<File>,
}

impl Plain {
    fn new(file: Arc<File>, offset: u64) -> io::Result<Self> {
        (&*file).seek(io::SeekFrom::Start(offset))?;
        Ok(Self { file })
    }
}

impl ChunkSink for Plain {
    async fn take(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>> {
        let file = self.file.clone();
        let write = spawn_blocking(move || (&*file).write_all(&piece).map(|()| piece));
        write.await.expect("writing a piece does not panic")
    }

    async fn end_chunk(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes chunks sealed.
struct Sealing {
    file: Arc<File>,
    seal: Arc<Seal>,
    digest: Digest,
    /// Chunks before the next one.
    index: u64,
    /// What has arrived of it.
    chunk: Vec<u8>,
}

impl Sealing {
    fn new(file: Arc<File>, seal: Arc<Seal>, digest: Digest, offset: u64) -> io::Result<Self> {
        (&*file).seek(io::SeekFrom::Start(Seal::sealed_length(offset)))?;
        let index = offset.div_ceil(CHUNK_BYTES as u64);
        Ok(Self { file, seal, digest, index, chunk: Vec::new() })
    }
}

impl ChunkSink for Sealing {
    async fn take(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>> {
        self.chunk.extend_from_slice(&piece);
        Ok(piece)
    }

    async fn end_chunk(&mut self) -> io::Result<()> {
        let record = self.seal.seal(self.digest, self.index, &self.chunk)?;
        self.index += 1;
        self.chunk.clear();
        let file = self.file.clone();
        let write = spawn_blocking(move || (&*file).write_all(&record));
        write.await.expect("writing a record does not panic")
    }
}

//! Length-prefixed messages and chunked files on a QUIC stream.

use std::{io, time::Duration};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, SeekFrom},
};

use super::TransportError;
use crate::{
    codec::{self, MESSAGE_BYTES_MAX},
    id::Digest,
    tensor_stream::{CHUNK_BYTES, ChunkHeader, Cursor, FileDigest, HEADER_BYTES},
};

/// A peer in the middle of a message or file may pause for this long.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a chunk that a receiver takes at a time, unless it has memory for more; each must come
/// within [`PROGRESS_TIMEOUT`].
pub const PIECE_BYTES: usize = 32 * 1024;

/// Sends one message.
///
/// # Errors
/// [`TransportError`] if it is too large or the stream is gone.
pub async fn write_message<T: Serialize + Sync>(
    stream: &mut SendStream,
    message: &T,
) -> Result<(), TransportError> {
    let body = codec::encode(message)?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    stream.write_all(&frame).await.map_err(TransportError::Write)
}

/// Receives the next message; `None` when the peer has finished the stream.
///
/// Waits for the start of a message without limit, for the rest at most [`PROGRESS_TIMEOUT`].
///
/// # Errors
/// [`TransportError`] if the frame is oversized, cut short, malformed or too slow.
pub async fn read_message<T: DeserializeOwned>(
    stream: &mut RecvStream,
) -> Result<Option<T>, TransportError> {
    let mut first = [0; 1];
    match stream.read(&mut first).await.map_err(TransportError::Read)? {
        None => return Ok(None),
        Some(0) => return Err(TransportError::EndedEarly),
        Some(_) => {}
    }
    within(async {
        let mut rest = [0; 3];
        read_exact(stream, &mut rest).await?;
        let length = u32::from_le_bytes([first[0], rest[0], rest[1], rest[2]]) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(TransportError::FrameTooLarge { length, max: MESSAGE_BYTES_MAX });
        }
        let mut body = vec![0; length];
        read_exact(stream, &mut body).await?;
        Ok(Some(codec::decode(&body)?))
    })
    .await
}

/// Receives a message that must come, within [`PROGRESS_TIMEOUT`].
///
/// # Errors
/// As [`read_message`], and [`TransportError::EndedEarly`] if the stream is finished.
pub async fn expect_message<T: DeserializeOwned>(
    stream: &mut RecvStream,
) -> Result<T, TransportError> {
    within(read_message(stream)).await?.ok_or(TransportError::EndedEarly)
}

/// Sends `file` from where `cursor` stands to its end; `sent` hears the payload bytes of each chunk.
///
/// # Errors
/// [`TransportError`] if the file or the stream fails, or the peer takes nothing for
/// [`PROGRESS_TIMEOUT`].
pub async fn send_file(
    stream: &mut SendStream,
    file: &mut File,
    cursor: Cursor,
    sent: impl FnMut(usize),
) -> Result<(), TransportError> {
    file.seek(SeekFrom::Start(cursor.offset())).await.map_err(TransportError::File)?;
    file.set_max_buf_size(CHUNK_BYTES);
    send_chunks(stream, file, cursor, sent).await
}

/// Where chunks to send come from.
pub trait ChunkSource: Send {
    /// The chunk of `length` bytes at `offset`; they are asked for in order.
    fn chunk(
        &mut self,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = io::Result<(ChunkHeader, Bytes)>> + Send;
}

impl ChunkSource for File {
    async fn chunk(&mut self, offset: u64, length: usize) -> io::Result<(ChunkHeader, Bytes)> {
        let mut payload = vec![0; length];
        self.read_exact(&mut payload).await?;
        Ok((ChunkHeader::new(offset, &payload), payload.into()))
    }
}

/// Sends the chunks of a file from where `cursor` stands to its end; `sent` hears the payload bytes of
/// each.
///
/// # Errors
/// As [`send_file`].
pub async fn send_chunks(
    stream: &mut SendStream,
    source: &mut impl ChunkSource,
    mut cursor: Cursor,
    mut sent: impl FnMut(usize),
) -> Result<(), TransportError> {
    while !cursor.is_finished() {
        let length = cursor.next_length();
        let chunk = source.chunk(cursor.offset(), length).await;
        let (header, payload) = chunk.map_err(TransportError::File)?;
        cursor.pass(&header)?;
        // The stream takes the payload over as it is.
        let mut pieces = [Bytes::copy_from_slice(&header.encode()), payload];
        let mut left = &mut pieces[..];
        while !left.is_empty() {
            let write = async { stream.write_chunks(left).await.map_err(TransportError::Write) };
            let written = within(write).await?;
            left = &mut left[written.chunks..];
        }
        sent(length);
    }
    Ok(())
}

/// Receives chunks into `file`, which stands at the cursor's offset, to its end. The whole chunks that are written
/// before an error are a valid prefix, from which a later attempt resumes.
///
/// - returns: the digest of the whole file, if all of it was received
///
/// # Errors
/// [`TransportError`] if a chunk is not the next one, is damaged or late, or the file fails.
pub async fn receive_file(
    stream: &mut RecvStream,
    file: &mut File,
    mut cursor: Cursor,
) -> Result<Option<Digest>, TransportError> {
    file.seek(SeekFrom::Start(cursor.offset())).await.map_err(TransportError::File)?;
    file.set_max_buf_size(CHUNK_BYTES);
    let received = receive_chunks(stream, file, &mut cursor, || CHUNK_BYTES).await;
    // Also after an error: a write that is still under way would be lost to the next attempt.
    file.flush().await.map_err(TransportError::File)?;
    if received.is_err() {
        // The rest may be of a chunk that is damaged.
        file.set_len(cursor.offset()).await.map_err(TransportError::File)?;
    }
    received
}

/// Where received chunks go, in order.
pub trait ChunkSink: Send {
    /// Takes the next piece of a chunk, before its checksum is known; gives its memory back.
    fn take(&mut self, piece: Vec<u8>) -> impl Future<Output = io::Result<Vec<u8>>> + Send;

    /// The chunk is whole, and is what was sent.
    fn end_chunk(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

impl ChunkSink for File {
    async fn take(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>> {
        self.write_all(&piece).await?;
        Ok(piece)
    }

    async fn end_chunk(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Receives chunks into `sink`, which stands at the cursor's offset, to the end of the file.
///
/// - `piece_max`: bytes that may be held before the sink takes them, at this time; less than
///   [`PIECE_BYTES`] counts as that
/// - returns: the digest of the whole file, if all of it was received
///
/// # Errors
/// [`TransportError`] if a chunk is not the next one, is damaged or late, or the sink fails.
pub async fn receive_chunks(
    stream: &mut RecvStream,
    sink: &mut impl ChunkSink,
    cursor: &mut Cursor,
    piece_max: impl Fn() -> usize + Send,
) -> Result<Option<Digest>, TransportError> {
    let mut digest = (cursor.offset() == 0).then(FileDigest::default);
    let mut piece = Vec::new();
    while !cursor.is_finished() {
        let mut header = [0; HEADER_BYTES];
        within(read_exact(stream, &mut header)).await?;
        let header = ChunkHeader::decode(&header)?;
        let mut arriving = cursor.begin(&header)?;
        let mut left = header.length as usize;
        while left > 0 {
            piece.clear();
            if piece.capacity() > piece_max().max(PIECE_BYTES) {
                piece = Vec::new();
            }
            loop {
                let step = left.min(PIECE_BYTES);
                within(read_onto(stream, &mut piece, step)).await?;
                left -= step;
                if left == 0 || piece.len() + PIECE_BYTES > piece_max() {
                    break;
                }
            }
            arriving.take(&piece);
            piece = sink.take(piece).await.map_err(TransportError::File)?;
        }
        cursor.finish(&header, &arriving)?;
        if let Some(digest) = &mut digest {
            digest.take(&arriving);
        }
        sink.end_chunk().await.map_err(TransportError::File)?;
    }
    Ok(digest.map(FileDigest::finish))
}

async fn read_exact(stream: &mut RecvStream, buffer: &mut [u8]) -> Result<(), TransportError> {
    stream.read_exact(buffer).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => TransportError::EndedEarly,
        quinn::ReadExactError::ReadError(error) => TransportError::Read(error),
    })
}

/// Reads `length` bytes more into `buffer`.
async fn read_onto(
    stream: &mut RecvStream,
    buffer: &mut Vec<u8>,
    length: usize,
) -> Result<(), TransportError> {
    buffer.reserve_exact(length);
    let end = buffer.len() + length;
    while buffer.len() < end {
        let chunk = stream.read_chunk(end - buffer.len(), true).await;
        let chunk = chunk.map_err(TransportError::Read)?.ok_or(TransportError::EndedEarly)?;
        buffer.extend_from_slice(&chunk.bytes);
    }
    Ok(())
}

async fn within<T>(
    step: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    tokio::time::timeout(PROGRESS_TIMEOUT, step)
        .await
        .unwrap_or(Err(TransportError::Idle { seconds: PROGRESS_TIMEOUT.as_secs() }))
}

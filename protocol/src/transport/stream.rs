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
    tensor_stream::{CHUNK_BYTES, ChunkHeader, Cursor, HEADER_BYTES},
};

/// A peer in the middle of a message or file may pause for this long.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a chunk that a receiver holds at a time.
const PIECE_BYTES: usize = 32 * 1024;

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
    mut cursor: Cursor,
    mut sent: impl FnMut(usize),
) -> Result<(), TransportError> {
    file.seek(SeekFrom::Start(cursor.offset())).await.map_err(TransportError::File)?;
    file.set_max_buf_size(CHUNK_BYTES);
    while !cursor.is_finished() {
        let length = cursor.next_length();
        let mut payload = vec![0; length];
        file.read_exact(&mut payload).await.map_err(TransportError::File)?;
        let header = cursor.send(&payload).encode();
        // The stream takes the payload over as it is.
        let mut pieces = [Bytes::copy_from_slice(&header), Bytes::from(payload)];
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
/// # Errors
/// [`TransportError`] if a chunk is not the next one, is damaged or late, or the file fails.
pub async fn receive_file(
    stream: &mut RecvStream,
    file: &mut File,
    mut cursor: Cursor,
) -> Result<(), TransportError> {
    file.seek(SeekFrom::Start(cursor.offset())).await.map_err(TransportError::File)?;
    file.set_max_buf_size(PIECE_BYTES);
    let received = receive_chunks(stream, file, &mut cursor).await;
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
    /// Takes the next piece of a chunk, before its checksum is known.
    fn take(&mut self, piece: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// The chunk is whole, and is what was sent.
    fn end_chunk(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

impl ChunkSink for File {
    async fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        self.write_all(piece).await
    }

    async fn end_chunk(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Receives chunks into `sink`, which stands at the cursor's offset, to the end of the file.
///
/// # Errors
/// [`TransportError`] if a chunk is not the next one, is damaged or late, or the sink fails.
pub async fn receive_chunks(
    stream: &mut RecvStream,
    sink: &mut impl ChunkSink,
    cursor: &mut Cursor,
) -> Result<(), TransportError> {
    let mut buffer = vec![0; PIECE_BYTES];
    while !cursor.is_finished() {
        let mut header = [0; HEADER_BYTES];
        within(read_exact(stream, &mut header)).await?;
        let header = ChunkHeader::decode(&header)?;
        let mut arriving = cursor.begin(&header)?;
        let mut left = header.length as usize;
        while left > 0 {
            let piece = &mut buffer[..left.min(PIECE_BYTES)];
            within(read_exact(stream, piece)).await?;
            arriving.take(piece);
            sink.take(piece).await.map_err(TransportError::File)?;
            left -= piece.len();
        }
        cursor.finish(&header, &arriving)?;
        sink.end_chunk().await.map_err(TransportError::File)?;
    }
    Ok(())
}

async fn read_exact(stream: &mut RecvStream, buffer: &mut [u8]) -> Result<(), TransportError> {
    stream.read_exact(buffer).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => TransportError::EndedEarly,
        quinn::ReadExactError::ReadError(error) => TransportError::Read(error),
    })
}

async fn within<T>(
    step: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    tokio::time::timeout(PROGRESS_TIMEOUT, step)
        .await
        .unwrap_or(Err(TransportError::Idle { seconds: PROGRESS_TIMEOUT.as_secs() }))
}

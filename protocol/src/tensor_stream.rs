//! Tensors and other large files as a stream of ordered, checksummed chunks.
//!
//! A file of known length and digest travels in chunks of [`CHUNK_BYTES`]; only the last may be
//! shorter. A chunk is a 24-byte header (offset `u64`, length `u32`, four zero bytes, checksum of
//! 8 bytes; little endian) and its payload. The checksum is the beginning of the chunk's node in the
//! BLAKE3 tree of the file: it binds offset and payload, so a chunk cannot pass for another, and the
//! digest of the whole file follows from the nodes ([`FileDigest`]). A receiver that has the first
//! `offset` bytes durable resumes there; whoever stores the file checks its digest at the end.

mod file_digest;

use blake3::hazmat::{ChainingValue, HasherExt};
use thiserror::Error;

pub use self::file_digest::FileDigest;
use crate::id::Digest;

/// Payload bytes of every chunk but the last.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Bytes of a chunk header.
pub const HEADER_BYTES: usize = 24;

/// Says why a chunk is not the next one of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TensorStreamError {
    /// The chunk does not start where the last one ended.
    #[error("chunk starts at byte {found}; byte {expected} was expected")]
    Offset {
        /// Where the receiver stands.
        expected: u64,
        /// Where the chunk says it starts.
        found: u64,
    },
    /// The chunk has a length that no chunk at this place can have.
    #[error("chunk at byte {offset} has {found} bytes; {expected} were expected")]
    Length {
        /// Where the chunk starts.
        offset: u64,
        /// The only length possible there.
        expected: usize,
        /// The length in its header, or of its payload.
        found: usize,
    },
    /// Payload and checksum disagree.
    #[error("chunk at byte {offset} does not match its checksum")]
    Checksum {
        /// Where the chunk starts.
        offset: u64,
    },
    /// The reserved header bytes are not zero.
    #[error("chunk at byte {offset} has reserved header bytes set")]
    Reserved {
        /// Where the chunk starts.
        offset: u64,
    },
    /// The stream cannot resume in the middle of a chunk or past the end.
    #[error("a stream of {length} bytes cannot resume at byte {offset}")]
    Resume {
        /// Length of the file.
        length: u64,
        /// Where the resumption was asked for.
        offset: u64,
    },
}

/// The fixed-size start of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Where in the file the payload belongs, in bytes.
    pub offset: u64,
    /// Payload length in bytes.
    pub length: u32,
    checksum: [u8; 8],
}

impl ChunkHeader {
    /// Describes `payload` at `offset`.
    ///
    /// # Panics
    /// As [`HashedChunk::of`].
    #[must_use]
    pub fn new(offset: u64, payload: &[u8]) -> Self {
        HashedChunk::of(offset, payload).header()
    }

    /// The header on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..].copy_from_slice(&self.checksum);
        bytes
    }

    /// Reads a header; whether it fits is for [`Cursor::expect`] to say.
    ///
    /// # Errors
    /// [`TensorStreamError::Reserved`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, TensorStreamError> {
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3, r0, r1, r2, r3, checksum @ ..] =
            *bytes;
        let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        if [r0, r1, r2, r3] != [0; 4] {
            return Err(TensorStreamError::Reserved { offset });
        }
        Ok(Self { offset, length: u32::from_le_bytes([l0, l1, l2, l3]), checksum })
    }
}

/// A chunk whose payload is hashed as it passes, so that nobody needs to hold all of it.
#[derive(Debug, Clone)]
pub struct HashedChunk {
    hasher: blake3::Hasher,
    offset: u64,
    length: usize,
}

impl HashedChunk {
    fn new(offset: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        Self { hasher, offset, length: 0 }
    }

    /// The whole of `payload` at `offset`.
    ///
    /// # Panics
    /// Unless `payload` has 1 to [`CHUNK_BYTES`] bytes and `offset` is a multiple of that.
    #[must_use]
    pub fn of(offset: u64, payload: &[u8]) -> Self {
        assert!((1..=CHUNK_BYTES).contains(&payload.len()), "chunks are cut by `Cursor`");
        assert!(offset.is_multiple_of(CHUNK_BYTES as u64), "chunks are cut by `Cursor`");
        let mut chunk = Self::new(offset);
        chunk.take(payload);
        chunk
    }

    /// Takes the next bytes of the payload.
    pub fn take(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
        self.length += piece.len();
    }

    /// What announces it.
    #[must_use]
    pub fn header(&self) -> ChunkHeader {
        let subtree = self.subtree();
        let checksum = subtree.first_chunk().expect("32 bytes");
        ChunkHeader { offset: self.offset, length: self.length as u32, checksum: *checksum }
    }

    /// Its node in the tree of the file.
    fn subtree(&self) -> ChainingValue {
        self.hasher.finalize_non_root()
    }

    /// The digest of a file that consists of it.
    fn alone(&self) -> Digest {
        Digest::from_bytes(*self.hasher.finalize().as_bytes())
    }
}

/// Where a sender or receiver stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    length: u64,
    offset: u64,
}

impl Cursor {
    /// Starts, or resumes, a file of `length` bytes at `offset`.
    ///
    /// # Errors
    /// [`TensorStreamError::Resume`] unless `offset` is a chunk boundary or the end.
    pub const fn new(length: u64, offset: u64) -> Result<Self, TensorStreamError> {
        if offset > length || (offset != length && !offset.is_multiple_of(CHUNK_BYTES as u64)) {
            return Err(TensorStreamError::Resume { length, offset });
        }
        Ok(Self { length, offset })
    }

    /// The largest offset from which a file with `durable` bytes present can resume.
    #[must_use]
    pub const fn resumable(length: u64, durable: u64) -> u64 {
        if durable >= length { length } else { durable - durable % CHUNK_BYTES as u64 }
    }

    /// Whether the whole file has passed.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.offset == self.length
    }

    /// Bytes that have passed.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Payload length of the next chunk; 0 at the end.
    #[must_use]
    pub const fn next_length(&self) -> usize {
        let left = self.length - self.offset;
        if left < CHUNK_BYTES as u64 { left as usize } else { CHUNK_BYTES }
    }

    /// Checks that `header` announces the next chunk, before its payload is read.
    ///
    /// # Errors
    /// [`TensorStreamError::Offset`] or [`TensorStreamError::Length`].
    pub const fn expect(&self, header: &ChunkHeader) -> Result<(), TensorStreamError> {
        if header.offset != self.offset {
            return Err(TensorStreamError::Offset { expected: self.offset, found: header.offset });
        }
        let expected = self.next_length();
        if header.length as usize != expected || expected == 0 {
            let found = header.length as usize;
            return Err(TensorStreamError::Length { offset: self.offset, expected, found });
        }
        Ok(())
    }

    /// Begins to receive the chunk that `header` announces.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn begin(&self, header: &ChunkHeader) -> Result<HashedChunk, TensorStreamError> {
        self.expect(header)?;
        Ok(HashedChunk::new(self.offset))
    }

    /// Checks a chunk that has arrived, and moves past it.
    ///
    /// # Errors
    /// [`TensorStreamError`] if it is not the next chunk or fails its checksum; the cursor stays.
    pub fn finish(
        &mut self,
        header: &ChunkHeader,
        arrived: &HashedChunk,
    ) -> Result<(), TensorStreamError> {
        self.expect(header)?;
        self.expect_length(header, arrived.length)?;
        if arrived.header() != *header {
            return Err(TensorStreamError::Checksum { offset: self.offset });
        }
        self.offset += u64::from(header.length);
        Ok(())
    }

    /// Checks a received chunk and moves past it.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn accept(
        &mut self,
        header: &ChunkHeader,
        payload: &[u8],
    ) -> Result<(), TensorStreamError> {
        let mut arriving = self.begin(header)?;
        self.expect_length(header, payload.len())?;
        arriving.take(payload);
        self.finish(header, &arriving)
    }

    const fn expect_length(
        &self,
        header: &ChunkHeader,
        found: usize,
    ) -> Result<(), TensorStreamError> {
        let expected = header.length as usize;
        if found == expected {
            Ok(())
        } else {
            Err(TensorStreamError::Length { offset: self.offset, expected, found })
        }
    }

    /// Moves past a chunk that is sent.
    ///
    /// # Errors
    /// As [`Self::expect`]; the cursor stays.
    pub fn pass(&mut self, header: &ChunkHeader) -> Result<(), TensorStreamError> {
        self.expect(header)?;
        self.offset += u64::from(header.length);
        Ok(())
    }

    /// Describes the payload a sender sends next and moves past it.
    #[must_use]
    pub fn send(&mut self, payload: &[u8]) -> ChunkHeader {
        let header = ChunkHeader::new(self.offset, payload);
        self.offset += payload.len() as u64;
        header
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunks(file: &[u8], from: u64) -> Vec<(ChunkHeader, Vec<u8>)> {
        let mut cursor = Cursor::new(file.len() as u64, from).expect("boundary");
        let mut chunks = Vec::new();
        while !cursor.is_finished() {
            let start = cursor.offset() as usize;
            let payload = &file[start..start + cursor.next_length()];
            chunks.push((cursor.send(payload), payload.to_vec()));
        }
        chunks
    }

    #[test]
    fn an_interrupted_file_resumes_at_a_chunk() {
        let file: Vec<u8> = (0..CHUNK_BYTES * 2 + 77).map(|i| i as u8).collect();
        let length = file.len() as u64;
        let resumed = Cursor::resumable(length, CHUNK_BYTES as u64 + 5);
        assert_eq!(resumed, CHUNK_BYTES as u64);
        let mut receiver = Cursor::new(length, resumed).expect("boundary");
        let mut received = file[..resumed as usize].to_vec();
        for (header, payload) in chunks(&file, resumed) {
            let header = ChunkHeader::decode(&header.encode()).expect("own header");
            receiver.accept(&header, &payload).expect("in order");
            received.extend(payload);
        }
        assert!(receiver.is_finished());
        assert_eq!(received, file);
        assert!(Cursor::new(length, 5).is_err());
    }

    #[test]
    fn damage_replay_and_wrong_lengths_are_named() {
        let file = vec![3; CHUNK_BYTES + 10];
        let chunks = chunks(&file, 0);
        let mut receiver = Cursor::new(file.len() as u64, 0).expect("start");
        let (header, mut payload) = chunks[0].clone();
        payload[9] ^= 1;
        assert_eq!(
            receiver.accept(&header, &payload),
            Err(TensorStreamError::Checksum { offset: 0 })
        );
        receiver.accept(&header, &chunks[0].1).expect("intact");
        assert!(matches!(
            receiver.accept(&header, &chunks[0].1),
            Err(TensorStreamError::Offset { .. })
        ));
        let short = ChunkHeader::new(CHUNK_BYTES as u64, &[3; 9]);
        assert!(matches!(receiver.accept(&short, &[3; 9]), Err(TensorStreamError::Length { .. })));
    }

    proptest! {
        #[test]
        fn any_header_bytes_decode_or_are_refused(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = ChunkHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
                let cursor = Cursor::new(100, 0).expect("start");
                prop_assert_eq!(cursor.expect(&header).is_ok(), header.offset == 0 && header.length == 100);
            }
        }
    }
}

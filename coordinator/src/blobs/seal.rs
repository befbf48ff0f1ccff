//! The sealed form of a file: records that only the key of one tenant opens.
//!
//! ```text
//! nonce (24 bytes, random) ‖ XChaCha20-Poly1305 of up to 256 KiB ‖ tag (16 bytes)
//! ```
//! Only the last record may be shorter. Each is bound to the file's digest and to its place, so records
//! cannot be swapped, within a file or between files. Nonces are random and 192 bits long, so a
//! record may be written again after a crash.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use tributary_protocol::{id::Digest, tensor_stream::CHUNK_BYTES};

const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// Bytes that sealing adds to each record.
const OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// Bytes of every record but the last.
const RECORD_BYTES: usize = CHUNK_BYTES + OVERHEAD_BYTES;

/// Seals and opens records under the key of one tenant. The key is wiped when this is dropped.
pub struct Seal {
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Seal")
    }
}

impl Seal {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { cipher: XChaCha20Poly1305::new(key.into()) }
    }

    /// Seals the chunk of a file that begins at `index` chunks.
    ///
    /// - `digest`: of the whole file
    /// - `chunk`: all [`CHUNK_BYTES`] of it, or less at the end
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn seal(&self, digest: Digest, index: u64, chunk: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
        let payload = Payload { msg: chunk, aad: &place(digest, index) };
        let sealed = self.cipher.encrypt(&nonce.into(), payload);
        let sealed = sealed.map_err(|_| io::Error::other("a chunk cannot be sealed"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Where the record of the chunk at `offset` begins, in bytes of the sealed file.
    ///
    /// - `offset`: a multiple of [`CHUNK_BYTES`], or the end of the file
    #[must_use]
    pub const fn sealed_length(offset: u64) -> u64 {
        offset + offset.div_ceil(CHUNK_BYTES as u64) * OVERHEAD_BYTES as u64
    }

    /// Opens a record.
    fn open(&self, digest: Digest, index: u64, record: &[u8]) -> io::Result<Vec<u8>> {
        let opened = record.split_first_chunk::<NONCE_BYTES>().and_then(|(nonce, sealed)| {
            let payload = Payload { msg: sealed, aad: &place(digest, index) };
            self.cipher.decrypt(&(*nonce).into(), payload).ok()
        });
        opened.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the seal is broken"))
    }

    /// Opens the records of a file in order, and hands over what is in them with its offset.
    pub(super) fn each<E: From<io::Error>>(
        &self,
        digest: Digest,
        file: &mut File,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut record, mut offset) = (Vec::with_capacity(RECORD_BYTES), 0);
        for index in 0.. {
            record.clear();
            file.by_ref().take(RECORD_BYTES as u64).read_to_end(&mut record)?;
            if record.is_empty() {
                break;
            }
            let chunk = self.open(digest, index, &record)?;
            take(offset, &chunk)?;
            offset += chunk.len();
        }
        Ok(())
    }

    /// Reads what is sealed at `offset`, in bytes of the file before it was sealed.
    pub(super) fn read_at(
        &self,
        digest: Digest,
        file: &File,
        mut offset: u64,
        mut bytes: &mut [u8],
    ) -> io::Result<()> {
        let length = file.metadata()?.len();
        while !bytes.is_empty() {
            let index = offset / CHUNK_BYTES as u64;
            let start = index * RECORD_BYTES as u64;
            let left = length.saturating_sub(start).min(RECORD_BYTES as u64);
            let mut record = vec![0; left as usize];
            file.read_exact_at(&mut record, start)?;
            let chunk = self.open(digest, index, &record)?;
            let found = chunk.get((offset % CHUNK_BYTES as u64) as usize..).unwrap_or_default();
            if found.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = found.len().min(bytes.len());
            let (now, later) = bytes.split_at_mut(count);
            now.copy_from_slice(&found[..count]);
            (bytes, offset) = (later, offset + count as u64);
        }
        Ok(())
    }
}

/// How much of a file is in so many bytes of its sealed form; a record that was cut counts for what it
/// can hold.
pub(super) const fn opened_length(sealed: u64) -> u64 {
    let (whole, rest) = (sealed / RECORD_BYTES as u64, sealed % RECORD_BYTES as u64);
    whole * CHUNK_BYTES as u64 + rest.saturating_sub(OVERHEAD_BYTES as u64)
}

/// What a record is bound to.
fn place(digest: Digest, index: u64) -> Vec<u8> {
    [&digest.as_bytes()[..], &index.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn sealed(seal: &Seal, bytes: &[u8]) -> (Digest, Vec<u8>) {
        let digest = Digest::of(bytes);
        let chunks = bytes.chunks(CHUNK_BYTES).zip(0..);
        (
            digest,
            chunks.flat_map(|(chunk, at)| seal.seal(digest, at, chunk).expect("seals")).collect(),
        )
    }

    fn opened(seal: &Seal, digest: Digest, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(sealed).expect("writes");
        io::Seek::rewind(&mut file).expect("rewinds");
        let mut bytes = Vec::new();
        seal.each(digest, &mut file, |offset, chunk| {
            assert_eq!(offset, bytes.len());
            bytes.extend_from_slice(chunk);
            Ok::<_, io::Error>(())
        })?;
        Ok(bytes)
    }

    #[test]
    fn what_is_sealed_opens_whole_and_at_any_place_with_its_own_key_only() {
        let (own, other) = (Seal::new(&[1; 32]), Seal::new(&[2; 32]));
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 77).map(|at| ((at * 31) >> 3) as u8).collect();
        let (digest, sealed) = sealed(&own, &bytes);
        assert_eq!(opened(&own, digest, &sealed).expect("opens"), bytes);
        assert!(opened(&other, digest, &sealed).is_err());
        assert!(opened(&own, Digest::of(b"another"), &sealed).is_err());
        assert_eq!(opened_length(sealed.len() as u64), bytes.len() as u64);
        assert!(!sealed.windows(64).any(|window| window == &bytes[..64]));
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&sealed).expect("writes");
        for (offset, length) in
            [(0, 5), (CHUNK_BYTES - 3, 7), (5, CHUNK_BYTES * 2), (bytes.len() - 1, 1)]
        {
            let mut found = vec![0; length];
            own.read_at(digest, &file, offset as u64, &mut found).expect("reads");
            assert_eq!(found, bytes[offset..offset + length]);
        }
        let mut beyond = [0; 2];
        assert!(own.read_at(digest, &file, bytes.len() as u64 - 1, &mut beyond).is_err());
    }

    #[test]
    fn a_flipped_bit_a_swapped_and_a_cut_record_are_noticed() {
        let seal = Seal::new(&[1; 32]);
        let (digest, sealed) = sealed(&seal, &vec![7; CHUNK_BYTES * 2 + 5]);
        for at in [0, NONCE_BYTES, RECORD_BYTES - 1, sealed.len() - 1] {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(opened(&seal, digest, &flipped).is_err(), "byte {at}");
        }
        let (first, rest) = sealed.split_at(RECORD_BYTES);
        let (second, last) = rest.split_at(RECORD_BYTES);
        assert!(opened(&seal, digest, &[second, first, last].concat()).is_err());
        assert!(opened(&seal, digest, &sealed[..sealed.len() - 1]).is_err());
        assert!(opened(&seal, digest, &sealed[..RECORD_BYTES + 3]).is_err());
    }
}

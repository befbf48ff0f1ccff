//! Notices a store that lost or changed records, whatever its backend believes of itself.
//!
//! Every batch also writes a seal over all records: how many batches were applied, how many records
//! there are, and the exclusive or of their hashes, which can be kept up to date record by record.
//! The number of batches is also noted in a file beside the store, after each batch: a store that
//! fell back to an earlier state, which is whole in itself, shows against that.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tributary_protocol::id::Digest;

/// What all records together must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seal {
    /// Batches that were applied.
    pub(super) sequence: u64,
    /// Records there are.
    pub(super) records: u64,
    /// Exclusive or of the records' hashes.
    sum: [u64; 4],
}

impl Seal {
    /// Takes a record in.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.records += 1;
        self.toggle(key, value);
    }

    /// Takes a record out that was in.
    pub(super) fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.records = self.records.saturating_sub(1);
        self.toggle(key, value);
    }

    /// Whether it fits the same records as another.
    pub(super) fn fits(&self, other: &Self) -> bool {
        (self.records, self.sum) == (other.records, other.sum)
    }

    fn toggle(&mut self, key: &[u8], value: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(value);
        let hash = hasher.finalize();
        let (words, _) = hash.as_bytes().as_chunks::<8>();
        for (sum, &word) in self.sum.iter_mut().zip(words) {
            *sum ^= u64::from_le_bytes(word);
        }
    }
}

/// The number of the last batch, in a file of its own.
///
/// It is not flushed: the death of a process does not lose it, and after a loss of power it may be
/// older than the store, which it then does not accuse. It is never newer, because the store flushes first.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
}

/// Length of the file: number and its hash.
const BYTES: usize = 8 + 32;

impl Witness {
    /// Opens the file beside `store`, or makes it.
    ///
    /// - returns: with the number that it notes; `None` if it notes none, or was torn
    pub(super) fn open(store: &Path) -> io::Result<(Self, Option<u64>)> {
        let path = Self::path(store);
        let mut options = File::options();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(BYTES as u64 + 1).read_to_end(&mut bytes)?;
        let noted = <[u8; BYTES]>::try_from(bytes).ok().and_then(|bytes| {
            let (number, hash) = bytes.split_at(8);
            let whole = Digest::of(number).as_bytes() == hash;
            whole.then(|| u64::from_le_bytes(number.try_into().expect("eight bytes")))
        });
        Ok((Self { file }, noted))
    }

    /// Where the file of a store is.
    pub(super) fn path(store: &Path) -> PathBuf {
        store.with_extension("sequence")
    }

    pub(super) fn note(&self, sequence: u64) -> io::Result<()> {
        let number = sequence.to_le_bytes();
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&number);
        bytes[8..].copy_from_slice(Digest::of(&number).as_bytes());
        self.file.write_all_at(&bytes, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_depends_on_every_record_and_not_on_their_order() {
        let (mut one, mut two) = (Seal::default(), Seal::default());
        one.add(b"a", b"1");
        one.add(b"b", b"2");
        two.add(b"b", b"2");
        two.add(b"a", b"0");
        assert_ne!(one, two);
        two.remove(b"a", b"0");
        two.add(b"a", b"1");
        assert_eq!(one, two);
        let mut moved = Seal::default();
        moved.add(b"a1", b"");
        moved.add(b"b", b"2");
        assert_ne!(one, moved, "key and value have a border");
    }

    #[test]
    fn a_torn_note_accuses_nobody() {
        let folder = tempfile::tempdir().expect("folder");
        let store = folder.path().join("store");
        let (witness, noted) = Witness::open(&store).expect("opens");
        assert_eq!(noted, None);
        witness.note(7).expect("writes");
        assert_eq!(Witness::open(&store).expect("opens").1, Some(7));
        let path = Witness::path(&store);
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).expect("writes");
        assert_eq!(Witness::open(&store).expect("opens").1, None);
    }
}

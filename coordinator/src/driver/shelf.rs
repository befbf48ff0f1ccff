//! Chunks of files that agents download: read and summed up once, and kept for whoever needs them next.
//!
//! A cohort downloads one base at about the same time, so what is kept is small.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::{sync::OnceCell, task::spawn_blocking};
use tributary_protocol::{id::Digest, tensor_stream::ChunkHeader, transport::stream::ChunkSource};

/// What is kept at most, in bytes of payload.
const BYTES_MAX: usize = 16 << 20;

type Chunk = (ChunkHeader, Bytes);

/// The chunks that one coordinator keeps.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelf(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// By file and offset.
    chunks: BTreeMap<(Digest, u64), Place>,
    bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct Place {
    /// Filled by the first who needs it, while others wait.
    chunk: Arc<OnceCell<Chunk>>,
    length: usize,
    last_use: u64,
}

impl Shelf {
    /// A complete file whose chunks are sent.
    pub(super) fn file(&self, digest: Digest, path: PathBuf) -> Shelved<'_> {
        Shelved { shelf: self, digest, path: Arc::new(path) }
    }

    fn place(&self, digest: Digest, offset: u64, length: usize) -> Arc<OnceCell<Chunk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).place(digest, offset, length)
    }
}

impl Kept {
    fn place(&mut self, digest: Digest, offset: u64, length: usize) -> Arc<OnceCell<Chunk>> {
        self.uses += 1;
        let place = self.chunks.entry((digest, offset)).or_insert_with(|| {
            self.bytes += length;
            Place { chunk: Arc::default(), length, last_use: 0 }
        });
        place.last_use = self.uses;
        let chunk = place.chunk.clone();
        while self.bytes > BYTES_MAX {
            let oldest = self.chunks.iter().min_by_key(|(_, place)| place.last_use);
            let oldest = *oldest.expect("what is kept has a length").0;
            self.bytes -= self.chunks.remove(&oldest).map_or(0, |place| place.length);
        }
        chunk
    }
}

/// A file's chunks, from the shelf where they are there.
#[derive(Debug)]
pub(super) struct Shelved<'a> {
    shelf: &'a Shelf,
    digest: Digest,
    path: Arc<PathBuf>,
}

impl ChunkSource for Shelved<'_> {
    async fn chunk(&mut self, offset: u64, length: usize) -> io::Result<Chunk> {
        let place = self.shelf.place(self.digest, offset, length);
        let path = self.path.clone();
        let read = || async move {
            let read = spawn_blocking(move || {
                let mut payload = vec![0; length];
                File::open(&*path)?.read_exact_at(&mut payload, offset)?;
                Ok((ChunkHeader::new(offset, &payload), Bytes::from(payload)))
            });
            read.await.expect("reading a chunk does not panic")
        };
        place.get_or_try_init(read).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LENGTH: usize = 256 * 1024;

    fn written(content: &[u8]) -> (tempfile::TempDir, PathBuf, Digest) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, content).expect("writes");
        (folder, path, Digest::of(content))
    }

    #[tokio::test]
    async fn a_chunk_is_read_once_and_described_as_it_is() {
        let content: Vec<u8> = (0..LENGTH + 5).map(|index| index as u8).collect();
        let (_folder, path, digest) = written(&content);
        let shelf = Shelf::default();
        let offset = LENGTH as u64;
        let (header, payload) =
            shelf.file(digest, path.clone()).chunk(offset, 5).await.expect("reads");
        assert_eq!(header, ChunkHeader::new(offset, &content[LENGTH..]));
        assert_eq!(payload, content[LENGTH..]);
        fs::remove_file(&path).expect("removes");
        let again = shelf.file(digest, path.clone()).chunk(offset, 5).await.expect("is kept");
        assert_eq!(again, (header, payload));
        shelf.file(digest, path).chunk(0, LENGTH).await.expect_err("was never read");
    }

    #[tokio::test]
    async fn a_chunk_that_could_not_be_read_is_tried_again() {
        let (_folder, path, digest) = written(b"model");
        let (shelf, elsewhere) = (Shelf::default(), path.with_extension("away"));
        fs::rename(&path, &elsewhere).expect("moves");
        shelf.file(digest, path.clone()).chunk(0, 5).await.expect_err("is not there");
        fs::rename(&elsewhere, &path).expect("moves back");
        let (_, payload) = shelf.file(digest, path).chunk(0, 5).await.expect("is there");
        assert_eq!(payload, b"model"[..]);
    }

    #[test]
    fn what_was_used_last_is_kept_within_the_limit() {
        let (mut kept, digest) = (Kept::default(), Digest::of(b"file"));
        let fit = BYTES_MAX / LENGTH;
        for index in 0..=fit {
            kept.place(digest, index as u64, LENGTH);
            // Used again and again.
            kept.place(digest, 0, LENGTH);
        }
        assert_eq!((kept.chunks.len(), kept.bytes), (fit, BYTES_MAX));
        assert!(kept.chunks.contains_key(&(digest, 0)));
        assert!(!kept.chunks.contains_key(&(digest, 1)), "the one that was not used the longest");
    }
}

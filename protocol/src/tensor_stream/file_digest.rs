//! The digest of a file, from chunks that are hashed one by one.

use blake3::hazmat::{ChainingValue, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::HashedChunk;
use crate::id::Digest;

/// The digest of a file whose chunks pass in order: the same as [`Digest::of`] its bytes.
///
/// A chunk is a subtree of BLAKE3's tree, so its hash is a node of the file's and nothing is hashed
/// twice.
///
/// Source: O'Connor et al. 2020, "BLAKE3: one function, fast everywhere", section 2.1.
#[derive(Debug, Clone, Default)]
pub struct FileDigest {
    /// The largest whole subtrees so far, from the left: at most one for each bit of `chunks`.
    subtrees: Vec<ChainingValue>,
    chunks: u64,
    /// Of a file that ends with its first chunk.
    first: Option<Digest>,
}

impl FileDigest {
    /// Takes the next chunk.
    ///
    /// # Panics
    /// If the first one is not at the start of the file.
    pub fn take(&mut self, chunk: &HashedChunk) {
        if self.chunks == 0 {
            self.first = Some(chunk.alone());
        }
        // Not before another chunk comes: the last merge of a file is another one than these.
        while self.subtrees.len() > self.chunks.count_ones() as usize {
            let right = self.subtrees.pop().expect("more than none");
            let left = self.subtrees.pop().expect("a subtree on the left of it");
            self.subtrees.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
        self.subtrees.push(chunk.subtree());
        self.chunks += 1;
    }

    /// The digest of all chunks that were taken, as a whole file.
    #[must_use]
    pub fn finish(mut self) -> Digest {
        let Some(mut right) = self.subtrees.pop() else { return Digest::of(&[]) };
        let Some(root) = (!self.subtrees.is_empty()).then(|| self.subtrees.remove(0)) else {
            return self.first.expect("of the only chunk");
        };
        while let Some(left) = self.subtrees.pop() {
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        Digest::from_bytes(*merge_subtrees_root(&root, &right, Mode::Hash).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor_stream::CHUNK_BYTES;

    #[test]
    fn any_number_of_chunks_gives_the_digest_of_the_whole() {
        let file: Vec<u8> = (0..9 * CHUNK_BYTES + 1).map(|index| (index % 251) as u8).collect();
        for chunks in 0..=9 {
            for rest in [0, 1, 1024, CHUNK_BYTES - 1] {
                let file = &file[..(chunks * CHUNK_BYTES + rest).min(file.len())];
                let mut digest = FileDigest::default();
                for (index, payload) in file.chunks(CHUNK_BYTES).enumerate() {
                    digest.take(&HashedChunk::of((index * CHUNK_BYTES) as u64, payload));
                }
                assert_eq!(digest.finish(), Digest::of(file), "{chunks} chunks and {rest} bytes");
            }
        }
    }
}

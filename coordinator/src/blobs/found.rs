//! Reading a file that is open.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

use tributary_protocol::id::Digest;

use super::{BlobError, Seal, error::io_error};

/// The largest piece, in bytes.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// A file that is open, and what opens its content if that is sealed.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) seal: Option<Arc<Seal>>,
}

impl Found {
    /// Hands the content over piece by piece, with the offset of each.
    ///
    /// - `digest`: to which sealed records are bound
    pub(super) fn each<E: From<BlobError>>(
        &mut self,
        digest: Digest,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = &self.path;
        if let Some(seal) = &self.seal {
            let each = seal.each(digest, &mut self.file, |offset, piece| {
                take(offset, piece).map_err(Piece::Taken)
            });
            return each.map_err(|error| match error {
                Piece::Taken(error) => error,
                Piece::Read(source) => BlobError::Seal { path: path.clone(), source }.into(),
            });
        }
        let (mut buffer, mut offset) = (vec![0; READ_BYTES], 0);
        loop {
            let length = self.file.read(&mut buffer).map_err(io_error("read", path))?;
            if length == 0 {
                return Ok(());
            }
            take(offset, &buffer[..length])?;
            offset += length;
        }
    }

    /// Tells the system that nobody reads the content again soon: the memory that holds a copy of it may
    /// serve the next file. A round of a thousand updates would otherwise push everything else out.
    pub(super) fn forget(&self) {
        #[cfg(target_os = "linux")]
        {
            use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
            // Advice: where it is not taken, nothing is different.
            let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
    }

    /// The digest of the content.
    ///
    /// - `digest`: what it should be, to which sealed records are bound
    pub(super) fn digest(&mut self, digest: Digest) -> Result<Digest, BlobError> {
        let mut hasher = blake3::Hasher::new();
        self.each(digest, |_, piece| {
            hasher.update(piece);
            Ok::<_, BlobError>(())
        })?;
        Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
    }
}

/// Why a piece of a sealed file was not handed over.
enum Piece<E> {
    Read(io::Error),
    Taken(E),
}

impl<E> From<io::Error> for Piece<E> {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

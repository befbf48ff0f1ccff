//! A stream of random bytes from a 256-bit key.

use aes::Aes256;
use ctr::{
    Ctr64LE,
    cipher::{KeyIvInit, StreamCipher},
};
use zeroize::Zeroizing;

/// Bytes under one key. 4,096 blocks tell a block cipher in counter mode from a random function
/// with probability 2^-105 at most (no block repeats under one key).
const KEY_BYTES: usize = 1 << 16;
/// Bytes that are kept for small requests.
const BUFFER: usize = 256;

/// AES-256 in counter mode, with a new key from its own output after every 64 KiB.
///
/// The old key is gone then, so a state that leaks tells nothing about earlier bytes. Where the
/// processor has vector AES instructions this is several times faster than ChaCha20, and where it
/// has none the implementation stays constant-time, only slower; the bytes are the same everywhere.
/// Key and buffer are zeroised on drop.
pub(super) struct Keystream {
    cipher: Ctr64LE<Aes256>,
    /// Bytes that the key still gives, its successor's not counted.
    left: usize,
    buffer: Zeroizing<[u8; BUFFER]>,
    /// Bytes of the buffer that are spent.
    used: usize,
}

impl Keystream {
    pub(super) fn new(key: &Zeroizing<[u8; 32]>) -> Self {
        Self {
            cipher: cipher(key),
            left: KEY_BYTES,
            buffer: Zeroizing::new([0; BUFFER]),
            used: BUFFER,
        }
    }

    /// The next bytes of the stream, however it is cut into requests.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        let ready = bytes.len().min(BUFFER - self.used);
        let (ready, rest) = bytes.split_at_mut(ready);
        ready.copy_from_slice(&self.buffer[self.used..self.used + ready.len()]);
        self.used += ready.len();
        // Whole buffers go straight to the caller.
        let (whole, rest) = rest.split_at_mut(rest.len() / BUFFER * BUFFER);
        self.generate(whole);
        if !rest.is_empty() {
            let mut buffer = std::mem::replace(&mut self.buffer, Zeroizing::new([0; BUFFER]));
            self.generate(&mut buffer[..]);
            rest.copy_from_slice(&buffer[..rest.len()]);
            (self.buffer, self.used) = (buffer, rest.len());
        }
    }

    /// The next N bytes.
    #[inline]
    pub(super) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        match self.buffer[self.used..].first_chunk::<N>() {
            Some(ready) => {
                bytes = *ready;
                self.used += N;
            }
            None => self.fill(&mut bytes),
        }
        bytes
    }

    /// Straight from the cipher; `bytes` is a multiple of the buffer, which divides a key's share.
    fn generate(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at_mut(bytes.len().min(self.left));
            self.cipher.write_keystream(now);
            self.left -= now.len();
            if self.left == 0 {
                let mut key = Zeroizing::new([0; 32]);
                self.cipher.write_keystream(&mut key[..]);
                self.cipher = cipher(&key);
                self.left = KEY_BYTES;
            }
            bytes = later;
        }
    }
}

/// Every key is used once, so the counter may start at zero.
fn cipher(key: &Zeroizing<[u8; 32]>) -> Ctr64LE<Aes256> {
    Ctr64LE::new((&**key).into(), &[0; 16].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Keystream {
        Keystream::new(&Zeroizing::new([9; 32]))
    }

    #[test]
    fn the_first_block_is_that_of_the_standard() {
        // NIST SP 800-38A, F.1.5: AES-256 of one block; counter mode of the zero counter is the
        // cipher of the zero block (FIPS-197 known answer for the zero key).
        let mut stream = Keystream::new(&Zeroizing::new([0; 32]));
        let expected = [
            0xdc, 0x95, 0xc0, 0x78, 0xa2, 0x40, 0x89, 0x89, 0xad, 0x48, 0xa2, 0x14, 0x92, 0x84,
            0x20, 0x87,
        ];
        assert_eq!(stream.take::<16>(), expected);
    }

    #[test]
    fn the_stream_does_not_depend_on_how_it_is_cut() {
        let length = 3 * KEY_BYTES + 777;
        let mut whole = vec![0; length];
        stream().fill(&mut whole);
        let (mut pieces, mut source, mut size) = (Vec::new(), stream(), 1);
        while pieces.len() < length {
            if size % 5 == 0 {
                pieces.extend(source.take::<8>());
            }
            let mut piece = vec![0; size];
            source.fill(&mut piece);
            pieces.extend(piece);
            size = size * 7 % 1009;
        }
        assert!(whole == pieces[..length]);
    }

    #[test]
    fn keys_are_replaced() {
        let mut bytes = vec![0; 2 * KEY_BYTES];
        stream().fill(&mut bytes);
        assert_ne!(bytes[..64], bytes[KEY_BYTES..KEY_BYTES + 64]);
    }
}

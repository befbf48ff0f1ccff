//! A receiver survives any chunks and never moves past its file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tributary_protocol::tensor_stream::{ChunkHeader, Cursor, HEADER_BYTES};

fuzz_target!(|input: (u64, Vec<u8>)| {
    let (length, bytes) = input;
    let mut cursor = Cursor::new(length, 0).expect("zero is a boundary");
    let mut rest = bytes.as_slice();
    while let Some((header, tail)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok(header) = ChunkHeader::decode(header) else { return };
        let payload = &tail[..tail.len().min(header.length as usize)];
        if cursor.accept(&header, payload).is_err() {
            return;
        }
        assert!(cursor.offset() <= length);
        rest = &tail[payload.len()..];
    }
});

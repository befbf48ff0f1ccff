//! Every message of secure aggregation decodes any bytes to a value or an error; a value encodes
//! back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tributary_privacy::secagg::{ClientMessage, ServerMessage};
use tributary_protocol::codec;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = codec::decode::<ClientMessage>(bytes) {
        codec::encode(&message).expect("what decodes encodes");
    }
    if let Ok(message) = codec::decode::<ServerMessage>(bytes) {
        codec::encode(&message).expect("what decodes encodes");
    }
});

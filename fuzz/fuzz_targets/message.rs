//! Every message type decodes any bytes to a value or an error; a value encodes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tributary_privacy::secagg;
use tributary_protocol::{
    codec,
    message::{
        AgentMessage, CoordinatorMessage, EnrollmentRequest, EnrollmentResponse, TransferRequest,
        TransferResponse,
    },
};

fuzz_target!(|bytes: &[u8]| {
    macro_rules! decode {
        ($($message:ty),*) => {$(
            if let Ok(message) = codec::decode::<$message>(bytes) {
                codec::encode(&message).expect("what decodes encodes");
            }
        )*};
    }
    decode!(
        AgentMessage,
        CoordinatorMessage,
        TransferRequest,
        TransferResponse,
        EnrollmentRequest,
        EnrollmentResponse,
        secagg::ClientMessage,
        secagg::ServerMessage
    );
});

//! Any text is a token or an error; a token prints as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tributary_protocol::enrollment::EnrollmentToken;

fuzz_target!(|text: &str| {
    if let Ok(token) = text.parse::<EnrollmentToken>() {
        assert_eq!(token.to_string(), text.trim());
    }
});

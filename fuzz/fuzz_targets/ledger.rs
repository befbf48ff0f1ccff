//! A ledger file of any bytes opens or is refused, never reset.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tributary_privacy::ledger::{Ledger, MemoryChainStore};

fuzz_target!(|bytes: &[u8]| {
    let _ = Ledger::open(MemoryChainStore::with_bytes(bytes.to_vec()), "tenant");
});

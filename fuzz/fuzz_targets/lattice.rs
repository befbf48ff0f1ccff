//! Any bytes are added or refused; in pieces to a packed sum they give the same as whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tributary_privacy::lattice::{Lattice, ModularSum, PackedSum};

fuzz_target!(|input: (u8, usize, Vec<u8>)| {
    let (bits, cut, bytes) = input;
    let Ok(lattice) = Lattice::new(1.0, bits) else { return };
    let dimension = bytes.len() * 8 / usize::from(bits);
    let mut whole = ModularSum::new(lattice, dimension);
    if whole.add_packed(&bytes).is_err() {
        return;
    }
    let cut = cut.checked_rem(bytes.len()).unwrap_or(0);
    let mut packed = PackedSum::new(lattice, dimension);
    packed.add_chunk(cut, &bytes[cut..]).expect("the whole was accepted");
    packed.add_chunk(0, &bytes[..cut]).expect("the whole was accepted");
    assert_eq!(packed.unpack(), whole);
});

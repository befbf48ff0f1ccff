//! A model file is read to finite parameters or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tributary_protocol::{
    model::{MlpSpec, ModelSpec},
    tensor_file,
};

fuzz_target!(|bytes: &[u8]| {
    let spec = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 });
    if let Ok(parameters) = tensor_file::read(&spec, bytes) {
        assert!(parameters.len() == 6 && parameters.iter().all(|value| value.is_finite()));
    }
});

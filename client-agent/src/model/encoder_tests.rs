//! The encoder against the transformers library; numbers by `tests/fixtures/language/make_encoder.py`.

use std::{collections::HashMap, path::Path};

use candle_core::Device;
use serde::Deserialize;
use tributary_protocol::{
    checkpoint::{read_parameters, read_spec},
    model::ModelSpec,
};

use super::*;

#[derive(Deserialize)]
struct Expected {
    alone: Vec<Case>,
    padded: Vec<f32>,
}

#[derive(Deserialize)]
struct Case {
    tokens: Vec<u32>,
    label: u32,
    logits: Vec<f32>,
    loss: f32,
    gradient_norm: f64,
    pooler_gradient: Vec<f32>,
}

fn model() -> (Model, Expected) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language/bert");
    let spec: ModelSpec = read_spec(&folder).expect("a known model");
    let start = vec![f32::NAN; spec.num_parameters()];
    let flat = read_parameters(&folder, &spec, start).expect("the folder holds the model");
    let text = std::fs::read(folder.join("expected.json")).expect("numbers");
    (Model::new(&spec, &flat).expect("valid"), serde_json::from_slice(&text).expect("numbers"))
}

fn logits(model: &Model, texts: &[&[u32]]) -> Vec<f32> {
    let inputs = Inputs::tokens(texts).expect("fits");
    let outputs = model.outputs(&inputs, model.frozen()).expect("runs");
    with_elements(&outputs, <[f32]>::to_vec).expect("f32")
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
    }
}

#[test]
fn logits_of_texts_alone_and_side_by_side_are_those_of_transformers() {
    let (model, expected) = model();
    for case in &expected.alone {
        assert_close(&logits(&model, &[&case.tokens]), &case.logits);
    }
    let texts: Vec<&[u32]> = expected.alone.iter().map(|case| case.tokens.as_slice()).collect();
    assert_close(&logits(&model, &texts), &expected.padded);
}

#[test]
fn per_example_gradients_are_those_of_transformers_whatever_the_padding() {
    let (model, expected) = model();
    let texts: Vec<&[u32]> = expected.alone.iter().map(|case| case.tokens.as_slice()).collect();
    let batch = Batch {
        inputs: Inputs::tokens(&texts).expect("fits"),
        labels: expected.alone.iter().map(|case| case.label).collect(),
        weights: vec![1.0; texts.len()],
    };
    let (tape, all) = (Tape::default(), 0..model.spec().num_parameters());
    let outputs = model.outputs(&batch.inputs, model.frozen().recording(&tape, &all));
    let outputs = outputs.expect("runs");
    for (outcome, case) in
        batch.outcomes(&outputs, texts.len()).expect("f32").iter().zip(&expected.alone)
    {
        assert!((outcome.loss as f32 - case.loss).abs() < 1e-4);
    }
    batch.loss(&outputs).and_then(|loss| loss.backward()).expect("runs");
    let mut sum = vec![0.0; all.end];
    let norms = tape.add_clipped_sum(texts.len(), 1e9, &mut sum).expect("finite");
    for (norm, case) in norms.iter().zip(&expected.alone) {
        assert!((norm / case.gradient_norm - 1.0).abs() < 1e-3, "{norm} {}", case.gradient_norm);
    }
    let spans: HashMap<_, _> = model.spec().spans().into_iter().collect();
    let pooler = &sum[spans["bert.pooler.dense.bias"].clone()];
    let mut expected_sum = vec![0.0; pooler.len()];
    for case in &expected.alone {
        expected_sum.iter_mut().zip(&case.pooler_gradient).for_each(|(sum, value)| *sum += value);
    }
    assert_close(pooler, &expected_sum);
}

#[test]
fn token_ids_without_a_row_are_errors() {
    let (model, _) = model();
    let ids = candle_core::Tensor::from_vec(vec![1_u32, 99], (1, 2), &Device::Cpu).expect("fits");
    let inputs = Inputs::Tokens { ids, lengths: vec![2] };
    assert!(model.outputs(&inputs, model.frozen()).is_err());
}

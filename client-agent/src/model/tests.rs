use candle_core::{D, Device, Var};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_protocol::model::MlpSpec;

use super::*;

fn spec() -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs: 20, hidden: vec![16, 12], classes: 5 })
}

fn uniform(source: &mut Xoshiro256PlusPlus, len: usize, bound: f32) -> Vec<f32> {
    (0..len).map(|_| source.random_range(-bound..bound)).collect()
}

fn parameters(source: &mut Xoshiro256PlusPlus) -> Vec<f32> {
    uniform(source, spec().num_parameters(), 0.5)
}

/// Inputs whose sizes differ, so that some gradients are clipped and some are not.
fn batch(source: &mut Xoshiro256PlusPlus, examples: usize) -> (Tensor, Tensor) {
    let mut rows = uniform(source, examples * 20, 1.0);
    for (index, row) in rows.chunks_exact_mut(20).enumerate() {
        row.iter_mut().for_each(|value| *value *= 0.1 + index as f32 / 8.0);
    }
    let labels: Vec<u32> = (0..examples).map(|_| source.random_range(0..5)).collect();
    let inputs = Tensor::from_vec(rows, (examples, 20), &Device::Cpu).expect("sizes agree");
    (inputs, Tensor::from_vec(labels, examples, &Device::Cpu).expect("sizes agree"))
}

/// Gradient of the summed cross-entropy by the library's own operations, and the logits.
fn stock_gradient(flat: &[f32], inputs: &Tensor, labels: &Tensor) -> (Vec<f32>, Tensor) {
    let run = || -> candle_core::Result<(Vec<f32>, Tensor)> {
        let (mut rest, mut variables) = (flat, Vec::new());
        for tensor in spec().tensors() {
            let (values, tail) = rest.split_at(tensor.num_elements());
            variables.push(Var::from_slice(values, tensor.shape, &Device::Cpu)?);
            rest = tail;
        }
        let mut hidden = inputs.clone();
        for (index, layer) in variables.chunks(2).enumerate() {
            hidden = hidden.matmul(&layer[0].t()?)?.broadcast_add(&layer[1])?;
            if index < 2 {
                hidden = hidden.relu()?;
            }
        }
        let log = candle_nn::ops::log_softmax(&hidden, D::Minus1)?;
        let loss = log.gather(&labels.unsqueeze(1)?, 1)?.sum_all()?.neg()?;
        let gradients = loss.backward()?;
        let mut flat = Vec::new();
        for variable in &variables {
            let gradient = gradients.get(variable).expect("every variable is used");
            flat.extend(gradient.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok((flat, hidden))
    };
    run().expect("stock operations")
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    let scale = expected.iter().fold(0.0_f32, |scale, value| scale.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let distance = (found - expected).abs();
        assert!(distance <= tolerance * scale, "{index}: {found} is not {expected} (of {scale})");
    }
}

#[test]
fn logits_and_the_summed_gradient_equal_the_librarys() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(1);
    let flat = parameters(&mut source);
    let (inputs, labels) = batch(&mut source, 33);
    let (expected, logits) = stock_gradient(&flat, &inputs, &labels);

    let model = Model::new(&spec(), &flat).expect("valid");
    let tape = Tape::default();
    let recorded = model.run(&inputs, Some(&tape)).expect("runs");
    cross_entropy_sum(&recorded, &labels).expect("runs").backward().expect("runs");
    let mut sum = vec![0.0; flat.len()];
    tape.add_sum(&mut sum).expect("runs");
    assert_close(&sum, &expected, 1e-5);
    let flatten = |tensor: &Tensor| with_elements(tensor, <[f32]>::to_vec).expect("f32");
    assert_close(&flatten(&recorded), &flatten(&logits), 1e-5);
    assert_eq!(flatten(&recorded), flatten(&model.forward(&inputs).expect("runs")));
}

#[test]
fn the_clipped_sum_equals_a_loop_over_examples() {
    const EXAMPLES: usize = 32;
    let mut source = Xoshiro256PlusPlus::seed_from_u64(2);
    let flat = parameters(&mut source);
    let (inputs, labels) = batch(&mut source, EXAMPLES);
    let gradients: Vec<Vec<f32>> = (0..EXAMPLES)
        .map(|index| {
            let row = |tensor: &Tensor| tensor.narrow(0, index, 1).expect("in range");
            stock_gradient(&flat, &row(&inputs), &row(&labels)).0
        })
        .collect();
    let norm = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let norms: Vec<f64> = gradients.iter().map(|gradient| norm(gradient)).collect();
    let mut sorted = norms.clone();
    sorted.sort_by(f64::total_cmp);
    let norm_max = sorted[EXAMPLES / 2];
    let mut expected = vec![0.0; flat.len()];
    for (gradient, norm) in gradients.iter().zip(&norms) {
        let factor = (norm_max / norm).min(1.0) as f32;
        for (sum, value) in expected.iter_mut().zip(gradient) {
            *sum += factor * value;
        }
    }

    let model = Model::new(&spec(), &flat).expect("valid");
    let tape = Tape::default();
    let logits = model.run(&inputs, Some(&tape)).expect("runs");
    cross_entropy_sum(&logits, &labels).expect("runs").backward().expect("runs");
    let mut sum = vec![0.0; flat.len()];
    let found = tape.add_clipped_sum(EXAMPLES, norm_max, &mut sum).expect("finite");
    assert_close(&sum, &expected, 1e-4);
    for (found, expected) in found.iter().zip(&norms) {
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} is not {expected}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_is_named_and_changes_nothing() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(3);
    let flat = parameters(&mut source);
    let (_, labels) = batch(&mut source, 3);
    for poison in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut rows = uniform(&mut source, 60, 1.0);
        rows[47] = poison;
        let inputs = Tensor::from_vec(rows, (3, 20), &Device::Cpu).expect("sizes agree");
        let model = Model::new(&spec(), &flat).expect("valid");
        let tape = Tape::default();
        let logits = model.run(&inputs, Some(&tape)).expect("runs");
        cross_entropy_sum(&logits, &labels).expect("runs").backward().expect("runs");
        let mut sum = vec![0.0; flat.len()];
        let error = tape.add_clipped_sum(3, 1.0, &mut sum).map(|_| ());
        assert!(matches!(error, Err(ClippingError::NonFinite { example: 2 })), "{error:?}");
        assert!(sum.iter().all(|&value| value == 0.0));
    }
}

#[test]
fn steps_move_the_parameters_in_place() {
    let flat = parameters(&mut Xoshiro256PlusPlus::seed_from_u64(4));
    let model = Model::new(&spec(), &flat).expect("valid");
    assert_eq!(model.parameters().expect("f32"), flat);
    let step: Vec<f32> = (0..flat.len()).map(|index| index as f32).collect();
    model.add_scaled(&step, -0.5).expect("same length");
    let expected: Vec<f32> =
        flat.iter().zip(&step).map(|(value, step)| value - 0.5 * step).collect();
    assert_close(&model.parameters().expect("f32"), &expected, 1e-7);
}

#[test]
fn parameters_that_are_not_the_model_are_named() {
    let mut flat = vec![0.0; spec().num_parameters()];
    assert!(matches!(
        Model::new(&spec(), &flat[1..]).map(|_| ()),
        Err(ModelError::Parameters(TensorFileError::ParameterCount { expected: 605, found: 604 }))
    ));
    flat[321] = f32::INFINITY;
    let error = Model::new(&spec(), &flat).map(|_| ()).expect_err("infinite").to_string();
    assert_eq!(error, "tensor \"layers.0.bias\" holds inf at element 1; parameters must be finite");
}

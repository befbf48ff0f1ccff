use tributary_protocol::model::{MlpSpec, ModelSpec};

use super::*;
use crate::{
    data::{Dataset, Split},
    train::evaluate,
};

fn spec() -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs: 4, hidden: vec![8], classes: 2 })
}

fn base() -> Vec<f32> {
    (0..spec().num_parameters()).map(|index| ((index as f32) * 1.3).sin() * 0.5).collect()
}

fn records() -> Dataset {
    let labels: Vec<u32> = (0..400).map(|index| index % 2).collect();
    // The base gets nearly all of these wrong.
    let features = labels
        .iter()
        .zip(0_u32..)
        .flat_map(|(&label, index)| {
            let wiggle = (index as f32 * 0.7).sin() * 0.3;
            [wiggle, 0.5, 1.0 - label as f32 * 2.0 + wiggle, -wiggle]
        })
        .collect();
    Dataset::from_floats(features, 4, labels, 2)
}

fn plan() -> AdapterPlan {
    AdapterPlan { rank: 2, learning_rate: 0.02, epochs_max: 12, ..AdapterPlan::default() }
}

fn tune(plan: &AdapterPlan, start: Option<&Adapter>) -> Result<AdapterOutcome, AdapterError> {
    let split = Split::new(400, 0.4, 1).expect("valid");
    let request = FineTune {
        spec: &spec(),
        base: &base(),
        base_digest: Digest::of(b"base"),
        start,
        data: &records(),
        split: &split,
        plan,
        seed: 5,
    };
    fine_tune(&request, &mut || false)
}

#[test]
fn an_adapter_learns_and_a_restart_keeps_what_it_knew() {
    for optimizer in [AdapterOptimizer::Adam, AdapterOptimizer::Sgd] {
        let learning_rate = if optimizer == AdapterOptimizer::Adam { 0.02 } else { 0.3 };
        let plan = AdapterPlan { optimizer, learning_rate, ..plan() };
        let outcome = tune(&plan, None).expect("trains");
        assert!(outcome.accepted);
        assert!(outcome.validation.accuracy > 0.95, "{outcome:?}");
        assert!(outcome.base_validation.accuracy < 0.9, "{outcome:?}");

        let idle = AdapterPlan { epochs_max: 0, alpha: 4.0, ..plan };
        let again = tune(&idle, Some(&outcome.adapter)).expect("valid");
        assert_eq!(again.validation.accuracy, outcome.validation.accuracy);
    }
}

#[test]
fn a_harmful_step_size_never_makes_it_worse() {
    let plan = AdapterPlan { learning_rate: 50.0, optimizer: AdapterOptimizer::Adam, ..plan() };
    let outcome = tune(&plan, None).expect("finite");
    assert!(outcome.accepted);
    assert!(outcome.validation.accuracy >= outcome.base_validation.accuracy);
}

#[test]
fn time_that_is_up_leaves_the_base_as_it_was() {
    let (spec, base, data, plan) = (spec(), base(), records(), plan());
    let split = Split::new(400, 0.4, 1).expect("valid");
    let request = FineTune {
        spec: &spec,
        base: &base,
        base_digest: Digest::of(b"base"),
        start: None,
        data: &data,
        split: &split,
        plan: &plan,
        seed: 5,
    };
    let outcome = fine_tune(&request, &mut || true).expect("valid");
    assert_eq!((outcome.epochs, outcome.accepted), (1, true));
    assert_eq!(outcome.adapter.merge(&spec, &base).expect("fits"), base);
}

#[test]
fn the_merged_model_is_the_trained_one() {
    let outcome = tune(&plan(), None).expect("trains");
    let split = Split::new(400, 0.4, 1).expect("valid");
    let adapter = Some(&outcome.adapter);
    let found = evaluate(&spec(), &base(), adapter, &records(), &split.validation);
    assert_eq!(found.expect("fits"), outcome.validation);
    // The trainable form and the merged form agree.
    let data = records();
    let (inputs, _) = data.batch(&[0, 1, 2]).expect("in range");
    let model = crate::model::Model::new(&spec(), &base()).expect("valid");
    let factors = outcome.adapter.factors(&spec()).expect("fits");
    let features = crate::model::Inputs::Features(inputs.clone());
    let flow = model.frozen().with_factors(&factors, None);
    let trained = model.outputs(&features, flow).expect("runs");
    let merged = outcome.adapter.merge(&spec(), &base()).expect("fits");
    let merged = crate::model::Model::new(&spec(), &merged).expect("valid");
    let merged = merged.forward(&inputs).expect("runs");
    let distance = (trained - merged).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
    assert!(distance.expect("f32") < 1e-4);
}

#[test]
fn adapter_files_round_trip_and_repeat() {
    let adapter = tune(&plan(), None).expect("trains").adapter;
    let bytes = adapter.to_safetensors(&spec()).expect("fits");
    assert_eq!(Adapter::from_safetensors(&spec(), &bytes).expect("valid"), adapter);
    assert_eq!(adapter.to_safetensors(&spec()).expect("fits"), bytes);
    assert_eq!(adapter.base(), Digest::of(b"base"));
}

#[test]
fn files_and_plans_that_cannot_work_are_named() {
    let adapter = tune(&plan(), None).expect("trains").adapter;
    let bytes = adapter.to_safetensors(&spec()).expect("fits");
    let wide = ModelSpec::Mlp(MlpSpec { inputs: 5, hidden: vec![8], classes: 2 });
    let error = Adapter::from_safetensors(&wide, &bytes).expect_err("other width");
    assert!(matches!(error, AdapterError::File(TensorFileError::Shape { .. })), "{error:?}");
    assert!(adapter.merge(&wide, &vec![0.0; wide.num_parameters()]).is_err());
    let bare = tributary_protocol::tensor_file::write(&spec(), &base()).expect("valid");
    let error = Adapter::from_safetensors(&spec(), &bare).expect_err("no adapter");
    assert!(matches!(error, AdapterError::Metadata { .. }), "{error:?}");
    for (plan, field) in [
        (AdapterPlan { rank: 0, ..plan() }, "rank"),
        (AdapterPlan { learning_rate: f64::NAN, ..plan() }, "learning_rate"),
        (AdapterPlan { batch_size: 0, ..plan() }, "batch_size"),
        (AdapterPlan { alpha: -1.0, ..plan() }, "alpha"),
    ] {
        let error = tune(&plan, None).map(|_| ()).expect_err(field).to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn records_must_be_there_to_train_and_to_validate() {
    let (spec, base, data, plan) = (spec(), base(), records(), plan());
    let split = Split { train: vec![0, 1], validation: vec![], held_out: vec![2] };
    let request = FineTune {
        spec: &spec,
        base: &base,
        base_digest: Digest::of(b"base"),
        start: None,
        data: &data,
        split: &split,
        plan: &plan,
        seed: 5,
    };
    let error = fine_tune(&request, &mut || false).map(|_| ()).expect_err("nothing to validate");
    assert!(error.to_string().contains("validate"), "{error}");
}

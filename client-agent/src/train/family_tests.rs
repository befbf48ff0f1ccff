//! Every family and federated part through the one trainer.

use std::ops::ControlFlow;

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_privacy::{
    clip::ClippingNorm,
    mechanism::{ClippedGradientSum, NoisyGradientSum},
    noise::SecureNoise,
};
use tributary_protocol::{
    job::TrainingPlan,
    model::{FederatedPart, MlpSpec, ModelSpec, SharedLora},
};

use super::*;
use crate::{
    data::{Dataset, Texts},
    model::{ExampleClip, Model, Tape},
};

const LORA: FederatedPart =
    FederatedPart::Lora(SharedLora { rank: 2, alpha: 4.0, freeze_a: false });
const FROZEN: FederatedPart =
    FederatedPart::Lora(SharedLora { rank: 2, alpha: 4.0, freeze_a: true });
const EXAMPLES: u32 = 24;

fn spec(text: &str) -> ModelSpec {
    toml::from_str(text).expect("valid")
}

fn cnn() -> ModelSpec {
    spec(
        "[cnn]\nheight = 6\nwidth = 6\nclasses = 3\nhidden = [8]\n\
         convolutions = [{ channels = 4 }, { channels = 5, pool = 1 }]",
    )
}

fn encoder() -> ModelSpec {
    spec(
        "[encoder]\nvocab_size = 12\nhidden_size = 8\nintermediate_size = 12\nnum_layers = 2\n\
         num_heads = 2\npositions = 8\nclasses = 3",
    )
}

fn decoder(tied: bool) -> ModelSpec {
    spec(&format!(
        "[decoder]\nvocab_size = 12\nhidden_size = 8\nintermediate_size = 12\nnum_layers = 2\n\
         num_heads = 4\nnum_kv_heads = 2\ncontext_max = 8\nqkv_bias = true\ntied = {tied}"
    ))
}

fn mlp() -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs: 6, hidden: vec![7, 5], classes: 3 })
}

/// Records of every size that a model takes, some with far larger gradients than others.
fn records(spec: &ModelSpec) -> Dataset {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(3);
    let labels: Vec<u32> = (0..EXAMPLES).map(|index| index % 3).collect();
    let Some(vocabulary) = spec.vocab_size() else {
        let width = spec.num_inputs();
        let value = |index: usize| source.random_range(-1.0..1.0) * (0.2 + index as f32 / 9.0);
        let values: Vec<f32> =
            (0..EXAMPLES as usize).flat_map(|example| vec![example; width]).map(value).collect();
        return Dataset::from_floats(values, width, labels, 3);
    };
    let continued = matches!(spec, ModelSpec::Decoder(_));
    let mut texts = Texts::new(vocabulary, continued);
    for index in 0..EXAMPLES as usize {
        let length = 2 + index % 6;
        let tokens: Vec<u32> =
            (0..length).map(|_| source.random_range(0..vocabulary as u32)).collect();
        texts.push(&tokens, if continued { index % 2 } else { 0 });
    }
    if continued { Dataset::from_continued(texts) } else { Dataset::from_texts(texts, labels, 3) }
}

fn base(spec: &ModelSpec) -> Vec<f32> {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(9);
    let mut flat = Vec::new();
    for tensor in spec.tensors() {
        let ones = tensor.initialization == tributary_protocol::model::Initialization::Ones;
        let centre = if ones { 1.0 } else { 0.0 };
        flat.extend(
            (0..tensor.num_elements()).map(|_| centre + source.random_range(-0.4_f32..0.4)),
        );
    }
    flat
}

/// The loss of some records at federated parameters.
fn loss(spec: &ModelSpec, part: FederatedPart, trained: &[f32], indices: &[u32]) -> f64 {
    let mut parameters = base(spec);
    part.merge(spec, &mut parameters, trained);
    let found = evaluate(spec, &parameters, None, &records(spec), indices).expect("valid");
    found.loss * indices.len() as f64
}

/// The clipped sum of some records' gradients.
fn clipped(
    spec: &ModelSpec,
    part: FederatedPart,
    clip: ExampleClip,
    indices: &[u32],
    micro_batch: usize,
    norm: f64,
) -> Vec<f64> {
    const STEP: f64 = 1e-7;
    let mut trainer = Trainer::of(spec, part, 1).expect("valid").clipping(clip);
    trainer.load(&base(spec)).expect("finite");
    // A bound far above the norm that is clipped to, so that the grid does not matter.
    let bound = ClippingNorm::new(norm * 2.0).expect("positive");
    let sums = ClippedGradientSum::new(bound, STEP, part.dimension(spec)).expect("valid");
    let mut sum = sums.begin();
    trainer.add_clipped_in(micro_batch, &records(spec), indices, norm, &mut sum).expect("finite");
    let mut noise = SecureNoise::new().expect("entropy");
    let grid = sums.quantize(sum, &mut noise).expect("in bounds");
    grid.iter().map(|&units| units as f64 * STEP).collect()
}

fn cases() -> Vec<(ModelSpec, FederatedPart)> {
    let mut cases = Vec::new();
    for spec in [mlp(), cnn(), encoder(), decoder(false), decoder(true)] {
        for part in [FederatedPart::All, FederatedPart::Head, LORA, FROZEN] {
            if part.validate(&spec).is_ok() {
                cases.push((spec.clone(), part));
            }
        }
    }
    assert_eq!(cases.len(), 19);
    cases
}

#[test]
fn the_gradient_of_every_family_and_part_is_the_slope_of_the_loss() {
    for (spec, part) in cases() {
        let start = part.start(&spec, &base(&spec));
        let found = clipped(&spec, part, ExampleClip::Flat, &[1], 1, 1e4);
        let largest = found.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        assert!(largest > 0.0, "{} {}", spec.family(), part.name());
        let mut checked = 0;
        // The coordinates with the largest gradients, where a difference is least lost in rounding.
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.sort_by(|&a, &b| found[b].abs().total_cmp(&found[a].abs()));
        for &index in order.iter().take(6) {
            let at = |step: f32| {
                let mut moved = start.clone();
                moved[index] += step;
                loss(&spec, part, &moved, &[1])
            };
            let slope = (at(4e-3) - at(-4e-3)) / 8e-3;
            let what =
                format!("{} {} {index}: {slope} {}", spec.family(), part.name(), found[index]);
            // A kink of ReLU or pooling within the step spoils single coordinates.
            checked += usize::from((slope - found[index]).abs() < 0.03 * largest + 2e-3);
            assert!((slope - found[index]).abs() < 0.5 * largest + 2e-3, "{what}");
        }
        assert!(checked >= 5, "{} {}", spec.family(), part.name());
    }
}

#[test]
fn clipping_bounds_each_example_and_ignores_how_the_batch_is_cut() {
    let all: Vec<u32> = (0..EXAMPLES).collect();
    let length = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    for (spec, part) in cases() {
        let each: Vec<Vec<f64>> = all
            .iter()
            .map(|&example| clipped(&spec, part, ExampleClip::Flat, &[example], 1, 0.5))
            .collect();
        assert!(each.iter().all(|gradient| length(gradient) <= 0.5 * (1.0 + 1e-4)));
        let mut expected = vec![0.0; each[0].len()];
        for gradient in &each {
            expected.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
        }
        for micro_batch in [1, 7, 24] {
            let found = clipped(&spec, part, ExampleClip::Flat, &all, micro_batch, 0.5);
            for (found, expected) in found.iter().zip(&expected) {
                let close = (found - expected).abs() < 1e-4;
                assert!(close, "{} {}: {found} {expected}", spec.family(), part.name());
            }
        }
    }
}

#[test]
fn per_layer_clipping_gives_every_layer_its_share() {
    for (spec, part) in cases() {
        let layers = part.layer_lengths(&spec);
        let found = clipped(&spec, part, ExampleClip::PerLayer, &[2], 1, 0.01);
        let share = 0.01 / (layers.len() as f64).sqrt();
        let mut rest = found.as_slice();
        for length in layers {
            let (layer, tail) = rest.split_at(length);
            let norm = layer.iter().map(|value| value * value).sum::<f64>().sqrt();
            assert!(norm <= share + 1e-6 * (length as f64).sqrt(), "{} {norm}", spec.family());
            rest = tail;
        }
    }
}

#[test]
fn private_training_lowers_the_loss_of_every_family() {
    for (spec, part) in cases() {
        let (data, start) = (records(&spec), base(&spec));
        let train: Vec<u32> = (0..EXAMPLES).collect();
        let plan = TrainingPlan {
            local_steps: 30,
            sampling_rate: 1.0,
            batch_size_expected: EXAMPLES,
            client_learning_rate: 0.5,
            update_norm_max: 16.0,
            algorithm: tributary_protocol::job::LocalAlgorithm::Sgd,
        };
        let task = LocalTask { spec: &spec, base: &start, data: &data, train: &train, plan: &plan };
        let norm = ClippingNorm::new(1.0).expect("positive");
        let mechanism = NoisyGradientSum::new(norm, 0.1, part.dimension(&spec)).expect("valid");
        let mut noise = SecureNoise::new().expect("entropy");
        let mut trainer = Trainer::of(&spec, part, 1).expect("valid");
        let update = trainer
            .dp_sgd(&task, &mechanism, &mut noise, &mut |_, _| ControlFlow::Continue(()))
            .expect("trains");
        let before = part.start(&spec, &start);
        let trained: Vec<f32> = before.iter().zip(&update).map(|(a, b)| a + b).collect();
        let (old, new) = (loss(&spec, part, &before, &train), loss(&spec, part, &trained, &train));
        // A head on frozen random features has little to learn from.
        assert!(new < 0.99 * old, "{} {}: {old} to {new}", spec.family(), part.name());
    }
}

#[test]
fn plain_steps_follow_the_same_gradient() {
    for (spec, part) in cases() {
        let mut trainer = Trainer::of(&spec, part, 1).expect("valid");
        let start = base(&spec);
        trainer.load(&start).expect("finite");
        let all: Vec<u32> = (0..EXAMPLES).collect();
        trainer.step(&records(&spec), &all, 1.0).expect("finite");
        let update = trainer.update(&start).expect("finite");
        let expected = clipped(&spec, part, ExampleClip::Flat, &all, 24, 1e4);
        for (found, expected) in update.iter().zip(&expected) {
            let mean = -expected / f64::from(EXAMPLES);
            assert!((f64::from(*found) - mean).abs() < 1e-4, "{}", spec.family());
        }
    }
}

#[test]
fn records_of_another_kind_are_named() {
    for (spec, data, wanted) in [
        (mlp(), records(&encoder()), "tables or images"),
        (encoder(), records(&mlp()), "texts with labels"),
        (encoder(), records(&decoder(false)), "texts with labels"),
        (decoder(false), records(&encoder()), "texts without labels"),
    ] {
        let error = evaluate(&spec, &base(&spec), None, &data, &[0]).expect_err(wanted);
        assert!(error.to_string().contains(wanted), "{error}");
    }
    let mut texts = Texts::new(99, true);
    texts.push(&[1; 20], 0);
    let data = Dataset::from_continued(texts);
    let spec = decoder(false);
    let error = evaluate(&spec, &base(&spec), None, &data, &[0]).expect_err("tokens").to_string();
    assert!(error.contains("takes 12 tokens of vocabulary but the dataset has 99"), "{error}");
}

/// A network's own head on top of a frozen rest learns no less than the tape says.
#[test]
fn a_frozen_part_leaves_no_record() {
    let spec = encoder();
    let model = Model::new(&spec, &base(&spec)).expect("valid");
    let (batch, tape) = (records(&spec).examples(&[0, 1]).expect("fits"), Tape::default());
    let head = spec.head().expect("a head");
    let flow = model.frozen().recording(&tape, &head);
    let outputs = model.outputs(&batch.inputs, flow).expect("runs");
    batch.loss(&outputs).and_then(|loss| loss.backward()).expect("runs");
    // Two linear layers with biases, and not one of the blocks below.
    let mut sum = vec![0.0; head.len()];
    tape.add_clipped_sum(2, 1.0, &mut sum).expect("finite");
    assert!(sum.iter().any(|value| *value != 0.0));
}

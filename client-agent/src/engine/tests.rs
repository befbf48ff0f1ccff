use tributary_protocol::model::{MlpSpec, ModelSpec};

use super::*;

fn spec() -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 3 })
}

/// A model that always answers `class`.
fn constant(class: usize) -> Vec<f32> {
    let mut parameters = vec![0.0; spec().num_parameters()];
    parameters[6 + class] = 9.0;
    parameters
}

fn serving(class: usize) -> Serving {
    let digest = Digest::of(&[class as u8]);
    Serving::new(&spec(), digest, &constant(class), None).expect("valid")
}

#[test]
fn answers_name_the_model_they_came_from() {
    let engine = Engine::new();
    assert!(matches!(engine.predict(&[]), Err(EngineError::NoModel)));
    engine.swap(serving(2));
    let answer = engine.predict(&[vec![0.5, 1.0], vec![0.0, 0.0]]).expect("valid");
    assert_eq!(answer.base, Digest::of(&[2]));
    assert!(answer.predictions.iter().all(|prediction| prediction.class == 2));
    let total: f32 = answer.predictions[0].probabilities.iter().sum();
    assert!((total - 1.0).abs() < 1e-6);
    assert!(engine.predict(&[]).expect("nothing asked").predictions.is_empty());
}

#[test]
fn inputs_that_cannot_be_used_are_named() {
    let engine = Engine::new();
    engine.swap(serving(0));
    let error = engine.predict(&[vec![1.0, 2.0], vec![1.0]]).expect_err("too narrow");
    assert_eq!(error.to_string(), "input 1 has 1 features; the model takes 2");
    let error = engine.predict(&[vec![1.0, f32::NAN]]).expect_err("NaN");
    assert!(error.to_string().contains("input 0, feature 1 is NaN"), "{error}");
    let error = engine.predict(&vec![vec![0.0; 2]; INPUTS_MAX + 1]).expect_err("too many");
    assert!(matches!(error, EngineError::TooMany { .. }), "{error}");
}

#[test]
fn calls_under_load_see_one_whole_model_each() {
    let engine = Engine::new();
    engine.swap(serving(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let answer = engine.predict(&vec![vec![0.1, 0.2]; 8]).expect("valid");
                        let class = answer.predictions[0].class;
                        assert_eq!(answer.base, Digest::of(&[class as u8]));
                        assert!(answer.predictions.iter().all(|one| one.class == class));
                    }
                })
            })
            .collect();
        for round in 0..200 {
            engine.swap(serving(round % 3));
        }
        for reader in readers {
            reader.join().expect("no panic");
        }
    });
}

#[test]
fn images_and_texts_are_answered_and_bad_tokens_are_named() {
    let cnn = "[cnn]\nheight = 4\nwidth = 4\nconvolutions = [{ channels = 2 }]\nclasses = 3";
    let encoder = "[encoder]\nvocab_size = 9\nhidden_size = 4\nintermediate_size = 4\n\
                   num_layers = 1\nnum_heads = 2\npositions = 5\nclasses = 3";
    let decoder = "[decoder]\nvocab_size = 9\nhidden_size = 4\nintermediate_size = 4\n\
                   num_layers = 1\nnum_heads = 2\ncontext_max = 5";
    let engine = |text: &str| {
        let spec: ModelSpec = toml::from_str(text).expect("valid");
        let flat: Vec<f32> =
            (0..spec.num_parameters()).map(|index| (index as f32 * 0.7).sin() * 0.3).collect();
        let engine = Engine::new();
        engine.swap(Serving::new(&spec, Digest::of(b"base"), &flat, None).expect("valid"));
        engine
    };
    let images = vec![vec![0.5; 16]; 300];
    assert_eq!(engine(cnn).predict(&images).expect("valid").predictions.len(), 300);
    let reads = engine(encoder);
    let (short, long) = (vec![1.0, 2.0], vec![3.0, 8.0, 0.0, 4.0, 5.0]);
    let together = reads.predict(&[short.clone(), long.clone()]).expect("valid").predictions;
    for (text, together) in [short, long].into_iter().zip(together) {
        let alone = reads.predict(&[text]).expect("valid").predictions;
        for (one, other) in alone[0].probabilities.iter().zip(&together.probabilities) {
            assert!((one - other).abs() < 1e-5, "padding changes an answer");
        }
    }
    for bad in [vec![], vec![9.0], vec![-1.0], vec![0.5], vec![f32::NAN], vec![1.0; 6]] {
        let error = reads.predict(&[vec![1.0], bad]).expect_err("no tokens").to_string();
        assert!(error.contains("input 1 must be 1 to 5 whole numbers below 9"), "{error}");
    }
    let error = engine(decoder).predict(&[vec![1.0]]).expect_err("no classes").to_string();
    assert!(error.contains("no classes"), "{error}");
}

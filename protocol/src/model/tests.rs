use super::*;

fn mlp(inputs: u32, hidden: &[u32], classes: u32) -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs, hidden: hidden.to_vec(), classes })
}

#[test]
fn parameters_are_counted_with_biases() {
    assert_eq!(mlp(784, &[200, 200], 10).num_parameters(), 199_210);
    assert_eq!(mlp(4, &[], 3).num_parameters(), 15);
    assert_eq!(mlp(4, &[5], 3).layer_lengths(), [25, 18]);
}

#[test]
fn impossible_sizes_are_named() {
    let error = mlp(4, &[8, 0], 3).validate().expect_err("zero width").to_string();
    assert!(error.contains("hidden[1]"), "{error}");
    assert!(mlp(4, &[], 1).validate().is_err());
    assert!(mlp(u32::MAX, &[u32::MAX], 10).validate().is_err());
}

fn decoder(tied: bool) -> ModelSpec {
    let text = format!(
        "vocab_size = 50\nhidden_size = 8\nintermediate_size = 12\nnum_layers = 2\nnum_heads = 4\n\
         num_kv_heads = 2\ncontext_max = 16\ntied = {tied}"
    );
    ModelSpec::Decoder(toml::from_str(&text).expect("valid"))
}

fn cnn() -> ModelSpec {
    let text = "height = 28\nwidth = 28\nconvolutions = [{ channels = 8 }, { channels = 16 }]\n\
                hidden = [32]\nclasses = 10";
    ModelSpec::Cnn(toml::from_str(text).expect("valid"))
}

fn encoder() -> ModelSpec {
    let text = "vocab_size = 50\nhidden_size = 8\nintermediate_size = 12\nnum_layers = 2\n\
                num_heads = 2\npositions = 16\nclasses = 3";
    ModelSpec::Encoder(toml::from_str(text).expect("valid"))
}

#[test]
fn the_parameters_of_every_family_are_those_of_its_checkpoints() {
    // 8 kernels of 3 · 3 · 1, 16 of 3 · 3 · 8, 7 · 7 · 16 values to 32, to 10.
    let convolutions = 8 * 9 + 8 + 16 * 72 + 16;
    assert_eq!(cnn().num_parameters(), convolutions + (784 + 1) * 32 + 33 * 10);
    let block = 2 * 8 + 2 * 8 * 8 + 2 * 4 * 8 + 3 * 8 * 12;
    assert_eq!(decoder(true).num_parameters(), 50 * 8 + 2 * block + 8);
    assert_eq!(decoder(false).num_parameters(), 2 * 50 * 8 + 2 * block + 8);
    let block = 4 * (8 * 8 + 8) + 2 * 16 + (8 * 12 + 12) + (12 * 8 + 8);
    let tables = (50 + 16 + 2) * 8 + 16;
    assert_eq!(encoder().num_parameters(), tables + 2 * block + 72 + 27);
    for model in [cnn(), encoder(), decoder(true), decoder(false)] {
        model.validate().expect("valid");
        let spans = model.spans();
        assert!(spans.windows(2).all(|pair| pair[0].1.end == pair[1].1.start));
        assert_eq!(model.layer_lengths().iter().sum::<usize>(), model.num_parameters());
    }
}

#[test]
fn the_federated_part_decides_the_dimension_and_merges_where_it_belongs() {
    let lora = |freeze_a| FederatedPart::Lora(SharedLora { rank: 2, alpha: 4.0, freeze_a });
    for model in [mlp(6, &[5], 3), cnn(), encoder(), decoder(false)] {
        let base: Vec<f32> = (0..model.num_parameters()).map(|i| (i as f32).sin()).collect();
        let mut dimensions = Vec::new();
        for part in [FederatedPart::All, FederatedPart::Head, lora(false), lora(true)] {
            part.validate(&model).expect("valid");
            let start = part.start(&model, &base);
            assert_eq!(start.len(), part.dimension(&model));
            assert_eq!(part.layer_lengths(&model).iter().sum::<usize>(), start.len());
            let mut merged = base.clone();
            part.merge(&model, &mut merged, &start);
            assert_eq!(merged, base, "a part that has not moved changes nothing");
            let moved: Vec<f32> = start.iter().map(|value| value + 0.5).collect();
            part.merge(&model, &mut merged, &moved);
            assert_ne!(merged, base);
            dimensions.push(start.len());
        }
        assert_eq!(dimensions[0], model.num_parameters());
        assert!(dimensions[1] < dimensions[0] && dimensions[3] < dimensions[2]);
    }
    assert_eq!(FederatedPart::Head.dimension(&mlp(6, &[5], 3)), 18);
    assert_eq!(FederatedPart::Head.dimension(&encoder()), 72 + 27);
    let error = FederatedPart::Head.validate(&decoder(true)).expect_err("tied").to_string();
    assert!(error.contains("embedding table"), "{error}");
}

#[test]
fn a_merged_change_is_the_scaled_product() {
    let model = mlp(3, &[], 2);
    let part = FederatedPart::Lora(SharedLora { rank: 1, alpha: 2.0, freeze_a: false });
    let mut base = vec![0.0; 8];
    // A = [1, 2, 3], B = [4, 5].
    part.merge(&model, &mut base, &[1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(base, [8.0, 16.0, 24.0, 10.0, 20.0, 30.0, 0.0, 0.0]);
    let frozen = FederatedPart::Lora(SharedLora { rank: 1, alpha: 2.0, freeze_a: true });
    let a = &frozen.factors(&model)[0].a;
    let mut base = vec![0.0; 8];
    frozen.merge(&model, &mut base, &[4.0, 5.0]);
    assert!((base[0] - 8.0 * a[0]).abs() < 1e-6 && (base[5] - 10.0 * a[2]).abs() < 1e-6);
}

#[test]
fn impossible_sizes_of_every_family_are_named() {
    let parse = |text: &str| -> Result<(), ModelSpecError> {
        let model: ModelSpec = toml::from_str(text).expect("parses");
        model.validate()
    };
    let encoder = "[encoder]\nvocab_size = 50\nhidden_size = 8\nintermediate_size = 12\n\
                   num_layers = 2\nnum_heads = 2\nclasses = 3\n";
    let decoder = "[decoder]\nvocab_size = 50\nhidden_size = 8\nintermediate_size = 12\n\
                   num_layers = 2\nnum_heads = 4\ncontext_max = 16\n";
    let cnn = "[cnn]\nheight = 8\nwidth = 8\nclasses = 2\nconvolutions = [{ channels = 2 }]\n";
    for (text, from, to, wanted) in [
        (encoder, "num_heads = 2", "num_heads = 3", "num_heads"),
        (encoder, "classes = 3", "classes = 1", "classes"),
        (encoder, "vocab_size = 50", "vocab_size = 0", "vocab_size"),
        (encoder, "num_layers = 2", "num_layers = 4000000", "num_layers"),
        (encoder, "hidden_size = 8", "hidden_size = 4000000000", "parameters"),
        (encoder, "classes = 3", "classes = 3\nlayer_norm_eps = nan", "layer_norm_eps"),
        (decoder, "num_heads = 4", "num_heads = 4\nnum_kv_heads = 3", "num_kv_heads"),
        (decoder, "num_heads = 4", "num_heads = 4\nhead_dim = 3", "head_dim"),
        (decoder, "num_heads = 4", "num_heads = 0", "num_heads"),
        (decoder, "context_max = 16", "context_max = 16\nrope_theta = 0.5", "rope_theta"),
        (
            decoder,
            "context_max = 16",
            "context_max = 16\nrope_scaling = { linear = { factor = 0 } }",
            "rope_scaling",
        ),
        (cnn, "channels = 2", "channels = 0", "convolutions.channels"),
        (cnn, "{ channels = 2 }", "", "convolutions"),
        (cnn, "channels = 2", "channels = 2, kernel = 20", "no longer fit"),
        (cnn, "channels = 2", "channels = 2, stride = 0", "convolutions.stride"),
        (cnn, "channels = 2", "channels = 2, padding = 4000000000", "2^14"),
        (cnn, "height = 8", "height = 0", "height"),
    ] {
        let text = text.replacen(from, to, 1);
        let error = parse(&text).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    let mlp = mlp(3, &[], 2);
    for (rank, alpha, wanted) in [(0, 1.0, "rank"), (257, 1.0, "rank"), (4, f64::NAN, "alpha")] {
        let part = FederatedPart::Lora(SharedLora { rank, alpha, freeze_a: false });
        let error = part.validate(&mlp).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

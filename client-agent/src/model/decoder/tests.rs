use std::path::{Path, PathBuf};

use candle_core::{Device, IndexOp, Tensor};
use serde::Deserialize;
use tributary_protocol::id::Digest;

use super::*;
use crate::{
    model::{
        Tape,
        checkpoint::{Checkpoint, CheckpointError},
        with_elements,
    },
    text::ChatMessage,
};

/// What transformers and PEFT answered; made by `tests/fixtures/language/make.py`.
#[derive(Deserialize)]
pub(crate) struct Expected {
    pub(crate) base: Vec<Case>,
    pub(crate) all: Vec<Case>,
    pub(crate) attention: Vec<Case>,
    chat: String,
    tokens: Vec<Tokens>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) prompt: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) greedy: Vec<u32>,
    pub(crate) embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct Tokens {
    text: String,
    ids: Vec<u32>,
}

pub(crate) const FAMILIES: [&str; 3] = ["llama", "qwen2", "smollm"];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language").join(name)
}

pub(crate) fn expected(name: &str) -> Expected {
    let text = std::fs::read(fixture(name).join("expected.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

pub(crate) fn assert_close(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let largest = found.iter().zip(wanted).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-3, "{what}: differs by {largest}");
}

fn last_logits(decoder: &Decoder, prompt: &[u32], adapter: Option<&DenseAdapter>) -> Vec<f32> {
    let tokens = Tensor::from_slice(prompt, (1, prompt.len()), &Device::Cpu).unwrap();
    let mut pass = Dense::new(decoder.config(), tokens);
    if let Some(adapter) = adapter {
        pass = pass.with_adapter(adapter, None);
    }
    let logits = pass.logits(decoder).unwrap();
    logits.i((0, prompt.len() - 1)).unwrap().to_vec1().unwrap()
}

#[test]
fn logits_are_those_of_transformers_and_peft() {
    for family in FAMILIES {
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        let (decoder, expected) = (&checkpoint.decoder, expected(family));
        for (name, cases) in
            [("base", expected.base), ("all", expected.all), ("attention", expected.attention)]
        {
            let adapter = (name != "base").then(|| {
                let folder = fixture(family).join(name);
                let adapter =
                    DecoderAdapter::open(&folder, decoder.config(), checkpoint.digest).unwrap();
                DenseAdapter::new(decoder.config(), &adapter).unwrap()
            });
            for case in cases {
                let found = last_logits(decoder, &case.prompt, adapter.as_ref());
                assert_close(&found, &case.logits, &format!("{family} {name}"));
            }
        }
    }
}

#[test]
fn tokens_and_prompts_are_those_of_transformers() {
    let (checkpoint, expected) =
        (Checkpoint::open(&fixture("smollm")).unwrap(), expected("smollm"));
    for Tokens { text, ids } in expected.tokens {
        assert_eq!(checkpoint.tokenizer.encode(&text, true).unwrap(), ids);
        assert_eq!(checkpoint.tokenizer.decode(&ids), text);
    }
    let message = |role: &str, content: &str| ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let messages = [message("system", "Be brief."), message("user", "Hello!")];
    let prompt = checkpoint.chat_template.unwrap().render(&messages).unwrap();
    assert_eq!(prompt, expected.chat);
    assert_eq!(checkpoint.generation.end_tokens, [2]);
}

/// The gradient that the tape leads to, against a difference of losses.
#[test]
fn factors_learn_through_the_whole_decoder() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let decoder = &checkpoint.decoder;
    let adapter =
        DecoderAdapter::open(&fixture("llama/all"), decoder.config(), checkpoint.digest).unwrap();
    let tokens = Tensor::from_slice(&[5_u32, 9, 30, 7, 60, 61], (2, 3), &Device::Cpu).unwrap();
    let loss = |adapter: &DecoderAdapter, tape: Option<&Tape>| {
        let variables = DenseAdapter::new(decoder.config(), adapter).unwrap();
        let mut pass = Dense::new(decoder.config(), tokens.clone()).with_adapter(&variables, tape);
        (pass.logits(decoder).unwrap().sqr().unwrap().mean_all().unwrap(), variables)
    };
    let tape = Tape::default();
    let (value, variables) = loss(&adapter, Some(&tape));
    value.backward().unwrap();
    let mut gradient = vec![0.0; variables.num_parameters()];
    tape.add_sum(&mut gradient).unwrap();
    // The first site's A and B lie first.
    let site = Site { layer: 0, projection: Projection::Query };
    let factors = adapter.factors(site).unwrap().clone();
    for index in [0, 7, 40] {
        let shifted = |step: f32| {
            let mut sites: std::collections::BTreeMap<_, _> = decoder
                .config()
                .sites()
                .map(|site| (site, adapter.factors(site).unwrap().clone()))
                .collect();
            let mut changed = factors.clone();
            changed.a[index] += step;
            sites.insert(site, changed);
            let (value, _) = loss(&DecoderAdapter::new(4, 8.0, sites), None);
            f64::from(value.to_scalar::<f32>().unwrap())
        };
        let slope = (shifted(0.02) - shifted(-0.02)) / 0.04;
        let found = f64::from(gradient[index]);
        assert!((slope - found).abs() < 0.02 * slope.abs() + 1e-3, "{index}: {slope} {found}");
    }
}

#[test]
fn adapters_survive_a_round_trip_and_know_their_base() {
    let checkpoint = Checkpoint::open(&fixture("qwen2")).unwrap();
    let (config, base) = (checkpoint.decoder.config(), checkpoint.digest);
    let adapter = DecoderAdapter::open(&fixture("qwen2/attention"), config, base).unwrap();
    let directory = tempfile::tempdir().unwrap();
    adapter.save(directory.path(), base).unwrap();
    let again = DecoderAdapter::open(directory.path(), config, base).unwrap();
    for site in config.sites() {
        assert_eq!(adapter.factors(site), again.factors(site), "{site}");
    }
    assert_eq!(adapter.scale(), again.scale());
    let error = DecoderAdapter::open(directory.path(), config, Digest::of(b"other")).unwrap_err();
    assert!(error.to_string().contains("trained on base"), "{error}");
    let other = Checkpoint::open(&fixture("smollm")).unwrap();
    let error = DecoderAdapter::open(&fixture("qwen2/attention"), other.decoder.config(), base);
    assert!(error.unwrap_err().to_string().contains("belongs to another base"));
}

#[test]
fn unusable_adapters_are_named() {
    let checkpoint = Checkpoint::open(&fixture("qwen2")).unwrap();
    let text = std::fs::read_to_string(fixture("qwen2/all/adapter_config.json")).unwrap();
    let weights = std::fs::read(fixture("qwen2/all/adapter_model.safetensors")).unwrap();
    for (from, to, length, wanted) in [
        ("\"LORA\"", "\"IA3\"", usize::MAX, "peft_type"),
        ("\"use_dora\": false", "\"use_dora\": true", usize::MAX, "use_dora"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", usize::MAX, "bias"),
        ("\"r\": 4", "\"r\": 3", usize::MAX, "has shape [4, 16]"),
        ("{", "[", usize::MAX, "adapter_config.json"),
        ("", "", 2000, "cannot be used"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let broken = text.replacen(from, to, 1);
        std::fs::write(directory.path().join("adapter_config.json"), broken).unwrap();
        let weights = &weights[..weights.len().min(length)];
        std::fs::write(directory.path().join("adapter_model.safetensors"), weights).unwrap();
        let (config, base) = (checkpoint.decoder.config(), checkpoint.digest);
        let error = DecoderAdapter::open(directory.path(), config, base).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

/// A copy of a fixture with one file changed or, without bytes, removed.
fn broken(family: &str, file: &str, bytes: Option<&[u8]>) -> CheckpointError {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(family)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
        }
    }
    match bytes {
        Some(bytes) => std::fs::write(directory.path().join(file), bytes).unwrap(),
        None => std::fs::remove_file(directory.path().join(file)).unwrap(),
    }
    Checkpoint::open(directory.path()).err().expect("broken")
}

fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(chain).unwrap_or_default();
    format!("{error}: {source}")
}

#[test]
fn broken_folders_are_named() {
    let config = std::fs::read_to_string(fixture("qwen2/config.json")).unwrap();
    let edited = |from: &str, to: &str| config.replacen(from, to, 1).into_bytes();
    let weights = std::fs::read(fixture("qwen2/model.safetensors")).unwrap();
    let cases: Vec<(&str, &str, Option<Vec<u8>>, &str)> = vec![
        ("qwen2", "config.json", None, "config.json"),
        ("qwen2", "tokenizer.json", None, "tokenizer.json"),
        ("qwen2", "model.safetensors", None, "neither model.safetensors nor"),
        ("qwen2", "tokenizer.json", Some(b"{}".to_vec()), "not a readable tokenizer"),
        ("qwen2", "tokenizer_config.json", Some(b"[".to_vec()), "tokenizer_config.json"),
        ("qwen2", "generation_config.json", Some(b"[".to_vec()), "generation_config.json"),
        ("qwen2", "model.safetensors", Some(weights[..9000].to_vec()), "model.safetensors"),
        ("qwen2", "config.json", Some(edited("288", "287")), "of shape [288, 16]"),
        ("qwen2", "config.json", Some(edited("288", "100")), "`vocab_size` of 100"),
        (
            "qwen2",
            "config.json",
            Some(edited("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")),
            "layers.2",
        ),
        (
            "qwen2",
            "config.json",
            Some(edited("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")),
            "does not have",
        ),
        (
            "qwen2",
            "config.json",
            Some(edited(": true,\n  \"trans", ": false,\n  \"trans")),
            "lm_head.weight",
        ),
        ("llama", "model-00002-of-00003.safetensors", None, "model-00002"),
        ("llama", "model.safetensors.index.json", Some(b"{}".to_vec()), "index.json"),
        (
            "llama",
            "model.safetensors.index.json",
            Some(br#"{"weight_map": {"a": "../../secret"}}"#.to_vec()),
            "same folder",
        ),
    ];
    for (family, file, bytes, wanted) in cases {
        let error = chain(&broken(family, file, bytes.as_deref()));
        assert!(error.contains(wanted), "{file}: {wanted}: {error}");
    }
}

#[test]
fn parameters_that_are_not_finite_are_named() {
    let mut weights = std::fs::read(fixture("qwen2/model.safetensors")).unwrap();
    let last = weights.len() - 2;
    weights[last..].copy_from_slice(&[0xc0, 0x7f]);
    let error = chain(&broken("qwen2", "model.safetensors", Some(&weights)));
    assert!(error.contains("NaN at element"), "{error}");
    let checkpoint = Checkpoint::open(&fixture("qwen2")).unwrap();
    let finite =
        with_elements(checkpoint.decoder.head(), |head| head.iter().all(|x| x.is_finite()));
    assert!(finite.unwrap());
}

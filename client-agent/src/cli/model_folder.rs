//! A base as a model folder that language servers read.

use std::path::Path;

use tributary_protocol::{checkpoint, model::ModelSpec, tensor_file};

use super::CliError;
use crate::{
    data::{DataSource, TokenizerSource},
    durable_file::{Access, create_directory, read_bytes, write_durably},
    text::bytes_tokenizer,
};

/// Files of a tokenizer's folder that go along, where they are there.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// Writes configuration and weights, and the tokenizer of the dataset that the model is trained on.
pub(super) fn write(
    folder: &Path,
    spec: &ModelSpec,
    parameters: &[f32],
    source: Option<&DataSource>,
) -> Result<(), CliError> {
    let config = checkpoint::config(spec).ok_or(CliError::NoFolder { family: spec.family() })?;
    create_directory(folder)?;
    let write = |name: &str, bytes: &[u8]| write_durably(&folder.join(name), bytes, Access::Shared);
    write("config.json", format!("{config:#}").as_bytes())?;
    let weights = tensor_file::write(spec, parameters);
    write("model.safetensors", &weights.map_err(|error| CliError::Base(Box::new(error)))?)?;
    let Some(DataSource::Jsonl(source)) = source else { return Ok(()) };
    match &source.tokenizer {
        TokenizerSource::Bytes => write("tokenizer.json", bytes_tokenizer().as_bytes())?,
        TokenizerSource::Folder(from) => {
            for name in TOKENIZER_FILES {
                if from.join(name).exists() {
                    write(name, &read_bytes(&from.join(name))?)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, IndexOp, Tensor};

    use super::*;
    use crate::model::{Inputs, Model, checkpoint::Checkpoint, decoder::Dense};

    #[test]
    fn a_written_base_is_served_with_the_same_logits_and_tokens() {
        let text = "[decoder]\nvocab_size = 256\nhidden_size = 8\nintermediate_size = 12\n\
                    num_layers = 1\nnum_heads = 2\ncontext_max = 16\ntied = true";
        let spec: ModelSpec = toml::from_str(text).expect("valid");
        let parameters: Vec<f32> =
            (0..spec.num_parameters()).map(|index| (index as f32 * 0.7).sin() * 0.3).collect();
        let source: DataSource = toml::from_str("[jsonl]\npath = \"texts.jsonl\"").expect("valid");
        let directory = tempfile::tempdir().expect("temporary directory");
        write(directory.path(), &spec, &parameters, Some(&source)).expect("writes");
        let checkpoint = Checkpoint::open(directory.path()).expect("readable");
        let said = "To be, or nöt \u{1f642}\n";
        let tokens = checkpoint.tokenizer.encode(said, true).expect("encodes");
        assert_eq!(tokens, said.bytes().map(u32::from).collect::<Vec<u32>>());
        assert_eq!(checkpoint.tokenizer.decode(&tokens), said);

        let prompt = &tokens[..6];
        let model = Model::new(&spec, &parameters).expect("valid");
        let inputs = Inputs::tokens(&[prompt]).expect("fits");
        let outputs = model.outputs(&inputs, model.frozen()).expect("runs");
        let ids = Tensor::from_slice(prompt, (1, prompt.len()), &Device::Cpu).expect("fits");
        let served = Dense::new(checkpoint.decoder.config(), ids).logits(&checkpoint.decoder);
        let served = served.and_then(|logits| logits.i((0, 5))?.to_vec1::<f32>()).expect("runs");
        let trained = outputs.i((0, 5)).and_then(|row| row.to_vec1::<f32>()).expect("runs");
        assert!(served.iter().zip(&trained).all(|(one, other)| (one - other).abs() < 1e-5));
        let mlp: ModelSpec = toml::from_str("[mlp]\ninputs = 2\nclasses = 2").expect("valid");
        assert!(write(directory.path(), &mlp, &[0.0; 6], None).is_err());
    }
}

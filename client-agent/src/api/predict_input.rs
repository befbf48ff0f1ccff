//! What `/v1/predict` takes: numbers, or texts.

use std::fmt;

use axum::http::StatusCode;
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use super::ApiError;
use crate::{
    data::{TextReader, TextReaders},
    engine::Serving,
};

/// One input.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum PredictInput {
    /// Features, or the tokens of a text.
    Numbers(Vec<f32>),
    /// A text.
    Text(String),
}

impl<'de> Deserialize<'de> for PredictInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

/// Unlike an untagged enum it keeps no copy of the list, and its errors name line and column.
struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = PredictInput;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of numbers or a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<PredictInput, E> {
        Ok(PredictInput::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<PredictInput, E> {
        Ok(PredictInput::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PredictInput, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = list.next_element()? {
            numbers.push(number);
        }
        Ok(PredictInput::Numbers(numbers))
    }
}

/// The numbers that the model reads: texts go through the tokenizer of its dataset.
///
/// # Errors
/// [`ApiError`] naming the first text that cannot be read, and what would work.
pub(super) fn rows(
    inputs: Vec<PredictInput>,
    serving: &Serving,
    readers: &TextReaders,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let first = inputs.iter().position(|input| matches!(input, PredictInput::Text(_)));
    let reader = first.map(|first| reader(first, serving, readers)).transpose()?;
    let row = |(position, input): (usize, PredictInput)| -> Result<Vec<f32>, ApiError> {
        let (text, reader) = match (input, &reader) {
            (PredictInput::Numbers(numbers), _) => return Ok(numbers),
            (PredictInput::Text(text), Some(reader)) => (text, reader),
            (PredictInput::Text(_), None) => unreachable!("there is a reader if there is a text"),
        };
        let tokens = reader.tokens(&text).map_err(|error| ApiError {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            code: "input-text",
            message: format!("input {position}: {error}"),
        })?;
        // Tokens of vocabularies up to 2^24 are exact in f32.
        Ok(tokens.into_iter().map(|token| token as f32).collect())
    };
    inputs.into_iter().enumerate().map(row).collect()
}

fn reader(
    input: usize,
    serving: &Serving,
    readers: &TextReaders,
) -> Result<std::sync::Arc<TextReader>, ApiError> {
    serving.check_text(input)?;
    let found = match serving.dataset() {
        Some(dataset) => readers.of(dataset).map_err(|error| ApiError::internal(&error))?,
        None => None,
    };
    found.ok_or_else(|| {
        let place = match serving.dataset() {
            Some(dataset) => format!("`[data.{dataset}.jsonl]` to agent.toml"),
            None => "the dataset of the model to agent.toml".to_owned(),
        };
        ApiError {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            code: "no-tokenizer",
            message: format!(
                "input {input} is a text and the agent has no tokenizer for it; send its tokens as \
                 numbers, or add {place}"
            ),
        }
    })
}

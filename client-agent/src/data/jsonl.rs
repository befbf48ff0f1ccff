//! Texts: one JSON object a line.

use std::collections::HashMap;

use serde::Deserialize;

use super::{
    DataError, Dataset, JsonlSource, Texts, TokenizerSource, error::printable, idx::read_maybe_gzip,
};
use crate::text::{ChatMessage, ChatTemplate, Tokenizer};

/// Tokens of a text in bytes: one a byte.
const BYTES: usize = 256;

/// One line, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: Option<String>,
    label: Option<String>,
    prompt: Option<String>,
    completion: Option<String>,
    messages: Option<Vec<ChatMessage>>,
}

/// What a line asks for.
enum Content {
    /// To be read whole, or continued from its beginning.
    Text(String),
    /// To be continued after a prompt that is read only.
    Answer { prompt: String, answer: String },
    /// A conversation, whose last message is learnt.
    Messages(Vec<ChatMessage>),
}

/// Text to tokens.
pub(super) enum Words {
    Bytes,
    Tokenizer { tokenizer: Box<Tokenizer>, template: Option<Box<ChatTemplate>> },
}

pub(super) fn load(source: &JsonlSource, examples_max: usize) -> Result<Dataset, DataError> {
    validate(source)?;
    let words = Words::open(&source.tokenizer)?;
    let bytes = read_maybe_gzip(&source.path)?;
    let classes: HashMap<&str, u32> =
        source.labels.iter().zip(0..).map(|(label, class)| (label.as_str(), class)).collect();
    let classified = !source.labels.is_empty();
    let mut texts = Texts::new(words.vocab_size(), !classified);
    let mut labels = Vec::new();
    let lines = bytes.split(|&byte| byte == b'\n').zip(1_u64..);
    for (line, row) in lines.filter(|(line, _)| !line.trim_ascii().is_empty()) {
        if texts.len() == examples_max {
            break;
        }
        let line: Line = serde_json::from_slice(line).map_err(|error| DataError::JsonLine {
            path: source.path.clone(),
            row,
            source: error,
        })?;
        let (content, label) = sorted(source, line, row)?;
        if let Some(label) = label {
            let class = classes.get(label.as_str()).ok_or_else(|| DataError::UnknownValue {
                path: source.path.clone(),
                row,
                column: "label".to_owned(),
                value: printable(&label),
                known: source.labels.clone(),
            })?;
            labels.push(*class);
        }
        let (mut tokens, prompt) = words.tokens(content).map_err(|error| DataError::Tokenize {
            path: source.path.clone(),
            row,
            source: error,
        })?;
        tokens.truncate(source.tokens_max);
        texts.push(&tokens, prompt);
    }
    if texts.is_empty() {
        return Err(DataError::Empty { path: source.path.clone() });
    }
    Ok(if classified {
        Dataset::from_texts(texts, labels, source.labels.len() as u32)
    } else {
        Dataset::from_continued(texts)
    })
}

fn validate(source: &JsonlSource) -> Result<(), DataError> {
    let config = |field: &str, value: String, range| {
        Err(DataError::Config { field: field.to_owned(), value, range })
    };
    if source.labels.len() == 1 {
        return config("labels", format!("{:?}", source.labels), "absent, or at least two values");
    }
    if source.tokens_max == 0 {
        return config("tokens_max", "0".to_owned(), "at least 1");
    }
    Ok(())
}

/// What a line asks for, by the keys that it has; with its label where the source has classes.
fn sorted(
    source: &JsonlSource,
    line: Line,
    row: u64,
) -> Result<(Content, Option<String>), DataError> {
    let needed = if source.labels.is_empty() {
        "`text`, or `prompt` and `completion`, or `messages`"
    } else {
        "`text` and `label`"
    };
    let keys = [
        ("text", line.text.is_some()),
        ("label", line.label.is_some()),
        ("prompt", line.prompt.is_some()),
        ("completion", line.completion.is_some()),
        ("messages", line.messages.is_some()),
    ];
    let found = keys.into_iter().filter(|(_, is_there)| *is_there).map(|(key, _)| key).collect();
    let Line { text, label, prompt, completion, messages } = line;
    match (text, label, prompt, completion, messages) {
        (Some(text), Some(label), None, None, None) if !source.labels.is_empty() => {
            Ok((Content::Text(text), Some(label)))
        }
        (Some(text), None, None, None, None) if source.labels.is_empty() => {
            Ok((Content::Text(text), None))
        }
        (None, None, Some(prompt), Some(answer), None) if source.labels.is_empty() => {
            Ok((Content::Answer { prompt, answer }, None))
        }
        (None, None, None, None, Some(messages)) if source.labels.is_empty() => {
            Ok((Content::Messages(messages), None))
        }
        _ => Err(DataError::JsonKeys { path: source.path.clone(), row, needed, found }),
    }
}

impl Words {
    pub(super) fn open(source: &TokenizerSource) -> Result<Self, DataError> {
        let folder = match source {
            TokenizerSource::Bytes => return Ok(Self::Bytes),
            TokenizerSource::Folder(folder) => folder,
        };
        let tokenizer = Box::new(Tokenizer::open(&folder.join("tokenizer.json"))?);
        let template = ChatTemplate::open(folder)?.map(Box::new);
        Ok(Self::Tokenizer { tokenizer, template })
    }

    fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes => BYTES,
            Self::Tokenizer { tokenizer, .. } => tokenizer.vocab_size(),
        }
    }

    /// The tokens of a line, and how many of them are read only.
    fn tokens(&self, content: Content) -> Result<(Vec<u32>, usize), crate::text::TextError> {
        match (self, content) {
            (_, Content::Text(text)) => Ok((self.encode(&text, true)?, 0)),
            (_, Content::Answer { prompt, answer }) => {
                let mut tokens = self.encode(&prompt, true)?;
                let prompt = tokens.len();
                tokens.extend(self.encode(&answer, false)?);
                Ok((tokens, prompt))
            }
            (Self::Tokenizer { template: Some(template), .. }, Content::Messages(messages)) => {
                let read = messages.split_last().map_or(&[][..], |(_, read)| read);
                let prompt = template.render(read)?;
                let whole = template.render_whole(&messages)?;
                // The template writes its own special tokens.
                let prompt_tokens = self.encode(&prompt, false)?;
                match whole.strip_prefix(prompt.as_str()) {
                    Some(answer) => {
                        let answer = self.encode(answer, false)?;
                        let read = prompt_tokens.len();
                        Ok(([prompt_tokens, answer].concat(), read))
                    }
                    None => Ok((self.encode(&whole, false)?, 0)),
                }
            }
            (_, Content::Messages(_)) => Err(crate::text::TextError::NoTemplate),
        }
    }

    pub(super) fn encode(
        &self,
        text: &str,
        special: bool,
    ) -> Result<Vec<u32>, crate::text::TextError> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::Tokenizer { tokenizer, .. } => tokenizer.encode(text, special),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn load_lines(lines: &str, more: &str) -> Result<Dataset, DataError> {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("texts.jsonl"), lines).expect("writes");
        let text = format!("path = \"texts.jsonl\"\n{more}");
        let source: JsonlSource = toml::from_str(&text).expect("valid");
        load(&source.relative_to(directory.path()), usize::MAX)
    }

    /// The tokenizer and chat template of a test model.
    fn model() -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language/smollm");
        format!("tokenizer = {{ folder = {folder:?} }}")
    }

    fn tokens(data: &Dataset, index: usize) -> &[u32] {
        data.texts().expect("texts").tokens(index)
    }

    #[test]
    fn every_kind_of_line_becomes_tokens() {
        let data = load_lines("{\"text\": \"ab\"}\n\n{\"text\": \"\"}\n", "").expect("valid");
        assert_eq!((data.len(), tokens(&data, 0)), (2, &[97, 98][..]));
        assert!(data.texts().is_some_and(Texts::continued));

        let lines =
            "{\"text\": \"good day\", \"label\": \"yes\"}\n{\"text\": \"bad\", \"label\": \"no\"}";
        let data = load_lines(lines, "labels = [\"no\", \"yes\"]\ntokens_max = 4").expect("valid");
        assert_eq!((data.labels(), data.num_classes()), (&[1, 0][..], 2));
        assert_eq!(tokens(&data, 0).len(), 4);

        let data = load_lines("{\"prompt\": \"ab\", \"completion\": \"cd\"}", "").expect("valid");
        assert_eq!(tokens(&data, 0), [97, 98, 99, 100]);
        let batch = data.examples(&[0]).expect("in range");
        assert_eq!(batch.weights, [0.0, 0.5, 0.5], "the prompt is read only");
    }

    #[test]
    fn conversations_go_through_the_models_template_and_only_the_answer_is_learnt() {
        let line = r#"{"messages": [{"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "the cat"}]}"#
            .replace('\n', "");
        let data = load_lines(&line, &model()).expect("valid");
        let batch = data.examples(&[0]).expect("in range");
        let learnt = batch.weights.iter().filter(|weight| **weight > 0.0).count();
        assert!(learnt > 0 && learnt < batch.weights.len() / 2, "{learnt}");
        let error = load_lines(&line, "").map(|_| ()).expect_err("bytes have no template");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.contains("chat template"), "{cause}");
    }

    #[test]
    fn lines_that_cannot_be_used_are_named() {
        let labels = "labels = [\"no\", \"yes\"]";
        let missing = "tokenizer = { folder = \"nowhere\" }";
        for (lines, more, wanted) in [
            ("{\"text\": \"a\"}\n{\"text\": 3}", "", "line 2"),
            ("{\"text\": \"a\"}\n[", "", "line 2"),
            ("{\"txt\": \"a\"}", "", "line 1"),
            ("{\"text\": \"a\", \"label\": \"no\"}", "", "needs `text`, or"),
            ("{\"text\": \"a\"}", labels, "needs `text` and `label`"),
            ("{\"prompt\": \"a\"}", "", "[\"prompt\"]"),
            ("{\"text\": \"a\", \"label\": \"maybe\"}", labels, "\"maybe\" is not one of"),
            ("\n", "", "no records"),
            ("{\"text\": \"a\"}", "labels = [\"one\"]", "at least two"),
            ("{\"text\": \"a\"}", "tokens_max = 0", "tokens_max"),
            ("{\"text\": \"a\"}", missing, "tokenizer"),
        ] {
            let error = load_lines(lines, more).map(|_| ()).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("texts.jsonl");
        std::fs::write(&path, b"{\"text\": \"\xff\"}").expect("writes");
        let source = JsonlSource { path, ..toml::from_str("path = \"\"").expect("valid") };
        let error = load(&source, 9).map(|_| ()).expect_err("not UTF-8").to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}

//! Chat templates, in the dialect of Jinja that tokenizer configurations use.

use std::path::Path;

use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};

use super::TextError;
use crate::durable_file::{read_bytes, read_text};

const TEMPLATE: &str = "chat";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Turns messages into the prompt that a model was trained on.
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: Option<String>,
    end: Option<String>,
}

#[derive(Deserialize)]
struct File {
    chat_template: Option<Templates>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

impl ChatTemplate {
    /// Reads the template of a model folder: `chat_template.jinja`, else the one in
    /// `tokenizer_config.json`; nothing if there is neither.
    ///
    /// # Errors
    /// [`TextError`] naming the file or the mistake in the template.
    pub fn open(directory: &Path) -> Result<Option<Self>, TextError> {
        let path = directory.join("tokenizer_config.json");
        let file = if path.exists() {
            serde_json::from_slice(&read_bytes(&path)?)
                .map_err(|source| TextError::Config { path, source })?
        } else {
            File { chat_template: None, bos_token: None, eos_token: None }
        };
        let own = directory.join("chat_template.jinja");
        let template = match file.chat_template {
            _ if own.exists() => Some(read_text(&own)?),
            Some(Templates::One(template)) => Some(template),
            Some(Templates::Named(templates)) => templates
                .into_iter()
                .find(|template| template.name == "default")
                .map(|template| template.template),
            None => None,
        };
        let special = |token: Option<Token>| token.map(Token::text);
        template
            .map(|text| Self::parse(text, special(file.bos_token), special(file.eos_token)))
            .transpose()
    }

    /// Parses a template.
    ///
    /// # Errors
    /// [`TextError::Template`] with the mistake and its line.
    pub fn parse(
        template: String,
        begin: Option<String>,
        end: Option<String>,
    ) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(TEMPLATE, template)
            .map_err(|error| TextError::Template { message: error.to_string() })?;
        Ok(Self { environment, begin, end })
    }

    /// The prompt that asks for the next message.
    ///
    /// # Errors
    /// [`TextError::Messages`] if the template refuses, for roles in an order it does not know.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, TextError> {
        self.write(messages, true)
    }

    /// The conversation as it is, with the last message.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_whole(&self, messages: &[ChatMessage]) -> Result<String, TextError> {
        self.write(messages, false)
    }

    fn write(&self, messages: &[ChatMessage], asks: bool) -> Result<String, TextError> {
        let refused = |error: Error| TextError::Messages { message: error.to_string() };
        let template = self.environment.get_template(TEMPLATE).map_err(refused)?;
        let values = context! {
            messages,
            add_generation_prompt => asks,
            bos_token => self.begin.clone().unwrap_or_default(),
            eos_token => self.end.clone().unwrap_or_default(),
        };
        template.render(values).map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(pairs: &[(&str, &str)]) -> Vec<ChatMessage> {
        let message = |&(role, content): &(&str, &str)| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        pairs.iter().map(message).collect()
    }

    #[test]
    fn the_usual_dialect_is_rendered() {
        let template = "{% for message in messages %}\n\
            {{ '<|im_start|>' + message['role'] + '\n' + message.content.strip() + '<|im_end|>' + '\n' }}\n\
            {%- endfor %}\n\
            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let chat = ChatTemplate::parse(template.to_owned(), None, None).unwrap();
        let prompt = chat.render(&messages(&[("user", " Hi ")])).unwrap();
        assert_eq!(prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn a_template_that_refuses_says_why() {
        let template = "{% if messages[0].role != 'user' %}\
            {{ raise_exception('start with the user') }}{% endif %}{{ bos_token }}";
        let chat = ChatTemplate::parse(template.to_owned(), Some("<s>".to_owned()), None).unwrap();
        assert_eq!(chat.render(&messages(&[("user", "")])).unwrap(), "<s>");
        let error = chat.render(&messages(&[("system", "")])).unwrap_err().to_string();
        assert!(error.contains("start with the user"), "{error}");
        let error = ChatTemplate::parse("{% if".to_owned(), None, None).err().unwrap().to_string();
        assert!(error.contains("broken"), "{error}");
    }
}

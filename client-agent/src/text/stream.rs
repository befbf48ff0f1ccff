//! Text of tokens as they come.

use std::sync::Arc;

use super::Tokenizer;

/// Turns tokens into text one at a time, and never cuts a character in two.
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    tokens: Vec<u32>,
    /// Where the text decoded together begins: some tokens look different behind others.
    start: usize,
    /// Up to where text was handed out.
    told: usize,
}

impl TextStream {
    /// A stream that has said nothing.
    #[must_use]
    pub const fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, tokens: Vec::new(), start: 0, told: 0 }
    }

    /// Takes a token; returns the text that is now certain.
    pub fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let text = self.fresh();
        // An unfinished character decodes to U+FFFD; wait for the rest of its bytes. Four bytes
        // are the longest character, so a longer wait is for one that really is broken.
        if text.is_empty() || (text.ends_with('\u{fffd}') && self.tokens.len() - self.told < 4) {
            return String::new();
        }
        self.start = self.told;
        self.told = self.tokens.len();
        text
    }

    /// What is left when no more tokens come.
    pub fn finish(&mut self) -> String {
        let text = self.fresh();
        self.told = self.tokens.len();
        self.start = self.told;
        text
    }

    fn fresh(&self) -> String {
        let before = self.tokenizer.decode(&self.tokens[self.start..self.told]);
        let mut after = self.tokenizer.decode(&self.tokens[self.start..]);
        match after.strip_prefix(before.as_str()) {
            Some(_) => after.split_off(before.len()),
            // The new token changed how the last ones look; what was told stays told.
            None => self.tokenizer.decode(&self.tokens[self.told..]),
        }
    }
}

use crate::model::{Batch, Inputs};

/// Texts as tokens, each a record: to be classified, or to be continued.
#[derive(Debug, Clone)]
pub struct Texts {
    tokens: Vec<u32>,
    /// Where each text ends.
    ends: Vec<usize>,
    /// Leading tokens of each text that are read and not learnt.
    prompts: Vec<usize>,
    /// Tokens of the longest text.
    longest: usize,
    vocab_size: usize,
    continued: bool,
}

impl Texts {
    /// No texts yet.
    ///
    /// - `vocab_size`: number of tokens of the tokenizer
    /// - `continued`: whether a model learns to write them, else it reads them whole
    #[must_use]
    pub const fn new(vocab_size: usize, continued: bool) -> Self {
        Self {
            tokens: Vec::new(),
            ends: Vec::new(),
            prompts: Vec::new(),
            longest: 0,
            vocab_size,
            continued,
        }
    }

    /// Adds a text, whose first `prompt` tokens are read and not learnt.
    ///
    /// # Panics
    /// If a token is not of the vocabulary.
    pub fn push(&mut self, tokens: &[u32], prompt: usize) {
        let known = |&token: &u32| (token as usize) < self.vocab_size;
        assert!(tokens.iter().all(known), "the tokens are the tokenizer's");
        self.tokens.extend_from_slice(tokens);
        self.ends.push(self.tokens.len());
        self.prompts.push(prompt);
        self.longest = self.longest.max(tokens.len());
    }

    /// Number of texts.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no text.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The tokens of one text.
    ///
    /// # Panics
    /// If `index` is not below [`Self::len`].
    #[must_use]
    pub fn tokens(&self, index: usize) -> &[u32] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.tokens[start..self.ends[index]]
    }

    /// Hashes the first `count` texts, with their lengths and prompts.
    pub(super) fn hash(&self, count: usize, hasher: &mut blake3::Hasher) {
        for (index, prompt) in self.prompts[..count].iter().enumerate() {
            let tokens = self.tokens(index);
            for number in [tokens.len(), *prompt] {
                hasher.update(&(number as u64).to_le_bytes());
            }
            for token in tokens {
                hasher.update(&token.to_le_bytes());
            }
        }
    }

    /// Number of tokens of the tokenizer.
    #[must_use]
    pub const fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether a model learns to write the texts.
    #[must_use]
    pub const fn continued(&self) -> bool {
        self.continued
    }

    /// Tokens that a model must take at once.
    #[must_use]
    pub const fn longest_input(&self) -> usize {
        if self.continued { self.longest.saturating_sub(1) } else { self.longest }
    }

    /// What a model reads of some texts, and what it should answer.
    ///
    /// - `labels`: the class of each text; not looked at where texts are continued
    pub(super) fn examples(&self, indices: &[u32], labels: &[u32]) -> candle_core::Result<Batch> {
        let texts: Vec<&[u32]> = indices.iter().map(|&index| self.tokens(index as usize)).collect();
        if !self.continued {
            let labels = indices.iter().map(|&index| labels[index as usize]).collect();
            let weights = vec![1.0; indices.len()];
            return Ok(Batch { inputs: Inputs::tokens(&texts)?, labels, weights });
        }
        let read: Vec<&[u32]> =
            texts.iter().map(|text| &text[..text.len().saturating_sub(1)]).collect();
        let time = read.iter().map(|text| text.len()).max().unwrap_or(0).max(1);
        let mut labels = vec![0; indices.len() * time];
        let mut weights = vec![0.0; indices.len() * time];
        let rows = labels.chunks_exact_mut(time).zip(weights.chunks_exact_mut(time));
        for ((&index, text), (labels, weights)) in indices.iter().zip(&texts).zip(rows) {
            // The first token that is learnt needs one before it to be read.
            let first = self.prompts[index as usize].max(1);
            let learnt = text.len().saturating_sub(first);
            for at in first..text.len() {
                labels[at - 1] = text[at];
                weights[at - 1] = 1.0 / learnt as f32;
            }
        }
        Ok(Batch { inputs: Inputs::tokens(&read)?, labels, weights })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learnt_is_shifted_by_one_and_leaves_the_prompt_out() {
        let mut texts = Texts::new(10, true);
        texts.push(&[1, 2, 3, 4], 0);
        texts.push(&[5, 6, 7], 2);
        texts.push(&[8], 0);
        assert_eq!(texts.longest_input(), 3);
        let batch = texts.examples(&[1, 0, 2], &[]).expect("in range");
        let Inputs::Tokens { ids, lengths } = batch.inputs else { panic!("tokens") };
        assert_eq!(ids.to_vec2::<u32>().expect("u32"), [[5, 6, 0], [1, 2, 3], [0, 0, 0]]);
        assert_eq!(lengths, [2, 3, 1]);
        assert_eq!(batch.labels, [0, 7, 0, 2, 3, 4, 0, 0, 0]);
        let third = 1.0 / 3.0;
        assert_eq!(batch.weights, [0.0, 1.0, 0.0, third, third, third, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn texts_with_classes_are_read_whole() {
        let mut texts = Texts::new(10, false);
        texts.push(&[1, 2], 0);
        texts.push(&[3], 0);
        let batch = texts.examples(&[1, 0], &[4, 5]).expect("in range");
        let Inputs::Tokens { ids, lengths } = batch.inputs else { panic!("tokens") };
        assert_eq!(ids.to_vec2::<u32>().expect("u32"), [[3, 0], [1, 2]]);
        assert_eq!((lengths, batch.labels), (vec![1, 2], vec![5, 4]));
    }
}

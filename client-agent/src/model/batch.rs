//! What a model reads of some records, and what it should answer.

use candle_core::{Device, Result, Tensor};

use super::{
    loss::{softmax_rows, weighted_cross_entropy_sum},
    with_elements,
};

/// What goes into a model.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// Features `[n, width]`.
    Features(Tensor),
    /// Texts as tokens.
    Tokens {
        /// `[n, time]` (u32); what lies behind a text's end is 0.
        ids: Tensor,
        /// Tokens of each text, at least 1.
        lengths: Vec<usize>,
    },
}

impl Inputs {
    /// Texts side by side, the shorter ones filled up; an empty one counts as the token 0.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn tokens(texts: &[&[u32]]) -> Result<Self> {
        let time = texts.iter().map(|text| text.len()).max().unwrap_or(0).max(1);
        let mut ids = vec![0; texts.len() * time];
        for (row, text) in ids.chunks_exact_mut(time).zip(texts) {
            row[..text.len()].copy_from_slice(text);
        }
        let lengths = texts.iter().map(|text| text.len().max(1)).collect();
        Ok(Self::Tokens { ids: Tensor::from_vec(ids, (texts.len(), time), &Device::Cpu)?, lengths })
    }
}

/// Some records: their inputs, and the class that each row of outputs should have.
#[derive(Debug, Clone)]
pub struct Batch {
    /// What goes in.
    pub inputs: Inputs,
    /// The classes: one a record, or for texts to continue one a position.
    pub labels: Vec<u32>,
    /// The weight of each label's loss; those of a record add up to 1, or to 0 if there is nothing to
    /// learn from it.
    pub weights: Vec<f32>,
}

/// How well a model does on one record; it stays at the site.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Fraction of the record's labels whose most probable class is right: 0 or 1 for classifiers.
    pub accuracy: f64,
    /// Mean cross-entropy of its labels, in nats.
    pub loss: f64,
}

impl Batch {
    /// The sum over records of their mean losses.
    ///
    /// - `outputs`: logits, a row a label
    ///
    /// # Errors
    /// The tensor library's, for outputs of another shape.
    pub fn loss(&self, outputs: &Tensor) -> Result<Tensor> {
        let rows = outputs.reshape((self.labels.len(), ()))?;
        weighted_cross_entropy_sum(&rows, self.labels.clone(), self.weights.clone())
    }

    /// How well the outputs fit each of `records` records.
    pub(crate) fn outcomes(&self, outputs: &Tensor, records: usize) -> Result<Vec<Outcome>> {
        let each = self.labels.len() / records.max(1);
        let classes = outputs.elem_count() / self.labels.len().max(1);
        let mut values = with_elements(outputs, <[f32]>::to_vec)?;
        softmax_rows(&mut values, classes);
        let mut outcomes = vec![Outcome { accuracy: 0.0, loss: 0.0 }; records];
        let labels = self.labels.iter().zip(&self.weights).zip(values.chunks_exact(classes));
        for (index, ((&label, &weight), row)) in labels.enumerate() {
            let (label, weight) = (label as usize, f64::from(weight));
            if weight == 0.0 {
                continue;
            }
            // A probability that underflows to 0 counts as the smallest positive number.
            let probability = f64::from(row[label].max(f32::MIN_POSITIVE));
            let outcome = &mut outcomes[index / each.max(1)];
            outcome.accuracy += weight * f64::from(u8::from(most_probable(row) == label));
            outcome.loss -= weight * probability.ln();
        }
        Ok(outcomes)
    }
}

/// The class with the largest probability; the first of equals.
pub(crate) fn most_probable(probabilities: &[f32]) -> usize {
    let mut best = 0;
    for (class, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = class;
        }
    }
    best
}

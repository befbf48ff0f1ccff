//! The next token from logits.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Tokens that are kept; 0 keeps all.
    pub top_k: u32,
    /// Cumulative probability that is kept, above 0 and at most 1.
    pub top_p: f32,
    /// Makes tokens that were seen less likely, above 0; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Start of the random numbers: equal requests with equal seeds get equal answers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Always the most probable token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Says which value cannot work and what would.
    #[must_use]
    pub fn mistake(&self) -> Option<(&'static str, &'static str)> {
        let range =
            |value: f32, low: f32, high: f32| value.is_finite() && value >= low && value <= high;
        if !range(self.temperature, 0.0, 100.0) {
            Some(("temperature", "between 0 and 100"))
        } else if !range(self.top_p, f32::MIN_POSITIVE, 1.0) {
            Some(("top_p", "above 0 and at most 1"))
        } else if !range(self.repetition_penalty, 0.01, 100.0) {
            Some(("repetition_penalty", "between 0.01 and 100"))
        } else {
            None
        }
    }
}

/// Draws the tokens of one request.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: Xoshiro256PlusPlus,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    #[must_use]
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, random: Xoshiro256PlusPlus::seed_from_u64(sampling.seed) }
    }

    /// Draws the next token.
    ///
    /// - `logits`: `[vocabulary]`, not empty; `seen`: the tokens so far
    pub fn next(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        self.penalise(logits, seen);
        if self.sampling.temperature == 0.0 {
            return most_probable(logits);
        }
        let kept = self.kept(logits);
        let mut left = self.random.random_range(0.0..1.0_f32);
        for &(token, probability) in &kept {
            left -= probability;
            if left < 0.0 {
                return token;
            }
        }
        // Rounding left a little over.
        kept.last().map_or(0, |&(token, _)| token)
    }

    /// Source: Keskar et al. 2019, arXiv:1909.05858.
    fn penalise(&self, logits: &mut [f32], seen: &[u32]) {
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let seen: BTreeSet<u32> = seen.iter().copied().collect();
        for token in seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// Tokens that may be drawn and their probabilities, the most probable first.
    fn kept(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        let larger = |left: &(u32, f32), right: &(u32, f32)| {
            right.1.total_cmp(&left.1).then(left.0.cmp(&right.0))
        };
        let count = if top_k == 0 { order.len() } else { order.len().min(top_k as usize) };
        if count < order.len() {
            order.select_nth_unstable_by(count - 1, larger);
            order.truncate(count);
        }
        order.sort_unstable_by(larger);
        let largest = order.first().map_or(0.0, |&(_, logit)| logit);
        let mut total = 0.0;
        for (_, value) in &mut order {
            *value = ((*value - largest) / temperature).exp();
            total += *value;
        }
        let (mut sum, mut count) = (0.0, 0);
        while count < order.len() && (count == 0 || sum < top_p * total) {
            sum += order[count].1;
            count += 1;
        }
        if top_p < 1.0 {
            order.truncate(count);
        } else {
            sum = total;
        }
        for (_, value) in &mut order {
            *value /= sum;
        }
        order
    }
}

/// The first of the largest.
fn most_probable(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::model::decoder::tests::{assert_close, fixture};

    #[derive(Deserialize)]
    struct Expected {
        logits: Vec<f32>,
        seen: Vec<u32>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        repetition_penalty: f32,
        temperature: f32,
        top_k: u32,
        top_p: f32,
        probabilities: Vec<f32>,
    }

    #[test]
    fn probabilities_are_those_of_transformers() {
        let text = std::fs::read(fixture("sampling.json")).unwrap();
        let expected: Expected = serde_json::from_slice(&text).unwrap();
        for case in expected.cases {
            let Case { repetition_penalty, temperature, top_k, top_p, probabilities } = case;
            let sampling = Sampling { temperature, top_k, top_p, repetition_penalty, seed: 1 };
            let sampler = Sampler::new(sampling);
            let mut logits = expected.logits.clone();
            sampler.penalise(&mut logits, &expected.seen);
            let mut found = vec![0.0; logits.len()];
            for (token, probability) in sampler.kept(&logits) {
                found[token as usize] = probability;
            }
            assert_close(&found, &probabilities, &format!("{sampling:?}"));
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() });
            (0..4000).map(|_| sampler.next(&mut [0.0, 3.0_f32.ln()], &[])).collect::<Vec<u32>>()
        };
        let drawn = draw(7);
        assert_eq!(drawn, draw(7));
        let share = drawn.iter().sum::<u32>() as f32 / 4000.0;
        assert!((share - 0.75).abs() < 0.03, "{share}");
        assert_eq!(Sampler::new(Sampling::greedy()).next(&mut [1.0, 5.0, 5.0], &[]), 1);
    }

    /// The kept tokens by a slow and plain reading of the rules.
    fn kept_plainly(logits: &[f32], sampling: Sampling) -> Vec<u32> {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&left, &right| {
            logits[right as usize].total_cmp(&logits[left as usize]).then(left.cmp(&right))
        });
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k as usize);
        }
        let weight = |&token: &u32| {
            (f64::from(logits[token as usize] - logits[order[0] as usize])
                / f64::from(sampling.temperature))
            .exp()
        };
        let total: f64 = order.iter().map(weight).sum();
        let (mut sum, mut kept) = (0.0, Vec::new());
        for token in &order {
            // Rounding decides only within a hair of the bound.
            if !kept.is_empty() && sum >= f64::from(sampling.top_p) * total - 1e-4 * total {
                break;
            }
            kept.push(*token);
            sum += weight(token);
        }
        kept
    }

    proptest! {
        #[test]
        fn tokens_are_drawn_from_those_that_the_rules_keep(
            logits in prop::collection::vec(-8.0..8.0_f32, 1..40),
            temperature in 0.05..3.0_f32, top_k in 0_u32..50, top_p in 0.05..0.999_f32, seed: u64,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, repetition_penalty: 1.0, seed };
            let kept = Sampler::new(sampling).kept(&logits);
            let total: f32 = kept.iter().map(|(_, probability)| probability).sum();
            prop_assert!((total - 1.0).abs() < 1e-4, "{total}");
            prop_assert!(kept.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            let plain = kept_plainly(&logits, sampling);
            // The plain reading may stop one token early within its margin, never late.
            prop_assert!(kept.len() >= plain.len(), "{kept:?} {plain:?}");
            for (token, (found, _)) in plain.iter().zip(&kept) {
                prop_assert_eq!(token, found);
            }
            let loose = Sampling { top_p: (top_p + 2e-4).min(1.0), ..sampling };
            prop_assert!(kept.len() <= kept_plainly(&logits, loose).len() + 1);
            let drawn = Sampler::new(sampling).next(&mut logits.clone(), &[]);
            prop_assert!(kept.iter().any(|&(token, _)| token == drawn));
        }

        #[test]
        fn seeds_repeat_draws_whatever_the_settings(
            logits in prop::collection::vec(-8.0..8.0_f32, 1..40),
            temperature in 0.0..3.0_f32, top_k in 0_u32..50, top_p in 0.05..1.0_f32,
            repetition_penalty in 0.5..2.0_f32, seed: u64,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, repetition_penalty, seed };
            let draw = || {
                let (mut sampler, mut seen) = (Sampler::new(sampling), Vec::new());
                for _ in 0..20 {
                    let token = sampler.next(&mut logits.clone(), &seen);
                    seen.push(token);
                }
                seen
            };
            prop_assert_eq!(draw(), draw());
        }

        #[test]
        fn a_penalty_makes_only_seen_tokens_less_likely(
            logits in prop::collection::vec(-8.0..8.0_f32, 2..40),
            seen in prop::collection::vec(0_u32..60, 0..10), penalty in 1.0..3.0_f32,
        ) {
            let sampling = Sampling { repetition_penalty: penalty, ..Sampling::default() };
            let mut changed = logits.clone();
            Sampler::new(sampling).penalise(&mut changed, &seen);
            for (token, (before, after)) in (0_u32..).zip(logits.iter().zip(&changed)) {
                prop_assert!(after <= before);
                prop_assert!(seen.contains(&token) || after == before);
            }
        }

        #[test]
        fn the_coldest_draw_is_the_most_probable_token(
            logits in prop::collection::vec(-8.0..8.0_f32, 1..40), seed: u64,
        ) {
            let greedy = Sampler::new(Sampling::greedy()).next(&mut logits.clone(), &[]);
            for sampling in [
                Sampling { top_k: 1, seed, ..Sampling::default() },
                Sampling { top_p: f32::MIN_POSITIVE, seed, ..Sampling::default() },
            ] {
                prop_assert_eq!(Sampler::new(sampling).next(&mut logits.clone(), &[]), greedy);
            }
        }
    }

    #[test]
    fn impossible_settings_are_named() {
        for (sampling, name) in [
            (Sampling { temperature: f32::NAN, ..Sampling::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Sampling::default() }, "top_p"),
            (Sampling { repetition_penalty: 0.0, ..Sampling::default() }, "repetition_penalty"),
        ] {
            assert_eq!(sampling.mistake().map(|(name, _)| name), Some(name));
        }
    }
}

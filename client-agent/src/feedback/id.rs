use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::time::Timestamp;

/// Names a prediction; ids sort by time.
///
/// Written as `p`, 12 hexadecimal digits of time and 16 of chance. The time tells an id that is no
/// longer kept from one that never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PredictionId {
    at: Timestamp,
    random: u64,
}

/// Says that a text is no prediction id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("this is not a prediction id: p and 28 hexadecimal digits, as /v1/predict answers")]
pub struct PredictionIdError;

const TIME_DIGITS: usize = 12;
const DIGITS: usize = TIME_DIGITS + 16;

impl PredictionId {
    /// An id for a prediction made at `at`.
    ///
    /// - `random`: from the operating system, so that ids cannot be guessed
    #[must_use]
    pub const fn new(at: Timestamp, random: u64) -> Self {
        Self { at: Timestamp(at.0 & ((1 << (4 * TIME_DIGITS)) - 1)), random }
    }

    /// When the prediction was made.
    #[must_use]
    pub const fn at(self) -> Timestamp {
        self.at
    }

    /// A number in `[0, 1)` that depends on the id alone.
    #[must_use]
    pub fn position(self) -> f64 {
        let mut hasher = blake3::Hasher::new_derive_key("tributary 2026 feedback split");
        hasher.update(&self.at.0.to_le_bytes());
        hasher.update(&self.random.to_le_bytes());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl fmt::Display for PredictionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "p{:012x}{:016x}", self.at.0, self.random)
    }
}

impl FromStr for PredictionId {
    type Err = PredictionIdError;

    fn from_str(text: &str) -> Result<Self, PredictionIdError> {
        let digits = text.strip_prefix('p').ok_or(PredictionIdError)?;
        let plain = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits.len() != DIGITS || !plain {
            return Err(PredictionIdError);
        }
        let number = |text| u64::from_str_radix(text, 16).map_err(|_| PredictionIdError);
        let (time, random) = digits.split_at(TIME_DIGITS);
        Ok(Self { at: Timestamp(number(time)?), random: number(random)? })
    }
}

impl TryFrom<String> for PredictionId {
    type Error = PredictionIdError;

    fn try_from(text: String) -> Result<Self, PredictionIdError> {
        text.parse()
    }
}

impl From<PredictionId> for String {
    fn from(id: PredictionId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_are_read_as_they_are_written(at in 0_u64..1 << 48, random: u64) {
            let id = PredictionId::new(Timestamp(at), random);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert!((0.0..1.0).contains(&id.position()));
        }

        #[test]
        fn other_texts_are_no_ids(text in "\\PC{0,40}") {
            if let Ok(id) = text.parse::<PredictionId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}

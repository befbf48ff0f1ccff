//! Releases as `--event` writes them.

use std::str::FromStr;

use thiserror::Error;

use super::AccountingError;

/// Some equal releases on fresh samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampledReleases {
    /// Probability with which each unit joins a sample, in (0, 1].
    pub sampling_rate: f64,
    /// Noise standard deviation over clipping norm, above 0.
    pub noise_multiplier: f64,
    /// How many releases.
    pub steps: u64,
}

/// What some mechanisms need to know beyond rate, noise and steps.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MechanismDetails {
    /// Size of the dataset, for samples of fixed size.
    pub num_examples: Option<u64>,
    /// How the noise of a release is shared out, for distributed noise.
    pub shares: Option<NoiseShares>,
    /// How noise is correlated and who takes part when, for correlated noise.
    pub correlation: Option<NoiseCorrelation>,
}

/// How noise is correlated over the steps of a run, and how often a unit takes part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseCorrelation {
    /// Bands of the matrix.
    pub bands: u32,
    /// Participations of one unit in the run, at most.
    pub participations: u32,
    /// Steps between two of them, at least; `None` for as many as spread them evenly.
    pub separation: Option<u32>,
}

/// How the noise of one release is shared out among clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseShares {
    /// Noise deviation of one share, in grid units.
    pub sigma_share: f64,
    /// Shares in the smallest surviving set of honest clients.
    pub clients: u32,
    /// Coordinates of the vector.
    pub dimension: u64,
}

/// Says why a text is no event.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EventError {
    /// There are not three parts.
    #[error("event {text:?} needs three parts, q:sigma:steps, e.g. 0.01:1.1:1000")]
    Parts {
        /// What was given.
        text: String,
    },
    /// A part is no number.
    #[error("{part} {value:?} of event {text:?} is not a number")]
    Number {
        /// Which part.
        part: &'static str,
        /// What it says.
        value: String,
        /// The whole event.
        text: String,
    },
}

impl FromStr for SampledReleases {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Self, EventError> {
        let parts: Vec<&str> = text.split(':').collect();
        let [sampling_rate, noise_multiplier, steps] = parts[..] else {
            return Err(EventError::Parts { text: text.to_owned() });
        };
        Ok(Self {
            sampling_rate: number("sampling rate", sampling_rate, text)?,
            noise_multiplier: number("noise multiplier", noise_multiplier, text)?,
            steps: number("number of steps", steps, text)?,
        })
    }
}

fn number<T: FromStr>(part: &'static str, value: &str, text: &str) -> Result<T, EventError> {
    let error = |_| EventError::Number { part, value: value.to_owned(), text: text.to_owned() };
    value.trim().parse().map_err(error)
}

impl SampledReleases {
    /// Checks every number.
    ///
    /// # Errors
    /// [`AccountingError::OutOfRange`] naming the flag and what would work.
    pub fn validate(&self) -> Result<(), AccountingError> {
        let rate = self.sampling_rate;
        let noise = self.noise_multiplier;
        let checks = [
            ("sampling-rate", rate, rate > 0.0 && rate <= 1.0, "above 0 and at most 1"),
            (
                "noise-multiplier",
                noise,
                noise.is_finite() && noise > 0.0,
                "a finite number above 0",
            ),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((flag, value, _, range)) => {
                Err(AccountingError::OutOfRange { flag, value, range })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_parse() {
        let expected = SampledReleases { sampling_rate: 0.01, noise_multiplier: 1.1, steps: 1000 };
        assert_eq!("0.01:1.1:1000".parse(), Ok(expected));
    }

    #[test]
    fn what_is_no_event_is_named() {
        for (text, expected) in [
            ("0.01:1.1", "three parts"),
            ("a:1:1", "sampling rate \"a\""),
            ("0.1:1:1.5", "number of steps \"1.5\""),
            ("0.1:1:-1", "number of steps"),
        ] {
            let error = text.parse::<SampledReleases>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

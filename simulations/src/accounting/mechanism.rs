//! The mechanisms, accountants and relations that flags name.

use std::fmt;

use serde::Serialize;
use tributary_privacy::mechanism::{Neighbouring, PrivacyEvent};

use super::{AccountingError, MechanismDetails, NoiseCorrelation, NoiseShares, SampledReleases};

/// Grid units in one clipping norm of a run with correlated noise, where only the plan is known.
const PLANNED_GRID: f64 = (1u64 << 28) as f64;

/// How the noisy results are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// Gaussian noise on the sum over a Poisson sample: each unit joins independently
    PoissonGaussian,
    /// Gaussian noise on the sum over everybody
    Gaussian,
    /// Gaussian noise on the sum over a sample of fixed size (replace-one only)
    WithoutReplacementGaussian,
    /// The sum of discrete Gaussian shares of several clients on an integer grid, under secure
    /// aggregation; optionally over a Poisson sample of records
    DistributedDiscreteGaussian,
    /// Correlated noise (DP-FTRL by a banded matrix) over one run of steps without sampling
    BandedMatrix,
    /// Discrete Gaussian noise on one count, which one unit changes by at most 1
    DiscreteGaussian,
}

/// How the accountant computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Accountant {
    /// Privacy loss distributions: tight, never below the truth
    Pld,
    /// Rényi differential privacy: fast, never below the truth, usually some per cent above
    Rdp,
    /// Zero-concentrated differential privacy: as if nothing were sampled
    Zcdp,
}

impl Mechanism {
    /// The relation under which it is accounted unless another one is asked for.
    #[must_use]
    pub const fn neighbouring(self) -> Neighbouring {
        match self {
            Self::PoissonGaussian
            | Self::Gaussian
            | Self::DistributedDiscreteGaussian
            | Self::BandedMatrix
            | Self::DiscreteGaussian => Neighbouring::AddOrRemoveOne,
            Self::WithoutReplacementGaussian => Neighbouring::ReplaceOne,
        }
    }

    /// Whether every unit may take part in every release, so that a sampling rate need not be given.
    #[must_use]
    pub const fn takes_everybody(self) -> bool {
        matches!(
            self,
            Self::Gaussian
                | Self::DistributedDiscreteGaussian
                | Self::BandedMatrix
                | Self::DiscreteGaussian
        )
    }

    /// The accounted event of some releases.
    ///
    /// # Errors
    /// [`AccountingError`] naming the flag and what would work.
    pub fn event(
        self,
        releases: &SampledReleases,
        neighbouring: Neighbouring,
        details: MechanismDetails,
    ) -> Result<PrivacyEvent, AccountingError> {
        use Neighbouring::{AddOrRemoveOne, ReplaceOne};
        releases.validate()?;
        let SampledReleases { sampling_rate, noise_multiplier, steps } = *releases;
        let everybody = sampling_rate == 1.0;
        Ok(match (self, neighbouring) {
            (Self::Gaussian | Self::BandedMatrix | Self::DiscreteGaussian, _) if !everybody => {
                return Err(AccountingError::Unsampled { mechanism: self, sampling_rate });
            }
            (Self::Gaussian, AddOrRemoveOne) => {
                PrivacyEvent::Gaussian { noise_multiplier, count: steps }
            }
            (Self::Gaussian, ReplaceOne) => {
                PrivacyEvent::GaussianReplaceOne { noise_multiplier, count: steps }
            }
            (Self::PoissonGaussian, AddOrRemoveOne) => {
                PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps }
            }
            (Self::PoissonGaussian, ReplaceOne) => {
                PrivacyEvent::PoissonGaussianReplaceOne { sampling_rate, noise_multiplier, steps }
            }
            (Self::WithoutReplacementGaussian, ReplaceOne) => {
                let num_examples = details
                    .num_examples
                    .ok_or(AccountingError::NoDatasetSize { mechanism: self })?;
                let batch_size = batch_size(sampling_rate, num_examples)?;
                PrivacyEvent::WithoutReplacementGaussian {
                    batch_size,
                    num_examples,
                    noise_multiplier,
                    steps,
                }
            }
            (Self::DistributedDiscreteGaussian, AddOrRemoveOne) => {
                let NoiseShares { sigma_share, clients, dimension } =
                    details.shares.ok_or(AccountingError::NoShares { mechanism: self })?;
                PrivacyEvent::LatticeGaussian {
                    sampling_rate,
                    noise_multiplier,
                    sigma_share,
                    clients,
                    dimension,
                    steps,
                }
            }
            (Self::BandedMatrix, AddOrRemoveOne) => {
                let NoiseCorrelation { bands, participations, separation } = details
                    .correlation
                    .ok_or(AccountingError::NoCorrelation { mechanism: self })?;
                let even = steps / u64::from(participations.max(1));
                let separation = separation.unwrap_or(u32::try_from(even).unwrap_or(u32::MAX));
                PrivacyEvent::BandedMatrix {
                    noise_multiplier,
                    sigma: noise_multiplier * PLANNED_GRID,
                    dimension: 1,
                    bands,
                    steps,
                    separation,
                    participations,
                    runs: 1,
                }
            }
            (Self::DiscreteGaussian, AddOrRemoveOne) => PrivacyEvent::DiscreteGaussian {
                sigma: noise_multiplier,
                sensitivity: 1,
                count: steps,
            },
            (Self::WithoutReplacementGaussian, AddOrRemoveOne)
            | (
                Self::DistributedDiscreteGaussian | Self::BandedMatrix | Self::DiscreteGaussian,
                ReplaceOne,
            ) => {
                let only = self.neighbouring();
                return Err(AccountingError::OtherRelation {
                    mechanism: self,
                    only,
                    asked: neighbouring,
                });
            }
        })
    }
}

/// The size of a fixed sample that is `sampling_rate` of the dataset.
fn batch_size(sampling_rate: f64, num_examples: u64) -> Result<u64, AccountingError> {
    let size = sampling_rate * num_examples as f64;
    if (size - size.round()).abs() > 1e-6 * size.max(1.0) {
        let range = "such that it times --num-examples is a whole number";
        return Err(AccountingError::OutOfRange {
            flag: "sampling-rate",
            value: sampling_rate,
            range,
        });
    }
    Ok(size.round() as u64)
}

/// The name of a relation, as its flag takes it.
#[must_use]
pub const fn neighbouring_name(neighbouring: Neighbouring) -> &'static str {
    match neighbouring {
        Neighbouring::AddOrRemoveOne => "add-or-remove-one",
        Neighbouring::ReplaceOne => "replace-one",
    }
}

/// The relation of that name.
#[must_use]
pub fn neighbouring_from_name(name: &str) -> Option<Neighbouring> {
    let known = [Neighbouring::AddOrRemoveOne, Neighbouring::ReplaceOne];
    known.into_iter().find(|&neighbouring| neighbouring_name(neighbouring) == name)
}

/// Displays a value by the name that its flag takes.
macro_rules! display_as_flag {
    ($($name:ty),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = clap::ValueEnum::to_possible_value(self);
                formatter.pad(value.expect("no variant is hidden").get_name())
            }
        }
    )+};
}

display_as_flag!(Mechanism, Accountant);

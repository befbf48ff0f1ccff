//! The records whose presence is guessed.

use std::fmt;

use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::Serialize;
use tributary_agent::data::Dataset;
use tributary_protocol::model::{MlpSpec, ModelSpec};

use super::{AuditRunError, CANARIES_MAX, CANARIES_MIN};
use crate::data::fashion_mnist::{CLASSES, IMAGE_SIDE, TrainingSet};

/// What a canary looks like, and with it what the attacker sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CanaryKind {
    /// White box: a record whose gradient lies on coordinates of its own
    Dirac,
    /// White box: a record whose gradient has a random direction
    Random,
    /// Black box: a blank image with a few lit pixels and a random label
    Blank,
    /// Black box: an image of Fashion-MNIST with a wrong label
    Mislabelled,
}

/// What the attacker sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// Every release and every model; the attacker compares releases with the canary's gradient.
    WhiteBox,
    /// The model at the end alone; the attacker compares the canary's loss with that at the start.
    BlackBox,
}

/// Canaries, and ordinary records that are always in.
#[derive(Debug, Clone)]
pub struct CanarySet {
    kind: CanaryKind,
    /// The canaries first.
    data: Dataset,
    canaries: usize,
    spec: ModelSpec,
}

/// The one non-zero feature of a [`CanaryKind::Dirac`] record.
const DIRAC_FEATURE: f32 = 8.0;
/// Share of the pixels that are lit in a [`CanaryKind::Blank`] image.
const LIT_SHARE: f64 = 0.02;
/// Ordinary records beside the canaries.
const ORDINARY: usize = 200;
/// Classes of synthetic records.
const SYNTHETIC_CLASSES: u32 = 10;

impl CanaryKind {
    /// What the attacker sees of training.
    #[must_use]
    pub const fn view(self) -> View {
        match self {
            Self::Dirac | Self::Random => View::WhiteBox,
            Self::Blank | Self::Mislabelled => View::BlackBox,
        }
    }
}

impl CanarySet {
    /// Makes canaries.
    ///
    /// - `images`: what [`CanaryKind::Mislabelled`] canaries are made of; the others need none
    /// - `random`: features and labels
    ///
    /// # Errors
    /// [`AuditRunError::Canaries`] or [`AuditRunError::Images`].
    pub fn new(
        kind: CanaryKind,
        canaries: usize,
        images: Option<&TrainingSet>,
        random: &mut impl Rng,
    ) -> Result<Self, AuditRunError> {
        if !(CANARIES_MIN..=CANARIES_MAX).contains(&canaries) {
            return Err(AuditRunError::Canaries { canaries });
        }
        match kind {
            CanaryKind::Dirac => Ok(Self::dirac(canaries, random)),
            CanaryKind::Random => Ok(Self::random(canaries, random)),
            CanaryKind::Blank => Ok(Self::blank(canaries, random)),
            CanaryKind::Mislabelled => Self::mislabelled(canaries, images, random),
        }
    }

    /// What the canaries look like.
    #[must_use]
    pub const fn kind(&self) -> CanaryKind {
        self.kind
    }

    /// Number of canaries.
    #[must_use]
    pub const fn canaries(&self) -> usize {
        self.canaries
    }

    pub(super) const fn data(&self) -> &Dataset {
        &self.data
    }

    pub(super) const fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The records that are always in.
    pub(super) fn ordinary(&self) -> std::ops::Range<u32> {
        self.canaries as u32..self.data.len() as u32
    }

    /// Canary i has feature i alone; ordinary records share the last one.
    fn dirac(canaries: usize, random: &mut impl Rng) -> Self {
        let width = canaries + 1;
        let row = |index: usize, features: &mut [f32]| match index < canaries {
            true => features[index] = DIRAC_FEATURE,
            false => features[canaries] = 1.0,
        };
        Self::synthetic(CanaryKind::Dirac, canaries, width, row, random)
    }

    /// Dense features of random sign, as long as a Dirac canary's; ordinary ones are short.
    fn random(canaries: usize, random: &mut impl Rng) -> Self {
        let width = canaries;
        let value = DIRAC_FEATURE / (width as f32).sqrt();
        let mut signs = Xoshiro256PlusPlus::from_rng(random);
        let row = |index: usize, features: &mut [f32]| {
            let value = if index < canaries { value } else { value / 8.0 };
            for feature in features {
                *feature = if signs.next_u32() & 1 == 1 { value } else { -value };
            }
        };
        Self::synthetic(CanaryKind::Random, canaries, width, row, random)
    }

    fn blank(canaries: usize, random: &mut impl Rng) -> Self {
        let width = (IMAGE_SIDE * IMAGE_SIDE) as usize;
        let mut lit = Xoshiro256PlusPlus::from_rng(random);
        let row = |index: usize, features: &mut [f32]| {
            if index < canaries {
                features.iter_mut().for_each(|pixel| {
                    *pixel = if lit.random_bool(LIT_SHARE) { 1.0 } else { 0.0 };
                });
            }
        };
        Self::synthetic(CanaryKind::Blank, canaries, width, row, random)
    }

    fn synthetic(
        kind: CanaryKind,
        canaries: usize,
        width: usize,
        mut row: impl FnMut(usize, &mut [f32]),
        random: &mut impl Rng,
    ) -> Self {
        let records = canaries + ORDINARY;
        let mut features = vec![0.0; records * width];
        for (index, features) in features.chunks_exact_mut(width).enumerate() {
            row(index, features);
        }
        let labels = (0..records).map(|_| random.random_range(0..SYNTHETIC_CLASSES)).collect();
        let data = Dataset::from_floats(features, width, labels, SYNTHETIC_CLASSES);
        let spec = logistic(width as u32, SYNTHETIC_CLASSES);
        Self { kind, data, canaries, spec }
    }

    /// The first images, with any label but their own; the next ones are the ordinary records.
    fn mislabelled(
        canaries: usize,
        images: Option<&TrainingSet>,
        random: &mut impl Rng,
    ) -> Result<Self, AuditRunError> {
        let available = images.map_or(0, |images| images.labels.values().len());
        let (Some(images), true) = (images, canaries + ORDINARY <= available) else {
            let images = available.saturating_sub(ORDINARY);
            return Err(AuditRunError::Images { canaries, images });
        };
        let (width, classes) = ((IMAGE_SIDE * IMAGE_SIDE) as usize, CLASSES as u32);
        let records = canaries + ORDINARY;
        let pixels = images.images.values()[..records * width].to_vec();
        let labels = images.labels.values()[..records].iter().enumerate();
        let labels = labels.map(|(index, &label)| {
            let shift = if index < canaries { random.random_range(1..classes) } else { 0 };
            (u32::from(label) + shift) % classes
        });
        let data = Dataset::from_bytes(pixels, width, labels.collect(), classes);
        let spec = logistic(width as u32, classes);
        Ok(Self { kind: CanaryKind::Mislabelled, data, canaries, spec })
    }
}

const fn logistic(inputs: u32, classes: u32) -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs, hidden: Vec::new(), classes })
}

impl fmt::Display for View {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::WhiteBox => "white-box",
            Self::BlackBox => "black-box",
        })
    }
}

//! What an attacker can do, and what each defence leaves of it.
//!
//! The attacked updates and models come from the agent's trainer and the privacy crate's mechanisms;
//! only the attackers are this module's own. One file an attack:
//!
//! - [`inversion`]: rebuilds a training image from one visible update
//! - [`membership`]: tells from a model's losses who was trained on
//! - [`label_flip`], [`sign_flip`], [`backdoor`]: hostile tenants spoil or bend the shared model
//! - [`leakage`]: guesses planted canaries, the privacy audit of [`crate::audit`]
//!
//! Every attack gives [`Row`]s, one a defence, so that what was possible stands beside what is left.

pub mod backdoor;
mod error;
mod federation;
pub mod images;
pub mod inversion;
pub mod label_flip;
pub mod leakage;
mod masked;
pub mod membership;
mod network;
mod quality;
pub mod section;
pub mod sign_flip;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use clap::ValueEnum;
use serde::Serialize;

pub use self::{error::AttackError, images::Images};

/// An attack by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AttackName {
    /// A training image is rebuilt from a visible update
    Inversion,
    /// The model's losses tell who was trained on
    Membership,
    /// Hostile tenants train on wrong labels
    LabelFlip,
    /// Hostile tenants send the opposite of their update
    SignFlip,
    /// Hostile tenants teach the model a trigger
    Backdoor,
    /// Planted canaries are guessed: the privacy audit
    Leakage,
}

impl AttackName {
    /// Every attack.
    pub const ALL: [Self; 6] = [
        Self::Inversion,
        Self::Membership,
        Self::LabelFlip,
        Self::SignFlip,
        Self::Backdoor,
        Self::Leakage,
    ];

    /// The name for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Inversion => "gradient inversion",
            Self::Membership => "membership inference",
            Self::LabelFlip => "label flipping",
            Self::SignFlip => "sign flipping",
            Self::Backdoor => "backdoor",
            Self::Leakage => "privacy audit",
        }
    }

    /// Attacks each defence.
    ///
    /// # Errors
    /// [`AttackError`] if a trainer or a mechanism refuses.
    pub fn run(self, images: &Images, size: Size, seed: u64) -> Result<Findings, AttackError> {
        match self {
            Self::Inversion => inversion::run(images, size, seed),
            Self::Membership => membership::run(images, size, seed),
            Self::LabelFlip => label_flip::run(images, size, seed),
            Self::SignFlip => sign_flip::run(images, size, seed),
            Self::Backdoor => backdoor::run(images, size, seed),
            Self::Leakage => leakage::run(size, seed),
        }
    }
}

/// How much is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// For figures.
    Full,
    /// For tests: fewer images, models and rounds.
    Small,
}

/// Lets an attacked trainer go on to its last step.
fn proceed(_step: u32, _steps: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// What one attack did against each defence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// Which attack.
    pub attack: AttackName,
    /// What the attacker knows and does, in a sentence or two.
    pub setting: String,
    /// One row a defence.
    pub rows: Vec<Row>,
    /// What the attacker sees, where that is a picture.
    #[serde(skip)]
    pub pictures: Vec<Sight>,
}

impl Findings {
    /// The row of a defence.
    #[must_use]
    pub fn row(&self, defence: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.defence == defence)
    }
}

/// One defence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What stands in the way.
    pub defence: String,
    /// ε of one record or tenant at δ = 1e-5, where the defence has one.
    pub epsilon: Option<f64>,
    /// What the attack reached, by name.
    pub measures: Vec<(&'static str, f64)>,
}

impl Row {
    /// One measure.
    #[must_use]
    pub fn measure(&self, name: &str) -> Option<f64> {
        self.measures.iter().find(|(known, _)| *known == name).map(|&(_, value)| value)
    }
}

/// A grey picture with its caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Sight {
    /// What it shows.
    pub caption: String,
    /// Width and height, in pixels.
    pub side: usize,
    /// Brightness in [0, 1], row by row.
    pub pixels: Vec<f64>,
}

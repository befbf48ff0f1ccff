//! `tributary-sim attack`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use thiserror::Error;

use super::output;
use crate::{
    attacks::{AttackError, AttackName, Findings, Images, Size, section},
    report::{Page, PictureError},
};

/// Attacks what agents release and what coordinators aggregate, and each defence.
#[derive(Debug, Args)]
pub struct AttackArguments {
    /// Which attack, or all of them
    #[arg(value_name = "NAME")]
    attack: Choice,
    /// Seeds models, noise and guesses
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write one HTML page with tables and pictures
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print one JSON object an attack
    #[arg(long)]
    json: bool,
}

/// One attack or all.
#[derive(Debug, Clone, Copy)]
enum Choice {
    All,
    One(AttackName),
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        AttackName::from_str(text, false).map(Self::One).map_err(|_| {
            let names = AttackName::value_variants().iter();
            let names = names.filter_map(ValueEnum::to_possible_value);
            let names: Vec<_> = names.map(|value| value.get_name().to_owned()).collect();
            let known = names.iter().map(|name| (strsim::damerau_levenshtein(name, text), name));
            let nearest = known.min().map(|(_, name)| name.clone()).unwrap_or_default();
            format!(
                "no attack {text:?}; did you mean {nearest:?}? There are all, {}",
                names.join(", ")
            )
        })
    }
}

/// Says why an attack was not carried out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AttackCommandError {
    /// There is no result.
    #[error(transparent)]
    Attack(#[from] AttackError),
    /// A picture cannot be shown.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The page cannot be written.
    #[error("cannot write {}", path.display())]
    Report {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The result cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl AttackArguments {
    /// Attacks, and prints what was reached.
    ///
    /// # Errors
    /// [`AttackCommandError`] saying what would work.
    pub fn run(self) -> Result<(), AttackCommandError> {
        let attacks = match self.attack {
            Choice::All => AttackName::ALL.to_vec(),
            Choice::One(attack) => vec![attack],
        };
        let images = Images::fashion_mnist()?;
        let mut all = Vec::new();
        for attack in attacks {
            let findings = attack.run(&images, Size::Full, self.seed)?;
            if self.json {
                output::json(&findings)?;
            } else {
                output::line(&section::text(&findings))?;
            }
            all.push(findings);
        }
        if let Some(path) = &self.report {
            self.write(&all, path)?;
        }
        Ok(())
    }

    fn write(&self, all: &[Findings], path: &Path) -> Result<(), AttackCommandError> {
        let mut page = Page::new("What an attacker can do").subtitle(format!(
            "Fashion-MNIST, the agent's trainer and mechanisms; seed {}",
            self.seed
        ));
        for findings in all {
            page = page.section(section::section(findings)?);
        }
        std::fs::write(path, page.html())
            .map_err(|source| AttackCommandError::Report { path: path.to_owned(), source })
    }
}

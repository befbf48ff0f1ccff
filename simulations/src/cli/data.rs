//! `tributary-sim data`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use thiserror::Error;
use tributary_protocol::id::TenantId;

use super::output;
use crate::{
    data::{
        fashion_mnist::{DatasetError, TRAIN_EXAMPLES},
        fetch::{FetchError, Fetched, Locations, Origin},
        partition::{self, Share, WriteError},
    },
    deadline::Stop,
    population::{DirichletPartition, PartitionError},
};

/// Finds, downloads and splits public datasets.
#[derive(Debug, Args)]
pub struct DataArguments {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Find a dataset on this machine, or download it into the user's cache (no root needed)
    Fetch(FetchArguments),
    /// Split a dataset over tenants, non-IID, one folder of IDX files each
    Partition(PartitionArguments),
}

/// A dataset by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DatasetChoice {
    /// 70,000 grey images of clothes in 10 classes
    FashionMnist,
}

#[derive(Debug, Args)]
struct FetchArguments {
    /// The dataset
    #[arg(value_enum)]
    dataset: DatasetChoice,
    /// Take the files from this folder into the cache instead of downloading them
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
struct PartitionArguments {
    /// The dataset
    #[arg(value_enum)]
    dataset: DatasetChoice,
    /// Where to write a folder for each tenant
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Number of tenants
    #[arg(long, value_name = "N", default_value_t = 4)]
    tenants: usize,
    /// Dirichlet concentration of each tenant's class mix; small is far from uniform
    #[arg(long, value_name = "ALPHA", default_value_t = 0.3)]
    alpha: f64,
    /// The same seed gives the same split
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Split only the first N training examples
    #[arg(long, value_name = "N")]
    examples: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Says why a dataset command failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataCommandError {
    /// The dataset is not on this machine.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The dataset changed meanwhile.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The split cannot be made.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// The split cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The result cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

#[derive(Debug, Serialize)]
struct FetchAnswer<'a> {
    dataset: &'static str,
    folder: &'a Path,
    origin: Origin,
}

#[derive(Debug, Serialize)]
struct PartitionAnswer<'a> {
    output: &'a Path,
    tenants: Vec<ShareAnswer<'a>>,
}

#[derive(Debug, Serialize)]
struct ShareAnswer<'a> {
    id: &'a TenantId,
    examples: usize,
    classes: Vec<usize>,
}

impl DataArguments {
    /// Does what was asked and prints the result.
    ///
    /// # Errors
    /// [`DataCommandError`] saying what to do.
    pub fn run(self) -> Result<(), DataCommandError> {
        match self.command {
            DataCommand::Fetch(arguments) => arguments.run(),
            DataCommand::Partition(arguments) => arguments.run(),
        }
    }
}

impl FetchArguments {
    fn run(self) -> Result<(), DataCommandError> {
        let DatasetChoice::FashionMnist = self.dataset;
        let places = Locations::of_this_machine();
        let Fetched { dataset, origin } = match &self.from {
            Some(folder) => places.adopt(folder)?,
            // Nobody sets a handler for Ctrl-C here: it ends this process and its children at once.
            None => places.find_or_download(&Stop::default())?,
        };
        let folder = dataset.folder();
        if self.json {
            output::json(&FetchAnswer { dataset: "fashion-mnist", folder, origin })?;
            return Ok(());
        }
        let how = match origin {
            Origin::Package => "installed as a Debian package",
            Origin::Cache => "fetched earlier",
            Origin::Download => "downloaded and verified",
            Origin::Given => "verified and copied into the cache",
        };
        Ok(output::line(&format!("Fashion-MNIST is in {} ({how})", folder.display()))?)
    }
}

impl PartitionArguments {
    fn run(self) -> Result<(), DataCommandError> {
        let DatasetChoice::FashionMnist = self.dataset;
        let partition =
            DirichletPartition { tenants: self.tenants, alpha: self.alpha, seed: self.seed };
        let available = TRAIN_EXAMPLES as usize;
        partition.check(self.examples.map_or(available, |limit| limit.min(available)))?;
        let fetched = Locations::of_this_machine().find_or_download(&Stop::default())?;
        let shares = partition::split(&fetched.dataset.training_set()?, &partition, self.examples)?;
        for share in &shares {
            share.write(&self.output.join(share.tenant.as_str()))?;
        }
        if self.json {
            output::json(&PartitionAnswer { output: &self.output, tenants: answers(&shares) })?;
            return Ok(());
        }
        let written = format!("written to {}", self.output.display());
        Ok(output::line(&format!("{}\n{written}", table(&shares)))?)
    }
}

fn answers(shares: &[Share]) -> Vec<ShareAnswer<'_>> {
    shares
        .iter()
        .map(|share| ShareAnswer {
            id: &share.tenant,
            examples: share.num_examples(),
            classes: share.class_counts().to_vec(),
        })
        .collect()
}

/// How many examples of each class each tenant holds.
fn table(shares: &[Share]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let classes = answers(shares).first().map_or(0, |share| share.classes.len());
    let header = ["tenant".to_owned(), "examples".to_owned()];
    table.set_header(header.into_iter().chain((0..classes).map(|class| format!("{class}"))));
    for share in answers(shares) {
        let numbers = std::iter::once(share.examples).chain(share.classes);
        let cells = numbers.map(|number| number.to_string());
        table.add_row(std::iter::once(share.id.to_string()).chain(cells));
    }
    table.column_iter_mut().skip(1).for_each(|column| {
        column.set_cell_alignment(CellAlignment::Right);
    });
    table
}

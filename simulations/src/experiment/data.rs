//! The records of an experiment and who holds them.

use std::path::{Path, PathBuf};

use chacha20::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tributary_agent::data::{DataSource, Dataset};
use tributary_protocol::model::ModelSpec;

use super::{Experiment, ExperimentError, SpeakersSpec};
use crate::{
    data::{fashion_mnist::CLASSES, fetch::Locations, idx::IdxArray},
    deadline::Stop,
    population::{self, DirichletPartition, PartitionError},
};

/// The records of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DatasetSpec {
    /// Fashion-MNIST, found or downloaded; its own test images are the test records.
    FashionMnist {
        /// Only the first so many training images.
        #[serde(default)]
        examples: Option<usize>,
    },
    /// Files in the formats that agents read.
    Files(FilesSpec),
    /// Gaussian clouds, one a class: quick to make and to learn.
    Synthetic(SyntheticSpec),
    /// A play whose speakers are the tenants; needs no partition.
    Speakers(SpeakersSpec),
}

/// Training and test files, as `agent.toml` describes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSpec {
    /// The records that are split over the tenants.
    pub train: DataSource,
    /// The records on which the base model is measured.
    pub test: DataSource,
}

/// Gaussian clouds around random centres.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticSpec {
    /// Training records; a tenth as many test records are made.
    pub examples: usize,
    /// Numbers a record.
    pub features: usize,
    /// Clouds.
    pub classes: u32,
}

/// Who holds which records.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PartitionSpec {
    /// Everyone the same mix and number.
    #[default]
    Iid,
    /// Everyone the same number, and a class mix of its own.
    Dirichlet {
        /// Concentration: small is far from uniform.
        alpha: f64,
    },
    /// Everyone a few blocks of the records sorted by class.
    Shards {
        /// Blocks of a tenant.
        shards_per_tenant: usize,
    },
    /// Everyone the same mix, and a number of its own.
    QuantitySkew {
        /// Concentration: small is far from equal.
        alpha: f64,
    },
    /// One tenant for each value of a column of the training table.
    Column {
        /// Name of the column (`dataset.files` with a CSV source).
        name: String,
    },
    /// As an index file says: `.npy` or `.csv`.
    Files {
        /// The file.
        path: PathBuf,
    },
}

/// Everybody's records, in memory once.
#[derive(Debug, Clone)]
pub struct Records {
    /// The training records of all tenants.
    pub train: Dataset,
    /// The records on which the base model is measured.
    pub test: Dataset,
    /// The names of the tenants, in their order.
    pub names: Vec<String>,
    /// Which training records each tenant holds.
    pub shares: Vec<Vec<u32>>,
}

impl Records {
    /// Loads and splits the data of an experiment.
    ///
    /// - `seed`: of the split, and of synthetic records
    ///
    /// # Errors
    /// [`ExperimentError`] naming the key or file and what would work.
    pub fn load(experiment: &Experiment, seed: u64) -> Result<Self, ExperimentError> {
        let folder = experiment.folder();
        let (train, test) = match &experiment.dataset {
            DatasetSpec::FashionMnist { examples } => fashion_mnist(*examples)?,
            DatasetSpec::Files(files) => (
                Dataset::load(&files.train.relative_to(folder), None)?,
                Dataset::load(&files.test.relative_to(folder), None)?,
            ),
            DatasetSpec::Synthetic(spec) => spec.make(seed)?,
            DatasetSpec::Speakers(spec) => return speakers(spec, experiment),
        };
        let (names, shares) = split(experiment, &train, seed)?;
        let records = Self { train, test, names, shares };
        records.check(experiment)?;
        Ok(records)
    }

    /// Checks that model and cohort fit these records.
    pub(crate) fn check(&self, experiment: &Experiment) -> Result<(), ExperimentError> {
        for data in [&self.train, &self.test] {
            check_shape(&experiment.model, data)?;
        }
        let (cohort, tenants) = (&experiment.cohort, self.shares.len());
        let (size, report_goal) = (cohort.size, cohort.report_goal());
        if size as usize > tenants {
            return Err(ExperimentError::Cohort { size, tenants });
        }
        let busy = size as usize + report_goal as usize;
        if experiment.asynchronous.is_some() && busy > tenants {
            return Err(ExperimentError::Busy { size, report_goal, tenants });
        }
        Ok(())
    }
}

/// The records of a play, and everybody's part of them.
fn speakers(spec: &SpeakersSpec, experiment: &Experiment) -> Result<Records, ExperimentError> {
    if experiment.partition != PartitionSpec::default() {
        return Err(ExperimentError::Conflict {
            field: "partition",
            problem: "the speakers of `dataset.speakers` are the tenants; leave it out",
        });
    }
    let records = spec.load(experiment.folder())?;
    check_population(experiment.tenants, records.shares.len())?;
    records.check(experiment)?;
    Ok(records)
}

fn check_shape(model: &ModelSpec, data: &Dataset) -> Result<(), ExperimentError> {
    if let Some(texts) = data.texts() {
        let tokens = model.vocab_size().unwrap_or(0);
        let vocabulary = texts.vocab_size();
        if tokens < vocabulary {
            return Err(ExperimentError::Shape { what: "tokens", model: tokens, data: vocabulary });
        }
        let (model, data) = (model.num_inputs(), texts.longest_input());
        return if data <= model {
            Ok(())
        } else {
            Err(ExperimentError::Shape { what: "tokens a text", model, data })
        };
    }
    for (what, model, data) in [
        ("inputs", model.num_inputs(), data.num_features()),
        ("classes", model.num_classes(), data.num_classes() as usize),
    ] {
        if model != data {
            return Err(ExperimentError::Shape { what, model, data });
        }
    }
    Ok(())
}

fn fashion_mnist(examples: Option<usize>) -> Result<(Dataset, Dataset), ExperimentError> {
    let loaded = Locations::of_this_machine().load(&Stop::default())?;
    let dataset = |(images, labels): (IdxArray, IdxArray), examples: Option<usize>| {
        let width: usize = images.shape()[1..].iter().map(|&size| size as usize).product();
        let mut labels: Vec<u32> = labels.values().iter().map(|&label| label.into()).collect();
        let mut pixels = images.into_values();
        if let Some(examples) = examples {
            labels.truncate(examples);
            pixels.truncate(examples.saturating_mul(width));
        }
        Dataset::from_bytes(pixels, width, labels, CLASSES as u32)
    };
    Ok((dataset(loaded.train, examples), dataset(loaded.test, None)))
}

impl SyntheticSpec {
    fn make(&self, seed: u64) -> Result<(Dataset, Dataset), ExperimentError> {
        for (field, value, min) in [
            ("dataset.synthetic.examples", self.examples, 1),
            ("dataset.synthetic.features", self.features, 1),
            ("dataset.synthetic.classes", self.classes as usize, 2),
        ] {
            if value < min {
                let range = if min == 1 { "at least 1" } else { "at least 2" };
                return Err(ExperimentError::OutOfRange { field, value: value as f64, range });
            }
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // The sum of twelve uniform numbers is close enough to normal, on every machine the same.
        let mut normal = move || {
            (0..12).map(|_| (random.next_u32() >> 8) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
        };
        let centres: Vec<f32> =
            (0..self.classes as usize * self.features).map(|_| normal()).collect();
        let mut records = |count: usize| {
            let labels: Vec<u32> = (0..count).map(|index| index as u32 % self.classes).collect();
            let mut features = Vec::with_capacity(count * self.features);
            for &label in &labels {
                let start = label as usize * self.features;
                let centre = &centres[start..start + self.features];
                features.extend(centre.iter().map(|centre| centre + normal()));
            }
            Dataset::from_floats(features, self.features, labels, self.classes)
        };
        Ok((records(self.examples), records(self.examples.div_ceil(10))))
    }
}

fn split(
    experiment: &Experiment,
    train: &Dataset,
    seed: u64,
) -> Result<(Vec<String>, Vec<Vec<u32>>), ExperimentError> {
    let examples = train.len();
    let tenants = experiment.tenants;
    let asked = || {
        tenants.ok_or(ExperimentError::Conflict {
            field: "tenants",
            problem: "this partition needs the number of tenants, e.g. `tenants = 100`",
        })
    };
    let shares = match &experiment.partition {
        PartitionSpec::Iid => population::iid(examples, asked()?, seed)?,
        PartitionSpec::Dirichlet { alpha } => {
            let partition = DirichletPartition { tenants: asked()?, alpha: *alpha, seed };
            let labels: Option<Vec<u8>> =
                train.labels().iter().map(|&label| u8::try_from(label).ok()).collect();
            let labels = labels.ok_or(ExperimentError::Conflict {
                field: "partition",
                problem: "`dirichlet` takes at most 256 classes; use `iid` or `shards`",
            })?;
            partition.assign(&labels, train.num_classes() as usize)?
        }
        PartitionSpec::Shards { shards_per_tenant } => {
            population::shards(train.labels(), asked()?, *shards_per_tenant, seed)?
        }
        PartitionSpec::QuantitySkew { alpha } => {
            population::quantity_skew(examples, asked()?, *alpha, seed)?
        }
        PartitionSpec::Column { name } => {
            let groups = population::by_value(&column(experiment, name, examples)?)?;
            let (names, shares): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
            check_population(tenants, shares.len())?;
            return Ok((names, shares));
        }
        PartitionSpec::Files { path } => {
            let shares = population::read_owners(&experiment.folder().join(path), examples)?;
            check_population(tenants, shares.len())?;
            shares
        }
    };
    let names = (0..shares.len()).map(|tenant| format!("tenant-{tenant}")).collect();
    Ok((names, shares))
}

fn check_population(asked: Option<usize>, groups: usize) -> Result<(), PartitionError> {
    match asked {
        Some(tenants) if tenants != groups => Err(PartitionError::Groups { groups, tenants }),
        _ => Ok(()),
    }
}

/// The values of a column of the training table, one a record.
fn column(
    experiment: &Experiment,
    name: &str,
    examples: usize,
) -> Result<Vec<String>, ExperimentError> {
    let DatasetSpec::Files(FilesSpec { train: DataSource::Csv(source), .. }) = &experiment.dataset
    else {
        return Err(ExperimentError::Conflict {
            field: "partition.column",
            problem: "needs `dataset.files` with a CSV source to train on",
        });
    };
    let path = experiment.folder().join(&source.path);
    let failed = |problem: String| ExperimentError::Column { path: path.clone(), problem };
    let values = read_column(&path, source.has_header, name).map_err(failed)?;
    if values.len() != examples {
        let problem = format!("{} values for {examples} records", values.len());
        return Err(failed(problem));
    }
    Ok(values)
}

fn read_column(path: &Path, has_header: bool, name: &str) -> Result<Vec<String>, String> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(has_header)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_path(path)
        .map_err(|error| error.to_string())?;
    let first = reader.headers().map_err(|error| error.to_string())?.clone();
    let position = match has_header {
        true => first.iter().position(|column| column == name),
        false => name.parse::<usize>().ok().and_then(|number| number.checked_sub(1)),
    };
    let position = position.filter(|&position| position < first.len()).ok_or_else(|| {
        let names: Vec<&str> = first.iter().collect();
        match has_header {
            true => format!("there is no column `{name}`; there are {}", names.join(", ")),
            false => format!("there is no column `{name}`; they are numbered 1 to {}", first.len()),
        }
    })?;
    let value = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(|error| error.to_string())?;
        record.get(position).map(str::to_owned).ok_or_else(|| "a line is too short".to_owned())
    };
    reader.records().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment(partition: &str, dataset: &str) -> Experiment {
        let text = format!(
            r#"
            name = "data"
            rounds = 1
            {partition}
            {dataset}
            [cohort]
            size = 2
            [model.mlp]
            inputs = 1
            classes = 2
            [training.null]
            [privacy.none]
            "#
        );
        Experiment::parse(&text, Path::new("")).expect("valid")
    }

    const SYNTHETIC: &str = "[dataset.synthetic]\nexamples = 30\nfeatures = 1\nclasses = 2";

    #[test]
    fn every_partition_splits_all_records() {
        for partition in [
            "partition = \"iid\"",
            "partition = { dirichlet = { alpha = 0.5 } }",
            "partition = { shards = { shards_per_tenant = 2 } }",
            "partition = { quantity-skew = { alpha = 1.0 } }",
        ] {
            let spec = experiment(&format!("tenants = 3\n{partition}"), SYNTHETIC);
            let records = Records::load(&spec, 1).expect(partition);
            assert_eq!(records.shares.iter().map(Vec::len).sum::<usize>(), 30, "{partition}");
            assert_eq!((records.names.len(), records.test.len()), (3, 3));
        }
    }

    #[test]
    fn a_column_makes_a_natural_population() {
        let folder = tempfile::tempdir().expect("a folder");
        let table = folder.path().join("table.csv");
        std::fs::write(&table, "who,x,y\nann,1,a\nbob,2,b\nann,3,a\n").expect("written");
        let source = format!(
            r#"{{ csv = {{ path = "{}", label = "y", labels = ["a", "b"],
                 columns = [{{ name = "x", kind = {{ numeric = {{ min = 0, max = 9 }} }} }}] }} }}"#,
            table.display()
        )
        .replace('\n', "");
        let dataset = format!("[dataset.files]\ntrain = {source}\ntest = {source}");
        let load = |name: &str| {
            let partition = format!("partition = {{ column = {{ name = \"{name}\" }} }}");
            Records::load(&experiment(&partition, &dataset), 1)
        };
        let records = load("who").expect("valid");
        assert_eq!(records.names, ["ann", "bob"]);
        assert_eq!(records.shares, [vec![0, 2], vec![1]]);
        let error = load("whom").expect_err("no such column").to_string();
        assert!(error.contains("there are who, x, y"), "{error}");
    }

    #[test]
    fn impossible_data_is_named() {
        let message = |partition: &str| {
            let spec = experiment(partition, SYNTHETIC);
            let error = Records::load(&spec, 1).expect_err("impossible");
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error} {}", cause.unwrap_or_default())
        };
        assert!(message("partition = \"iid\"").contains("tenants = 100"));
        assert!(message("tenants = 31").contains("at most 30"));
        assert!(message("tenants = 1").contains("`cohort.size` is 2"));
        let column = "partition = { column = { name = \"x\" } }";
        assert!(message(column).contains("CSV source"));
        let files = "partition = { files = { path = \"/nonexistent/owners.npy\" } }";
        assert!(message(files).contains("owners.npy"));
    }
}

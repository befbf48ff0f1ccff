//! How far a tenant is kept apart from others.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a tenant is kept apart from others: what it needs at least, per resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Isolation {
    /// Its data.
    pub data: DataIsolation,
    /// Its model.
    pub model: ModelIsolation,
    /// What computes for it.
    pub compute: ComputeIsolation,
}

impl Isolation {
    /// The first resource whose level is below what is needed; `None` if all floors are met.
    ///
    /// - `floors`: the lowest level of each resource that is enough
    #[must_use]
    pub fn below(self, floors: Self) -> Option<BelowFloor> {
        let found = |resource, is: &'static str, needs| BelowFloor { resource, is, needs };
        if self.data < floors.data {
            return Some(found("data", self.data.name(), floors.data.name()));
        }
        if self.model < floors.model {
            return Some(found("model", self.model.name(), floors.model.name()));
        }
        (self.compute < floors.compute)
            .then(|| found("compute", self.compute.name(), floors.compute.name()))
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data, model, compute } = self;
        write!(formatter, "{},{},{}", data.name(), model.name(), compute.name())
    }
}

/// Says that a tenant is kept apart less than it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BelowFloor {
    /// Of which resource.
    pub resource: &'static str,
    /// The level that there is.
    pub is: &'static str,
    /// The lowest level that is enough.
    pub needs: &'static str,
}

impl fmt::Display for BelowFloor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, is, needs } = self;
        write!(
            formatter,
            "its agent runs at {resource} isolation {is}, below the tenant's {needs}; raise it in \
             `agent.toml`, or lower the floor with `tenant set --{resource}-isolation {is}`"
        )
    }
}

/// Levels for data, lowest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataIsolation {
    /// 0: a store that it shares.
    #[default]
    SharedStore,
    /// 1: a keyspace and an encryption key of its own.
    OwnKeyspace,
    /// 2: a database of its own.
    OwnDatabase,
}

impl DataIsolation {
    /// The name in files, on the command line and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SharedStore => "shared-store",
            Self::OwnKeyspace => "own-keyspace",
            Self::OwnDatabase => "own-database",
        }
    }
}

/// Levels for the model, lowest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelIsolation {
    /// 0: the base model only.
    #[default]
    BaseOnly,
    /// 1: base and a private adapter.
    Adapter,
    /// 2: an independent copy.
    IndependentCopy,
}

impl ModelIsolation {
    /// The name in files, on the command line and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BaseOnly => "base-only",
            Self::Adapter => "adapter",
            Self::IndependentCopy => "independent-copy",
        }
    }
}

/// Levels for computation, lowest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeIsolation {
    /// 0: a queue that it shares.
    #[default]
    SharedQueue,
    /// 1: a worker of its own.
    DedicatedWorker,
    /// 2: a process or device of its own.
    DedicatedDevice,
}

impl ComputeIsolation {
    /// The name in files, on the command line and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SharedQueue => "shared-queue",
            Self::DedicatedWorker => "dedicated-worker",
            Self::DedicatedDevice => "dedicated-device",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_resource_below_its_floor_is_named_with_what_is_and_what_is_needed() {
        let floors = Isolation { model: ModelIsolation::Adapter, ..Isolation::default() };
        let below = Isolation::default().below(floors).expect("base only is below");
        assert_eq!((below.resource, below.is, below.needs), ("model", "base-only", "adapter"));
        assert!(below.to_string().contains("--model-isolation base-only"), "{below}");
        assert_eq!(floors.below(floors), None);
        let compute = ComputeIsolation::DedicatedWorker;
        let below = floors.below(Isolation { compute, ..floors }).expect("a shared queue is below");
        assert_eq!(below.resource, "compute");
        let data = DataIsolation::OwnDatabase;
        assert_eq!(floors.below(Isolation { data, ..floors }).expect("below").resource, "data");
    }

    #[test]
    fn names_are_those_of_the_files() {
        let text = |level: serde_json::Value| level.as_str().expect("text").to_owned();
        for level in
            [DataIsolation::SharedStore, DataIsolation::OwnKeyspace, DataIsolation::OwnDatabase]
        {
            assert_eq!(text(serde_json::to_value(level).expect("plain")), level.name());
        }
        for level in
            [ModelIsolation::BaseOnly, ModelIsolation::Adapter, ModelIsolation::IndependentCopy]
        {
            assert_eq!(text(serde_json::to_value(level).expect("plain")), level.name());
        }
        for level in [
            ComputeIsolation::SharedQueue,
            ComputeIsolation::DedicatedWorker,
            ComputeIsolation::DedicatedDevice,
        ] {
            assert_eq!(text(serde_json::to_value(level).expect("plain")), level.name());
        }
    }
}

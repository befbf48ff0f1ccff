use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{DatasetName, Digest},
    time::Timestamp,
};

use super::PredictionId;

/// A prediction, with its outcome once that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its name.
    pub id: PredictionId,
    /// The dataset that the model is trained for, where that is known.
    pub dataset: Option<DatasetName>,
    /// Digest of the base model.
    pub base: Digest,
    /// Version of the adapter on top, if any.
    pub adapter: Option<u64>,
    /// Classes of the model.
    pub classes: u32,
    /// What the model saw.
    pub features: Vec<f32>,
    /// The class that it answered.
    pub class: u32,
    /// The probability that it gave to this class.
    pub probability: f32,
    /// What was true.
    pub label: Option<Label>,
}

/// What was true, and when that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// The class.
    pub class: u32,
    /// When it was told.
    pub told: Timestamp,
}

/// Everything but the features, as it lies in front of them.
#[derive(Serialize, Deserialize)]
struct Head {
    id: PredictionId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dataset: Option<DatasetName>,
    base: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adapter: Option<u64>,
    classes: u32,
    class: u32,
    probability: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<Label>,
}

impl Record {
    /// Length of the head, head as JSON, features as little-endian f32.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self { id, dataset, base, adapter, classes, features, class, probability, label } =
            self.clone();
        let head = Head { id, dataset, base, adapter, classes, class, probability, label };
        let head = serde_json::to_vec(&head).expect("a head has only text keys");
        let mut bytes = Vec::with_capacity(4 + head.len() + 4 * features.len());
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend(features.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    /// The record of bytes that [`Self::to_bytes`] made; nothing for any others.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (head, features) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let head: Head = serde_json::from_slice(head).ok()?;
        let (features, odd) = features.as_chunks::<4>();
        if !odd.is_empty() {
            return None;
        }
        let Head { id, dataset, base, adapter, classes, class, probability, label } = head;
        let features = features.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Some(Self { id, dataset, base, adapter, classes, features, class, probability, label })
    }
}

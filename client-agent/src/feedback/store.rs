use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tributary_protocol::{
    id::{DatasetName, Digest},
    time::Timestamp,
};

use super::{
    Examples, FeedbackError, Label, PredictionId, Quality, Record, Seen,
    journal::{Journal, read_folder},
    quality,
};
use crate::{data::Dataset, durable_file::create_directory, ledger_file::lock};

const WAITING: &str = "waiting";
const LABELLED: &str = "labelled";
/// Files of a journal that is full: how finely the limit of bytes is kept.
const FILES: u64 = 16;
const FILE_BYTES_MIN: u64 = 64 << 10;

/// How long and how much is kept, of waiting predictions and of labelled ones each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Age of a prediction, in milliseconds.
    pub age_max_ms: u64,
    /// Predictions.
    pub count_max: usize,
    /// Bytes on the disk; a sixteenth more may lie there for a moment.
    pub bytes_max: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age_max_ms: 90 * 24 * 3_600_000, count_max: 100_000, bytes_max: 256 << 20 }
    }
}

/// What a label led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labelling {
    /// It is kept now.
    New,
    /// The same label was given before; nothing changed.
    Repeated,
}

/// The predictions of one site and their outcomes.
///
/// A lock file keeps every other process from writing.
#[derive(Debug)]
pub struct FeedbackStore {
    state: Mutex<State>,
    /// Held as long as the store lives.
    _lock: File,
}

#[derive(Debug)]
struct State {
    retention: Retention,
    waiting: Journal,
    labelled: Journal,
    seen: BTreeMap<PredictionId, Seen>,
}

impl FeedbackStore {
    /// Opens the store in `directory`, making it if needed, and drops what is beyond the limits.
    ///
    /// # Errors
    /// [`FeedbackError::InUse`] if another process holds it, [`FeedbackError::Damaged`] naming a
    /// file that a crash does not explain, [`FeedbackError::File`].
    pub fn open(
        directory: &Path,
        retention: Retention,
        now: Timestamp,
    ) -> Result<Self, FeedbackError> {
        create_directory(directory)?;
        let lock = lock(&directory.join("store.lock"))?;
        let file_bytes_max = (retention.bytes_max / FILES).max(FILE_BYTES_MIN);
        let mut seen = BTreeMap::new();
        let labelled = Journal::open(directory.join(LABELLED), file_bytes_max, |record| {
            seen.insert(record.id, Seen::of(record));
        })?;
        let mut answered = Vec::new();
        let mut waiting = Journal::open(directory.join(WAITING), file_bytes_max, |record| {
            if labelled.contains(record.id) {
                answered.push(record.id);
            } else {
                seen.insert(record.id, Seen::of(record));
            }
        })?;
        answered.into_iter().for_each(|id| waiting.forget(id));
        let state = Mutex::new(State { retention, waiting, labelled, seen });
        let store = Self { state, _lock: lock };
        store.sweep(now)?;
        Ok(store)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps predictions until their outcomes are known.
    ///
    /// # Errors
    /// [`FeedbackError`] if they cannot be written.
    pub fn remember(&self, records: &[Record], now: Timestamp) -> Result<(), FeedbackError> {
        let mut state = self.state();
        state.waiting.append(records)?;
        state.seen.extend(records.iter().map(|record| (record.id, Seen::of(record))));
        state.keep_within_limits(now)
    }

    /// Takes the outcome of a prediction; on `Ok` it is durable.
    ///
    /// # Errors
    /// [`FeedbackError`]: an unknown or expired id, a class that the model does not have, another
    /// label than before, or the disk.
    pub fn label(
        &self,
        id: PredictionId,
        class: u32,
        now: Timestamp,
    ) -> Result<Labelling, FeedbackError> {
        let mut state = self.state();
        if let Some(seen) = state.seen.get(&id)
            && let Some(found) = seen.label
        {
            let same = found == class;
            return same
                .then_some(Labelling::Repeated)
                .ok_or(FeedbackError::Labelled { id, found });
        }
        let Some(mut record) = state.waiting.read(id)? else { return Err(state.missing(id, now)) };
        if class >= record.classes {
            return Err(FeedbackError::Label { label: class, classes: record.classes });
        }
        record.label = Some(Label { class, told: now });
        state.labelled.append(std::slice::from_ref(&record))?;
        state.labelled.flush()?;
        state.waiting.forget(id);
        state.seen.insert(id, Seen::of(&record));
        state.keep_within_limits(now)?;
        Ok(Labelling::New)
    }

    /// Removes a prediction and its outcome from memory and disk; on `Ok` their bytes are gone.
    ///
    /// # Errors
    /// [`FeedbackError`]: an unknown or expired id, or the disk.
    pub fn delete(&self, id: PredictionId, now: Timestamp) -> Result<(), FeedbackError> {
        let mut state = self.state();
        if !state.seen.contains_key(&id) {
            return Err(state.missing(id, now));
        }
        // The waiting record of a labelled prediction may still lie on the disk, out of sight.
        state.waiting.purge(id)?;
        state.labelled.remove(&BTreeSet::from([id]))?;
        state.seen.remove(&id);
        Ok(())
    }

    /// Drops what is beyond the limits and makes everything else durable.
    ///
    /// # Errors
    /// [`FeedbackError`] if the disk fails.
    pub fn sweep(&self, now: Timestamp) -> Result<(), FeedbackError> {
        let mut state = self.state();
        state.waiting.flush()?;
        state.keep_within_limits(now)
    }

    /// Labelled data of a dataset that fits its own records.
    ///
    /// # Errors
    /// [`FeedbackError`] if the disk fails.
    pub fn examples(
        &self,
        dataset: &DatasetName,
        data: &Dataset,
    ) -> Result<Examples, FeedbackError> {
        Ok(Examples::of(self.state().labelled.read_all()?, dataset, data))
    }

    /// For each input of a dataset with an outcome, whether the prediction was right.
    ///
    /// An input that was asked about several times counts once, by its newest prediction with an
    /// outcome: a record that is added or removed moves a sum over these by one value.
    #[must_use]
    pub fn agreements(&self, dataset: &DatasetName) -> Vec<bool> {
        let state = self.state();
        let of_dataset = state.seen.values().filter(|seen| seen.dataset.as_ref() == Some(dataset));
        let outcomes = of_dataset.filter_map(|seen| Some((seen.input, seen.is_right()?)));
        // The oldest first, so that the newest stays.
        outcomes.collect::<HashMap<Digest, bool>>().into_values().collect()
    }

    /// How good predictions were.
    #[must_use]
    pub fn quality(&self) -> Quality {
        quality(&self.state().seen)
    }
}

impl State {
    /// Why an id that is not kept is not.
    fn missing(&self, id: PredictionId, now: Timestamp) -> FeedbackError {
        let oldest = self.seen.keys().next().map(|oldest| oldest.at());
        let old = now.since(id.at()).as_millis() as u64 > self.retention.age_max_ms;
        if old || oldest.is_some_and(|oldest| id.at() < oldest) {
            FeedbackError::Expired { id }
        } else {
            FeedbackError::Unknown { id }
        }
    }

    fn keep_within_limits(&mut self, now: Timestamp) -> Result<(), FeedbackError> {
        let Self { retention, waiting, labelled, seen } = self;
        for journal in [waiting, labelled] {
            let victims = victims(journal, retention, now);
            if !victims.is_empty() {
                journal.remove(&victims)?;
                seen.retain(|id, _| !victims.contains(id));
            }
            while journal.bytes() > retention.bytes_max {
                let oldest = journal.ids_of_oldest_file();
                if !journal.remove_oldest_file()? {
                    break;
                }
                seen.retain(|id, _| !oldest.contains(id));
            }
        }
        Ok(())
    }
}

/// Ids beyond age and count. Of the count a sixteenth more than needed goes, so that a full
/// journal is not written anew for each record.
fn victims(journal: &Journal, retention: &Retention, now: Timestamp) -> BTreeSet<PredictionId> {
    let excess = if journal.len() > retention.count_max {
        journal.len() - (retention.count_max - retention.count_max / FILES as usize)
    } else {
        0
    };
    let old = |id: &PredictionId| now.since(id.at()).as_millis() as u64 > retention.age_max_ms;
    let count = journal.ids().take_while(old).count().max(excess);
    journal.ids().take(count).collect()
}

/// The labelled records of a store that another process may hold; the newest label of each.
///
/// # Errors
/// [`FeedbackError`] if the disk fails or a file is damaged.
pub fn read_labelled(directory: &Path) -> Result<Vec<Record>, FeedbackError> {
    read_folder(&directory.join(LABELLED))
}

/// Labelled data as [`FeedbackStore::examples`] has it, of a store that another process may hold.
///
/// # Errors
/// [`FeedbackError`] if the disk fails or a file is damaged.
pub fn read_examples(
    directory: &Path,
    dataset: &DatasetName,
    data: &Dataset,
) -> Result<Examples, FeedbackError> {
    Ok(Examples::of(read_labelled(directory)?, dataset, data))
}

use std::{fs, path::Path};

use proptest::prelude::*;
use tributary_protocol::{
    id::{DatasetName, Digest},
    time::Timestamp,
};

use super::*;
use crate::data::{Dataset, Split, Texts};

const DAY: u64 = 24 * 3_600_000;
/// Everything happens about here.
const NOW: Timestamp = Timestamp(1_000 * DAY);

fn dataset() -> DatasetName {
    DatasetName::new("census").unwrap()
}

fn record(number: u64) -> Record {
    Record {
        id: PredictionId::new(Timestamp(NOW.0 + number), number),
        dataset: Some(dataset()),
        base: Digest::of(b"base"),
        adapter: Some(3),
        classes: 4,
        features: vec![number as f32, -0.5],
        class: (number % 4) as u32,
        probability: 0.5,
        label: None,
    }
}

/// A dataset of one record.
fn records(num_features: usize, num_classes: u32) -> Dataset {
    Dataset::from_floats(vec![0.25; num_features], num_features, vec![0], num_classes)
}

fn id(number: u64) -> PredictionId {
    record(number).id
}

fn open(directory: &Path, retention: Retention) -> FeedbackStore {
    FeedbackStore::open(directory, retention, NOW).unwrap()
}

fn filled(directory: &Path, count: u64) -> FeedbackStore {
    let store = open(directory, Retention::default());
    let records: Vec<Record> = (0..count).map(record).collect();
    store.remember(&records, NOW).unwrap();
    store
}

/// All bytes of all files.
fn content(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            bytes.extend(content(&path));
        } else {
            bytes.extend(fs::read(path).unwrap());
        }
    }
    bytes
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn outcomes_survive_a_restart_and_become_examples() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path(), 5);
    assert_eq!(store.label(id(1), 1, NOW).unwrap(), Labelling::New);
    assert_eq!(store.label(id(2), 0, NOW).unwrap(), Labelling::New);
    drop(store);
    let store = open(directory.path(), Retention::default());
    assert_eq!(store.label(id(2), 0, NOW).unwrap(), Labelling::Repeated);
    let examples = store.examples(&dataset(), &records(2, 4)).unwrap();
    let rows = vec![vec![1.0, -0.5], vec![2.0, -0.5]];
    assert_eq!((examples.rows, examples.labels), (rows, vec![1, 0]));
    let quality = store.quality();
    assert_eq!((quality.waiting, quality.labelled, quality.accuracy), (3, 2, Some(0.5)));
    assert_eq!(quality.days[0].day, "1972-09-27");
    let agreements = || {
        let mut found = store.agreements(&dataset());
        found.sort_unstable();
        found
    };
    assert_eq!(agreements(), [false, true]);
    // The same input again, now with another outcome: it still counts once.
    let again = Record { id: id(90), ..record(2) };
    store.remember(&[again], NOW).unwrap();
    store.label(id(90), 2, NOW).unwrap();
    assert_eq!(agreements(), [true, true]);
    store.delete(id(90), NOW).unwrap();
    // Neither another dataset nor another model gets them.
    assert!(store.agreements(&DatasetName::new("other").unwrap()).is_empty());
    assert!(store.examples(&dataset(), &records(3, 4)).unwrap().is_empty());
    assert_eq!(store.examples(&dataset(), &records(2, 1)).unwrap().labels, [0]);
    assert_eq!(read_labelled(directory.path()).unwrap().len(), 2);
    let beside = read_examples(directory.path(), &dataset(), &records(2, 4)).unwrap();
    assert_eq!(beside, store.examples(&dataset(), &records(2, 4)).unwrap());
}

#[test]
fn wrong_outcomes_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path(), 3);
    let error = store.label(id(0), 4, NOW).unwrap_err();
    assert!(matches!(error, FeedbackError::Label { label: 4, classes: 4 }), "{error}");
    assert!(error.to_string().contains("0 to 3"), "{error}");
    store.label(id(0), 3, NOW).unwrap();
    let error = store.label(id(0), 2, NOW).unwrap_err();
    assert!(matches!(error, FeedbackError::Labelled { found: 3, .. }), "{error}");
    let error = store.label(id(77), 0, NOW).unwrap_err();
    assert!(matches!(error, FeedbackError::Unknown { .. }), "{error}");
    let old = PredictionId::new(Timestamp(NOW.0 - 91 * DAY), 1);
    let error = store.label(old, 0, NOW).unwrap_err();
    assert!(matches!(error, FeedbackError::Expired { .. }), "{error}");
    assert!(matches!(store.delete(old, NOW), Err(FeedbackError::Expired { .. })));
    // Nothing of that changed anything.
    assert_eq!(store.quality().labelled, 1);
}

#[test]
fn deletion_removes_every_byte_of_a_prediction() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path(), 4);
    store.label(id(1), 0, NOW).unwrap();
    for number in [1, 2] {
        assert!(holds(&content(directory.path()), &id(number).to_string()));
        store.delete(id(number), NOW).unwrap();
        assert!(!holds(&content(directory.path()), &id(number).to_string()));
        assert!(store.delete(id(number), NOW).is_err());
    }
    // The others are still there, and the store goes on.
    store.label(id(3), 3, NOW).unwrap();
    store.remember(&[record(9)], NOW).unwrap();
    drop(store);
    let quality = open(directory.path(), Retention::default()).quality();
    assert_eq!((quality.waiting, quality.labelled), (2, 1));
}

#[test]
fn age_count_and_bytes_are_limited() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path(), 40);
    store.label(id(5), 1, NOW).unwrap();
    drop(store);
    let store = open(directory.path(), Retention { count_max: 32, ..Retention::default() });
    let quality = store.quality();
    assert_eq!((quality.waiting, quality.labelled), (30, 1), "a sixteenth below the limit");
    assert!(matches!(store.label(id(0), 0, NOW), Err(FeedbackError::Expired { .. })));
    assert!(matches!(store.label(id(39), 3, NOW), Ok(Labelling::New)));
    store.sweep(Timestamp(NOW.0 + 91 * DAY)).unwrap();
    assert_eq!((store.quality().waiting, store.quality().labelled), (0, 0));
    assert!(!holds(&content(directory.path()), "census"));

    let small = Retention { bytes_max: 400 << 10, ..Retention::default() };
    drop(store);
    let store = open(directory.path(), small);
    let wide = |number| Record { features: vec![1.0; 2000], ..record(number) };
    for number in 100..400 {
        store.remember(&[wide(number)], NOW).unwrap();
        assert!(content(directory.path()).len() < (464 << 10));
    }
    assert!(store.quality().waiting > 40, "{}", store.quality().waiting);
    store.label(id(399), 3, NOW).unwrap();
    assert!(matches!(store.label(id(101), 1, NOW), Err(FeedbackError::Expired { .. })));
}

#[test]
fn a_second_process_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path(), 1);
    let error = FeedbackStore::open(directory.path(), Retention::default(), NOW).unwrap_err();
    assert!(matches!(error, FeedbackError::InUse(_)), "{error}");
    drop(store);
    open(directory.path(), Retention::default());
}

#[test]
fn a_flipped_bit_in_the_middle_is_told_from_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    drop(filled(directory.path(), 5));
    let file = directory.path().join("waiting/00000001.log");
    let mut bytes = fs::read(&file).unwrap();
    bytes[60] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = FeedbackStore::open(directory.path(), Retention::default(), NOW).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("00000001.log") && text.contains("byte 0"), "{text}");
}

#[test]
fn examples_take_their_places_behind_the_records() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path(), 200);
    for number in 0..200 {
        store.label(id(number), 2, NOW).unwrap();
    }
    let data = Dataset::from_floats(vec![0.25; 8], 2, vec![0; 4], 4);
    let split = Split::new(4, 0.5, 1).unwrap();
    let parts = |store: &FeedbackStore| {
        let examples = store.examples(&dataset(), &data).unwrap();
        let (data, split) = with_examples((&data, &split), &examples, 0.5);
        let feature = |&index: &u32| data.features(index as usize)[0] as u64;
        let of = |part: &[u32]| part.iter().filter(|&&at| at >= 4).map(feature).collect::<Vec<_>>();
        assert_eq!(data.len(), 4 + examples.len());
        (of(&split.train), of(&split.validation), of(&split.held_out))
    };
    let (train, validation, held_out) = parts(&store);
    assert_eq!(train.len() + validation.len() + held_out.len(), 200);
    assert!((70..130).contains(&train.len()) && held_out.len() > 25, "{}", train.len());
    // Deleting one moves no other between the parts.
    let gone = train[3];
    store.delete(id(gone), NOW).unwrap();
    let (fewer, ..) = parts(&store);
    assert_eq!(fewer, train.into_iter().filter(|&one| one != gone).collect::<Vec<_>>());
    let mut texts = Texts::new(9, false);
    texts.push(&[1, 2], 0);
    let texts = Dataset::from_texts(texts, vec![0], 2);
    assert_eq!(texts.appended(&[vec![8.0]], &[1]).texts().unwrap().tokens(1), [8]);
    for row in [&[][..], &[9.0], &[0.5], &[-1.0], &[f32::NAN], &[1.0, 1.0, 1.0]] {
        assert!(!texts.accepts(row, 0), "{row:?}");
    }
    assert!(!texts.accepts(&[1.0], 2), "the class is one of the records'");
    let bytes = Dataset::from_bytes(vec![0, 255], 2, vec![0], 4);
    assert_eq!(bytes.appended(&[vec![0.5, 2.0]], &[1]).features(1), [128.0 / 255.0, 1.0]);
}

#[test]
fn drift_is_seen_and_chance_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path(), 400);
    assert!(store.quality().drift.is_some_and(|drift| !drift.drifted && drift.class_shift < 0.01));
    for number in 0..400 {
        // Right in four of five cases, later only in every second.
        let hit = if number < 200 { number % 5 != 0 } else { number % 2 == 0 };
        let class = record(number).class;
        store.label(id(number), if hit { class } else { (class + 1) % 4 }, NOW).unwrap();
    }
    let drift = store.quality().drift.unwrap();
    assert!(drift.drifted && drift.class_shift < 0.01, "{drift:?}");
    assert!((drift.accuracy_change.unwrap() + 0.3).abs() < 0.02, "{drift:?}");
    // The same class again and again is a shift even before any outcome is known.
    let store = {
        let directory = tempfile::tempdir().unwrap();
        let store = filled(directory.path(), 200);
        let same: Vec<Record> =
            (1000..1200).map(|number| Record { class: 0, ..record(number) }).collect();
        store.remember(&same, NOW).unwrap();
        store
    };
    assert!(store.quality().drift.unwrap().drifted);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Wherever the newest file is cut, every record before the cut is there and writing goes on.
    #[test]
    fn a_crash_at_any_byte_costs_only_what_was_being_written(part in 0.0..1.0_f64) {
        let directory = tempfile::tempdir().unwrap();
        drop(filled(directory.path(), 6));
        let file = directory.path().join("waiting/00000001.log");
        let whole = fs::read(&file).unwrap();
        let cut = (whole.len() as f64 * part) as usize;
        fs::write(&file, &whole[..cut]).unwrap();
        let store = open(directory.path(), Retention::default());
        let left = store.quality().waiting;
        // Records are of about the same length: at most the one that was cut is lost.
        prop_assert!(left >= 6 * cut / (whole.len() + 12) && left <= 6 * cut / whole.len() + 1);
        store.remember(&[record(50)], NOW).unwrap();
        store.label(id(50), 0, NOW).unwrap();
        drop(store);
        let quality = open(directory.path(), Retention::default()).quality();
        prop_assert_eq!((quality.waiting, quality.labelled), (left, 1));
    }

    /// Any mixture of acts leaves what a map would hold, before and after a restart.
    #[test]
    fn the_store_is_a_map_that_survives(
        acts in prop::collection::vec((0_u8..4, 0_u64..12, 0_u32..5), 1..60),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut store = open(directory.path(), Retention::default());
        let mut model: std::collections::BTreeMap<u64, Option<u32>> = Default::default();
        for (act, number, class) in acts {
            match act {
                0 => if let std::collections::btree_map::Entry::Vacant(entry) = model.entry(number) {
                    entry.insert(None);
                    store.remember(&[record(number)], NOW).unwrap();
                },
                1 => {
                    let wanted = match model.get(&number) {
                        Some(None) => class < 4,
                        Some(Some(found)) => *found == class,
                        None => false,
                    };
                    prop_assert_eq!(store.label(id(number), class, NOW).is_ok(), wanted);
                    if wanted {
                        model.insert(number, Some(class));
                    }
                }
                2 => {
                    let known = model.remove(&number).is_some();
                    prop_assert_eq!(store.delete(id(number), NOW).is_ok(), known);
                }
                _ => {
                    drop(store);
                    store = open(directory.path(), Retention::default());
                }
            }
            let labelled = model.values().flatten().count();
            let quality = store.quality();
            prop_assert_eq!((quality.waiting, quality.labelled), (model.len() - labelled, labelled));
            prop_assert_eq!(store.examples(&dataset(), &records(2, 4)).unwrap().len(), labelled);
        }
    }
}

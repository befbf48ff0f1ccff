//! Speakers of a play as tenants, their lines as records.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tributary_agent::data::{Dataset, Texts};

use super::{ExperimentError, Records};

/// Characters of the text: ASCII.
const VOCABULARY: usize = 128;
/// Of every so many records of a speaker one is a test record.
const TEST_EVERY: usize = 10;

/// A play: blocks of lines, each behind a line with the speaker's name and a colon.
///
/// What a speaker says is cut into records of equal length, one character a token. Every tenth is a
/// test record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeakersSpec {
    /// The text.
    pub path: PathBuf,
    /// Characters of a record; a model learns to tell each from those before.
    pub length: usize,
    /// Speakers with fewer records are left out.
    #[serde(default = "records_min_default")]
    pub records_min: usize,
}

const fn records_min_default() -> usize {
    1
}

impl SpeakersSpec {
    /// Reads the play.
    ///
    /// # Errors
    /// [`ExperimentError`] naming the key or file and what would work.
    pub(super) fn load(&self, folder: &std::path::Path) -> Result<Records, ExperimentError> {
        if self.length < 2 {
            let (field, value) = ("dataset.speakers.length", self.length as f64);
            return Err(ExperimentError::OutOfRange { field, value, range: "at least 2" });
        }
        let path = folder.join(&self.path);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ExperimentError::Read { path: path.clone(), source })?;
        let (mut train, mut test) = (Texts::new(VOCABULARY, true), Texts::new(VOCABULARY, true));
        let (mut names, mut shares) = (Vec::new(), Vec::new());
        for (speaker, said) in speakers(&text) {
            let records: Vec<&[u8]> = said.as_bytes().chunks_exact(self.length).collect();
            if records.len() < self.records_min.max(1) {
                continue;
            }
            let mut share = Vec::new();
            for (index, record) in records.into_iter().enumerate() {
                // Whatever is not ASCII counts as a question mark.
                let token = |&byte: &u8| u32::from(if byte.is_ascii() { byte } else { b'?' });
                let tokens: Vec<u32> = record.iter().map(token).collect();
                if index % TEST_EVERY == TEST_EVERY - 1 {
                    test.push(&tokens, 0);
                } else {
                    share.push(train.len() as u32);
                    train.push(&tokens, 0);
                }
            }
            names.push(speaker);
            shares.push(share);
        }
        if test.is_empty() {
            return Err(ExperimentError::Conflict {
                field: "dataset.speakers",
                problem: "no speaker has a test record; take a smaller `length` or `records_min`",
            });
        }
        let (train, test) = (Dataset::from_continued(train), Dataset::from_continued(test));
        Ok(Records { train, test, names, shares })
    }
}

/// What each speaker says, speech after speech.
fn speakers(text: &str) -> BTreeMap<String, String> {
    let mut speakers: BTreeMap<String, String> = BTreeMap::new();
    for block in text.split("\n\n") {
        let Some((name, said)) = block.trim_start().split_once('\n') else { continue };
        let Some(name) = name.trim_end().strip_suffix(':') else { continue };
        let all = speakers.entry(name.to_owned()).or_default();
        all.push_str(said.trim_end());
        all.push('\n');
    }
    speakers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeches_are_gathered_by_speaker_and_every_tenth_record_tests() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut text = String::new();
        for index in 0..20 {
            text += &format!("Ash:\nabcdefg{index:02}\n\nElm:\nno\n\n");
        }
        std::fs::write(directory.path().join("play.txt"), text).expect("writes");
        let spec = SpeakersSpec { path: "play.txt".into(), length: 10, records_min: 5 };
        let records = spec.load(directory.path()).expect("valid");
        assert_eq!(records.names, ["Ash", "Elm"]);
        assert_eq!((records.shares[0].len(), records.shares[1].len()), (18, 6));
        assert_eq!((records.train.len(), records.test.len()), (24, 2));
        let first: Vec<u32> = b"abcdefg00\n".iter().map(|&byte| byte.into()).collect();
        assert_eq!(records.train.texts().expect("texts").tokens(0), first);
        let few = SpeakersSpec { records_min: 7, ..spec.clone() };
        assert_eq!(few.load(directory.path()).expect("valid").names, ["Ash"]);
        let error = SpeakersSpec { length: 1, ..spec.clone() }.load(directory.path());
        assert!(error.expect_err("short").to_string().contains("length"));
        let error = SpeakersSpec { path: "nowhere".into(), ..spec }.load(directory.path());
        assert!(error.expect_err("missing").to_string().contains("nowhere"));
    }
}

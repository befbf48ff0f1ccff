//! Records in files of bounded size, appended to, rewritten whole only to remove some.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{FeedbackError, PredictionId, Record};
use crate::durable_file::{
    Access, FileError, create_directory, read_bytes, sync_directory, write_durably,
};

/// Length of a record and the beginning of its BLAKE3 digest.
const FRAME_HEAD: usize = 4 + CHECKSUM;
const CHECKSUM: usize = 8;

/// The records of one folder, by id.
///
/// A file is a sequence of frames: length (u32, little-endian), 8 bytes of the record's digest, the
/// record. Only the newest file is appended to, so only its end can be torn by a crash; it is cut
/// off on opening. Removal writes the rest of a file anew and renames it into place.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    file_bytes_max: u64,
    places: BTreeMap<PredictionId, Place>,
    /// Bytes by file, records that were superseded included.
    files: BTreeMap<u64, u64>,
    open: Option<File>,
    broken: bool,
}

/// Where a record lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: u64,
    offset: u64,
    length: u32,
}

/// What a file holds.
struct Scan {
    records: Vec<(u64, Record)>,
    /// Bytes up to the end of the last whole record.
    whole: u64,
    length: u64,
    /// Whether readable records follow behind an unreadable one.
    damaged: bool,
}

impl Journal {
    /// Opens a folder, making it if needed; `seen` gets each record.
    pub(super) fn open(
        directory: PathBuf,
        file_bytes_max: u64,
        mut seen: impl FnMut(&Record),
    ) -> Result<Self, FeedbackError> {
        create_directory(&directory)?;
        sync_directory(&directory)?;
        let numbers = numbers(&directory)?;
        let mut journal = Self {
            directory,
            file_bytes_max,
            places: BTreeMap::new(),
            files: BTreeMap::new(),
            open: None,
            broken: false,
        };
        for &number in &numbers {
            let path = journal.path(number);
            let scan = scan(&read_bytes(&path)?);
            let torn = scan.whole < scan.length;
            if torn && (scan.damaged || numbers.last() != Some(&number)) {
                return Err(FeedbackError::Damaged { path, offset: scan.whole });
            }
            if torn {
                let lost = scan.length - scan.whole;
                tracing::warn!(file = %path.display(), lost, "an unfinished record is cut off");
                let file = OpenOptions::new().write(true).open(&path);
                file.and_then(|file| file.set_len(scan.whole).and_then(|()| file.sync_all()))
                    .map_err(FileError::on("cut", &path))?;
            }
            for (offset, record) in scan.records {
                seen(&record);
                let length = record.to_bytes().len() as u32;
                journal.places.insert(record.id, Place { file: number, offset, length });
            }
            journal.files.insert(number, scan.whole);
        }
        Ok(journal)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:08}.log"))
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().sum()
    }

    pub(super) fn contains(&self, id: PredictionId) -> bool {
        self.places.contains_key(&id)
    }

    /// Ids, the oldest first.
    pub(super) fn ids(&self) -> impl DoubleEndedIterator<Item = PredictionId> {
        self.places.keys().copied()
    }

    /// Ids of the records in the file that was begun first.
    pub(super) fn ids_of_oldest_file(&self) -> BTreeSet<PredictionId> {
        let oldest = self.files.keys().next();
        let lies = |place: &Place| Some(&place.file) == oldest;
        self.places.iter().filter(|(_, place)| lies(place)).map(|(&id, _)| id).collect()
    }

    /// Writes records behind the others. They survive the end of the process; a loss of power only
    /// after [`Self::flush`].
    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), FeedbackError> {
        if self.broken {
            return Err(FeedbackError::Broken { path: self.directory.clone() });
        }
        if records.is_empty() {
            return Ok(());
        }
        let number = self.current_file()?;
        let start = self.files.get(&number).copied().unwrap_or(0);
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        for record in records {
            let offset = start + bytes.len() as u64;
            let payload = record.to_bytes();
            let length = payload.len() as u32;
            places.push((record.id, Place { file: number, offset, length }));
            bytes.extend(frame(&payload));
        }
        let path = self.path(number);
        let file = self.open.as_mut().expect("made by `current_file`");
        if let Err(source) = file.write_all(&bytes) {
            // A part of a record in the middle of a file would make the file unreadable.
            self.broken = file.set_len(start).is_err();
            return Err(FileError::on("append to", &path)(source).into());
        }
        self.files.insert(number, start + bytes.len() as u64);
        self.places.extend(places);
        Ok(())
    }

    /// Makes everything that was appended survive a loss of power.
    pub(super) fn flush(&mut self) -> Result<(), FeedbackError> {
        let Some((&number, _)) = self.files.last_key_value() else { return Ok(()) };
        let path = self.path(number);
        match &self.open {
            Some(file) => file.sync_all().map_err(|source| {
                self.broken = true;
                FileError::on("flush", &path)(source).into()
            }),
            None => Ok(()),
        }
    }

    /// The file that takes the next record, open.
    fn current_file(&mut self) -> Result<u64, FeedbackError> {
        let newest = self.files.last_key_value().map(|(&number, &length)| (number, length));
        let number = match newest {
            Some((number, length)) if length < self.file_bytes_max => {
                if self.open.is_some() {
                    return Ok(number);
                }
                number
            }
            Some((number, _)) => {
                self.flush()?;
                number + 1
            }
            None => 1,
        };
        let path = self.path(number);
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        self.open = Some(options.open(&path).map_err(FileError::on("open", &path))?);
        self.files.entry(number).or_insert(0);
        sync_directory(&path)?;
        Ok(number)
    }

    /// Reads one record.
    pub(super) fn read(&self, id: PredictionId) -> Result<Option<Record>, FeedbackError> {
        let Some(place) = self.places.get(&id) else { return Ok(None) };
        let path = self.path(place.file);
        let mut bytes = vec![0; FRAME_HEAD + place.length as usize];
        File::open(&path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(place.offset))?;
                file.read_exact(&mut bytes)
            })
            .map_err(FileError::on("read", &path))?;
        match unframe(&bytes) {
            Some((record, _)) => Ok(Some(record)),
            None => Err(FeedbackError::Damaged { path, offset: place.offset }),
        }
    }

    /// Reads all records, file by file.
    pub(super) fn read_all(&self) -> Result<Vec<Record>, FeedbackError> {
        let mut records = Vec::new();
        for &number in self.files.keys() {
            let scan = scan(&read_bytes(&self.path(number))?);
            records.extend(scan.records.into_iter().map(|(_, record)| record));
        }
        records.retain(|record| self.places.contains_key(&record.id));
        Ok(records)
    }

    /// Takes a record out of sight; its bytes go with the next [`Self::remove`] in its file.
    pub(super) fn forget(&mut self, id: PredictionId) {
        self.places.remove(&id);
    }

    /// Removes records from the disk, and with them everything forgotten in the same files.
    pub(super) fn remove(&mut self, ids: &BTreeSet<PredictionId>) -> Result<(), FeedbackError> {
        let mut touched = BTreeSet::new();
        for id in ids {
            touched.extend(self.places.get(id).map(|place| place.file));
        }
        for number in touched {
            self.rewrite(number, ids)?;
        }
        Ok(())
    }

    /// Removes the file that was begun first, unless it is the only one; whether it was removed.
    pub(super) fn remove_oldest_file(&mut self) -> Result<bool, FeedbackError> {
        let Some(&number) = self.files.keys().next().filter(|_| self.files.len() > 1) else {
            return Ok(false);
        };
        let path = self.path(number);
        fs::remove_file(&path).map_err(FileError::on("remove", &path))?;
        sync_directory(&path)?;
        self.files.remove(&number);
        self.places.retain(|_, place| place.file != number);
        Ok(true)
    }

    /// Removes what is forgotten in the files that hold `id`, which itself may be forgotten.
    pub(super) fn purge(&mut self, id: PredictionId) -> Result<(), FeedbackError> {
        let numbers: Vec<u64> = self.files.keys().copied().collect();
        for number in numbers {
            let scan = scan(&read_bytes(&self.path(number))?);
            if scan.records.iter().any(|(_, record)| record.id == id) {
                self.rewrite(number, &BTreeSet::from([id]))?;
            }
        }
        Ok(())
    }

    fn rewrite(&mut self, number: u64, gone: &BTreeSet<PredictionId>) -> Result<(), FeedbackError> {
        let path = self.path(number);
        let is_newest = self.files.last_key_value().is_some_and(|(&newest, _)| newest == number);
        if is_newest {
            self.open = None;
        }
        let scan = scan(&read_bytes(&path)?);
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        for (offset, record) in scan.records {
            let lies_here = |place: &Place| place.file == number && place.offset == offset;
            if gone.contains(&record.id) || !self.places.get(&record.id).is_some_and(lies_here) {
                continue;
            }
            let payload = record.to_bytes();
            let (offset, length) = (bytes.len() as u64, payload.len() as u32);
            places.push((record.id, Place { file: number, offset, length }));
            bytes.extend(frame(&payload));
        }
        if bytes.is_empty() && !is_newest {
            fs::remove_file(&path).map_err(FileError::on("remove", &path))?;
            sync_directory(&path)?;
            self.files.remove(&number);
        } else {
            write_durably(&path, &bytes, Access::Owner)?;
            self.files.insert(number, bytes.len() as u64);
        }
        self.places.retain(|id, place| place.file != number || !gone.contains(id));
        self.places.extend(places);
        Ok(())
    }
}

/// Reads the records of a folder that another process may be appending to.
pub(super) fn read_folder(directory: &Path) -> Result<Vec<Record>, FeedbackError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut records = Vec::new();
    for number in numbers(directory)? {
        let path = directory.join(format!("{number:08}.log"));
        let scan = scan(&read_bytes(&path)?);
        if scan.damaged {
            return Err(FeedbackError::Damaged { path, offset: scan.whole });
        }
        records.extend(scan.records.into_iter().map(|(_, record)| record));
    }
    Ok(records)
}

fn numbers(directory: &Path) -> Result<Vec<u64>, FeedbackError> {
    let mut numbers = Vec::new();
    let failed = || FileError::on("list", directory);
    for entry in fs::read_dir(directory).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&blake3::hash(payload).as_bytes()[..CHECKSUM]);
    sum
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [(payload.len() as u32).to_le_bytes().as_slice(), &checksum(payload), payload].concat()
}

/// The first record of `bytes` and the length of its frame.
fn unframe(bytes: &[u8]) -> Option<(Record, usize)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk::<CHECKSUM>()?;
    let payload = rest.get(..u32::from_le_bytes(*length) as usize)?;
    let record = (*sum == checksum(payload)).then(|| Record::from_bytes(payload)).flatten()?;
    Some((record, FRAME_HEAD + payload.len()))
}

fn scan(bytes: &[u8]) -> Scan {
    let (mut records, mut at) = (Vec::new(), 0);
    while let Some((record, length)) = unframe(&bytes[at..]) {
        records.push((at as u64, record));
        at += length;
    }
    // A crash leaves nothing readable behind an unfinished record; a flipped bit does.
    let skip = bytes[at..].first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
    let next = skip.and_then(|length| bytes.get(at + FRAME_HEAD + length..));
    let damaged = next.is_some_and(|rest| unframe(rest).is_some());
    Scan { records, whole: at as u64, length: bytes.len() as u64, damaged }
}

//! Checkpoints: one file, replaced atomically, checked by a digest.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use tributary_protocol::id::Digest;

use super::{HarnessError, RoundRow, Timing, single::Controls};

/// What goes from one round to the next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) round: u64,
    pub(super) virtual_s: Option<f64>,
    /// Of the next round, where it adapts.
    pub(super) clipping_norm: Option<f64>,
    pub(super) participations: Vec<u32>,
    pub(super) parameters: Vec<f32>,
    /// Earlier parameters, the newest first.
    pub(super) history: Vec<Vec<f32>>,
    pub(super) moments: Vec<Vec<f64>>,
    /// Of SCAFFOLD.
    pub(super) controls: Controls,
}

/// A state with the rows so far, and what it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checkpoint {
    /// Digest of the experiment and the seed.
    pub(super) run: Digest,
    pub(super) rows: Vec<RoundRow>,
    /// How long these rounds took.
    pub(super) timing: Vec<Timing>,
    pub(super) state: State,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    run: Digest,
    round: u64,
    virtual_s: Option<f64>,
    #[serde(default)]
    clipping_norm: Option<f64>,
    participations: Vec<u32>,
    rows: Vec<RoundRow>,
    timing: Vec<Timing>,
    parameters: usize,
    history: usize,
    moments: usize,
    /// Of each moment.
    federated: usize,
    /// Whether the population has a control variate.
    control: bool,
    /// The tenants that have one.
    controlled: Vec<u32>,
}

impl Checkpoint {
    /// Replaces the file at `path`; a crash leaves the old or the new one.
    ///
    /// Layout: digest of the rest, length of the header (u64), header (JSON), parameters (f32),
    /// earlier parameters (f32), control variates (f32), moments (f64), all little endian.
    pub(super) fn write(&self, path: &Path) -> Result<(), HarnessError> {
        let failed = |source| HarnessError::File { path: path.to_owned(), source };
        let State {
            round,
            virtual_s,
            clipping_norm,
            participations,
            parameters,
            history,
            moments,
            controls,
        } = &self.state;
        let Controls { population, own } = controls;
        let population = (!population.is_empty()).then_some(population);
        let header = Header {
            run: self.run,
            round: *round,
            virtual_s: *virtual_s,
            clipping_norm: *clipping_norm,
            participations: participations.clone(),
            rows: self.rows.clone(),
            timing: self.timing.clone(),
            parameters: parameters.len(),
            history: history.len(),
            moments: moments.len(),
            federated: moments.first().map_or(0, Vec::len),
            control: population.is_some(),
            controlled: own.keys().copied().collect(),
        };
        let header = serde_json::to_vec(&header).map_err(|error| failed(error.into()))?;
        let mut bytes = Vec::with_capacity(header.len() + 4 * parameters.len() + 8);
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(header);
        for model in
            std::iter::once(parameters).chain(history).chain(population).chain(own.values())
        {
            bytes.extend(model.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes.extend(moments.iter().flatten().flat_map(|value| value.to_le_bytes()));
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(Digest::of(&bytes).as_bytes()).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Reads the file at `path`, if there is one.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, HarnessError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(HarnessError::File { path: path.to_owned(), source }),
        };
        match Self::decode(&bytes) {
            Some(checkpoint) => Ok(Some(checkpoint)),
            None => {
                let problem = "is damaged";
                Err(HarnessError::Checkpoint { path: path.to_owned(), problem })
            }
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (digest, rest) = bytes.split_at_checked(32)?;
        if Digest::of(rest).as_bytes() != digest {
            return None;
        }
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (header, rest) = rest.split_at_checked(u64::from_le_bytes(*length) as usize)?;
        let header: Header = serde_json::from_slice(header).ok()?;
        let width = header.parameters.max(1);
        let controls = header.controlled.len() + usize::from(header.control);
        let models = header.history.checked_add(1)?.checked_add(controls)?;
        let models = header.parameters.checked_mul(models)?;
        let (models, moments) = rest.split_at_checked(models.checked_mul(4)?)?;
        let (models, _) = models.as_chunks::<4>();
        let models: Vec<f32> = models.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let mut models = models.chunks(width).map(<[f32]>::to_vec);
        let parameters = models.next().unwrap_or_default();
        let history = models.by_ref().take(header.history).collect();
        let population = if header.control { models.next()? } else { Vec::new() };
        let own = header.controlled.into_iter().zip(models).collect();
        let (moments, odd) = moments.as_chunks::<8>();
        let expected = header.federated.checked_mul(header.moments)?;
        if !odd.is_empty() || moments.len() != expected {
            return None;
        }
        let moments: Vec<f64> = moments.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        Some(Self {
            run: header.run,
            rows: header.rows,
            timing: header.timing,
            state: State {
                round: header.round,
                virtual_s: header.virtual_s,
                clipping_norm: header.clipping_norm,
                participations: header.participations,
                parameters,
                history,
                moments: moments.chunks(header.federated.max(1)).map(<[f64]>::to_vec).collect(),
                controls: Controls { population, own },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_round_trip_and_damage_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("checkpoint");
        assert_eq!(Checkpoint::read(&path).expect("absent"), None);
        let checkpoint = Checkpoint {
            run: Digest::of(b"run"),
            rows: vec![],
            timing: vec![Timing { round: 3, wall_s: 0.5, cpu_s: 1.0 }],
            state: State {
                round: 3,
                virtual_s: Some(2.5),
                clipping_norm: Some(0.1 + 0.2),
                participations: vec![1, 2],
                parameters: vec![0.5, -1.5],
                history: vec![vec![1.0, 2.0], vec![3.0, 4.0]],
                moments: vec![vec![1.0, 2.0], vec![3.0, 4.0]],
                controls: Controls {
                    population: vec![5.0, 6.0],
                    own: [(1, vec![7.0, 8.0]), (4, vec![9.0, 0.5])].into(),
                },
            },
        };
        checkpoint.write(&path).expect("written");
        assert_eq!(Checkpoint::read(&path).expect("whole"), Some(checkpoint));
        let mut bytes = fs::read(&path).expect("read");
        bytes[50] ^= 1;
        fs::write(&path, bytes).expect("written");
        assert!(Checkpoint::read(&path).expect_err("damaged").to_string().contains("damaged"));
    }
}

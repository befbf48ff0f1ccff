use thiserror::Error;

/// Which records train, which stop adapter training and which only measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Records that train the base model and the adapter.
    pub train: Vec<u32>,
    /// Records that stop and accept adapter training.
    pub validation: Vec<u32>,
    /// Records that no training sees.
    pub held_out: Vec<u32>,
}

/// Says why records cannot be split.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SplitError {
    /// The fraction is not a proper part.
    #[error("`held_out.fraction` is {fraction}; it must be at least 0 and below 1")]
    Fraction {
        /// What was given.
        fraction: f64,
    },
    /// More records than an index can name.
    #[error("{len} records cannot be split; at most {} are supported", u32::MAX)]
    TooMany {
        /// Number of records.
        len: usize,
    },
}

impl Split {
    /// Sets `held_out_fraction` of `len` records aside, half for validation, half held out.
    ///
    /// Each record's part depends on `seed` and its own position only, so a neighbouring dataset
    /// (one record blanked, or one appended) moves no other record between the parts and the
    /// record-level guarantee of training holds for the whole file. The sizes are therefore
    /// binomial, not exact.
    ///
    /// # Errors
    /// [`SplitError`] for a fraction outside `[0, 1)` or too many records.
    pub fn new(len: usize, held_out_fraction: f64, seed: u64) -> Result<Self, SplitError> {
        if !(0.0..1.0).contains(&held_out_fraction) {
            return Err(SplitError::Fraction { fraction: held_out_fraction });
        }
        let records = u32::try_from(len).map_err(|_| SplitError::TooMany { len })?;
        let mut stream = Positions::new(seed);
        let mut split = Self { train: Vec::new(), validation: Vec::new(), held_out: Vec::new() };
        for index in 0..records {
            split.part_mut(stream.next_unit(), held_out_fraction).push(index);
        }
        Ok(split)
    }

    /// The part of a record whose position in `[0, 1)` is this.
    pub(crate) fn part_mut(&mut self, position: f64, held_out_fraction: f64) -> &mut Vec<u32> {
        if position >= held_out_fraction {
            &mut self.train
        } else if position >= held_out_fraction / 2.0 {
            &mut self.validation
        } else {
            &mut self.held_out
        }
    }
}

/// Uniform numbers by record position: the extendable output of BLAKE3, keyed by the seed.
struct Positions {
    reader: blake3::OutputReader,
}

impl Positions {
    fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("tributary 2026 record split");
        hasher.update(&seed.to_le_bytes());
        Self { reader: hasher.finalize_xof() }
    }

    fn next_unit(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.reader.fill(&mut bytes);
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_complete_and_repeatable() {
        let split = Split::new(10_000, 0.2, 7).expect("valid");
        let mut all =
            [split.train.clone(), split.validation.clone(), split.held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..10_000).collect::<Vec<u32>>());
        assert!((900..1100).contains(&split.validation.len()), "{}", split.validation.len());
        assert!((900..1100).contains(&split.held_out.len()), "{}", split.held_out.len());
        assert_eq!(split, Split::new(10_000, 0.2, 7).expect("valid"));
        assert_ne!(split, Split::new(10_000, 0.2, 8).expect("valid"));
    }

    #[test]
    fn an_appended_record_moves_no_other() {
        let (small, large) = (Split::new(500, 0.3, 1), Split::new(501, 0.3, 1));
        let (small, large) = (small.expect("valid"), large.expect("valid"));
        assert!(large.train.starts_with(&small.train));
        assert!(large.held_out.starts_with(&small.held_out));
    }

    #[test]
    fn odd_fractions_are_refused() {
        for fraction in [-0.1, 1.0, f64::NAN] {
            assert!(Split::new(10, fraction, 1).is_err());
        }
        assert_eq!(Split::new(3, 0.0, 1).expect("valid").train, [0, 1, 2]);
        assert!(Split::new(0, 0.5, 1).expect("valid").train.is_empty());
    }
}

//! Identifiers: every id is its own type, validated where it enters the program.

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Serialize, de};
use thiserror::Error;

/// The longest tenant, job, dataset or region name, in bytes.
pub const NAME_LENGTH_MAX: usize = 63;

/// Says why a string is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is empty or longer than [`NAME_LENGTH_MAX`].
    #[error("{kind} {text:?} has {length} bytes; it needs 1 to {NAME_LENGTH_MAX}")]
    Length {
        /// What was being read.
        kind: &'static str,
        /// The offending text, cut to a printable length.
        text: String,
        /// Its length in bytes.
        length: usize,
    },
    /// The text holds a character outside the allowed set.
    #[error(
        "{kind} {text:?} holds {character:?}; use lower-case letters, digits and '-', starting with a letter or digit"
    )]
    Character {
        /// What was being read.
        kind: &'static str,
        /// The offending text.
        text: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// The text is not 64 hexadecimal digits.
    #[error("digest {text:?} is not 64 lower-case hexadecimal digits")]
    Digest {
        /// The offending text, cut to a printable length.
        text: String,
    },
}

fn validate(kind: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() || text.len() > NAME_LENGTH_MAX {
        let shown = text.chars().take(NAME_LENGTH_MAX).collect();
        return Err(IdError::Length { kind, text: shown, length: text.len() });
    }
    let allowed = |(index, character): (usize, char)| {
        character.is_ascii_lowercase()
            || character.is_ascii_digit()
            || (character == '-' && index > 0)
    };
    match text.char_indices().find(|&at| !allowed(at)) {
        Some((_, character)) => Err(IdError::Character { kind, text: text.to_owned(), character }),
        None => Ok(()),
    }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Parses the name: lower-case letters, digits and `-`, 1 to 63 bytes.
            ///
            /// # Errors
            /// [`IdError`] naming the first character or the length that is not allowed.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                validate($kind, &text)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
    };
}

name_id!(
    /// A data holder; "client" in the federated learning papers.
    TenantId, "tenant id");
name_id!(
    /// A job: what to train, with which privacy.
    JobId, "job id");
name_id!(
    /// A dataset as the job names it; each agent maps it to its own files.
    DatasetName, "dataset name");
name_id!(
    /// A region for data residency.
    Region, "region");
name_id!(
    /// An access token of the coordinator's HTTP API.
    TokenName, "token name");

/// The number of a round within its job, counted from 1; an abandoned round keeps its number.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RoundNumber(pub u64);

impl RoundNumber {
    /// The round after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RoundNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The BLAKE3 hash that names a content-addressed file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Hashes everything that `reader` gives, in little memory.
    ///
    /// # Errors
    /// Those of `reader`.
    pub fn of_reader(reader: impl io::Read) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(reader)?;
        Ok(Self(*hasher.finalize().as_bytes()))
    }

    /// Wraps a finished 32-byte hash.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({})", self.short())
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| IdError::Digest { text: text.chars().take(80).collect() })
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_accept_only_their_alphabet() {
        assert!(TenantId::new("st-mary-2").is_ok());
        for bad in ["", "-a", "Alpha", "a b", "a/..", "ä", &"x".repeat(64)] {
            assert!(TenantId::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn name_errors_say_what_would_work() {
        let error = JobId::new("Job_1").expect_err("upper case").to_string();
        assert!(error.contains("job id") && error.contains("'J'") && error.contains("lower-case"));
    }

    #[test]
    fn digest_text_round_trips() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert!("xyz".parse::<Digest>().is_err());
    }
}

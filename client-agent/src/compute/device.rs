//! What a language model computes on: the processor, or a CUDA device.

use std::{fmt, str::FromStr};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the configuration asks for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first CUDA device, or the processor where there is none.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device, by its number from 0; nothing else will do.
    Cuda(usize),
}

/// How numbers are stored and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits, of which 8 are the exponent: half the memory; sums have 32 bits.
    Bf16,
}

/// A device that is there.
#[derive(Debug, Clone)]
pub struct ComputeDevice {
    /// For tensors.
    pub(crate) device: Device,
    /// Of weights and of the cache.
    pub(crate) precision: Precision,
    pub(crate) name: String,
}

/// Says why a device cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// It is not there, or not usable.
    #[error(
        "CUDA device {ordinal} cannot be used ({reason}); `device = \"auto\"` falls back to the processor"
    )]
    Unavailable {
        /// Its number.
        ordinal: usize,
        /// Why.
        reason: String,
    },
    /// The processor has no arithmetic of that kind.
    #[error("`precision = \"bf16\"` needs a CUDA device; the processor computes in \"f32\"")]
    Precision,
}

/// Says that a text names no device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no device; use \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"")]
pub struct DeviceNameError(String);

impl FromStr for DeviceChoice {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.strip_prefix("cuda:")) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(ordinal)) if ordinal.bytes().all(|byte| byte.is_ascii_digit()) => {
                ordinal.parse().map(Self::Cuda).map_err(|_| DeviceNameError(text.to_owned()))
            }
            _ => Err(DeviceNameError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(ordinal) => write!(formatter, "cuda:{ordinal}"),
        }
    }
}

impl Precision {
    pub(crate) const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl ComputeDevice {
    /// The processor.
    #[must_use]
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, precision: Precision::F32, name: "cpu".to_owned() }
    }

    /// Finds what is asked for. Where `auto` finds no CUDA device it logs why, and the processor
    /// computes, in 32 bits.
    ///
    /// - `precision`: without it, 16 bits on a CUDA device
    ///
    /// # Errors
    /// [`DeviceError`] if something was asked for by name and cannot be had.
    pub fn open(choice: DeviceChoice, precision: Option<Precision>) -> Result<Self, DeviceError> {
        let ordinal = match choice {
            DeviceChoice::Cpu if precision == Some(Precision::Bf16) => {
                return Err(DeviceError::Precision);
            }
            DeviceChoice::Cpu => return Ok(Self::cpu()),
            DeviceChoice::Auto => 0,
            DeviceChoice::Cuda(ordinal) => ordinal,
        };
        match cuda(ordinal) {
            Ok((device, name)) => {
                Ok(Self { device, precision: precision.unwrap_or(Precision::Bf16), name })
            }
            Err(reason) if choice == DeviceChoice::Auto => {
                tracing::info!(%reason, "no CUDA device: the processor computes, in f32");
                Ok(Self::cpu())
            }
            Err(reason) => Err(DeviceError::Unavailable { ordinal, reason }),
        }
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} in {}", self.name, self.precision)
    }
}

/// A CUDA device and its name, or why there is none.
#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<(Device, String), String> {
    // The driver's library is found by name at the first call; a panic is how its absence shows.
    let opened = std::panic::catch_unwind(|| {
        let device = Device::new_cuda(ordinal)?;
        let name = device.as_cuda_device()?.cuda_stream().context().name();
        let name = name.unwrap_or_else(|_| "unnamed".to_owned());
        candle_core::Result::Ok((device, format!("cuda:{ordinal} ({name})")))
    });
    match opened {
        // Its first line: the library appends a backtrace where those are switched on.
        Ok(opened) => {
            opened.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
        }
        Err(_) => Err("the CUDA driver's library cannot be loaded".to_owned()),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_ordinal: usize) -> Result<(Device, String), String> {
    Err("this program was built without the feature `cuda`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_written() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in
            ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:99999999999999999999999"]
        {
            let error = wrong.parse::<DeviceChoice>().unwrap_err();
            assert!(error.to_string().contains("cuda:N"), "{error}");
        }
    }

    #[test]
    fn the_processor_computes_in_32_bits() {
        let cpu = ComputeDevice::open(DeviceChoice::Cpu, None).unwrap();
        assert_eq!(cpu.to_string(), "cpu in f32");
        let error = ComputeDevice::open(DeviceChoice::Cpu, Some(Precision::Bf16)).unwrap_err();
        assert!(error.to_string().contains("needs a CUDA device"), "{error}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_falls_back_only_where_it_may_choose() {
        let fallen_back = ComputeDevice::open(DeviceChoice::Auto, Some(Precision::Bf16)).unwrap();
        assert_eq!(fallen_back.to_string(), "cpu in f32");
        let error = ComputeDevice::open(DeviceChoice::Cuda(1), None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("device 1") && text.contains("feature `cuda`"), "{text}");
    }
}

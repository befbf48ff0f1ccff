//! Rotary position embedding: pairs of a head's elements turned by an angle per position.
//!
//! The two halves of a head pair up (element i with i + head_dim / 2), as in the transformers
//! library's checkpoints.
//!
//! Source: Su et al. 2021, arXiv:2104.09864.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{super::kernels::elements, DecoderConfig};

/// How the rotary frequencies are stretched for contexts longer than the one trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Turns within the original context below which a frequency is low.
        low_freq_factor: f64,
        /// Turns within the original context above which a frequency is high.
        high_freq_factor: f64,
        /// Tokens of the original context.
        original_context: f64,
    },
}

/// The angles of each position.
#[derive(Debug, Clone)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
}

impl Rope {
    /// The frequencies of a decoder.
    #[must_use]
    pub fn new(config: &DecoderConfig) -> Self {
        let half = config.head_dim / 2;
        let inverse_frequencies = (0..half)
            .map(|index| {
                let exponent = (2 * index) as f64 / config.head_dim as f64;
                let frequency = config.rope_theta.powf(exponent).recip();
                config.rope_scaling.apply(frequency) as f32
            })
            .collect();
        Self { inverse_frequencies }
    }

    /// Cosine and sine of every angle at a position, each `[head_dim / 2]`, appended.
    pub(crate) fn angles(&self, position: usize, cosines: &mut Vec<f32>, sines: &mut Vec<f32>) {
        for frequency in &self.inverse_frequencies {
            let (sine, cosine) = (position as f32 * frequency).sin_cos();
            cosines.push(cosine);
            sines.push(sine);
        }
    }

    /// Turns every head of rows at their positions, with a gradient.
    ///
    /// - `rows`: `[n, time, heads · head_dim]`, the position of a row being its index in `time`
    ///
    /// # Errors
    /// The tensor library's.
    pub(super) fn turn(&self, rows: &Tensor) -> Result<Tensor> {
        let (_, time, _) = rows.dims3()?;
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for position in 0..time {
            self.angles(position, &mut cosines, &mut sines);
        }
        let op = Turn { half: self.inverse_frequencies.len(), time, cosines, sines };
        rows.contiguous()?.apply_op1(op)
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context * frequency / std::f64::consts::TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}

/// Turns one head in place by the angles of its position.
pub(crate) fn turn_head(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head.split_at_mut(cosines.len());
    for (((x, y), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
    }
}

struct Turn {
    half: usize,
    time: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, rows: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, time, width) = layout.shape().dims3()?;
        if !width.is_multiple_of(2 * self.half) || time != self.time {
            bail!("heads of {} in rows of shape {:?}", 2 * self.half, layout.shape())
        }
        let mut values = elements(rows, layout)?.to_vec();
        for (index, row) in values.chunks_exact_mut(width).enumerate() {
            let angles = index % time * self.half..(index % time + 1) * self.half;
            for head in row.chunks_exact_mut(2 * self.half) {
                turn_head(head, &self.cosines[angles.clone()], &self.sines[angles.clone()]);
            }
        }
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, _rows: &Tensor, _turned: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        // A turn is orthogonal: its gradient is the turn back.
        let back = Self {
            half: self.half,
            time: self.time,
            cosines: self.cosines.clone(),
            sines: self.sines.iter().map(|sine| -sine).collect(),
        };
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

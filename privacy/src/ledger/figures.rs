//! Remembers the last few answers of the accountant: a debit asks for what the next one repeats.

use std::sync::{Mutex, PoisonError};

use crate::{
    accountant::{AccountantError, Delta, coalesced, epsilon},
    mechanism::PrivacyEvent,
};

/// Answers kept.
const FIGURES_MAX: usize = 16;

/// ε by (events, δ), oldest first.
#[derive(Debug, Default)]
pub(super) struct Figures(Mutex<Vec<(Vec<PrivacyEvent>, Delta, f64)>>);

impl Figures {
    /// [`epsilon`], from memory if it was asked lately.
    pub(super) fn epsilon(
        &self,
        events: &[PrivacyEvent],
        delta: Delta,
    ) -> Result<f64, AccountantError> {
        let events = coalesced(events);
        let mut figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = figures.iter().find(|(of, at, _)| *at == delta && *of == events);
        if let Some(&(_, _, figure)) = known {
            return Ok(figure);
        }
        let figure = epsilon(&events, delta)?;
        if figures.len() == FIGURES_MAX {
            figures.remove(0);
        }
        figures.push((events, delta, figure));
        Ok(figure)
    }
}

//! Clipping, lattice, exact noise, mechanisms, accountants and the privacy ledger.

pub mod clip;
pub mod lattice;
pub mod mechanism;
pub mod noise;

//! Clipping, lattice, exact noise, mechanisms, accountants and the privacy ledger.

pub mod accountant;
pub mod audit;
pub mod clip;
pub mod lattice;
pub mod ledger;
pub mod mechanism;
pub mod noise;

//! Clipping, lattice, exact noise, mechanisms, accountants and the privacy ledger.

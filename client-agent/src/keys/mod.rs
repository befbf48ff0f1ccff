//! Who may ask the HTTP interface, and for what.
//!
//! A key stands for a tenant and some roles. `keys.json` holds digests only: whoever reads it learns
//! no key. Keys have 256 random bits, so a plain digest is enough, and looking one up takes the same
//! time whatever it shares with others.
//!
//! - [`KeyFile`]: the file, as `tributary-agent key` changes it
//! - [`Access`]: whose request it is; a running agent follows changes of the file

mod access;
mod file;

pub use self::{
    access::{Access, AccessError, Caller, Denied, Tenancy, TenantContext},
    file::{KeyFile, KeyFileError, KeyRecord, KeyRole, NewKey},
};

#[cfg(test)]
mod tests;

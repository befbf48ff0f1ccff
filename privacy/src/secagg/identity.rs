//! Who signs, and who is recognised: supplied by the agent, since this crate parses no certificate.

/// Signs with the tenant's long-term key.
pub trait Identity {
    /// Signs `message`; the form of the signature is between this and [`PeerKeys::verify`].
    fn sign(&self, message: &[u8]) -> Vec<u8>;
}

/// Recognises the other tenants of a cohort.
///
/// The agent's implementation is where its policy speaks: it trusts only credentials of the
/// authority it enrolled with, or of a list of peers that its operator pinned.
pub trait PeerKeys {
    /// The name that a credential proves, unique to its tenant; `None` if it is not trusted.
    ///
    /// Two credentials of one tenant have one name, so a tenant cannot be in a cohort twice.
    fn name(&self, credential: &[u8]) -> Option<String>;

    /// Whether the holder of `credential` signed `message`.
    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool;
}

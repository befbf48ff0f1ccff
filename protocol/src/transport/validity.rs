//! When certificates begin, end, and are to be renewed.

use rustls::pki_types::CertificateDer;

use crate::time::Timestamp;

/// When a certificate ends; `None` if it cannot be read.
#[must_use]
pub fn expires(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    span(certificate).map(|(_, end)| end)
}

/// When a certificate is to be renewed: after two thirds of its time; `None` if it cannot be read.
#[must_use]
pub fn renewal_due(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (begin, end) = span(certificate)?;
    Some(Timestamp(begin.0 + end.0.saturating_sub(begin.0) / 3 * 2))
}

fn span(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let at = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
    let validity = parsed.validity();
    Some((at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
}

use super::*;

fn enrollment() -> Enrollment {
    let tenant = TenantId::new("ash").unwrap();
    let key = NewKey::generate(&tenant).unwrap();
    let signed = rcgen::generate_simple_self_signed(["ash".to_owned()]).unwrap();
    let certificate = signed.cert.der().clone();
    Enrollment {
        key_pem: key.key_pem(),
        chain: vec![certificate.clone(), certificate.clone()],
        authority: certificate,
        coordinator: Coordinator { address: "localhost:7700".to_owned(), tenant },
    }
}

#[test]
fn an_identity_is_saved_and_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    let saved = enrollment();
    Identity::save(&site, &saved, false).unwrap();
    let identity = Identity::load(&site).unwrap();
    assert_eq!(identity.coordinator, saved.coordinator);
    assert_eq!(identity.tls.chain, saved.chain);
    assert_eq!(identity.authority, saved.authority);
    assert!(!identity.is_expired(Timestamp(1_700_000_000_000)));
    assert!(identity.is_expired(Timestamp(u64::MAX)));
}

#[test]
fn an_identity_is_replaced_only_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    Identity::save(&site, &enrollment(), false).unwrap();
    let error = Identity::save(&site, &enrollment(), false).unwrap_err().to_string();
    assert!(error.contains("tenant ash") && error.contains("--force"), "{error}");
    Identity::save(&site, &enrollment(), true).unwrap();
    Identity::save(&site, &enrollment(), true).unwrap();
    Identity::load(&site).unwrap();
}

#[test]
fn a_missing_or_damaged_identity_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    let error = Identity::load(&site).unwrap_err().to_string();
    assert!(error.contains("tributary-agent enroll"), "{error}");
    Identity::save(&site, &enrollment(), false).unwrap();
    std::fs::write(site.identity().join(CERTIFICATE), "nothing").unwrap();
    let error = Identity::load(&site).unwrap_err().to_string();
    assert!(error.contains(CERTIFICATE) && error.contains("enrol again"), "{error}");
}

#[test]
fn the_signing_request_names_the_tenant() {
    use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};
    let key = NewKey::generate(&TenantId::new("ash").unwrap()).unwrap();
    let (_, request) = X509CertificationRequest::from_der(key.signing_request()).unwrap();
    let subject = &request.certification_request_info.subject;
    let name = subject.iter_common_name().next().unwrap().as_str().unwrap();
    assert_eq!(name, "ash");
}

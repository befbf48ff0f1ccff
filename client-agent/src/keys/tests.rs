use std::{collections::BTreeSet, path::Path};

use tributary_protocol::{id::TenantId, isolation::ModelIsolation, time::Timestamp};

use super::*;

const NOW: Timestamp = Timestamp(1_000_000);

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn file(directory: &Path) -> KeyFile {
    KeyFile::new(directory.join("keys.json"))
}

fn tenancy(directory: &Path) -> Tenancy {
    let elm = TenantContext {
        adapters: Some(BTreeSet::from(["elm-notes".to_owned()])),
        ..TenantContext::new(tenant("elm"))
    };
    Tenancy {
        own: tenant("ash"),
        contexts: vec![elm],
        key_files: Vec::new(),
        keys: file(directory),
    }
}

fn new_key(name: &str) -> NewKey {
    NewKey { tenant: tenant(name), roles: KeyRole::of_tenant(), expires: None, note: None }
}

#[test]
fn without_keys_everybody_is_the_own_tenant() {
    let directory = tempfile::tempdir().unwrap();
    let access = Access::open(tenancy(directory.path())).unwrap();
    assert!(!access.needs_key());
    for key in [None, Some("whatever a client sends")] {
        let caller = access.caller(key, NOW).unwrap();
        assert_eq!(caller.tenant.id, tenant("ash"));
        assert!(caller.require(KeyRole::Operator).is_ok() && caller.tenant.may_use("any"));
    }
}

#[test]
fn a_key_works_at_once_and_not_after_its_revocation() {
    let directory = tempfile::tempdir().unwrap();
    let access = Access::open(tenancy(directory.path())).unwrap();
    let (record, key) = file(directory.path()).add(new_key("elm"), NOW).unwrap();
    let text = std::fs::read_to_string(directory.path().join("keys.json")).unwrap();
    assert!(!text.contains(&key[20..]), "the file holds digests only");
    assert_eq!(access.caller(None, NOW), Err(Denied::Missing));
    let caller = access.caller(Some(&key), NOW).unwrap();
    assert_eq!((caller.tenant.id.as_str(), caller.key.as_ref()), ("elm", Some(&record.id)));
    assert_eq!(caller.require(KeyRole::Operator), Err(Denied::Role { needed: "operator" }));
    assert_eq!(access.caller(Some(&key[1..]), NOW), Err(Denied::Unknown));
    file(directory.path()).revoke(&record.id).unwrap();
    assert_eq!(access.caller(Some(&key), NOW), Err(Denied::Unknown));
    // Neither the last revocation nor losing the file opens the interface.
    assert_eq!(access.caller(None, NOW), Err(Denied::Missing));
    std::fs::remove_file(directory.path().join("keys.json")).unwrap();
    assert_eq!(access.caller(None, NOW), Err(Denied::Missing));
}

#[test]
fn keys_expire() {
    let directory = tempfile::tempdir().unwrap();
    let new = NewKey { expires: Some(NOW), ..new_key("elm") };
    let (_, key) = file(directory.path()).add(new, Timestamp(0)).unwrap();
    let access = Access::open(tenancy(directory.path())).unwrap();
    assert!(access.caller(Some(&key), Timestamp(NOW.0 - 1)).is_ok());
    assert_eq!(access.caller(Some(&key), NOW), Err(Denied::Expired));
}

#[test]
fn a_damaged_file_locks_nobody_in_and_lets_nobody_in() {
    let directory = tempfile::tempdir().unwrap();
    let (_, key) = file(directory.path()).add(new_key("ash"), NOW).unwrap();
    let access = Access::open(tenancy(directory.path())).unwrap();
    std::fs::write(directory.path().join("keys.json"), "[{").unwrap();
    assert!(access.caller(Some(&key), NOW).is_ok(), "the keys that were read before still count");
    assert_eq!(access.caller(Some("guess"), NOW), Err(Denied::Unknown));
    let error = Access::open(tenancy(directory.path())).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("keys.json is damaged"), "{source}");
    assert!(matches!(file(directory.path()).revoke("x"), Err(KeyFileError::Damaged { .. })));
}

#[test]
fn unknown_ids_and_weak_keys_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = file(directory.path()).revoke("0badc0de").unwrap_err();
    assert!(error.to_string().contains("0badc0de"), "{error}");
    let weak = directory.path().join("weak");
    std::fs::write(&weak, "short\n").unwrap();
    let with = |files: &[&str]| {
        let key_files = files.iter().map(|name| (tenant(name), weak.clone())).collect();
        Access::open(Tenancy { key_files, ..tenancy(directory.path()) })
    };
    assert!(matches!(with(&["elm"]), Err(AccessError::Key { .. })));
    std::fs::write(&weak, "long enough for a key\n").unwrap();
    assert!(with(&["elm"]).is_ok());
    assert!(matches!(with(&["elm", "ash"]), Err(AccessError::Key { .. })), "the same key twice");
}

#[test]
fn the_model_level_decides_about_adapters() {
    let elm = tenancy(Path::new("")).contexts.remove(0);
    assert!(!elm.may_use("elm-notes"), "base only");
    let mut elm = elm;
    elm.isolation.model = ModelIsolation::Adapter;
    assert!(elm.may_use("elm-notes") && !elm.may_use("ash-tickets"));
}

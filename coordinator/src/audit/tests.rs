use std::fs;

use tributary_protocol::error_code::{ErrorCode, Refusal};

use super::*;

const NOW: Timestamp = Timestamp(1_000);

fn authority() -> Digest {
    Digest::of(b"authority")
}

fn event(subject: &str) -> AuditEvent {
    let actor = Actor { name: "ops".to_owned(), role: "operator".to_owned() };
    AuditEvent::done(actor, Act::JobSubmit, subject, "3 rounds")
}

/// A log of three entries, and its bytes.
fn small_log() -> (tempfile::TempDir, ChainHead, Vec<u8>) {
    let folder = tempfile::tempdir().expect("folder");
    let mut log = AuditLog::open(folder.path(), authority(), None).expect("opens");
    for (at, subject) in ["a", "b", "c"].into_iter().enumerate() {
        log.append(event(subject), Timestamp(NOW.0 + at as u64)).expect("appends");
    }
    let bytes = fs::read(folder.path().join(FILE_NAME)).expect("reads");
    (folder, log.head(), bytes)
}

fn check(bytes: &[u8], noted: ChainHead) -> Result<ChainHead, AuditError> {
    verify(bytes.to_vec(), genesis(authority()), Some(noted), |_| {})
}

#[test]
fn entries_survive_reopening_in_order() {
    let (folder, head, _) = small_log();
    let mut log = AuditLog::open(folder.path(), authority(), Some(head)).expect("verifies");
    assert_eq!(log.head(), head);
    let refusal = Refusal::new(ErrorCode::PolicyForbids, "x".repeat(5000));
    let tenant = "alpha".parse().expect("valid");
    log.append(
        AuditEvent::refused(Actor::tenant(&tenant), Act::RoundDecline, "job/1", &refusal),
        Timestamp(1),
    )
    .expect("appends");
    let tail = log.reader().tail(2).expect("verifies");
    assert_eq!([tail[0].subject.as_str(), &tail[1].subject], ["c", "job/1"]);
    assert_eq!((tail[1].sequence, tail[1].outcome), (4, Outcome::Refused));
    assert_eq!(tail[1].recorded_ms, NOW.0 + 2, "a clock that runs backwards stands still");
    assert!(tail[1].detail.len() <= 1024);
    assert_eq!(log.reader().verify().expect("whole"), log.head());
}

#[test]
fn every_flipped_byte_is_found() {
    let (_folder, head, bytes) = small_log();
    assert_eq!(check(&bytes, head).expect("whole"), head);
    for at in 0..bytes.len() {
        for bit in [1, 0x20, 0x80] {
            let mut damaged = bytes.clone();
            damaged[at] ^= bit;
            assert!(check(&damaged, head).is_err(), "byte {at} ^ {bit} was not noticed");
        }
    }
}

#[test]
fn every_cut_is_found() {
    let (_folder, head, bytes) = small_log();
    // Without its line feed alone the last record is still complete in itself.
    for length in 0..bytes.len() - 1 {
        assert!(check(&bytes[..length], head).is_err(), "a cut to {length} bytes was not noticed");
    }
}

#[test]
fn removed_repeated_and_reordered_lines_are_found() {
    let (_folder, head, bytes) = small_log();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    for order in [&[0, 2][..], &[1, 2], &[0, 2, 1], &[1, 0, 2], &[0, 0, 1, 2], &[0, 1, 2, 2]] {
        let changed: Vec<u8> = order.iter().flat_map(|&line| lines[line].to_vec()).collect();
        assert!(matches!(check(&changed, head), Err(AuditError::Chain(_))), "{order:?}");
    }
}

#[test]
fn a_rewritten_log_and_an_older_copy_do_not_fit_what_was_noted() {
    let (folder, head, bytes) = small_log();
    let path = folder.path().join(FILE_NAME);
    fs::remove_file(&path).expect("removes");
    let error = AuditLog::open(folder.path(), authority(), Some(head)).expect_err("missing");
    assert!(matches!(error, AuditError::Cut { found: 0, noted: 3 }), "{error}");
    let mut forged = AuditLog::open(folder.path(), authority(), None).expect("a new log");
    for subject in ["a", "x", "c", "d"] {
        forged.append(event(subject), NOW).expect("appends");
    }
    let error =
        AuditReader::new(folder.path(), authority(), Some(head)).verify().expect_err("rewritten");
    assert!(matches!(error, AuditError::Rewritten { sequence: 3 }), "{error}");
    fs::write(&path, &bytes).expect("writes");
    let error = AuditLog::open(folder.path(), Digest::of(b"other"), None).expect_err("foreign");
    assert!(matches!(error, AuditError::Chain(ChainError::Damaged { line: 1, .. })), "{error}");
}

#[test]
fn a_torn_last_line_is_cut_off_and_the_log_goes_on() {
    let (folder, head, bytes) = small_log();
    let path = folder.path().join(FILE_NAME);
    fs::write(&path, [&bytes[..], b"{\"sequence\":4,\"prev"].concat()).expect("writes");
    let mut log = AuditLog::open(folder.path(), authority(), Some(head)).expect("repairs");
    log.append(event("d"), NOW).expect("appends");
    assert_eq!(log.reader().tail(9).expect("verifies").len(), 4);
}

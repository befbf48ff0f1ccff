use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::{CoordinatorMessage, EnrollmentResponse, LedgerHead},
};

use super::{tests::Stage, *};
use crate::secagg::tests::keys;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Welcomed, with a certificate that is to be renewed in ten days.
fn welcomed() -> (Stage, Timestamp) {
    let mut stage = Stage::new();
    let due = stage.now.after_ms(10 * DAY_MS);
    stage.session = std::mem::replace(&mut stage.session, blank()).renewing_at(due);
    stage.connect();
    (stage, due)
}

fn blank() -> Session {
    let policy = Policy::parse("", &crate::site::Site::new("/site")).expect("an empty policy");
    Session::new(policy, vec![], keys("ash"))
}

fn at(stage: &mut Stage, now: Timestamp) -> Vec<Output> {
    stage.now = now;
    stage.session.handle_timeout(now);
    stage.outputs()
}

fn issued() -> EnrollmentResponse {
    EnrollmentResponse::Issued { certificates: vec![vec![1], vec![2]] }
}

fn renewed(stage: &mut Stage, due: Timestamp) -> Vec<Output> {
    let install = stage.give(Input::Message(CoordinatorMessage::Renewal(issued())));
    assert_eq!(install, [Output::Install(issued())]);
    stage.give(Input::Renewed(Ok(Renewed { keys: keys("ash"), due })))
}

#[test]
fn a_certificate_is_asked_for_in_time_once_and_shown_when_no_round_is_open() {
    let (mut stage, due) = welcomed();
    assert_eq!(stage.session.poll_timeout(), Some(due));
    assert_eq!(at(&mut stage, Timestamp(due.0 - 1)), []);
    assert_eq!(at(&mut stage, due), [Output::Renew]);
    assert_eq!(at(&mut stage, due.after_ms(1)), [], "it was asked for");
    let next = due.after_ms(200 * DAY_MS);
    assert_eq!(renewed(&mut stage, next), [Output::Disconnect], "no round is open");
    let retry_at = stage.session.poll_timeout().expect("it connects again");
    assert!(retry_at.since(stage.now).as_secs() < 5);
    assert_eq!(at(&mut stage, retry_at), [Output::Connect]);
    stage.connect();
    assert_eq!(stage.session.poll_timeout(), Some(next), "the new one has its own time");
}

#[test]
fn an_open_round_is_finished_on_the_old_connection() {
    let (mut stage, due) = welcomed();
    stage.configure(1);
    assert_eq!(at(&mut stage, due), [Output::Renew], "asking disturbs nobody");
    assert_eq!(renewed(&mut stage, due.after_ms(DAY_MS)), []);
    assert_eq!(stage.closed(1), [Output::Disconnect]);
}

#[test]
fn a_lost_answer_is_asked_for_again_and_a_refusal_later() {
    let (mut stage, due) = welcomed();
    assert_eq!(at(&mut stage, due), [Output::Renew]);
    stage.lose();
    let retry_at = stage.session.poll_timeout().expect("it connects again");
    assert_eq!(at(&mut stage, retry_at), [Output::Connect]);
    stage.give(Input::Connected { ledger_head: LedgerHead::EMPTY });
    let welcome = Input::Message(CoordinatorMessage::Welcome(super::tests::receipt()));
    assert!(stage.give(welcome).contains(&Output::Renew), "on the new connection");
    let refusal = Refusal::new(ErrorCode::SigningRequestInvalid, "no");
    assert_eq!(stage.give(Input::Renewed(Err(refusal.to_string()))), []);
    let again = stage.session.poll_timeout().expect("it asks again");
    assert_eq!(again.since(stage.now).as_secs(), 60 * 60);
    assert_eq!(at(&mut stage, again), [Output::Renew]);
}

#[test]
fn a_connection_that_breaks_by_itself_shows_the_new_certificate_next() {
    let (mut stage, due) = welcomed();
    stage.configure(1);
    at(&mut stage, due);
    let before = Arc::as_ptr(&stage.session.keys);
    renewed(&mut stage, due.after_ms(DAY_MS));
    assert_eq!(Arc::as_ptr(&stage.session.keys), before, "the connection shows the old one");
    stage.lose();
    assert_ne!(Arc::as_ptr(&stage.session.keys), before);
}

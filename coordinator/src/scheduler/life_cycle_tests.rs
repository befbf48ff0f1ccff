use tributary_protocol::error_code::ErrorCode;

use super::{
    tests::{Bench, NOW, job, sent, tenant},
    *,
};
use crate::{
    round::Phase,
    tenants::{ComputeIsolation, ModelIsolation, Quotas, Standing, TenantRole},
};

const CERTIFICATE: &[u8] = b"certificate";

/// Alpha and beta are connected, enrolled, and train round 1.
fn training() -> Bench {
    let mut bench = Bench::new();
    for name in ["alpha", "beta"] {
        let fingerprint = Digest::of(CERTIFICATE);
        bench.scheduler.enrolled(&tenant(name), &[1; 32], fingerprint, NOW).expect("invited");
    }
    bench.submit();
    for name in ["alpha", "beta"] {
        bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
    }
    bench.run();
    for name in ["alpha", "beta"] {
        bench
            .scheduler
            .accepted(&tenant(name), &job().name, RoundNumber(1), b"", NOW)
            .expect("invited");
    }
    bench.run();
    bench
}

fn set_quotas(bench: &mut Bench, name: &str, quotas: Quotas, now: Timestamp) {
    let mut context = bench.scheduler.tenant(&tenant(name)).expect("known").context.clone();
    context.quotas = quotas;
    bench.scheduler.set_context(context, now).expect("known");
}

fn is_invited(actions: &[Action], name: &str) -> bool {
    sent(actions, name).iter().any(|message| matches!(message, CoordinatorMessage::Configure(_)))
}

#[test]
fn a_suspended_tenant_leaves_its_round_and_is_refused_by_name_until_resumed() {
    let mut bench = training();
    let (alpha, certificate) = (tenant("alpha"), Digest::of(CERTIFICATE));
    let refusal = bench.scheduler.suspend(&alpha, "under review".into(), NOW).expect("known");
    assert_eq!(refusal.code, ErrorCode::TenantSuspended);
    assert!(refusal.message.contains("under review"), "{refusal}");
    let error = bench.scheduler.authenticate(&alpha, certificate, NOW).expect_err("suspended");
    assert_eq!(error.code(), ErrorCode::TenantSuspended);
    let offer = bench.offer(1, 1);
    let error = bench.scheduler.offered(&alpha, &offer).expect_err("suspended");
    assert_eq!(error.code(), ErrorCode::TenantSuspended);
    let line = bench.scheduler.waiting_for(bench.scheduler.job(&job().name).expect("known"), NOW);
    assert!(line.contains("waiting for beta; alpha: suspended"), "{line}");
    let offer = bench.offer(1, 2);
    bench.scheduler.reported(&tenant("beta"), &offer, NOW).expect("counts");
    let actions = bench.run();
    assert_eq!(bench.scheduler.jobs().next().expect("one").record().rounds_committed, 1);
    assert!(is_invited(&actions, "beta") && !is_invited(&actions, "alpha"));
    bench.scheduler.resume(&alpha, NOW).expect("known");
    bench.scheduler.authenticate(&alpha, certificate, NOW).expect("active again");
}

#[test]
fn what_was_reported_before_a_suspension_stays_counted() {
    let mut bench = training();
    let first = bench.offer(1, 1);
    bench.scheduler.reported(&tenant("alpha"), &first, NOW).expect("counts");
    bench.scheduler.suspend(&tenant("alpha"), "under review".into(), NOW).expect("known");
    let second = bench.offer(1, 2);
    bench.scheduler.reported(&tenant("beta"), &second, NOW).expect("counts");
    let commits = bench.run().into_iter().find_map(|action| match action {
        Action::Commit(commit) => Some(commit.contributors.len()),
        _ => None,
    });
    assert_eq!(commits, Some(2));
}

#[test]
fn a_revoked_tenant_needs_a_new_invitation() {
    let mut bench = training();
    let (alpha, certificate) = (tenant("alpha"), Digest::of(CERTIFICATE));
    let refusal = bench.scheduler.revoke(&alpha, "lost laptop".into(), NOW).expect("known");
    assert_eq!(refusal.code, ErrorCode::TenantRevoked);
    let error = bench.scheduler.authenticate(&alpha, certificate, NOW).expect_err("revoked");
    assert_eq!(error.code(), ErrorCode::TenantRevoked);
    for result in [
        bench.scheduler.resume(&alpha, NOW),
        bench.scheduler.suspend(&alpha, "again".into(), NOW).map(|_| ()),
    ] {
        assert_eq!(result.expect_err("for good").code(), ErrorCode::TenantRevoked);
    }
    let gamma = tenant("gamma");
    bench.scheduler.revoke(&gamma, "never came".into(), NOW).expect("known");
    let error = bench.scheduler.enrolled(&gamma, &[1; 32], certificate, NOW).expect_err("revoked");
    assert_eq!(error.code(), ErrorCode::TokenUsed, "an unused invitation goes too");
    let known = bench.scheduler.tenant(&alpha).expect("kept").clone();
    let (record, _) = crate::tenants::invite(
        known.context.clone(),
        Some(&known),
        [2; 32],
        Digest::of(b"ca"),
        NOW,
    );
    assert_eq!((&record.standing, record.certificate), (&Standing::Active, None));
    assert_eq!(record.acknowledged_head, known.acknowledged_head);
    bench.scheduler.put_tenant(record);
    bench.scheduler.enrolled(&alpha, &[2; 32], certificate, NOW).expect("invited anew");
    bench.scheduler.authenticate(&alpha, certificate, NOW).expect("enrolled anew");
}

#[test]
fn a_used_up_round_quota_waits_for_midnight_and_says_so() {
    let mut bench = training();
    let one_a_day = Quotas { rounds_per_day: Some(1), ..Quotas::default() };
    for name in ["alpha", "beta"] {
        set_quotas(&mut bench, name, one_a_day, NOW);
    }
    for (name, fill) in [("alpha", 1), ("beta", 2)] {
        let offer = bench.offer(1, fill);
        bench.scheduler.reported(&tenant(name), &offer, NOW).expect("counts");
    }
    let actions = bench.run();
    assert!(!is_invited(&actions, "alpha") && !is_invited(&actions, "beta"));
    let open = bench.scheduler.job(&job().name).expect("known");
    assert!(matches!(open.round().phase, Phase::Selection(_)));
    let line = bench.scheduler.waiting_for(open, NOW);
    assert!(line.contains("alpha, beta: the quota of 1 rounds a day"), "{line}");
    let mut now = NOW;
    while bench.scheduler.jobs().next().expect("one").round().phase.name() == "selection" {
        now = bench.scheduler.poll_timeout().expect("midnight comes");
        assert!(now <= Timestamp(86_400_000), "a day began and nobody was invited");
        bench.scheduler.handle_timeout(now);
    }
    assert_eq!(now, Timestamp(86_400_000));
    let actions = bench.run();
    assert!(is_invited(&actions, "alpha") && is_invited(&actions, "beta"));
}

#[test]
fn rounds_are_counted_once_across_a_restart() {
    let mut bench = training();
    let used = |bench: &Bench| {
        bench.scheduler.tenant(&tenant("alpha")).expect("known").usage.today(NOW).counts()
    };
    assert_eq!(used(&bench)[1], 1);
    let tenants = bench.scheduler.tenants().cloned().collect();
    let jobs = bench.scheduler.jobs().map(|job| job.record().clone()).collect();
    let models = bench.scheduler.models().clone();
    bench.scheduler = Scheduler::restore(tenants, jobs, models, NOW);
    bench.scheduler.connected(&tenant("alpha"), LedgerHead::EMPTY, NOW);
    bench.run();
    assert_eq!(used(&bench)[1], 1);
}

#[test]
fn bytes_bound_downloads_and_invitations_but_not_what_a_round_is_owed() {
    let mut bench = training();
    let file = bench.scheduler.models().latest(&job().name).expect("version 0").file;
    let none = Quotas { bytes_per_day: Some(0), ..Quotas::default() };
    for name in ["alpha", "beta"] {
        set_quotas(&mut bench, name, none, NOW);
    }
    let (alpha, length) = (tenant("alpha"), file.length);
    bench.scheduler.download(&alpha, file.digest, length, NOW).expect("it trains on this");
    let first = bench.offer(1, 1);
    bench.scheduler.reported(&alpha, &first, NOW).expect("its budget is spent already");
    let used = bench.scheduler.tenant(&alpha).expect("known").usage.today(NOW).counts()[0];
    assert_eq!(used, length + first.update.length);
    let error = bench.scheduler.download(&alpha, file.digest, length, NOW).expect_err("reported");
    assert_eq!(error.code(), ErrorCode::QuotaExceeded);
    let second = bench.offer(1, 2);
    bench.scheduler.reported(&tenant("beta"), &second, NOW).expect("owed");
    assert!(!is_invited(&bench.run(), "beta"), "a next round would not fit");
}

#[test]
fn requests_bound_new_connections_only_while_nothing_is_owed() {
    let mut bench = training();
    let (alpha, certificate) = (tenant("alpha"), Digest::of(CERTIFICATE));
    let none = Quotas { requests_per_day: Some(0), ..Quotas::default() };
    set_quotas(&mut bench, "alpha", none, NOW);
    bench.scheduler.authenticate(&alpha, certificate, NOW).expect("it owes a report");
    let offer = bench.offer(1, 1);
    bench.scheduler.reported(&alpha, &offer, NOW).expect("counts");
    let error = bench.scheduler.authenticate(&alpha, certificate, NOW).expect_err("used up");
    assert_eq!(error.code(), ErrorCode::QuotaExceeded);
    let tomorrow = Timestamp(86_400_000);
    let error = bench.scheduler.authenticate(&alpha, certificate, tomorrow).expect_err("still 0");
    assert_eq!(error.code(), ErrorCode::QuotaExceeded);
}

#[test]
fn models_stay_in_the_regions_of_their_job_and_with_those_that_serve() {
    let mut bench = training();
    let file = bench.scheduler.models().latest(&job().name).expect("version 0").file;
    let error = bench.scheduler.download(&tenant("gamma"), file.digest, 1, NOW).expect_err("us");
    assert_eq!(error.code(), ErrorCode::BlobUnknown);
    let mut context = bench.scheduler.tenant(&tenant("beta")).expect("known").context.clone();
    context.roles = BTreeSet::from([TenantRole::Train]);
    bench.scheduler.set_context(context, NOW).expect("known");
    for (name, fill) in [("alpha", 1), ("beta", 2)] {
        let offer = bench.offer(1, fill);
        bench.scheduler.reported(&tenant(name), &offer, NOW).expect("counts");
    }
    let actions = bench.run();
    let hears = |name| {
        sent(&actions, name).iter().any(|message| matches!(message, CoordinatorMessage::NewBase(_)))
    };
    assert!(hears("alpha") && !hears("beta"));
    assert!(is_invited(&actions, "beta"), "training goes on");
}

#[test]
fn a_tenant_below_its_floor_is_not_invited_until_its_agent_or_the_floor_moves() {
    let adapter = Isolation { model: ModelIsolation::Adapter, ..Isolation::default() };
    let mut bench = Bench::new();
    let floor = |bench: &mut Bench, isolation| {
        let mut context = bench.scheduler.tenant(&tenant("alpha")).expect("known").context.clone();
        context.isolation = isolation;
        bench.scheduler.set_context(context, NOW).expect("known");
    };
    floor(&mut bench, adapter);
    // Beta alone is not enough.
    let mut spec = job();
    spec.round.cohort_size_min = 2;
    bench.submit_job(spec);
    assert_eq!(bench.scheduler.below_floor(&tenant("alpha")), None, "nothing is known yet");
    for name in ["alpha", "beta"] {
        bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
    }
    assert!(!is_invited(&bench.run(), "alpha"), "who says nothing keeps nobody apart");
    let line = bench.scheduler.waiting_for(bench.scheduler.job(&job().name).expect("known"), NOW);
    assert!(line.contains("alpha: its agent runs at model isolation base-only"), "{line}");
    bench.scheduler.disconnected(&tenant("alpha"), NOW);
    bench.scheduler.keeps_apart(&tenant("alpha"), adapter);
    bench.scheduler.connected(&tenant("alpha"), LedgerHead::EMPTY, NOW);
    let actions = bench.run();
    assert!(is_invited(&actions, "alpha") && is_invited(&actions, "beta"));
    let below = ComputeIsolation::DedicatedWorker;
    floor(&mut bench, Isolation { compute: below, ..adapter });
    let below = bench.scheduler.below_floor(&tenant("alpha")).expect("a shared queue");
    assert_eq!((below.resource, below.needs), ("compute", "dedicated-worker"));
}

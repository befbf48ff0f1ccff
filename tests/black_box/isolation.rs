//! Isolation levels: what they keep apart at the coordinator, and who is not invited for them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tributary_privacy::lattice::Lattice;
use tributary_protocol::{
    id::Digest,
    isolation::{ComputeIsolation, DataIsolation, Isolation, ModelIsolation},
    message::{Assignment, TransferResponse},
};
use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    peer::{Credentials, Peer, offer},
    wait::until,
};

use crate::{credentials, job};

const TOP: Isolation = Isolation {
    data: DataIsolation::OwnDatabase,
    model: ModelIsolation::IndependentCopy,
    compute: ComputeIsolation::DedicatedDevice,
};

async fn connect(coordinator: &Coordinator, credentials: &Credentials) -> Peer {
    Peer::connect_at(coordinator.quic(), credentials, TOP).await.expect("connects")
}

/// Accepts the next assignment.
async fn accept(peer: &mut Peer) -> Assignment {
    let assignment = peer.assignment().await;
    peer.accept(&assignment.job.name, assignment.round).await;
    assignment
}

/// Uploads an update of nothing but this number.
async fn report(peer: &Peer, assignment: &Assignment, value: i64) -> Vec<u8> {
    let Assignment { job, round, lattice, .. } = assignment;
    let lattice = Lattice::new(lattice.step, lattice.bits).expect("planned");
    let update = lattice.pack(&vec![value; job.model.num_parameters()]);
    let stored = peer.upload(&offer(&job.name, *round, &update, 1), &update).await;
    assert_eq!(stored, TransferResponse::Stored);
    update
}

/// Both tenants train, and alpha, who has a thread of its own, has reported this.
async fn half_a_round(coordinator: &Coordinator, tenants: &[Credentials; 2]) -> Vec<u8> {
    coordinator.submit(&job("points", 1, 2));
    let mut alpha = connect(coordinator, &tenants[0]).await;
    let mut beta = connect(coordinator, &tenants[1]).await;
    let assignment = accept(&mut alpha).await;
    accept(&mut beta).await;
    let update = report(&alpha, &assignment, 7).await;
    let threads = fs::read_dir(format!("/proc/{}/task", coordinator.process())).expect("Linux");
    let names: Vec<_> = threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok())
        .collect();
    assert!(names.iter().any(|name| name.trim() == "tenant-alpha"), "{names:?}");
    assert!(!names.iter().any(|name| name.trim() == "tenant-beta"), "{names:?}");
    update
}

fn set(coordinator: &Coordinator, tenant: &str, levels: &[&str]) {
    let _ = coordinator.ask(&[&["tenant", "set", tenant][..], levels].concat());
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("lists").map(|entry| entry.expect("lists").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_of_a_tenant_kept_apart_are_sealed_until_their_round_ends_and_then_the_key_goes() {
    let mut coordinator = Coordinator::start();
    let tenants =
        [credentials(&coordinator, "alpha").await, credentials(&coordinator, "beta").await];
    let levels = ["--data-isolation", "own-keyspace", "--compute-isolation", "dedicated-worker"];
    set(&coordinator, "alpha", &levels);
    set(&coordinator, "beta", &["--data-isolation", "own-database"]);
    let update = half_a_round(&coordinator, &tenants).await;
    let digest = Digest::of(&update).to_string();
    let sealed = coordinator.path("keyspaces/alpha/updates").join(&digest);
    assert!(sealed.exists() && !coordinator.path("blobs").join(&digest).exists());
    for file in files(&coordinator.path("")) {
        let bytes = fs::read(&file).expect("reads");
        let shown = bytes.windows(48).any(|window| update.windows(48).any(|plain| plain == window));
        assert!(!shown, "{} has the update in the clear", file.display());
    }
    let key = coordinator.path("keyspaces/alpha/key");
    let mode = fs::metadata(&key).expect("a key").permissions().mode();
    assert_eq!((mode & 0o777, fs::read(&key).expect("a key").len()), (0o600, 32));
    let copy = tempfile::tempdir().expect("a folder");
    let copy = copy.path().join("copy");
    let _ = coordinator.ask(&["backup", "--to", copy.to_str().expect("text")]);
    let copied = files(&copy);
    assert!(!copied.is_empty() && copied.iter().all(|file| !file.ends_with(&digest)), "{copied:?}");

    // What is sealed is found again, and checked, after a kill.
    coordinator.kill();
    coordinator.serve();
    let mut beta = connect(&coordinator, &tenants[1]).await;
    let assignment = accept(&mut beta).await;
    let update = report(&beta, &assignment, -3).await;
    let theirs = coordinator.path("databases/beta/updates").join(Digest::of(&update).to_string());
    coordinator.finish("points", 30);
    let rounds = coordinator.get("/v1/jobs/points/rounds");
    let contributors = rounds[0]["contributors"].as_object().expect("tenants");
    assert_eq!(contributors.len(), 2, "{rounds}");
    until("the keys to go", 10, || (!key.exists() && !sealed.exists()).then_some(()));
    assert!(!theirs.exists() && !coordinator.path("databases/beta/key").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_seal_stops_the_start_and_is_named() {
    let mut coordinator = Coordinator::start();
    let tenants =
        [credentials(&coordinator, "alpha").await, credentials(&coordinator, "beta").await];
    let levels = ["--data-isolation", "own-database", "--compute-isolation", "dedicated-device"];
    set(&coordinator, "alpha", &levels);
    let update = half_a_round(&coordinator, &tenants).await;
    coordinator.kill();
    let digest = Digest::of(&update).to_string();
    let path = coordinator.path("databases/alpha/updates").join(&digest);
    let mut bytes = fs::read(&path).expect("sealed");
    bytes[30] ^= 1;
    fs::write(&path, bytes).expect("writes");
    let launcher = tributary_tests::program("tributary-coordinator").get_program().to_owned();
    let status = coordinator.try_serve(&launcher, &[]).expect("it does not start");
    let text = coordinator.log_text();
    assert!(!status.success() && text.contains(&digest) && text.contains("the seal"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_agent_runs_below_its_floor_is_not_invited_and_the_reason_is_shown() {
    let coordinator = Coordinator::start();
    let alpha = credentials(&coordinator, "alpha").await;
    set(&coordinator, "alpha", &["--model-isolation", "adapter"]);
    coordinator.submit(&job("points", 1, 1));
    let mut peer = Peer::connect(coordinator.quic(), &alpha).await.expect("connects");
    let shown = until("the reason", 10, || {
        let shown = coordinator.ask(&["job", "show", "points"]);
        let waits = shown["waiting_for"].as_str()?.to_owned();
        waits.contains("alpha: its agent").then_some(shown)
    });
    for reason in [&shown["waiting_for"], &shown["tenants"][0]["detail"]] {
        let reason = reason.as_str().expect("text");
        assert!(reason.contains("model isolation base-only"), "{reason}");
        assert!(reason.contains("below the tenant's adapter"), "{reason}");
    }
    let metrics = String::from_utf8(coordinator.get_bytes("/metrics")).expect("text");
    assert!(metrics.contains("tributary_tenant_below_floor{tenant=\"alpha\"} 1"), "{metrics}");
    set(&coordinator, "alpha", &["--model-isolation", "base-only"]);
    let assignment = peer.assignment().await;
    assert_eq!(assignment.job.name.as_str(), "points");
}

/// Whether a tenant's context is told with this level of data, and this value.
fn tells(metrics: &str, data: &str, value: u32) -> bool {
    let wanted = ["tenant=\"alpha\"", "region=\"eu\"", "roles=\"train,serve\""];
    metrics.lines().any(|line| {
        line.starts_with("tributary_tenant_info{")
            && wanted.iter().all(|label| line.contains(label))
            && line.contains(&format!("data=\"{data}\""))
            && line.ends_with(&format!(" {value}"))
    })
}

#[test]
fn an_agent_alone_meets_every_floor_and_its_context_is_in_logs_and_metrics() {
    let coordinator = Coordinator::start_with(&["--log-format", "json"]);
    let mut agent = Agent::enroll(&coordinator, "alpha", POLICY);
    let top = ["--model-isolation", "independent-copy", "--compute-isolation", "dedicated-device"];
    set(&coordinator, "alpha", &top);
    set(&coordinator, "alpha", &["--data-isolation", "own-database", "--rounds-per-day", "40"]);
    agent.run();
    coordinator.submit(&job("points", 1, 1));
    coordinator.finish("points", 60);
    // The round may commit before the transfer says what it stored.
    let stored = until("the line of the update", 10, || {
        let log = coordinator.log_text();
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines.into_iter().find(|line: &serde_json::Value| line["message"] == "update stored")
    });
    assert_eq!(stored["region"], "eu", "{stored}");
    assert_eq!(stored["roles"], "train,serve", "{stored}");
    assert_eq!(stored["isolation"], "own-database,independent-copy,dedicated-device", "{stored}");
    let metrics = || String::from_utf8(coordinator.get_bytes("/metrics")).expect("text");
    let text = metrics();
    assert!(tells(&text, "own-database", 1), "{text}");
    let alpha = "tenant=\"alpha\",resource=";
    for line in [
        format!("tributary_tenant_allowed_a_day{{{alpha}\"rounds\"}} 40"),
        format!("tributary_tenant_used_today{{{alpha}\"rounds\"}} 1"),
        format!("tributary_tenant_allowed_a_day{{{alpha}\"bytes\"}} inf"),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    set(&coordinator, "alpha", &["--data-isolation", "shared-store"]);
    let text = metrics();
    assert!(tells(&text, "own-database", 0) && tells(&text, "shared-store", 1), "{text}");
}

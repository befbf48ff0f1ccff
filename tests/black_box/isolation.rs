//! Isolation levels: what they keep apart at the coordinator, and who is not invited for them.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

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

/// Connects, accepts, and uploads an update of nothing but this number.
async fn report(
    coordinator: &Coordinator,
    credentials: &Credentials,
    value: i64,
) -> (Peer, Vec<u8>) {
    let mut peer = Peer::connect_at(coordinator.quic(), credentials, TOP).await.expect("connects");
    let Assignment { job, round, lattice, .. } = peer.assignment().await;
    peer.accept(&job.name, round).await;
    let lattice = Lattice::new(lattice.step, lattice.bits).expect("planned");
    let update = lattice.pack(&vec![value; job.model.num_parameters()]);
    let stored = peer.upload(&offer(&job.name, round, &update, 1), &update).await;
    assert_eq!(stored, TransferResponse::Stored);
    (peer, update)
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let entries = entries.map(|entry| entry.expect("lists").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_of_a_tenant_kept_apart_are_sealed_until_their_round_ends_and_then_the_key_goes() {
    let mut coordinator = Coordinator::start();
    let alpha = credentials(&coordinator, "alpha").await;
    let beta = credentials(&coordinator, "beta").await;
    let levels = ["--data-isolation", "own-keyspace", "--compute-isolation", "dedicated-worker"];
    let _ = coordinator.ask(&[&["tenant", "set", "alpha"], &levels[..]].concat());
    let _ = coordinator.ask(&["tenant", "set", "beta", "--data-isolation", "own-database"]);
    coordinator.submit(&job("points", 1, 2));
    // The cohort is chosen once both are there.
    let waiting = Peer::connect_at(coordinator.quic(), &beta, TOP).await.expect("connects");
    let (_alpha, update) = report(&coordinator, &alpha, 7).await;
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
    let threads = fs::read_dir(format!("/proc/{}/task", coordinator.process())).expect("Linux");
    let names: Vec<_> = threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok())
        .collect();
    assert!(names.iter().any(|name| name.trim() == "tenant-alpha"), "{names:?}");
    assert!(!names.iter().any(|name| name.trim() == "tenant-beta"), "{names:?}");
    let copy = tempfile::tempdir().expect("a folder");
    let copy = copy.path().join("copy");
    let _ = coordinator.ask(&["backup", "--to", copy.to_str().expect("text")]);
    let copied = files(&copy);
    assert!(!copied.is_empty() && copied.iter().all(|file| !file.ends_with(&digest)), "{copied:?}");

    // What is sealed is found again, and checked, after a kill.
    coordinator.kill();
    drop(waiting);
    coordinator.serve();
    let (_beta, update) = report(&coordinator, &beta, -3).await;
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
    let alpha = credentials(&coordinator, "alpha").await;
    let beta = credentials(&coordinator, "beta").await;
    let _ = coordinator.ask(&["tenant", "set", "alpha", "--data-isolation", "own-database"]);
    coordinator.submit(&job("points", 1, 2));
    let _beta = Peer::connect_at(coordinator.quic(), &beta, TOP).await.expect("connects");
    let (_alpha, update) = report(&coordinator, &alpha, 7).await;
    coordinator.kill();
    let digest = Digest::of(&update).to_string();
    let path = coordinator.path("databases/alpha/updates").join(&digest);
    let mut bytes = fs::read(&path).expect("sealed");
    bytes[30] ^= 1;
    fs::write(&path, bytes).expect("writes");
    let launcher = tributary_tests::program("tributary-coordinator").get_program().to_owned();
    let status = coordinator.try_serve(&launcher, &[]).expect("it does not start");
    let text = coordinator.log_text();
    assert!(!status.success() && text.contains(&digest) && text.contains("seal"), "{text}");
}

#[tokio::test]
async fn a_tenant_whose_agent_runs_below_its_floor_is_not_invited_and_the_reason_is_shown() {
    let coordinator = Coordinator::start();
    let alpha = credentials(&coordinator, "alpha").await;
    let floor =
        |level: &str| coordinator.ask(&["tenant", "set", "alpha", "--model-isolation", level]);
    let _ = floor("adapter");
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
    let _ = floor("base-only");
    let assignment = peer.assignment().await;
    assert_eq!(assignment.job.name.as_str(), "points");
}

#[test]
fn an_agent_alone_meets_every_floor_and_its_context_is_in_logs_and_metrics() {
    let coordinator = Coordinator::start_with(&["--log-format", "json"]);
    let mut agent = Agent::enroll(&coordinator, "alpha", POLICY);
    let floors = |levels: [&str; 3]| {
        let [data, model, compute] = levels;
        let wish =
            ["--data-isolation", data, "--model-isolation", model, "--compute-isolation", compute];
        coordinator
            .ask(&[&["tenant", "set", "alpha", "--rounds-per-day", "40"], &wish[..]].concat())
    };
    let _ = floors(["own-database", "independent-copy", "dedicated-device"]);
    agent.run();
    coordinator.submit(&job("points", 1, 1));
    coordinator.finish("points", 60);
    let log = coordinator.log_text();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let stored = lines.into_iter().find(|line| line["message"] == "update stored").expect("one");
    assert_eq!(stored["region"], "eu", "{stored}");
    assert_eq!(stored["roles"], "train,serve", "{stored}");
    assert_eq!(stored["isolation"], "own-database,independent-copy,dedicated-device", "{stored}");
    let metrics = || String::from_utf8(coordinator.get_bytes("/metrics")).expect("text");
    let info = |text: &str, level: &str, value: u32| {
        let found = text.lines().any(|line| {
            line.starts_with("tributary_tenant_info{")
                && line.contains("region=\"eu\"")
                && line.contains("roles=\"train,serve\"")
                && line.contains(&format!("data=\"{level}\""))
                && line.ends_with(&format!(" {value}"))
        });
        assert!(found, "{level} {value}: {text}");
    };
    let text = metrics();
    info(&text, "own-database", 1);
    let rounds = "{tenant=\"alpha\",resource=\"rounds\"}";
    for (metric, value) in [("allowed_a_day", 40), ("used_today", 1)] {
        let line = format!("tributary_tenant_{metric}{rounds} {value}");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    assert!(
        text.contains("tributary_tenant_allowed_a_day{tenant=\"alpha\",resource=\"bytes\"} inf"),
        "{text}"
    );
    let _ = floors(["shared-store", "independent-copy", "dedicated-device"]);
    let text = metrics();
    info(&text, "own-database", 0);
    info(&text, "shared-store", 1);
}

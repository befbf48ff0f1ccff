//! Secure aggregation over real QUIC: the coordinator learns the sum of the survivors, or nothing.

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::AgentMessage,
    model::{MlpSpec, ModelSpec},
    tensor_file,
};
use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    peer::Credentials,
    secagg::{SecaggPeer, Until},
    wait::until,
};

use crate::{credentials, job};

const TENANTS: [&str; 5] = ["alpha", "beta", "delta", "epsilon", "gamma"];

/// The test job with distributed noise: 2 of 5 may drop out, 1 may collude.
fn masked_job(rounds: u32, adversary: &str, timeout_ms: u64) -> String {
    let dropout_max = if adversary == "semi-honest" { 0.4 } else { 0.2 };
    job("points", rounds, 5)
        .replace("trust = \"local\"", "trust = \"distributed\"")
        .replace("unit = \"record\"", "unit = \"tenant\"")
        .replace("cohort_size_min = 5", "cohort_size_min = 3")
        + &format!(
            "report_timeout_ms = {timeout_ms}
        [secagg]
        adversary = \"{adversary}\"
        dropout_max = {dropout_max}
        corrupt_max = 0.2
        step_timeout_ms = {timeout_ms}
        "
        )
}

async fn cohort(coordinator: &Coordinator) -> Vec<Credentials> {
    let mut cohort = Vec::new();
    for tenant in TENANTS {
        cohort.push(credentials(coordinator, tenant).await);
    }
    cohort
}

/// A known update of every member, within the clipping norm of 1.
fn known_update(peer: &SecaggPeer, member: i64) -> Vec<i64> {
    let dimension = peer.assignment.job.model.num_parameters();
    let unit = (0.02 / peer.lattice().step()) as i64;
    (0..dimension as i64).map(|index| (member - 1) * unit + 7 * index - 3 * member).collect()
}

fn parameters(coordinator: &Coordinator, version: usize) -> Vec<f32> {
    let models = coordinator.get("/v1/models");
    let digest = models[version]["digest"].as_str().expect("text");
    let spec = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![8], classes: 2 });
    tensor_file::read(&spec, &coordinator.get_bytes(&format!("/v1/models/{digest}")))
        .expect("a model")
}

/// Checks that version 1 is version 0 plus the sum of these updates over the public denominator 5.
fn assert_committed(coordinator: &Coordinator, step: f64, updates: &[Vec<i64>]) {
    let (before, after) = (parameters(coordinator, 0), parameters(coordinator, 1));
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        let sum: i64 = updates.iter().map(|update| update[index]).sum();
        let expected = (f64::from(*before) + sum as f64 * step / 5.0) as f32;
        assert_eq!(*after, expected, "parameter {index}");
    }
}

/// Joins all members; each plays its part, the last ones only as far as their `until`.
async fn play(
    coordinator: &Coordinator,
    cohort: &[Credentials],
    dropouts: &[Until],
) -> (f64, Vec<Vec<i64>>) {
    let mut members = tokio::task::JoinSet::new();
    let faithful = cohort.len() - dropouts.len();
    for (index, credentials) in cohort.iter().enumerate() {
        let until = index.checked_sub(faithful).map_or(Until::Unmasked, |late| dropouts[late]);
        // A round is configured once everybody is there.
        let (address, credentials) = (coordinator.quic(), credentials.clone());
        members.spawn(async move {
            let mut peer = SecaggPeer::join(address, &credentials).await;
            let update = known_update(&peer, index as i64);
            peer.play(&update, until).await.expect("an honest coordinator");
            if until < Until::Unmasked {
                // Gone for good: it says so, as a process that is killed cannot.
                let refusal = Refusal::new(ErrorCode::SecaggSessionLost, "dropped out");
                let (job, round) = (peer.assignment.job.name.clone(), peer.assignment.round);
                peer.peer.say(&AgentMessage::Decline { job, round, refusal }).await;
            }
            (index, until, update, peer)
        });
    }
    let mut played = members.join_all().await;
    played.sort_by_key(|(index, ..)| *index);
    let step = played[0].3.lattice().step();
    // The connections stay open until the job is finished, so nobody is asked twice.
    coordinator.finish("points", 60);
    let counted = played.into_iter().filter(|(_, until, ..)| *until >= Until::Uploaded);
    (step, counted.map(|(_, _, update, _)| update).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropouts_at_each_step_leave_exactly_the_sum_of_the_survivors() {
    for (adversary, dropouts) in [
        ("semi-honest", &[][..]),
        ("semi-honest", &[Until::Accepted][..]),
        ("semi-honest", &[Until::Advertised, Until::Shared][..]),
        ("semi-honest", &[Until::Shared, Until::Uploaded][..]),
        ("malicious-coordinator", &[Until::Shared][..]),
        ("malicious-coordinator", &[Until::Uploaded][..]),
        ("malicious-coordinator", &[Until::Confirmed][..]),
    ] {
        let coordinator = Coordinator::start();
        let cohort = cohort(&coordinator).await;
        coordinator.submit(&masked_job(1, adversary, 30_000));
        let (step, updates) = play(&coordinator, &cohort, dropouts).await;
        assert_committed(&coordinator, step, &updates);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_while_unmasking_commits_the_same_sum() {
    let mut coordinator = Coordinator::start();
    let cohort = cohort(&coordinator).await;
    coordinator.submit(&masked_job(1, "malicious-coordinator", 30_000));
    // All have uploaded; two have confirmed the survivors before the crash, three have not.
    let peers = all_until(&cohort, &coordinator, |index| {
        if index < 2 { Until::Confirmed } else { Until::Uploaded }
    });
    let peers = peers.await;
    until("unmasking", 30, || {
        (coordinator.get("/v1/jobs/points")["phase"] == "unmasking").then_some(())
    });
    coordinator.kill();
    coordinator.serve();

    let step = peers[0].lattice().step();
    let updates: Vec<_> =
        peers.iter().zip(0..).map(|(peer, index)| known_update(peer, index)).collect();
    let mut rejoining = tokio::task::JoinSet::new();
    for (peer, update) in peers.into_iter().zip(updates.clone()) {
        let address = coordinator.quic();
        rejoining.spawn(async move {
            let mut peer = peer.rejoin(address).await;
            peer.play(&update, Until::Unmasked).await.expect("an honest coordinator");
            peer
        });
    }
    let _still_connected = rejoining.join_all().await;
    coordinator.finish("points", 30);
    assert_committed(&coordinator, step, &updates);
}

/// Lets all members play at once.
async fn all_until(
    cohort: &[Credentials],
    coordinator: &Coordinator,
    how_far: impl Fn(usize) -> Until,
) -> Vec<SecaggPeer> {
    let mut members = tokio::task::JoinSet::new();
    for (index, credentials) in cohort.iter().enumerate() {
        let (address, credentials, until) =
            (coordinator.quic(), credentials.clone(), how_far(index));
        members.spawn(async move {
            let mut peer = SecaggPeer::join(address, &credentials).await;
            let update = known_update(&peer, index as i64);
            peer.play(&update, until).await.expect("an honest coordinator");
            (index, peer)
        });
    }
    let mut played = members.join_all().await;
    played.sort_by_key(|(index, _)| *index);
    played.into_iter().map(|(_, peer)| peer).collect()
}

/// What a coordinator that records everything has of single updates: uniformly random bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_uploads_are_not_the_updates_and_look_uniform() {
    let coordinator = Coordinator::start();
    let cohort = cohort(&coordinator).await;
    let large = masked_job(1, "semi-honest", 30_000).replace("hidden = [8]", "hidden = [2000]");
    coordinator.submit(&large);
    // The last member keeps the round open, so that the files are still there.
    let peers =
        all_until(
            &cohort,
            &coordinator,
            |index| {
                if index < 4 { Until::Uploaded } else { Until::Shared }
            },
        );
    let mut counts = [0_u32; 256];
    let peers = peers.await;
    for (index, peer) in peers[..4].iter().enumerate() {
        let plain = peer.lattice().pack(&known_update(peer, index as i64));
        let digest = tributary_protocol::id::Digest::of(peer.masked());
        let stored = std::fs::read(coordinator.path(&format!("blobs/{digest}"))).expect("stored");
        assert_eq!(stored, peer.masked());
        let (plain, masked) = (peer.unpacked(&plain), peer.unpacked(&stored));
        let same = plain.iter().zip(&masked).filter(|(plain, masked)| plain == masked).count();
        assert!(same <= 1, "{same} coordinates of {} are not masked", plain.len());
        for byte in &stored {
            counts[usize::from(*byte)] += 1;
        }
    }
    // Chi-square with 255 degrees of freedom: mean 255, deviation 22.6; eight deviations.
    let expected = f64::from(counts.iter().sum::<u32>()) / 256.0;
    let chi_square: f64 =
        counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
    assert!(chi_square < 436.0, "the stored uploads are not uniform: {chi_square}");
}

const TRUSTING: &str = "trusts = [\"distributed\"]\n[secagg]\ncohort_size_min = 3\n";

#[test]
fn five_agents_finish_a_round_in_which_one_is_killed() {
    let coordinator = Coordinator::start();
    let mut agents = TENANTS.map(|tenant| {
        let policy = POLICY.to_owned() + TRUSTING;
        Agent::enroll(&coordinator, tenant, &policy)
    });
    for agent in &mut agents {
        agent.run();
    }
    // Long enough a training to be killed in.
    let slow = masked_job(3, "malicious-coordinator", 60_000)
        .replace("local_steps = 4", "local_steps = 2000");
    coordinator.submit(&slow);
    until("a round that waits for masked updates", 120, || {
        let document = coordinator.get("/v1/jobs/points");
        let masked = document["phase"] == "reporting" || document["phase"] == "unmasking";
        (document["round"] == 2 && masked).then_some(())
    });
    // Back at once, it says that its keys are lost (or sends what it had debited, byte for byte), so
    // nobody waits for a deadline.
    let victim = 4;
    agents[victim].kill();
    agents[victim].run();
    coordinator.finish("points", 180);

    let history = coordinator.get("/v1/jobs/points/rounds");
    let history = history.as_array().expect("a list");
    let second = &history[1];
    assert!(second["abandoned"].is_null(), "{second}");
    let survivors = second["contributors"].as_object().expect("a table");
    assert!(survivors.len() >= 4, "{second}");
    let shown = coordinator.get("/v1/jobs/points");
    let (epsilon, worst) = (&shown["privacy"]["epsilon"], &shown["privacy"]["epsilon_worst_case"]);
    let (epsilon, worst) = (epsilon.as_f64().expect("known"), worst.as_f64().expect("known"));
    assert!(epsilon > 0.0 && epsilon <= worst, "{shown}");
    for (tenant, agent) in TENANTS.iter().zip(&mut agents) {
        agent.kill();
        let ledger = agent.ledger();
        let entries = ledger["entries"].as_array().expect("a list").clone();
        for round in history {
            let Some(update) = round["contributors"][tenant].as_str() else { continue };
            let debits = entries.iter().filter(|entry| entry["release"] == update).count();
            assert_eq!(debits, 1, "{tenant} released {update} with {debits} debits");
        }
    }
}

#[test]
fn cohorts_that_hide_nobody_are_refused_by_coordinator_and_agent() {
    let coordinator = Coordinator::start();
    let file = coordinator.path("alone.toml");
    let alone = masked_job(1, "semi-honest", 5_000)
        .replace("cohort_size_min = 3", "cohort_size_min = 1")
        .replace("cohort_size = 5", "cohort_size = 1")
        .replace("report_goal = 5", "report_goal = 1");
    std::fs::write(&file, &alone).expect("writes");
    let submitted = coordinator.command(&["job", "submit", file.to_str().expect("text")]);
    let message = String::from_utf8_lossy(&submitted.stderr).into_owned();
    assert!(!submitted.status.success() && message.contains("cohort_size_min"), "{message}");

    let careful = POLICY.to_owned() + &TRUSTING.replace("= 3", "= 5");
    let agent = Agent::enroll(&coordinator, "alpha", &careful);
    for (job, word) in [(alone, "at least 3"), (masked_job(1, "semi-honest", 5_000), "is 5")] {
        agent.write("job.toml", &job);
        let path = agent.path("job.toml");
        let checked = agent.command(&["check", "--job", path.to_str().expect("text")]);
        let report = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(!checked.status.success(), "{report}");
        let flat = report.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains("cohort_size_min"), "{word}: {report}");
    }
}

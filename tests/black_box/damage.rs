//! A full disk and damaged files: a stop that names the file and what would help, never a reset.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tributary_privacy::lattice::Lattice;
use tributary_protocol::{id::Digest, message::TransferResponse};
use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    peer::{Peer, offer},
    program,
    research::ResearchPeer,
    wait::until,
};

use crate::{credentials, job};

/// A coordinator that has committed two rounds and does not run.
async fn with_history() -> Coordinator {
    let mut coordinator = Coordinator::start();
    let credentials = credentials(&coordinator, "alpha").await;
    let tenant_unit = job("points", 2, 1).replace("unit = \"record\"", "unit = \"tenant\"");
    coordinator.submit(&tenant_unit);
    let mut peer = ResearchPeer::new("alpha", &credentials);
    peer.run(coordinator.quic());
    coordinator.finish("points", 30);
    peer.kill().await;
    coordinator.kill();
    coordinator
}

fn documents(coordinator: &Coordinator) -> [serde_json::Value; 3] {
    let paths = ["/v1/jobs", "/v1/models", "/v1/jobs/points/rounds"];
    let mut documents = paths.map(|path| coordinator.get(path));
    for job in documents[0].as_array_mut().expect("a list") {
        // Since when this process has seen it; not durable.
        job.as_object_mut().expect("a table").remove("phase_since");
    }
    documents
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("reads");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("writes");
}

/// Starts it; what it said if it refused.
fn refusal(coordinator: &mut Coordinator) -> Option<String> {
    let launcher = program("tributary-coordinator").get_program().to_owned();
    let status = coordinator.try_serve(&launcher, &[])?;
    assert!(!status.success());
    Some(coordinator.log_text())
}

fn newest_model(coordinator: &Coordinator) -> PathBuf {
    let mut models: Vec<_> = fs::read_dir(coordinator.path("blobs"))
        .expect("lists")
        .map(|entry| entry.expect("lists").path())
        .collect();
    models.sort_by_key(|path| fs::metadata(path).expect("reads").modified().expect("a time"));
    models.pop().expect("models")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_the_coordinator_stops_its_start_and_is_named_with_what_helps() {
    let mut whole = with_history().await;
    let newest = newest_model(&whole);
    let newest = format!("blobs/{}", newest.file_name().expect("a name").to_string_lossy());
    // What is damaged, and words of the answer.
    for (file, words) in [
        ("audit.jsonl", &["audit log", "nothing was reset"][..]),
        (&newest, &[&newest, "damaged", "backup"]),
        ("authority.pem", &["authority"]),
        ("coordinator.toml", &["coordinator.toml"]),
    ] {
        let mut twin = whole.twin();
        let path = twin.path(file);
        let at = fs::metadata(&path).expect("there").len() as usize / 2;
        flip(&path, at);
        let damaged = fs::read(&path).expect("reads");
        let text =
            refusal(&mut twin).unwrap_or_else(|| panic!("{file} was damaged, and it serves"));
        for word in words {
            assert!(text.contains(word), "{file}: {word:?} is not in\n{text}");
        }
        assert_eq!(fs::read(&path).expect("reads"), damaged, "{file} was changed");
        flip(&path, at);
        twin.serve();
    }
    let mut twin = whole.twin();
    fs::remove_file(twin.path(&newest)).expect("removes");
    let text = refusal(&mut twin).expect("a model is missing");
    assert!(text.contains(&newest) && text.contains("missing"), "{text}");
    whole.serve();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_anywhere_in_the_store_changes_nothing_or_stops_the_start() {
    let mut whole = with_history().await;
    let pristine = whole.twin();
    whole.serve();
    let expected = documents(&whole);
    let stored: Vec<_> = fs::read_dir(pristine.path("store"))
        .expect("lists")
        .map(|entry| entry.expect("lists"))
        .filter(|entry| entry.file_type().expect("a type").is_file())
        .map(|entry| entry.file_name().into_string().expect("text"))
        .collect();
    let (mut refused, mut harmless) = (0, 0);
    for name in stored {
        let file = format!("store/{name}");
        let bytes = fs::read(pristine.path(&file)).expect("reads");
        let used: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        // Spread over what is not empty.
        for at in used.iter().step_by((used.len() / 5).max(1)) {
            let mut twin = pristine.twin();
            flip(&twin.path(&file), *at);
            match refusal(&mut twin) {
                Some(text) => {
                    assert!(text.contains("store") && text.contains("nothing was reset"), "{text}");
                    assert!(text.contains("restore"), "{text}");
                    refused += 1;
                }
                None => {
                    assert_eq!(documents(&twin), expected, "byte {at} of {file}");
                    harmless += 1;
                }
            }
        }
    }
    assert!(refused > 0, "{refused} refused, {harmless} harmless");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_store_is_not_taken_for_the_newest() {
    let mut coordinator = with_history().await;
    let older = coordinator.twin();
    coordinator.serve();
    coordinator.submit(&job("more", 1, 1));
    coordinator.kill();
    fs::remove_dir_all(coordinator.path("store")).expect("removes");
    fs::rename(older.path("store"), coordinator.path("store")).expect("moves");
    let text = refusal(&mut coordinator).expect("the store is older than was noted");
    assert!(text.contains("change") && text.contains("nothing was reset"), "{text}");
    fs::remove_dir_all(coordinator.path("store")).expect("removes");
    let text = refusal(&mut coordinator).expect("the store is gone");
    assert!(text.contains("store") && text.contains("nothing was reset"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_coordinator_and_what_was_answered_is_there_after_it() {
    let mut coordinator = with_history().await;
    // No file may grow past four segments of the store more than it has now; in units of 512 bytes.
    let store = fs::metadata(coordinator.path("store/db")).expect("there").len();
    let blocks = store.div_ceil(512) + 4 * 1024;
    let regions: Vec<_> = (0..2000).map(|index| format!("\"region-number-{index}\"")).collect();
    let large = format!("dataset = \"points\"\nregions = [{}]", regions.join(", "));
    let launcher = program("tributary-coordinator").get_program().to_string_lossy().into_owned();
    let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$0\" \"$@\"");
    let ended = coordinator.try_serve("sh".as_ref(), &["-c", &script, &launcher]);
    assert_eq!(ended, None, "{}", coordinator.log_text());
    let mut answered = Vec::new();
    let file = coordinator.path("next.toml");
    for index in 0..1000 {
        let name = format!("job-{index}");
        fs::write(&file, job(&name, 1, 1).replace("dataset = \"points\"", &large)).expect("writes");
        let path = file.to_str().expect("text");
        if !coordinator.command(&["job", "submit", path]).status.success() {
            break;
        }
        answered.push(name);
    }
    let status = coordinator.wait_for_end(30);
    let text = coordinator.log_text();
    assert!(!status.success(), "{text}");
    assert!(text.contains("File too large") && text.contains("make room"), "{text}");
    coordinator.serve();
    let jobs = coordinator.get("/v1/jobs");
    let names: Vec<_> = jobs.as_array().expect("a list").iter().map(|job| &job["job"]).collect();
    for name in &answered {
        assert!(names.iter().any(|known| **known == *name.as_str()), "{name} is lost");
    }
}

#[tokio::test]
async fn a_damaged_update_stops_the_start_and_removing_it_gives_its_round_up() {
    let mut coordinator = Coordinator::start();
    let tenants =
        [credentials(&coordinator, "alpha").await, credentials(&coordinator, "beta").await];
    coordinator.submit(&job("points", 1, 2));
    let mut alpha = Peer::connect(coordinator.quic(), &tenants[0]).await.expect("connects");
    let mut beta = Peer::connect(coordinator.quic(), &tenants[1]).await.expect("connects");
    let assignment = alpha.assignment().await;
    beta.assignment().await;
    let (name, round) = (&assignment.job.name, assignment.round);
    alpha.accept(name, round).await;
    beta.accept(name, round).await;
    let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits).expect("planned");
    let update = lattice.pack(&vec![7; assignment.job.model.num_parameters()]);
    let stored = alpha.upload(&offer(name, round, &update, 1), &update).await;
    assert_eq!(stored, TransferResponse::Stored);
    coordinator.kill();

    let digest = Digest::of(&update).to_string();
    let path = coordinator.path(&format!("blobs/{digest}"));
    flip(&path, 5);
    let text = refusal(&mut coordinator).expect("the update is damaged");
    assert!(text.contains(&digest) && text.contains("remove it"), "{text}");
    fs::remove_file(&path).expect("removes");
    coordinator.serve();
    let history = coordinator.get("/v1/jobs/points/rounds");
    let reason = history[0]["abandoned"].as_str().expect("a reason");
    assert!(reason.contains(&digest) && reason.contains("alpha"), "{reason}");
    let shown = coordinator.get("/v1/jobs/points");
    assert_eq!((&shown["round"], &shown["state"]), (&2.into(), &"running".into()));
    let audit = String::from_utf8(coordinator.get_bytes("/v1/audit")).expect("text");
    assert!(audit.contains("round-abandon"), "{audit}");
}

#[test]
fn a_damaged_file_of_an_agent_is_named_with_what_helps() {
    let coordinator = Coordinator::start();
    let mut agent = Agent::enroll(&coordinator, "alpha", POLICY);
    agent.run();
    coordinator.submit(&job("points", 2, 1));
    coordinator.finish("points", 60);
    agent.kill();
    // What is damaged, at which byte, and words of the answer.
    for (file, at, words) in [
        ("ledger.jsonl", 40, &["ledger", "line"][..]),
        ("identity/certificate.pem", 3, &["certificate.pem", "enrol"]),
        ("identity/key.pem", 3, &["key.pem", "enrol"]),
        ("policy.toml", 3, &["policy.toml"]),
    ] {
        let path = agent.path(file);
        flip(&path, at);
        let damaged = fs::read(&path).expect("reads");
        let checked = agent.command(&["check"]);
        let text = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        assert!(!checked.status.success(), "{file} was damaged, and `check` is content: {text}");
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(flat.contains(word), "{file}: {word:?} is not in\n{text}");
        }
        assert_eq!(fs::read(&path).expect("reads"), damaged, "{file} was changed");
        flip(&path, at);
    }
    assert!(agent.command(&["check"]).status.success());
}

/// Lets no file of a process grow beyond this, in bytes; `None` lifts that.
fn limit_files(process: u32, bytes: Option<u64>) {
    let soft = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let limit = format!("--fsize={soft}:unlimited");
    let mut command = std::process::Command::new("prlimit");
    let set = command.args(["--pid", &process.to_string(), &limit]).status();
    assert!(set.expect("prlimit runs").success());
}

#[test]
fn a_full_disk_of_an_agent_costs_no_debit_without_bytes_and_it_goes_on_once_there_is_room() {
    const QUIET: &[(&str, &str)] = &[("TRIBUTARY_LOG", "error")];
    let coordinator = Coordinator::start();
    let policy = POLICY.replace("epsilon_max = 50.0", "epsilon_max = 900.0");
    let mut agent = Agent::enroll(&coordinator, "alpha", &policy);
    agent.run_on_limited_disk(QUIET);
    coordinator.submit(&job("points", 20, 1));
    coordinator.finish("points", 120);
    // No file may grow past what the ledger has now: the next debit does not fit, and all else does.
    let ledger = || fs::metadata(agent.path("ledger.jsonl")).expect("a ledger").len();
    let full = ledger() + 40;
    limit_files(agent.process(), Some(full));
    coordinator.submit(&job("more", 2, 1));
    until("the agent to complain", 60, || {
        agent.log_text().contains("the disk is full").then_some(())
    });
    let shown = agent.ledger();
    assert_eq!(
        shown["entries"].as_array().expect("a list").len(),
        20,
        "nothing was debited: {shown}"
    );
    assert_eq!(coordinator.get("/v1/jobs/more")["rounds_committed"], 0);
    assert!(ledger() <= full);
    limit_files(agent.process(), None);
    coordinator.finish("more", 60);
    let shown = agent.ledger();
    let debited: Vec<_> = shown["entries"].as_array().expect("a list").iter().collect();
    let committed = coordinator.get("/v1/jobs/more/rounds");
    let committed: Vec<_> = committed
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|round| round["contributors"]["alpha"].as_str())
        .collect();
    assert_eq!((debited.len(), committed.len()), (22, 2), "one debit for each release: {shown}");
    assert!(agent.command(&["privacy", "verify"]).status.success());
}

#[test]
fn an_agent_without_room_for_a_model_waits_for_room_and_spends_nothing() {
    let coordinator = Coordinator::start();
    let mut agent = Agent::enroll(&coordinator, "alpha", POLICY);
    agent.run_on_limited_disk(&[("TRIBUTARY_LOG", "warn")]);
    let _ = agent.status();
    limit_files(agent.process(), Some(128 * 1024));
    // 50 000 parameters: the base has 200 kB, and an update 150 kB.
    coordinator.submit(&job("points", 1, 1).replace("hidden = [8]", "hidden = [10000]"));
    until("the agent to complain", 60, || {
        let text = agent.log_text();
        (text.contains("download goes on later") && text.contains("the disk is full")).then_some(())
    });
    let shown = agent.ledger();
    assert_eq!(shown["entries"].as_array().expect("a list").len(), 0, "{shown}");
    limit_files(agent.process(), None);
    coordinator.finish("points", 120);
    let shown = agent.ledger();
    assert_eq!(shown["entries"].as_array().expect("a list").len(), 1, "{shown}");
}

use tributary_protocol::id::RoundNumber;

use super::*;
use crate::{
    audit::{Act, Actor, AuditEvent, AuditLog},
    blobs::BlobStore,
    config::{Agents, Api, Config, Folder, Listen},
    round::Phase,
    scheduler::{JobRecord, RoundSummary},
    store::{self, SledStore, Store, Table},
    tenants::authority::Authority,
};
use tributary_protocol::time::Timestamp;

const NOW: Timestamp = Timestamp(1_800_000_000_000);

/// A coordinator's folder with one running job, and a copy of it.
struct Bench {
    _folder: tempfile::TempDir,
    original: Folder,
    copy: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let original = Folder::new(folder.path().join("original"));
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            listen: Listen { quic: any, api: any },
            api: Api::default(),
            agents: Agents::default(),
            pace: crate::pace::Pace::default(),
        };
        let pair = Authority::generate(NOW).expect("makes");
        let authority = Authority::load(&pair).expect("loads");
        let server = authority.issue_server(&["localhost".to_owned()], NOW).expect("issues");
        original.initialize(&config, &pair, &server, "secret").expect("makes");
        let blobs = BlobStore::open(original.path()).expect("opens");
        let mut store = SledStore::open(&original.join("store")).expect("opens");
        let mut log =
            AuditLog::open(original.path(), authority.fingerprint(), None).expect("opens");
        let mut bench = crate::scheduler::tests::Bench::new();
        bench.submit();
        while let Some(action) = bench.scheduler.poll_action() {
            if let crate::scheduler::Action::Persist(batch) = action {
                store.apply(&batch).expect("applies");
            }
        }
        for file in bench.scheduler.referenced_files() {
            blobs.put(&bench.blobs.read(file).expect("reads")).expect("stores");
        }
        let event = |round| {
            let subject = format!("job/{round}");
            AuditEvent::done(Actor::coordinator(), Act::RoundCommit, subject, "")
        };
        log.append(event(1), NOW).expect("appends");
        let copy = folder.path().join("copy");
        snapshot(original.path(), &store, &blobs, log.head(), authority.fingerprint(), NOW)
            .expect("takes");
        super::copy(&original, &copy).expect("copies");
        discard(original.path()).expect("removes");
        log.append(event(2), NOW).expect("appends");
        Self { original, copy, _folder: folder }
    }

    fn target(&self) -> Folder {
        Folder::new(self.copy.with_file_name("restored"))
    }
}

#[test]
fn a_restored_job_goes_on_past_the_rounds_that_may_be_lost() {
    let bench = Bench::new();
    let target = bench.target();
    let restored =
        restore(&bench.copy, &target, 50, Some(bench.original.path()), NOW).expect("restores");
    assert_eq!(restored.lost_rounds, Some(vec!["job/2".to_owned()]));
    assert_eq!(restored.jobs[0].round, RoundNumber(1));
    let store = SledStore::open(&target.join("store")).expect("opens");
    let jobs: Vec<JobRecord> = store::load(&store, Table::Jobs).expect("reads");
    assert_eq!(jobs[0].round.number, RoundNumber(51));
    assert!(matches!(jobs[0].round.phase, Phase::Abandoned { .. }));
    let rounds: Vec<RoundSummary> = store::load(&store, Table::Rounds).expect("reads");
    assert!(rounds[0].abandoned.as_ref().expect("given up").contains("backup"));
    assert_eq!(target.admin_token().expect("reads"), "secret");
    target.config().expect("valid");
    let again = restore(&bench.copy, &target, 50, None, NOW).expect_err("in use").to_string();
    assert!(again.contains("already holds a coordinator"), "{again}");
}

#[test]
fn any_damage_to_a_copy_is_named_and_nothing_is_restored() {
    let bench = Bench::new();
    let blob = std::fs::read_dir(bench.copy.join(BLOBS)).expect("lists").next().expect("one");
    let blob = blob.expect("lists").path();
    for path in [bench.copy.join(RECORDS), bench.copy.join("audit.jsonl"), blob] {
        let whole = std::fs::read(&path).expect("reads");
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("writes");
        let error = restore(&bench.copy, &bench.target(), 50, None, NOW).expect_err("damaged");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(error.to_string().contains(&name), "{error}");
        assert!(!bench.target().path().exists(), "nothing was written");
        std::fs::write(&path, whole).expect("writes");
    }
    std::fs::remove_file(bench.copy.join(MANIFEST)).expect("removes");
    let error = restore(&bench.copy, &bench.target(), 50, None, NOW).expect_err("unfinished");
    assert!(matches!(error, BackupError::NotABackup { .. }), "{error}");
}

#[test]
fn a_copy_never_overwrites_what_is_there() {
    let bench = Bench::new();
    let store = SledStore::open(&bench.original.join("store")).expect("opens");
    let blobs = BlobStore::open(bench.original.path()).expect("opens");
    let authority = bench.original.authority().expect("loads").fingerprint();
    let head = crate::audit::AuditReader::new(bench.original.path(), authority, None).verify();
    let head = head.expect("whole");
    snapshot(bench.original.path(), &store, &blobs, head, authority, NOW).expect("takes");
    let error = copy(&bench.original, &bench.copy).expect_err("not empty");
    assert!(matches!(error, BackupError::NotEmpty { .. }), "{error}");
}

//! A whole agent, over real QUIC, against a coordinator that the test plays by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod coordinator;
mod renewal;
mod secagg;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tributary_agent::{
    config::{Config, Overrides},
    driver::{self, Agent},
    identity::{Identity, enroll},
    policy::Policy,
    session::Phase,
    site::Site,
};
use tributary_protocol::{
    error_code::ErrorCode,
    id::{Digest, RoundNumber},
    job::JobSpec,
    message::{
        AgentMessage, Assignment, BaseModel, BlobRef, CoordinatorMessage, LatticeSpec, LedgerHead,
        TransferRequest, TransferResponse, UploadOffer,
    },
    tensor_stream::Cursor,
};

use self::coordinator::{Coordinator, Session};

/// Nothing here takes as long.
const LIMIT: Duration = Duration::from_secs(60);

const CONFIG: &str = "[api]\nlisten = \"127.0.0.1:0\"\n[compute]\nthreads = 1\n\
    [data.clothes.idx]\nimages = \"images\"\nlabels = \"labels\"\nclasses = 10\n\
    [adapter]\nepochs_max = 1\n";
const POLICY: &str = "[datasets.clothes]\nepsilon_max = 100.0\ndelta = 1e-5\nunits = [\"record\"]\n\
    families = [\"mlp\"]\nnoise_multiplier_min = 0.5\n";
const JOB: &str = "name = \"fashion\"\ndataset = \"clothes\"\n[model.mlp]\ninputs = 784\n\
    hidden = [128]\nclasses = 10\n[training]\nlocal_steps = 2\nsampling_rate = 0.1\n\
    batch_size_expected = 20\nclient_learning_rate = 0.1\n[privacy]\ntrust = \"local\"\n\
    unit = \"record\"\nclipping_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-5\n[round]\n\
    rounds = 3\ncohort_size = 4\ncohort_size_min = 2\nreport_goal = 3\n";

fn write_records(directory: &Path, count: u32) {
    let pixels = (0..count * 784).map(|index| (index * 7919 % 251) as u8);
    let mut images = [[0, 0, 8, 3], count.to_be_bytes(), [0, 0, 0, 28], [0, 0, 0, 28]].concat();
    images.extend(pixels);
    let mut labels = [[0, 0, 8, 1], count.to_be_bytes()].concat();
    labels.extend((0..count).map(|index| (index % 10) as u8));
    std::fs::write(directory.join("images"), images).unwrap();
    std::fs::write(directory.join("labels"), labels).unwrap();
}

fn job() -> JobSpec {
    toml::from_str(JOB).unwrap()
}

fn base_file(version: u64) -> Vec<u8> {
    let model = job().model;
    let parameters: Vec<f32> = (0..model.num_parameters())
        .map(|index| ((index as f32 + version as f32) * 0.7).sin() * 0.05)
        .collect();
    tributary_protocol::tensor_file::write(&model, &parameters).unwrap()
}

fn base(version: u64) -> BaseModel {
    let (job, file) = (job(), base_file(version));
    let file = BlobRef { digest: Digest::of(&file), length: file.len() as u64 };
    BaseModel { job: job.name, dataset: job.dataset, model: job.model, version, file }
}

fn configure(round: u64) -> CoordinatorMessage {
    CoordinatorMessage::Configure(Box::new(Assignment {
        job: job(),
        round: RoundNumber(round),
        base: base(round - 1),
        lattice: LatticeSpec { step: 1e-6, bits: 32 },
        report_within_ms: 60_000,
        control: None,
    }))
}

/// An enrolled tenant's directory with its coordinator.
struct Stage {
    coordinator: Coordinator,
    directory: tempfile::TempDir,
}

struct Running {
    agent: Arc<Agent>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Stage {
    async fn enrolled() -> Self {
        Self::enrolled_with(|_| {}).await
    }

    /// With a certificate that `change` changed.
    async fn enrolled_with(change: fn(&mut rcgen::CertificateParams)) -> Self {
        let coordinator = Coordinator::start();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("agent.toml"), CONFIG).unwrap();
        std::fs::write(directory.path().join("policy.toml"), POLICY).unwrap();
        write_records(directory.path(), 200);
        let (address, token) = (coordinator.address(), coordinator.token("ash"));
        let (enrollment, ()) =
            tokio::join!(enroll(&address, &token), coordinator.answer_enrollment(change));
        Identity::save(&Site::new(directory.path()), &enrollment.unwrap(), false).unwrap();
        Self { coordinator, directory }
    }

    fn run(&self) -> Running {
        let site = Site::new(self.directory.path());
        let config = Config::load(&site, &Overrides::default()).unwrap();
        let policy = Policy::load(&site).unwrap();
        let identity = Identity::load(&site).unwrap();
        let agent = Arc::new(Agent::open(site, config, policy, &identity).unwrap());
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(driver::run(agent.clone(), identity, stopped));
        Running { agent, stop, task }
    }

    fn ledger_lines(&self) -> usize {
        let text = std::fs::read_to_string(self.directory.path().join("ledger.jsonl"));
        text.unwrap().lines().count()
    }
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }

    /// Waits until the agent shows what is wanted.
    async fn shows(&self, wanted: impl Fn(&driver::status::StatusDocument) -> bool) {
        let status = self.agent.status();
        let until = async {
            while !wanted(&status.document()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(LIMIT, until).await;
        assert!(waited.is_ok(), "{:?}", status.document());
    }
}

fn offer(request: &TransferRequest) -> &UploadOffer {
    let TransferRequest::Upload(offer) = request else { panic!("{request:?}") };
    offer
}

async fn take_upload(session: &Session) -> UploadOffer {
    let mut transfer = session.transfer().await;
    let offer = offer(&transfer.request).clone();
    transfer.answer(TransferResponse::SendFrom { offset: 0 }).await;
    let mut cursor = Cursor::new(offer.update.length, 0).unwrap();
    let mut bytes = Vec::new();
    while !cursor.is_finished() {
        bytes.extend(transfer.receive_chunk(&mut cursor).await);
    }
    assert_eq!(Digest::of(&bytes), offer.update.digest);
    transfer.answer(TransferResponse::Stored).await;
    offer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_survives_broken_transfers_and_the_new_base_is_served() {
    let conversation = async {
        let stage = Stage::enrolled().await;
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        assert_eq!(session.ledger_head, LedgerHead::EMPTY);
        session.tell(configure(1)).await;
        assert!(matches!(session.hear().await, AgentMessage::Accept { .. }));

        // The connection breaks in the middle of the base: the agent goes on where it stopped.
        let file = base_file(0);
        let mut transfer = session.transfer().await;
        assert_eq!(transfer.send_file(&file, 1).await, 0);
        let partial = Site::new(stage.directory.path()).model(Digest::of(&file));
        let partial = partial.with_extension("partial");
        while std::fs::metadata(&partial).map_or(0, |found| found.len()) < 256 * 1024 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        session.break_off();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        let mut transfer = session.transfer().await;
        assert_eq!(transfer.send_file(&file, 9).await, 256 * 1024);

        // And in the middle of the update.
        let mut transfer = session.transfer().await;
        let first = offer(&transfer.request).clone();
        assert_eq!((stage.ledger_lines(), first.ledger_head.sequence), (1, 1));
        transfer.answer(TransferResponse::SendFrom { offset: 0 }).await;
        let mut cursor = Cursor::new(first.update.length, 0).unwrap();
        transfer.receive_chunk(&mut cursor).await;
        session.break_off();
        session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        let mut transfer = session.transfer().await;
        assert_eq!(offer(&transfer.request), &first, "the identical bytes");
        transfer.answer(TransferResponse::SendFrom { offset: cursor.offset() }).await;
        while !cursor.is_finished() {
            transfer.receive_chunk(&mut cursor).await;
        }
        transfer.answer(TransferResponse::Stored).await;

        let closed = CoordinatorMessage::RoundClosed {
            job: job().name,
            round: RoundNumber(1),
            abandoned: None,
        };
        session.tell(closed).await;
        session.tell(CoordinatorMessage::NewBase(base(1))).await;
        session.transfer().await.send_file(&base_file(1), 9).await;
        let digest = base(1).file.digest;
        running
            .shows(|status| {
                status.phase == Phase::Idle && status.base.is_some_and(|base| base.digest == digest)
            })
            .await;
        let answer = running.agent.engine().predict(&[vec![0.5; 784]]).unwrap();
        assert_eq!((answer.base, answer.predictions.len()), (digest, 1));
        let status = running.agent.status().document();
        assert!(status.epsilon > 0.0 && status.bytes_sent >= first.update.length, "{status:?}");
        running.stop().await;
        assert_eq!(stage.ledger_lines(), 1);
    };
    timeout(LIMIT, conversation).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_sends_the_same_bytes_and_serves_at_once() {
    let conversation = async {
        let stage = Stage::enrolled().await;
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        session.tell(CoordinatorMessage::NewBase(base(0))).await;
        session.transfer().await.send_file(&base_file(0), 9).await;
        running.shows(|status| status.phase == Phase::Idle && status.base.is_some()).await;
        session.tell(configure(1)).await;
        assert!(matches!(session.hear().await, AgentMessage::Accept { .. }));
        let first = offer(&session.transfer().await.request).clone();
        running.stop().await;

        let running = stage.run();
        assert!(running.agent.engine().serving().is_some(), "before any coordinator answers");
        let mut session = stage.coordinator.welcome(first.ledger_head).await;
        assert_eq!(session.ledger_head, first.ledger_head);
        session.tell(configure(1)).await;
        assert!(matches!(session.hear().await, AgentMessage::Accept { .. }));
        assert_eq!(take_upload(&session).await, first);
        running.stop().await;
        assert_eq!(stage.ledger_lines(), 1);
    };
    timeout(LIMIT, conversation).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_trains_nothing() {
    let conversation = async {
        let stage = Stage::enrolled().await;
        let running = stage.run();
        let ahead = LedgerHead { sequence: 3, hash: Digest::of(b"elsewhere") };
        let mut session = stage.coordinator.welcome(ahead).await;
        session.tell(configure(1)).await;
        let answer = session.hear().await;
        let AgentMessage::Decline { refusal, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.code, ErrorCode::LedgerDiverged);
        running.shows(|status| status.phase == Phase::Halted).await;
        running.stop().await;
        assert_eq!(stage.ledger_lines(), 0);
    };
    timeout(LIMIT, conversation).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_is_kept_and_names_an_older_ledger_without_the_coordinators_help() {
    let conversation = async {
        let stage = Stage::enrolled().await;
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        session.tell(configure(1)).await;
        assert!(matches!(session.hear().await, AgentMessage::Accept { .. }));
        session.transfer().await.send_file(&base_file(0), 9).await;
        let first = take_upload(&session).await;
        session.tell(stage.coordinator.receipt(first.ledger_head)).await;
        let kept = Site::new(stage.directory.path()).receipt();
        while !kept.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.stop().await;

        // The ledger is lost, and the coordinator does not mention it.
        std::fs::write(stage.directory.path().join("ledger.jsonl"), "").unwrap();
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        session.tell(configure(2)).await;
        let answer = session.hear().await;
        let AgentMessage::Decline { refusal, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.code, ErrorCode::LedgerDiverged);
        assert!(refusal.message.contains("restored backup"), "{refusal}");
        running.stop().await;
    };
    timeout(LIMIT, conversation).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_with_a_forged_signature_stops_training() {
    let conversation = async {
        let stage = Stage::enrolled().await;
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        let CoordinatorMessage::Receipt(mut forged) = stage.coordinator.receipt(LedgerHead::EMPTY)
        else {
            unreachable!()
        };
        forged.head.sequence = 5;
        session.tell(CoordinatorMessage::Receipt(forged)).await;
        session.tell(configure(1)).await;
        let answer = session.hear().await;
        let AgentMessage::Decline { refusal, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.code, ErrorCode::LedgerDiverged);
        running.stop().await;
    };
    timeout(LIMIT, conversation).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_with_nan_is_declined_before_any_debit() {
    let conversation = async {
        let stage = Stage::enrolled().await;
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;
        let mut file = base_file(0);
        let end = file.len();
        file[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        let CoordinatorMessage::Configure(mut assignment) = configure(1) else { unreachable!() };
        assignment.base.file.digest = Digest::of(&file);
        session.tell(CoordinatorMessage::Configure(assignment)).await;
        assert!(matches!(session.hear().await, AgentMessage::Accept { .. }));
        session.transfer().await.send_file(&file, 9).await;
        let answer = session.hear().await;
        let AgentMessage::Decline { refusal, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.code, ErrorCode::BaseModelInvalid, "{refusal}");
        running.stop().await;
        assert_eq!(stage.ledger_lines(), 0);
    };
    timeout(LIMIT, conversation).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_certificate_says_what_to_do() {
    let conversation = async {
        let stage = Stage::enrolled().await;
        // Another coordinator at another address, with another authority.
        let other = Coordinator::start();
        let path = stage.directory.path().join("identity/coordinator.json");
        let text = format!("{{\"address\":\"{}\",\"tenant\":\"ash\"}}", other.address());
        std::fs::write(path, text).unwrap();
        let running = stage.run();
        let accepting = tokio::spawn(async move { other.try_accept().await });
        running.shows(|status| status.detail.contains("enrol again")).await;
        running.stop().await;
        accepting.abort();
    };
    timeout(LIMIT, conversation).await.expect("in time");
}

//! The bytes of every message, field by field: a change here is a change of the protocol version.
//!
//! Integers up to 250 are one byte; 251 announces a `u16`, 252 a `u32`, 253 a `u64`, little endian.
//! Text and lists start with their length, enums with the number of the variant, options with 0 or 1.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use tributary_protocol::{
    codec,
    error_code::{ErrorCode, Refusal},
    id::{Digest, RoundNumber},
    isolation::{DataIsolation, Isolation, ModelIsolation},
    job::{JobSpec, Metric, MetricSum},
    message::{
        AgentMessage, Assignment, BaseModel, BlobRef, CoordinatorMessage, EnrollmentRequest,
        EnrollmentResponse, LatticeSpec, LedgerHead, SecaggPayload, TransferRequest,
        TransferResponse, UploadOffer,
    },
    model::{MlpSpec, ModelSpec},
    receipt::Receipt,
    time::Timestamp,
    transport::signature::Signature,
};

/// Checks that `message` encodes to the concatenated fields, and decodes from them.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, fields: &[&str]) {
    let expected = fields.concat().replace(' ', "");
    let encoded: String =
        codec::encode(message).expect("encodes").iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(encoded, expected, "{message:?}");
    let bytes: Vec<u8> = (0..expected.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&expected[at..at + 2], 16).expect("hexadecimal"))
        .collect();
    assert_eq!(&codec::decode::<T>(&bytes).expect("decodes"), message);
}

fn digest(fill: u8) -> Digest {
    Digest::from_bytes([fill; 32])
}

fn hash(fill: u8) -> String {
    format!("{fill:02x}").repeat(32)
}

fn base() -> BaseModel {
    BaseModel {
        job: "job".parse().expect("valid"),
        dataset: "data".parse().expect("valid"),
        model: ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![8], classes: 3 }),
        version: 7,
        file: BlobRef { digest: digest(0xb0), length: 300 },
    }
}

/// `job`, `data`, variant 0 (MLP) with 2 inputs, hidden [8], 3 classes, version 7, digest, 300.
fn base_hex() -> Vec<String> {
    ["03 6a6f62", "04 64617461", "00 02 01 08 03", "07", &hash(0xb0), "fb 2c01"]
        .map(str::to_owned)
        .to_vec()
}

fn refusal() -> Refusal {
    Refusal::new(ErrorCode::PolicyForbids, "no")
}

#[test]
fn agent_messages() {
    let head = LedgerHead { sequence: 5, hash: digest(0xaa) };
    let isolation = Isolation {
        data: DataIsolation::OwnDatabase,
        model: ModelIsolation::Adapter,
        ..Isolation::default()
    };
    let agent_version = "1.0".to_owned();
    let hello = AgentMessage::Hello { agent_version, ledger_head: head, isolation };
    // Data, model, compute.
    check(&hello, &["00", "03 312e30", "05", &hash(0xaa), "02 01 00"]);
    let (job, round) = ("job".parse().expect("valid"), RoundNumber(70_000));
    check(&AgentMessage::Accept { job, round }, &["01", "03 6a6f62", "fc 70110100"]);
    let (job, round) = ("job".parse().expect("valid"), RoundNumber(2));
    // The code is 4001.
    let decline = AgentMessage::Decline { job, round, refusal: refusal() };
    check(&decline, &["02", "03 6a6f62", "02", "fb a10f", "02 6e6f"]);
    let (job, round) = ("job".parse().expect("valid"), RoundNumber(2));
    // The payload is the encoding of a message of its own, here the text "no".
    let payload = SecaggPayload::encode(&"no").expect("encodes");
    let secagg = AgentMessage::Secagg { job, round, payload };
    check(&secagg, &["03", "03 6a6f62", "02", "03 026e6f"]);
    check(&AgentMessage::Renew { signing_request: vec![0x30, 0x00] }, &["04", "02 3000"]);
}

#[test]
fn coordinator_messages() {
    let receipt = Receipt {
        tenant: "alpha".parse().expect("valid"),
        head: LedgerHead { sequence: 9, hash: digest(0xbb) },
        signed: Timestamp(250),
        certificate: vec![0x30, 0x31],
        signature: Signature { scheme: 0x0403, bytes: vec![7] },
    };
    // Tenant, sequence, hash, time, certificate, scheme, signature.
    let fields = ["05 616c706861", "09", &hash(0xbb), "fa", "02 3031", "fb 0304", "01 07"];
    check(&CoordinatorMessage::Welcome(receipt.clone().into()), &[&["00"], &fields[..]].concat());
    check(&CoordinatorMessage::Receipt(receipt.into()), &[&["07"], &fields[..]].concat());
    let issued = EnrollmentResponse::Issued { certificates: vec![vec![1, 2], vec![3]] };
    check(&CoordinatorMessage::Renewal(issued), &["08", "00", "02", "02 0102", "01 03"]);
    let (job, round) = ("job".parse().expect("valid"), RoundNumber(1));
    let closed = CoordinatorMessage::RoundClosed { job, round, abandoned: Some("no".to_owned()) };
    check(&closed, &["02", "03 6a6f62", "01", "01 02 6e6f"]);
    let fields = [vec!["03".to_owned()], base_hex()].concat();
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    check(&CoordinatorMessage::NewBase(base()), &fields);
    check(&CoordinatorMessage::Refused(refusal()), &["04", "fb a10f", "02 6e6f"]);
    let (job, round) = ("job".parse().expect("valid"), RoundNumber(1));
    let payload = SecaggPayload::encode(&7_u8).expect("encodes");
    let begin = CoordinatorMessage::SecaggBegin {
        job: "job".parse().expect("valid"),
        round,
        member: 2,
        cohort_size: 5,
        cohort_root: digest(0xc0),
    };
    check(&begin, &["05", "03 6a6f62", "01", "02", "05", &hash(0xc0)]);
    check(&CoordinatorMessage::Secagg { job, round, payload }, &["06", "03 6a6f62", "01", "01 07"]);
    check(&CoordinatorMessage::ComeBack { after_ms: 1000 }, &["09", "fb e803"]);
}

/// Local trust; `secagg` is the table that goes with distributed trust.
fn job(privacy: &str, secagg: &str) -> JobSpec {
    toml::from_str(&format!("name = 'job'
        dataset = 'data'
        model.mlp = {{ inputs = 2, hidden = [8], classes = 3 }}
        training = {{ local_steps = 4, sampling_rate = 0.5, batch_size_expected = 16, client_learning_rate = 1.0, update_norm_max = 2.0, algorithm.scaffold = {{ population = 8 }} }}
        privacy = {{ {privacy}, unit = 'tenant', clipping_norm = 1.0, noise_multiplier = 2.0, delta = 0.5 }}
        round = {{ rounds = 9, cohort_size = 4, cohort_size_min = 2, report_goal = 3, selection_timeout_ms = 10, configuration_timeout_ms = 20, report_timeout_ms = 30, sampling = 'poisson', asynchronous = {{ staleness_max = 2, staleness_exponent = 0.5 }} }}
        server_optimizer.sgd = {{ server_learning_rate = 1.0, momentum = 0.5 }}
        {secagg}")).expect("a job")
}

#[test]
fn an_assignment_carries_the_whole_job() {
    let assignment = Assignment {
        job: job(
            "trust = 'local', rotation = true, clipping.adaptive = { target_quantile = 0.5, \
             learning_rate = 1.0, count_noise_multiplier = 2.0 }",
            "evaluation = { every_rounds = 5, metrics = ['accuracy', 'loss'], \
             noise_multiplier = 2.0, loss_max = 1.0 }
             aggregation.multi-krum = { byzantine_max = 3, selected = 4 }
             early_stop = { metric = 'loss', patience = 3, min_change = 0.5, target = 1.0 }",
        ),
        round: RoundNumber(6),
        base: base(),
        lattice: LatticeSpec { step: 0.25, bits: 24 },
        report_within_ms: 1000,
        control: Some(BlobRef { digest: digest(0xc7), length: 250 }),
    };
    let (half, one, two) = ("000000000000e03f", "000000000000f03f", "0000000000000040");
    let mut fields = vec![
        "01".to_owned(),
        // Job: name, dataset, no regions, no tokenizer, model; all of it is federated.
        "03 6a6f62 04 64617461 00 00 00 02 01 08 03 00".to_owned(),
        // Training: steps, rate, batch, step size, bound, SCAFFOLD among 8.
        format!("04 {half} 10 {one} {two} 02 08"),
        // Privacy: local, tenant, norm, multiplier, delta, adaptive clipping (quantile, rate,
        // noise), rotation, 24 bits, independent noise.
        format!("00 01 {one} {two} {half} 02 {half} {one} {two} 01 18 00"),
        // Rounds, cohort_size, cohort_size_min, report_goal and the three timeouts; Poisson; an
        // asynchronous plan with staleness and exponent.
        format!("09 04 02 03 0a 14 1e 01 01 02 {half}"),
        // Server optimizer: SGD, rate, momentum; no secure aggregation; an evaluation every 5
        // rounds of accuracy and loss, its noise and the largest loss; multi-Krum with its numbers;
        // an early stop on the loss, its patience, change and target.
        format!("00 {one} {half} 00 01 05 02 00 01 {two} {one} 04 03 04 01 01 03 {half} 01 {one}"),
        "06".to_owned(),
    ];
    fields.extend(base_hex());
    // Lattice step and bits, then the time left, and the control variate.
    fields.push(format!("000000000000d03f 18 fb e803 01 {} fa", hash(0xc7)));
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    check(&CoordinatorMessage::Configure(Box::new(assignment)), &fields);
}

#[test]
fn distributed_trust_adds_the_table_of_secure_aggregation() {
    let secagg = "secagg = { adversary = 'malicious-coordinator', dropout_max = 0.25, \
                  corrupt_max = 0.5, bits = 20, step_timeout_ms = 1000 }";
    let local = codec::encode(&job("trust = 'local'", "")).expect("encodes");
    let distributed = codec::encode(&job("trust = 'distributed'", secagg)).expect("encodes");
    // The trust is a byte in the middle; the last bytes say that there is no table, no evaluation,
    // the mean, no early stop.
    let (common, _) = local.split_at(local.len() - 4);
    let differing: Vec<_> = (0..common.len()).filter(|&i| common[i] != distributed[i]).collect();
    assert_eq!(differing.len(), 1);
    assert_eq!((common[differing[0]], distributed[differing[0]]), (0, 1));
    let table: String =
        distributed[common.len()..].iter().map(|byte| format!("{byte:02x}")).collect();
    // Present, adversary 1, two fractions, bits, milliseconds; then as without the table.
    assert_eq!(table, "0101000000000000d03f000000000000e03f14fbe803000000");
}

#[test]
fn transfers() {
    check(
        &TransferRequest::Download { digest: digest(1), offset: 262_144 },
        &["00", &hash(1), "fc 00000400"],
    );
    let offer = UploadOffer {
        job: "job".parse().expect("valid"),
        round: RoundNumber(3),
        update: BlobRef { digest: digest(2), length: 150 },
        ledger_head: LedgerHead { sequence: 1, hash: digest(3) },
        evaluation: vec![MetricSum { metric: Metric::Loss, centred_sum: 0.5, count: 2.0 }],
    };
    let metrics = "01 01 000000000000e03f 0000000000000040";
    check(
        &TransferRequest::Upload(offer),
        &["01", "03 6a6f62", "03", &hash(2), "96", "01", &hash(3), metrics],
    );
    check(&TransferResponse::Sending { length: 251 }, &["00", "fb fb00"]);
    check(&TransferResponse::SendFrom { offset: 0 }, &["01", "00"]);
    check(&TransferResponse::Stored, &["02"]);
    check(&TransferResponse::Refused(refusal()), &["03", "fb a10f", "02 6e6f"]);
}

#[test]
fn enrolment() {
    let request = EnrollmentRequest {
        tenant: "alpha".parse().expect("valid"),
        secret: [7; 32],
        signing_request: vec![0x30, 0x00],
    };
    check(&request, &["05 616c706861", &hash(7), "02 3000"]);
    let certificates = vec![vec![1, 2], vec![3]];
    check(&EnrollmentResponse::Issued { certificates }, &["00", "02", "02 0102", "01 03"]);
    check(&EnrollmentResponse::Refused(refusal()), &["01", "fb a10f", "02 6e6f"]);
}

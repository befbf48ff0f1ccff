use std::sync::{Arc, atomic::AtomicBool};

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tributary_protocol::{
    id::{DatasetName, Digest, TenantId},
    model::{MlpSpec, ModelSpec},
};

use super::*;
use crate::{
    adapter::{Registry, Served},
    data::TextReaders,
    driver::{self, status::SharedStatus},
    engine::{Engine, Serving},
    feedback::Retention,
    keys::{Access, KeyFile, Tenancy},
    session::Phase,
    site::Site,
    train::Evaluation,
};

/// An agent of tenant ash.
pub(super) struct Running {
    pub(super) address: std::net::SocketAddr,
    pub(super) state: Arc<ApiState>,
    pub(super) site: Site,
    _directory: tempfile::TempDir,
}

pub(super) async fn start(with_model: bool) -> Running {
    let spec = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 });
    let parameters = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
    let model = with_model.then_some((spec, parameters.as_slice()));
    start_with(model, TextReaders::default()).await
}

/// An agent that serves a model, if there is one, for the dataset `census`.
async fn start_with(model: Option<(ModelSpec, &[f32])>, texts: TextReaders) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    let engine = Arc::new(Engine::new());
    let tenant = TenantId::new("ash").unwrap();
    let status = Arc::new(SharedStatus::new(tenant, Phase::Connecting));
    if let Some((spec, parameters)) = model {
        let base = Digest::of(b"base");
        let serving = Serving::new(&spec, base, parameters, None).unwrap();
        engine.swap(serving.for_dataset(DatasetName::new("census").unwrap()));
        let measured = |accuracy| Some(Evaluation { accuracy, loss: 1.0, num_examples: 4 });
        let mut registry =
            Registry::new("job".parse().unwrap(), "data".parse().unwrap(), spec.clone());
        registry.serve(Served {
            base,
            base_version: 0,
            base_held_out: measured(0.5),
            adapter: Some(2),
            held_out: measured(0.75),
            since_ms: 1,
        });
        status.serving(&registry);
    }
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::new(ApiState {
        engine,
        texts,
        language: None,
        access: Access::open(Tenancy {
            own: TenantId::new("ash").unwrap(),
            contexts: Vec::new(),
            key_files: Vec::new(),
            keys: KeyFile::new(site.keys()),
        })
        .unwrap(),
        feedback: driver::open_feedback(&site, Some(Retention::default())),
        stopping: AtomicBool::new(false),
        status,
        metrics,
    });
    tokio::spawn(serve(listener, state.clone(), std::future::pending()));
    Running { address, state, site, _directory: directory }
}

/// One request on a connection of its own: HTTP status and body.
pub(super) async fn ask(
    address: std::net::SocketAddr,
    request: &str,
    body: &[u8],
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses a large body may close before it has read it.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn predict(address: std::net::SocketAddr, body: &str) -> (u16, Value) {
    let (status, body) = ask(address, "POST /v1/predict", body.as_bytes()).await;
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}")))
}

#[tokio::test]
async fn predictions_name_the_model_they_came_from() {
    let agent = start(true).await;
    let address = agent.address;
    let (status, answer) = predict(address, r#"{"inputs":[[3,0],[0,3]]}"#).await;
    assert_eq!(status, 200);
    assert_eq!(answer["predictions"][0]["class"], 0);
    assert_eq!(answer["predictions"][1]["class"], 1);
    assert!(answer["predictions"][0]["probabilities"][0].as_f64().unwrap() > 0.9);
    assert_eq!(answer["model"], json!({"base": Digest::of(b"base"), "adapter": null}));
}

#[tokio::test]
async fn bad_requests_say_what_would_work() {
    let agent = start(true).await;
    let address = agent.address;
    for (body, status, code, word) in [
        ("{\"inputs\":[[1,2", 400, "bad-json", "inputs"),
        ("{\"inputs\":[[NaN,2]]}", 400, "bad-json", "line 1"),
        ("{\"input\":[[1,2]]}", 400, "bad-json", "unknown field"),
        ("{\"inputs\":[[1,2,3]]}", 422, "input-width", "takes 2"),
        ("{\"inputs\":[[1e39,2]]}", 400, "bad-json", "out of range"),
        ("{\"inputs\":[5]}", 400, "bad-json", "a list of numbers or a text"),
        ("{\"inputs\":[[[1]]]}", 400, "bad-json", "line 1"),
        ("{\"inputs\":[[1,2],\"good day\"]}", 422, "input-text", "input 1 is a text"),
    ] {
        let (found, answer) = predict(address, body).await;
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{body}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{body}: {message}");
    }
    let many = format!("{{\"inputs\":[{}]}}", vec!["[1,2]"; 4097].join(","));
    let (status, answer) = predict(address, &many).await;
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("too-many-inputs")));
}

#[tokio::test]
async fn texts_are_classified_as_their_tokens_are() {
    let text = "[encoder]\nvocab_size = 256\nhidden_size = 8\nintermediate_size = 12\n\
                num_layers = 1\nnum_heads = 2\npositions = 6\nclasses = 3";
    let spec: ModelSpec = toml::from_str(text).unwrap();
    let parameters: Vec<f32> =
        (0..spec.num_parameters()).map(|index| (index as f32 * 0.7).sin() * 0.3).collect();
    let source = "[jsonl]\npath = \"texts.jsonl\"\nlabels = [\"a\", \"b\", \"c\"]\ntokens_max = 5";
    let census = DatasetName::new("census").unwrap();
    let texts = TextReaders::new(&[(census, toml::from_str(source).unwrap())].into());
    let agent = start_with(Some((spec.clone(), parameters.as_slice())), texts).await;
    let body = r#"{"inputs": ["ab", [97, 98], "longer than that", [108, 111, 110, 103, 101]]}"#;
    let (status, answer) = predict(agent.address, body).await;
    assert_eq!(status, 200, "{answer}");
    let probabilities = |index: usize| &answer["predictions"][index]["probabilities"];
    assert_eq!(probabilities(0), probabilities(1));
    assert_eq!(probabilities(2), probabilities(3), "cut where a record would be");
    assert_ne!(probabilities(0), probabilities(2));
    // Its outcome is kept with the tokens, which train the next adapter.
    let id = answer["predictions"][0]["id"].as_str().unwrap().parse().unwrap();
    let store = agent.state.feedback.as_ref().unwrap();
    store.label(id, 2, tributary_protocol::transport::process::now()).unwrap();

    for (inputs, status, code, word) in [
        ("[\"\"]", 422, "input-tokens", "1 to 6"),
        ("[[97.5]]", 422, "input-tokens", "whole numbers below 256"),
        ("[[300]]", 422, "input-tokens", "whole numbers below 256"),
        ("[[1,2,3,4,5,6,7]]", 422, "input-tokens", "1 to 6"),
        ("[true]", 400, "bad-json", "a list of numbers or a text"),
        ("\"ab\"", 400, "bad-json", "expected a sequence"),
        ("[\"\\ud800\"]", 400, "bad-json", "line 1"),
    ] {
        let (found, answer) = predict(agent.address, &format!("{{\"inputs\":{inputs}}}")).await;
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{inputs} {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(word), "{inputs} {answer}");
    }
    let (status, answer) = ask(agent.address, "POST /v1/predict", b"{\"inputs\":[\"\xff\"]}").await;
    assert!(status == 400 && answer.contains("bad-json"), "not UTF-8: {answer}");

    let agent = start_with(Some((spec, parameters.as_slice())), TextReaders::default()).await;
    let (status, answer) = predict(agent.address, r#"{"inputs": ["ab"]}"#).await;
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("no-tokenizer")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("[data.census.jsonl]"));
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let agent = start(true).await;
    let address = agent.address;
    let body = vec![b' '; (8 << 20) + 1];
    let (status, answer) = ask(address, "POST /v1/predict", &body).await;
    assert_eq!(status, 413);
    assert!(answer.contains("8 MiB"), "{answer}");
}

#[tokio::test]
async fn without_a_model_the_agent_says_so() {
    let agent = start(false).await;
    let address = agent.address;
    let (status, answer) = predict(address, r#"{"inputs":[[3,0]]}"#).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("no-model")));
    let (status, body) = ask(address, "GET /v1/models", b"").await;
    assert_eq!((status, body.as_str()), (200, r#"{"data":[],"object":"list"}"#));
}

#[tokio::test]
async fn the_status_has_exactly_the_agreed_keys() {
    let agent = start(true).await;
    let address = agent.address;
    let (status, body) = ask(address, "GET /v1/status", b"").await;
    let document: Value = serde_json::from_str(&body).unwrap();
    let keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = [
        "tenant",
        "phase",
        "detail",
        "job",
        "round",
        "step",
        "steps",
        "base",
        "adapter",
        "newest",
        "epsilon",
        "delta",
        "bytes_sent",
        "refused",
    ];
    wanted.sort_unstable();
    assert_eq!((status, keys), (200, wanted.to_vec()));
    assert_eq!(document["base"], json!({"digest": Digest::of(b"base"), "accuracy": 0.5}));
    assert_eq!(document["adapter"], json!({"version": 2, "accuracy": 0.75}));
}

#[tokio::test]
async fn every_path_of_the_openapi_document_is_there() {
    let agent = start(true).await;
    let (_, body) = ask(agent.address, "GET /v1/openapi.json", b"").await;
    let document: Value = serde_json::from_str(&body).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 10);
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let request = format!("{} {}", method.to_uppercase(), path.replace("{id}", "x"));
            let (status, answer) = ask(agent.address, &request, b"").await;
            assert!(status != 405 && !answer.contains("not-found"), "{request}: {answer}");
        }
    }
    // Every reference leads somewhere.
    for reference in body.split("\"$ref\": \"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}

#[tokio::test]
async fn health_metrics_models_and_wrong_paths_answer() {
    let agent = start(true).await;
    let address = agent.address;
    assert_eq!(ask(address, "GET /healthz", b"").await, (200, "ok\n".to_owned()));
    assert_eq!(ask(address, "GET /metrics", b"").await.0, 200);
    let (_, models) = ask(address, "GET /v1/models", b"").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!(models["data"][1]["version"], 2);
    let (status, body) = ask(address, "GET /v2/nothing", b"").await;
    assert!(status == 404 && body.contains("/v1/predict"), "{body}");
    assert_eq!(ask(address, "GET /v1/predict", b"").await.0, 405);
}

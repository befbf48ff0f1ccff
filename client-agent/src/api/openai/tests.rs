use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tributary_protocol::{
    id::TenantId,
    isolation::{ComputeIsolation, ModelIsolation},
};

use crate::{
    api::{ApiState, serve},
    config::serve_folder,
    data::TextReaders,
    driver::status::SharedStatus,
    engine::{
        Engine,
        generation::{Limits, TenantShare},
        language::{LanguageOptions, LanguageServer, TenantOptions},
    },
    keys::{Access, KeyFile, TenantContext},
    model::decoder::tests::{assert_close, expected, fixture},
    session::Phase,
};

const KEYS: [(&str, &str); 2] =
    [("ash", "key-of-ash-0123456789"), ("elm", "key-of-elm-0123456789")];

fn options() -> LanguageOptions {
    let adapters = ["all", "attention"]
        .map(|name| (name.to_owned(), fixture("smollm").join(name)))
        .into_iter()
        .collect::<BTreeMap<_, _>>();
    LanguageOptions { adapters, ..serve_folder(&fixture("smollm")) }
}

fn with_keys(directory: &Path, share: TenantShare) -> LanguageOptions {
    let tenants = KEYS
        .map(|(tenant, key)| {
            let key_file = directory.join(tenant);
            std::fs::write(&key_file, format!("{key}\n")).unwrap();
            let mut context = TenantContext::new(TenantId::new(tenant).unwrap());
            context.share = share;
            if tenant == "ash" {
                context.isolation.model = ModelIsolation::Adapter;
                context.adapters = Some(["all".to_owned()].into());
            }
            let key_file = Some(key_file);
            TenantOptions {
                context,
                key_file,
                model: None,
                device: None,
                cache_bytes: None,
                threads: 1,
            }
        })
        .into();
    LanguageOptions { tenants, ..options() }
}

async fn start(options: LanguageOptions) -> SocketAddr {
    start_with(options, PrometheusBuilder::new().build_recorder().handle()).await
}

async fn start_with(options: LanguageOptions, metrics: PrometheusHandle) -> SocketAddr {
    let keys = KeyFile::new("there/is/no/keys.json".into());
    let access = Access::open(options.tenancy(TenantId::new("local").unwrap(), keys)).unwrap();
    let status = SharedStatus::new(TenantId::new("local").unwrap(), Phase::Serving);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = ApiState {
        engine: Arc::new(Engine::new()),
        texts: TextReaders::default(),
        language: Some(Arc::new(LanguageServer::start(options).unwrap())),
        access,
        feedback: None,
        stopping: AtomicBool::new(false),
        status: Arc::new(status),
        metrics,
    };
    tokio::spawn(serve(listener, Arc::new(state), std::future::pending()));
    address
}

/// One request on a connection of its own: head and body of the answer.
async fn send(address: SocketAddr, path: &str, key: Option<&str>, body: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!(
        "{path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n{key}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

async fn ask(address: SocketAddr, path: &str, body: Value) -> (u16, Value) {
    ask_as(address, path, None, body).await
}

async fn ask_as(address: SocketAddr, path: &str, key: Option<&str>, body: Value) -> (u16, Value) {
    let (head, body) =
        send(address, &format!("POST {path}"), key, body.to_string().as_bytes()).await;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}")))
}

fn greedy_text(adapter: &str, length: usize) -> (Value, String) {
    let expected = expected("smollm");
    let case = if adapter == "all" { &expected.all[0] } else { &expected.base[0] };
    let checkpoint = crate::model::checkpoint::Checkpoint::open(&fixture("smollm")).unwrap();
    let text = checkpoint.tokenizer.decode(&case.greedy[..length]);
    (json!(case.prompt), text)
}

#[tokio::test]
async fn completions_go_on_as_transformers_would() {
    let address = start(options()).await;
    for (model, adapter) in [("smollm", "base"), ("all", "all")] {
        let (prompt, text) = greedy_text(adapter, 8);
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0});
        let (status, answer) = ask(address, "/v1/completions", body).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["text"], text, "{model}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 8);
    }
    let body = json!({
        "model": "smollm", "prompt": ["one", "two"], "n": 2, "max_tokens": 2, "seed": 5,
    });
    let (_, answer) = ask(address, "/v1/completions", body.clone()).await;
    let texts = |answer: &Value| -> Vec<Value> {
        answer["choices"].as_array().unwrap().iter().map(|one| one["text"].clone()).collect()
    };
    assert_eq!(texts(&answer).len(), 4);
    let (_, again) = ask(address, "/v1/completions", body).await;
    assert_eq!(texts(&answer), texts(&again));
}

#[tokio::test]
async fn streams_tell_the_same_text_in_pieces() {
    let address = start(options()).await;
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]);
    let mut body = json!({
        "model": "smollm", "messages": messages, "max_tokens": 12, "temperature": 0,
    });
    let (status, whole) = ask(address, "/v1/chat/completions", body.clone()).await;
    assert_eq!(status, 200, "{whole}");
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let text = body.to_string();
    let (head, stream) = send(address, "POST /v1/chat/completions", None, text.as_bytes()).await;
    assert!(head.contains("text/event-stream"), "{head}");
    let lines: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(lines.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> =
        lines[..lines.len() - 1].iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let told: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(told, whole["choices"][0]["message"]["content"].as_str().unwrap());
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
}

#[tokio::test]
async fn embeddings_come_as_numbers_or_bytes() {
    let address = start(options()).await;
    let case = &expected("smollm").base[1];
    let mut body = json!({"model": "smollm", "input": case.prompt});
    let (status, answer) = ask(address, "/v1/embeddings", body.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let found: Vec<f32> = serde_json::from_value(answer["data"][0]["embedding"].clone()).unwrap();
    assert_close(&found, &case.embedding, "embedding");
    body["encoding_format"] = "base64".into();
    let (_, answer) = ask(address, "/v1/embeddings", body).await;
    let bytes = answer["data"][0]["embedding"].as_str().unwrap().as_bytes();
    let bytes = data_encoding::BASE64.decode(bytes).unwrap();
    assert_eq!(bytes[..4], found[0].to_le_bytes());
}

#[tokio::test]
async fn keys_decide_who_asks_and_which_adapters_there_are() {
    let directory = tempfile::tempdir().unwrap();
    let address = start(with_keys(directory.path(), TenantShare::default())).await;
    let body = |model: &str| json!({"model": model, "prompt": "a", "max_tokens": 1});
    for (key, model, wanted, code) in [
        (None, "smollm", 401, "invalid_api_key"),
        (Some("key-of-nobody-0123"), "smollm", 401, "invalid_api_key"),
        (Some(KEYS[0].1), "all", 200, ""),
        (Some(KEYS[1].1), "smollm", 200, ""),
        (Some(KEYS[1].1), "all", 404, "model_not_found"),
        (Some(KEYS[0].1), "attention", 404, "model_not_found"),
    ] {
        let (status, answer) = ask_as(address, "/v1/completions", key, body(model)).await;
        assert_eq!(status, wanted, "{key:?} {model} {answer}");
        if !code.is_empty() {
            assert_eq!(answer["error"]["code"], code);
        }
    }
    let list = |key| async move {
        let (_, body) = send(address, "GET /v1/models", key, b"").await;
        let models: Value = serde_json::from_str(&body).unwrap();
        let ids = models["data"].as_array().unwrap().iter();
        ids.map(|model| model["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(Some(KEYS[0].1)).await, ["smollm", "all"]);
    assert_eq!(list(Some(KEYS[1].1)).await, ["smollm"]);
    let (head, _) = send(address, "GET /v1/models", None, b"").await;
    assert!(head.starts_with("http/1.1 401"), "{head}");
}

#[tokio::test]
async fn quotas_are_refused_with_a_time_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let share =
        TenantShare { tokens_per_minute: std::num::NonZeroU32::new(40), ..TenantShare::default() };
    let address = start(with_keys(directory.path(), share)).await;
    let body = json!({"model": "smollm", "prompt": [7, 8], "max_tokens": 30, "temperature": 0});
    let text = body.to_string();
    let key = Some(KEYS[0].1);
    send(address, "POST /v1/completions", key, text.as_bytes()).await;
    let (head, answer) = send(address, "POST /v1/completions", key, text.as_bytes()).await;
    assert!(head.starts_with("http/1.1 429") && head.contains("retry-after: "), "{head} {answer}");
    // Another tenant is not affected.
    let (status, _) = ask_as(address, "/v1/completions", Some(KEYS[1].1), body).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn bad_requests_have_the_right_status_and_harm_nobody() {
    let limits = Limits { cache_bytes: 64 << 10, ..Limits::default() };
    let address = start(LanguageOptions { limits, ..options() }).await;
    let long = "x".repeat(5000);
    let completion = |key: &str, value: Value| {
        let mut body = json!({"model": "smollm", "prompt": "a", "max_tokens": 1});
        body[key] = value;
        body.to_string().into_bytes()
    };
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let good = json!({"model": "smollm", "prompt": [7, 8, 9], "max_tokens": 120, "temperature": 0});
    let (_, alone) = ask(address, "/v1/completions", good.clone()).await;
    let beside = tokio::spawn(async move { ask(address, "/v1/completions", good).await });
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("/v1/completions", b"{".to_vec(), 400, "bad_json"),
        ("/v1/completions", deep, 400, "bad_json"),
        ("/v1/completions", b"{\"model\": \"\xff\xfe\"}".to_vec(), 400, "bad_json"),
        ("/v1/completions", completion("tools", json!([])), 400, "bad_json"),
        ("/v1/completions", completion("model", json!("none")), 404, "model_not_found"),
        ("/v1/completions", completion("prompt", json!("")), 400, "empty_prompt"),
        ("/v1/completions", completion("prompt", json!([9999])), 400, "unknown_token"),
        ("/v1/completions", completion("prompt", json!(long)), 400, "context_length_exceeded"),
        ("/v1/completions", completion("max_tokens", json!(-1)), 400, "bad_json"),
        (
            "/v1/completions",
            completion("max_tokens", json!(1_u64 << 60)),
            400,
            "context_length_exceeded",
        ),
        ("/v1/completions", completion("temperature", json!(-1)), 400, "invalid_value"),
        ("/v1/completions", completion("top_p", json!(0)), 400, "invalid_value"),
        ("/v1/completions", completion("n", json!(1000)), 400, "choices"),
        ("/v1/completions", completion("presence_penalty", json!(1)), 400, "unsupported"),
        (
            "/v1/chat/completions",
            br#"{"model":"smollm","messages":[]}"#.to_vec(),
            400,
            "no_messages",
        ),
        ("/v1/embeddings", br#"{"model":"smollm","input":[]}"#.to_vec(), 400, "inputs"),
    ];
    for (path, body, wanted, code) in cases {
        let (head, answer) = send(address, &format!("POST {path}"), None, &body).await;
        let shown = String::from_utf8_lossy(&body).chars().take(80).collect::<String>();
        assert!(head.starts_with(&format!("http/1.1 {wanted}")), "{shown}: {head} {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"], code, "{shown}: {answer}");
    }
    let (status, answer) = beside.await.unwrap();
    assert_eq!((status, &answer["choices"]), (200, &alone["choices"]), "answered beside them");
    let (status, _) =
        ask(address, "/v1/completions", json!({"model": "smollm", "prompt": "a"})).await;
    assert_eq!(status, 200);
}

/// The process's metrics; tests in one process share them, so tenants have names of their own.
fn recorded() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let install = || PrometheusBuilder::new().install_recorder().unwrap();
    HANDLE.get_or_init(install).clone()
}

/// One tenant with a key, a name of its own and whatever else a test needs of it.
fn with_tenant(
    directory: &Path,
    name: &str,
    change: impl FnOnce(&mut TenantOptions),
) -> (LanguageOptions, String) {
    let key = format!("key-of-{name}-0123456789");
    let key_file = directory.join(name);
    std::fs::write(&key_file, &key).unwrap();
    let mut context = TenantContext::new(TenantId::new(name).unwrap());
    context.isolation.model = ModelIsolation::Adapter;
    context.adapters = Some(["all".to_owned()].into());
    let key_file = Some(key_file);
    let mut tenant = TenantOptions {
        context,
        key_file,
        model: None,
        device: None,
        cache_bytes: None,
        threads: 1,
    };
    change(&mut tenant);
    (LanguageOptions { tenants: vec![tenant], ..options() }, key)
}

/// A metric's value now; `name` is with its labels.
async fn metric(address: SocketAddr, key: &str, name: &str) -> f64 {
    let (_, body) = send(address, "GET /metrics", Some(key), b"").await;
    let value = body.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0.0)
}

/// Asks for a metric until it is as wanted.
async fn wait_for_metric(address: SocketAddr, key: &str, name: &str, is: impl Fn(f64) -> bool) {
    for _ in 0..5000 {
        if is(metric(address, key, name).await) {
            return;
        }
    }
    let (_, body) = send(address, "GET /metrics", Some(key), b"").await;
    panic!("{name} in {body}");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_requests() {
    let directory = tempfile::tempdir().unwrap();
    let (mut options, key) = with_tenant(directory.path(), "leaver", |_| {});
    // One after the other: they are under way for a while.
    options.limits.batch_requests_max = 1;
    let address = start_with(options, recorded()).await;
    let held = "tributary_requests_held{tenant=\"leaver\"}";
    let cancelled = "tributary_requests{tenant=\"leaver\",outcome=\"cancelled\"}";
    for stream in [true, false] {
        let before = metric(address, &key, cancelled).await;
        let body = json!({
            "model": "smollm", "prompt": [7, 8, 9], "max_tokens": 480, "temperature": 0, "n": 60,
            "stream": stream,
        });
        let text = body.to_string();
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: agent\r\nauthorization: Bearer {key}\r\n\
             content-length: {}\r\n\r\n{text}",
            text.len()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        wait_for_metric(address, &key, held, |count| count > 0.0).await;
        drop(socket);
        wait_for_metric(address, &key, held, |count| count == 0.0).await;
        assert!(metric(address, &key, cancelled).await > before, "stream: {stream}");
    }
    let body = json!({"model": "smollm", "prompt": "b", "max_tokens": 1});
    let (status, _) = ask_as(address, "/v1/completions", Some(&key), body).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_full_queue_is_told_when_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let (mut options, key) = with_tenant(directory.path(), "crowd", |_| {});
    options.limits = Limits { queue_max: 2, batch_requests_max: 1, ..options.limits };
    let address = start_with(options, recorded()).await;
    // Eight at once: one begins, two wait, and there is no room for all the others.
    let body = json!({"model": "smollm", "prompt": [7, 8, 9], "n": 8, "max_tokens": 100, "temperature": 0});
    let (head, answer) =
        send(address, "POST /v1/completions", Some(&key), body.to_string().as_bytes()).await;
    assert!(head.starts_with("http/1.1 429") && head.contains("retry-after: "), "{head}");
    assert!(answer.contains("queue_full"), "{answer}");
    let refused = "tributary_rejections{tenant=\"crowd\",reason=\"queue_full\"}";
    assert_eq!(metric(address, &key, refused).await, 1.0);
    // Those of the refused call that were taken are given up, so there is room again.
    let body = json!({"model": "smollm", "prompt": "b", "max_tokens": 1});
    let mut status = 429;
    for _ in 0..2000 {
        (status, _) = ask_as(address, "/v1/completions", Some(&key), body.clone()).await;
        if status == 200 {
            break;
        }
    }
    assert_eq!(status, 200);
}

#[tokio::test]
async fn each_level_answers_the_same_and_keeps_to_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let (prompt, text) = greedy_text("all", 8);
    let shared_text = greedy_text("base", 8).1;
    for (number, (model, compute)) in [
        (ModelIsolation::BaseOnly, ComputeIsolation::SharedQueue),
        (ModelIsolation::Adapter, ComputeIsolation::SharedQueue),
        (ModelIsolation::Adapter, ComputeIsolation::DedicatedWorker),
        (ModelIsolation::IndependentCopy, ComputeIsolation::SharedQueue),
        (ModelIsolation::IndependentCopy, ComputeIsolation::DedicatedWorker),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("level-{number}");
        let (options, key) = with_tenant(directory.path(), &name, |tenant| {
            tenant.context.isolation.model = model;
            tenant.context.isolation.compute = compute;
        });
        let address = start_with(options, recorded()).await;
        let body = |model: &str| json!({"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0});
        let (status, answer) = ask_as(address, "/v1/completions", Some(&key), body("smollm")).await;
        assert_eq!((status, &answer["choices"][0]["text"]), (200, &json!(shared_text)), "{name}");
        let (status, answer) = ask_as(address, "/v1/completions", Some(&key), body("all")).await;
        if model == ModelIsolation::BaseOnly {
            assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
        } else {
            assert_eq!((status, &answer["choices"][0]["text"]), (200, &json!(text)), "{name}");
        }
        let (_, models) = send(address, "GET /v1/models", Some(&key), b"").await;
        assert_eq!(models.contains("\"all\""), model > ModelIsolation::BaseOnly, "{models}");
    }
}

#[tokio::test]
async fn a_prompt_that_another_tenant_asked_is_not_in_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let address = start(with_keys(directory.path(), TenantShare::default())).await;
    let prompt: Vec<u32> = (5..85).collect();
    let cached = |key: &'static str, model: &'static str| {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0});
        async move {
            let (status, answer) = ask_as(address, "/v1/completions", Some(key), body).await;
            assert_eq!(status, 200, "{answer}");
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        }
    };
    let [(_, ash), (_, elm)] = KEYS;
    assert_eq!(cached(ash, "smollm").await, 0);
    assert_eq!(cached(ash, "smollm").await, 64, "its own prefix is found");
    assert_eq!(cached(elm, "smollm").await, 0, "that of another tenant is not");
    assert_eq!(cached(ash, "all").await, 0, "nor that of another adapter version");
    assert_eq!(cached(elm, "smollm").await, 64);
}

#[tokio::test]
async fn metrics_of_one_tenant_are_not_shown_to_another() {
    let directory = tempfile::tempdir().unwrap();
    let options = with_keys(directory.path(), TenantShare::default());
    let address = start_with(options, recorded()).await;
    for (_, key) in KEYS {
        let body = json!({"model": "smollm", "prompt": "a", "max_tokens": 3, "temperature": 0});
        ask_as(address, "/v1/completions", Some(key), body).await;
    }
    let (head, _) = send(address, "GET /metrics", None, b"").await;
    assert!(head.starts_with("http/1.1 401"), "{head}");
    let key = KEYS[0].1;
    let tokens = "tributary_tokens{tenant=\"ash\",kind=\"answer\"}";
    assert!(metric(address, key, tokens).await >= 3.0);
    let (_, body) = send(address, "GET /metrics", Some(key), b"").await;
    for name in ["queue_seconds", "first_token_seconds", "cache_blocks_held"] {
        assert!(body.contains(&format!("tributary_{name}{{tenant=\"ash\"")), "{name}: {body}");
    }
    assert!(body.contains("tenant=\"ash\"") && !body.contains("elm"), "{body}");
}

/// Values that have surprised parsers before.
fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..9).prop_map(Value::from),
        Just(json!(u64::MAX)),
        Just(json!(i64::MIN)),
        Just(json!(1e300)),
        (-2.0..2.0_f64).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("smollm")),
        Just(json!([])),
        Just(json!([[]])),
        Just(json!({})),
        prop::collection::vec(0_i64..300, 0..6).prop_map(Value::from),
        Just(json!(["a", "b"])),
        Just(json!([{"role": "user", "content": "hi"}])),
        Just(json!([{"role": "", "content": [{"type": "image"}]}])),
        Just(json!([{"role": "\u{0}", "content": "}}{%"}])),
    ]
}

/// A request with some keys as they should be and some as they should not.
fn odd_request() -> impl Strategy<Value = Value> {
    const KEYS: [&str; 16] = [
        "model",
        "prompt",
        "input",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "seed",
        "stop",
        "n",
        "stream",
        "stream_options",
        "encoding_format",
        "tools",
    ];
    let odd = prop::collection::btree_map(prop::sample::select(&KEYS[..]), odd_value(), 0..5);
    let chosen = prop::sample::select(&["prompt", "input", "messages"][..]);
    (chosen, odd).prop_map(|(kind, odd)| {
        let content = if kind == "messages" {
            json!([{"role": "user", "content": "Hello!"}])
        } else {
            json!("Hello!")
        };
        let mut request = json!({"model": "smollm", kind: content});
        if kind != "input" {
            request["max_tokens"] = 2.into();
        }
        for (key, value) in odd {
            request[key] = value;
        }
        request
    })
}

#[test]
fn no_request_harms_the_agent() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = runtime.block_on(start(options()));
    let paths =
        prop::sample::select(&["/v1/completions", "/v1/chat/completions", "/v1/embeddings"][..]);
    proptest!(ProptestConfig::with_cases(300), |(path in paths, request in odd_request())| {
        let body = request.to_string();
        let path = format!("POST {path}");
        let (head, answer) = runtime.block_on(send(address, &path, None, body.as_bytes()));
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        prop_assert!([200, 400, 404].contains(&status), "{path} {body}: {answer}");
        if status != 200 {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            prop_assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
        }
    });
    let body = json!({"model": "smollm", "prompt": "a", "max_tokens": 1});
    let (status, _) = runtime.block_on(ask(address, "/v1/completions", body));
    assert_eq!(status, 200);
}

/// The official client: a Python that has it (`TRIBUTARY_OPENAI_PYTHON`), or a virtual environment
/// that is made where Python and the package index are to be had.
#[tokio::test]
async fn the_official_client_works() {
    let directory = tempfile::tempdir().unwrap();
    let python = match std::env::var("TRIBUTARY_OPENAI_PYTHON") {
        Ok(python) => python.into(),
        Err(_) => match python_with_client(directory.path()).await {
            Ok(python) => python,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        },
    };
    let address = start(with_keys(directory.path(), TenantShare::default())).await;
    let outcome = tokio::process::Command::new(python)
        .arg(fixture("openai_client.py"))
        .args([format!("http://{address}/v1"), KEYS[0].1.to_owned()])
        .output()
        .await
        .unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
}

/// Makes a virtual environment with the pinned client, or says why there is none.
async fn python_with_client(directory: &Path) -> Result<std::path::PathBuf, String> {
    let requirements = std::fs::read_to_string(fixture("requirements.txt")).unwrap();
    let client = requirements.lines().find(|line| line.starts_with("openai==")).unwrap();
    let environment = directory.join("environment");
    let python = environment.join("bin/python");
    let make = ["-m".into(), "venv".into(), environment.clone().into_os_string()];
    let install = ["-m", "pip", "install", "--quiet", "--retries", "0", "--timeout", "5", client];
    let steps = [
        ("python3".into(), make.to_vec()),
        (python.clone().into_os_string(), install.map(Into::into).to_vec()),
    ];
    for (program, arguments) in steps {
        let output = tokio::process::Command::new(&program).args(arguments).output().await;
        let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(text.lines().last().unwrap_or("no reason given").to_owned());
        }
    }
    Ok(python)
}

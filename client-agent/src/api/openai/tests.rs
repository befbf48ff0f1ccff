use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tributary_protocol::id::TenantId;

use crate::{
    api::{ApiState, serve},
    config::serve_folder,
    driver::status::SharedStatus,
    engine::{
        Engine,
        generation::{Limits, TenantShare},
        language::{LanguageModel, LanguageOptions, TenantAccess},
    },
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
            let adapters = if tenant == "ash" { ["all".to_owned()].into() } else { [].into() };
            TenantAccess { tenant: TenantId::new(tenant).unwrap(), key_file, adapters, share }
        })
        .into();
    LanguageOptions { tenants, ..options() }
}

async fn start(options: LanguageOptions) -> SocketAddr {
    let status = SharedStatus::new(TenantId::new("local").unwrap(), Phase::Serving);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = ApiState {
        engine: Arc::new(Engine::new()),
        language: Some(Arc::new(LanguageModel::start(options).unwrap())),
        status: Arc::new(status),
        metrics: PrometheusBuilder::new().build_recorder().handle(),
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
    assert!(list(None).await.is_empty());
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
    let (status, _) =
        ask(address, "/v1/completions", json!({"model": "smollm", "prompt": "a"})).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_engine() {
    let address = start(options()).await;
    let mut body = json!({"model": "smollm", "prompt": "a", "max_tokens": 400, "temperature": 0});
    body["stream"] = true.into();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let text = body.to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: agent\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 64];
        stream.read_exact(&mut first).await.unwrap();
    }
    let (status, _) =
        ask(address, "/v1/completions", json!({"model": "smollm", "prompt": "b"})).await;
    assert_eq!(status, 200);
}

/// The official client, where a Python with it is named; see `tests/fixtures/language/make.py`.
#[tokio::test]
async fn the_official_client_works() {
    let Ok(python) = std::env::var("TRIBUTARY_OPENAI_PYTHON") else {
        println!("skipped: TRIBUTARY_OPENAI_PYTHON names no Python with the openai package");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let address = start(with_keys(directory.path(), TenantShare::default())).await;
    let outcome = tokio::process::Command::new(python)
        .arg(fixture("openai_client.py"))
        .args([format!("http://{address}/v1"), KEYS[0].1.to_owned()])
        .output()
        .await
        .unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
}

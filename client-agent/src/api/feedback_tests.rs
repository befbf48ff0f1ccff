use std::sync::atomic::Ordering;

use proptest::prelude::*;
use serde_json::{Value, json};
use tributary_protocol::{id::TenantId, time::Timestamp};

use super::tests::{Running, ask, start};
use crate::{
    data::Dataset,
    feedback::PredictionId,
    keys::{KeyFile, KeyRole, NewKey},
};

async fn send(agent: &Running, request: &str, key: Option<&str>, body: Value) -> (u16, Value) {
    let key = key.map(|key| format!("\r\nauthorization: Bearer {key}")).unwrap_or_default();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, answer) = ask_with(agent, request, &key, body.as_bytes()).await;
    (status, serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
}

async fn ask_with(agent: &Running, request: &str, header: &str, body: &[u8]) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(agent.address).await.unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nhost: agent\r\nconnection: close{header}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn predict(agent: &Running, inputs: Value) -> Vec<String> {
    let body = json!({"inputs": inputs});
    let (status, answer) = send(agent, "POST /v1/predict", None, body).await;
    assert_eq!(status, 200, "{answer}");
    let predictions = answer["predictions"].as_array().unwrap();
    predictions.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

async fn tell(agent: &Running, body: Value) -> (u16, Value) {
    send(agent, "POST /v1/feedback", None, body).await
}

#[tokio::test]
async fn outcomes_become_quality_and_labelled_data() {
    let agent = start(true).await;
    // The model answers with the larger of the two.
    let ids = predict(&agent, json!([[3, 0], [0, 3], [5, 0]])).await;
    for (id, label, status) in [(&ids[0], 0, "new"), (&ids[1], 0, "new"), (&ids[1], 0, "repeated")]
    {
        let (code, answer) = tell(&agent, json!({"id": id, "label": label})).await;
        assert_eq!((code, &answer["status"]), (200, &json!(status)), "{answer}");
    }
    let (_, answer) = send(&agent, "GET /v1/feedback", None, Value::Null).await;
    let quality = &answer["quality"];
    assert_eq!(quality["waiting"], 1);
    assert_eq!((&quality["labelled"], &quality["accuracy"]), (&json!(2), &json!(0.5)));
    let store = agent.state.feedback.as_ref().unwrap();
    let census = tributary_protocol::id::DatasetName::new("census").unwrap();
    let data = Dataset::from_floats(vec![0.0; 2], 2, vec![0], 2);
    let examples = store.examples(&census, &data).unwrap();
    let rows = vec![vec![3.0, 0.0], vec![0.0, 3.0]];
    assert_eq!((examples.rows, examples.labels), (rows, vec![0, 0]));
}

#[tokio::test]
async fn bad_feedback_is_named() {
    let agent = start(true).await;
    let ids = predict(&agent, json!([[3, 0]])).await;
    let old = PredictionId::new(Timestamp(5), 9).to_string();
    let future = PredictionId::new(Timestamp(1 << 47), 9).to_string();
    tell(&agent, json!({"id": ids[0], "label": 1})).await;
    for (body, status, code) in [
        (json!({"id": ids[0]}), 400, "bad-json"),
        (json!({"id": ids[0], "label": -1}), 400, "bad-json"),
        (json!({"id": ids[0], "label": 0.5}), 400, "bad-json"),
        (json!({"id": ids[0], "label": 1, "weight": 2}), 400, "bad-json"),
        (json!({"id": "p123", "label": 1}), 400, "bad-prediction-id"),
        (json!({"id": ids[0], "label": 0}), 409, "labelled-already"),
        (json!({"id": future, "label": 0}), 404, "unknown-prediction"),
        (json!({"id": old, "label": 0}), 410, "expired-prediction"),
    ] {
        let (found, answer) = tell(&agent, body.clone()).await;
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{body} {answer}");
    }
    let other = predict(&agent, json!([[3, 0]])).await;
    let (status, answer) = tell(&agent, json!({"id": other[0], "label": 2})).await;
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("unknown-label")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("0 to 1"), "{answer}");
}

#[tokio::test]
async fn deleted_feedback_is_gone() {
    let agent = start(true).await;
    let ids = predict(&agent, json!([[3, 0]])).await;
    tell(&agent, json!({"id": ids[0], "label": 1})).await;
    let path = format!("DELETE /v1/feedback/{}", ids[0]);
    let (status, answer) = send(&agent, &path, None, Value::Null).await;
    assert_eq!((status, &answer["deleted"]), (200, &json!(true)));
    let (status, _) = send(&agent, &path, None, Value::Null).await;
    assert!(status == 404 || status == 410, "{status}");
    let (status, _) = send(&agent, "DELETE /v1/feedback/nonsense", None, Value::Null).await;
    assert_eq!(status, 400);
    let (_, answer) = send(&agent, "GET /v1/feedback", None, Value::Null).await;
    assert_eq!(answer["quality"]["labelled"], 0);
}

#[tokio::test]
async fn keys_of_other_tenants_and_for_other_things_are_refused() {
    let agent = start(true).await;
    let file = KeyFile::new(agent.site.keys());
    let key = |tenant: &str, roles: &[KeyRole]| {
        let tenant = TenantId::new(tenant).unwrap();
        let roles = roles.iter().copied().collect();
        let new = NewKey { tenant, roles, expires: None, note: None };
        file.add(new, Timestamp(0)).unwrap().1
    };
    let all = key("ash", &[KeyRole::Inference, KeyRole::Feedback, KeyRole::Viewer]);
    let inference = key("ash", &[KeyRole::Inference]);
    let operator = key("ash", &[KeyRole::Operator]);
    let elm = key("elm", &[KeyRole::Inference, KeyRole::Feedback, KeyRole::Viewer]);
    let body = json!({"inputs": [[3, 0]]});
    for (request, body, cases) in [
        ("POST /v1/predict", body, [200, 200, 403, 403]),
        ("GET /v1/feedback", Value::Null, [200, 403, 403, 403]),
        ("GET /v1/status", Value::Null, [200, 403, 200, 403]),
        ("GET /metrics", Value::Null, [200, 403, 200, 200]),
        ("GET /v1/models", Value::Null, [200, 200, 403, 200]),
    ] {
        let (status, answer) = send(&agent, request, None, body.clone()).await;
        assert_eq!(status, 401, "{request} {answer}");
        let (status, _) = send(&agent, request, Some("guess"), body.clone()).await;
        assert_eq!(status, 401);
        for (key, wanted) in [&all, &inference, &operator, &elm].into_iter().zip(cases) {
            let (status, answer) = send(&agent, request, Some(key), body.clone()).await;
            assert_eq!(status, wanted, "{request} {answer}");
        }
    }
    let (_, models) = send(&agent, "GET /v1/models", Some(&elm), Value::Null).await;
    assert_eq!(models["data"], json!([]), "the classifier is not for other tenants");
    assert_eq!(ask(agent.address, "GET /healthz", b"").await.0, 200, "health needs no key");
}

#[tokio::test]
async fn an_agent_that_stops_takes_nothing_new_and_says_so() {
    let agent = start(true).await;
    agent.state.stopping.store(true, Ordering::Relaxed);
    for request in ["POST /v1/predict", "POST /v1/feedback", "GET /healthz"] {
        let (status, answer) = send(&agent, request, None, json!({})).await;
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("stopping")), "{request}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever comes in, a request has an answer that names what was wrong, and the agent goes on.
    #[test]
    fn no_body_harms_the_agent(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let agent = start(true).await;
            for path in ["POST /v1/predict", "POST /v1/feedback"] {
                let (status, answer) = ask(agent.address, path, &body).await;
                assert_eq!(status, 400, "{answer}");
                assert!(answer.contains("bad-json"), "{answer}");
            }
            assert_eq!(ask(agent.address, "GET /healthz", b"").await.0, 200);
        });
    }
}

//! What monitoring is told: every metric that the examples use exists on a coordinator that has
//! seen it all.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    installed,
    wait::until,
};

use crate::job;

/// The names of metrics in a text, without what a histogram's series add.
fn names(text: &str) -> BTreeSet<String> {
    let word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let known = |word: &&str| word.starts_with("tributary_") || word.starts_with("process_");
    let bare = |name: &str| {
        let series = ["_bucket", "_sum", "_count"];
        let found = series.iter().find_map(|series| name.strip_suffix(series));
        found.unwrap_or(name).to_owned()
    };
    text.split(|char| !word(char)).filter(known).map(bare).collect()
}

fn examples() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    ["grafana/coordinator.json", "prometheus/alerts.yml"]
        .iter()
        .flat_map(|file| names(&fs::read_to_string(root.join(file)).expect("an example")))
        .collect()
}

#[test]
fn every_metric_of_the_board_and_the_alerts_is_exported() {
    let coordinator = Coordinator::start();
    let policy = format!("{POLICY}evaluation_noise_multiplier_min = 0.5\n");
    let mut agents = ["alpha", "beta"].map(|tenant| Agent::enroll(&coordinator, tenant, &policy));
    agents.iter_mut().for_each(Agent::run);
    let evaluated = "[evaluation]\nevery_rounds = 1\nmetrics = [\"accuracy\", \"loss\"]\nnoise_multiplier = 1.0\n";
    coordinator.submit(&format!("{}{evaluated}", job("points", 3, 2)));
    coordinator.finish("points", 60);
    // Forbidden by the policy, so that it is declined; then stopped with an open round.
    coordinator.submit(
        &job("forbidden", 1, 2).replace("noise_multiplier = 1.0", "noise_multiplier = 0.1"),
    );
    until("the refusals", 30, || {
        let document = coordinator.get("/v1/jobs/forbidden");
        document["waiting_for"].as_str()?.contains("alpha, beta refuse:").then_some(())
    });
    let _ = coordinator.ask(&["job", "stop", "forbidden"]);
    let text = String::from_utf8(coordinator.get_bytes("/metrics")).expect("text");
    let exported = names(&text);
    let mut missing: BTreeSet<_> = examples().difference(&exported).cloned().collect();
    // Only sums of distributed noise reveal it; the tests of secure aggregation see it.
    assert!(missing.remove("tributary_job_epsilon"), "this job has local noise");
    assert_eq!(missing, BTreeSet::new(), "of {exported:?}");
    assert!(examples().len() > 25, "{:?}", examples());
    for line in [
        "tributary_jobs{state=\"finished\"} 1",
        "tributary_job_rounds_committed{job=\"points\"} 3",
        // Who declines after the round is given up declines nothing.
        "job=\"forbidden\"} 1",
        "tributary_rounds_committed_total{job=\"points\"} 3",
        "tributary_tenant_connected{tenant=\"alpha\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let bytes: u64 = text
        .lines()
        .filter(|line| line.starts_with("tributary_update_bytes_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    let model = coordinator.get("/v1/jobs/points")["terms"]["num_parameters"].as_u64();
    assert_eq!(bytes, 6 * model.expect("a count") * 24 / 8, "six updates of 24 bits a coordinate");
}

/// The example files as Prometheus' own checker reads them; when alerts fire is in `alerts_test.yml`.
#[test]
fn prometheus_takes_the_examples_and_alerts_fire_when_they_should() {
    let Some(promtool) = installed("promtool") else {
        eprintln!("skipped: no promtool here (Debian: prometheus)");
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/prometheus");
    // The configuration names a token's file, which only a real installation has.
    let own = tempfile::tempdir().expect("a folder");
    let token = own.path().join("token");
    fs::write(&token, "prometheus.secret").expect("writes");
    fs::copy(folder.join("alerts.yml"), own.path().join("alerts.yml")).expect("copies");
    let text = fs::read_to_string(folder.join("prometheus.yml")).expect("an example");
    let text = text.replace("/etc/prometheus/tributary.token", &token.to_string_lossy());
    let configuration = own.path().join("prometheus.yml");
    fs::write(&configuration, text).expect("writes");
    for (what, file) in
        [(["check", "config"], configuration), (["test", "rules"], folder.join("alerts_test.yml"))]
    {
        let output = Command::new(&promtool).args(what).arg(file).output().expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{what:?}: {}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn logs_as_json_name_tenant_job_and_round_on_every_line() {
    let coordinator = Coordinator::start_with(&["--log-format", "json"]);
    let mut agent = Agent::enroll(&coordinator, "alpha", POLICY);
    agent.run_with(&[("TRIBUTARY_LOG_FORMAT", "json")]);
    coordinator.submit(&job("points", 1, 1));
    coordinator.finish("points", 60);
    for (log, stored) in
        [(coordinator.log_text(), "update stored"), (agent.log_text(), "update debited")]
    {
        let lines: Vec<serde_json::Value> = log
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect();
        for line in &lines {
            for key in ["at", "level", "message", "tenant", "job", "round"] {
                assert!(line.get(key).is_some(), "{key} is not in {line}");
            }
        }
        let stored = lines.iter().find(|line| line["message"] == stored).expect(stored);
        let named = ["tenant", "job"].map(|key| stored[key].as_str().unwrap_or_default());
        assert_eq!(named, ["alpha", "points"], "{stored}");
        assert!(stored["round"] == "1" || stored["round"] == 1, "{stored}");
    }
}

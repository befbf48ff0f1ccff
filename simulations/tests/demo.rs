//! The demo with real processes on real data, where both are at hand.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tributary_sim::data::fetch::Locations;

const BINARY: &str = env!("CARGO_BIN_EXE_tributary-sim");

/// Why the demo cannot run here, if so. `cargo xtask ci` brings both about.
fn missing() -> Option<&'static str> {
    let folder = Path::new(BINARY).parent().expect("a folder");
    let built =
        |program| folder.join(format!("{program}{}", std::env::consts::EXE_SUFFIX)).is_file();
    if !(built("tributary-coordinator") && built("tributary-agent")) {
        return Some("the coordinator and the agent are not built (cargo xtask test)");
    }
    let data = Locations::of_this_machine().find();
    data.is_none().then_some("Fashion-MNIST is not here (tributary-sim data fetch fashion-mnist)")
}

#[test]
fn a_quick_demo_trains_adapts_and_accounts() {
    if let Some(reason) = missing() {
        println!("skipped: {reason}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let work = folder.path().join("demo");
    let output = Command::new(BINARY)
        .args(["demo", "--quick", "--json", "--tenants", "3", "--dir"])
        .arg(&work)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let progress = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{progress}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "one JSON object, nothing else: {text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");

    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    assert_eq!(report["rounds"], 5);
    assert!(number(&report["base_accuracy"]) > number(&report["initial_accuracy"]), "{report}");
    let tenants = report["tenants"].as_array().expect("an array");
    assert_eq!(tenants.len(), 3);
    for tenant in tenants {
        assert!((0.01..8.0).contains(&number(&tenant["epsilon"])), "{tenant}");
        assert!(number(&tenant["adapter_accuracy"]) >= number(&tenant["base_accuracy"]) - 0.02);
        assert!(number(&tenant["bytes_sent"]) > 100_000.0, "{tenant}");
    }
    for log in ["coordinator", "ash", "birch", "cedar"] {
        assert!(work.join("logs").join(format!("{log}.log")).is_file(), "{log} has no log");
    }
    assert!(progress.contains("round"), "{progress}");
}

#[test]
fn a_quick_demo_with_secure_aggregation_goes_on_without_a_killed_agent() {
    if let Some(reason) = missing() {
        println!("skipped: {reason}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(BINARY)
        .args(["demo", "--secagg", "--quick", "--json", "--dir"])
        .arg(folder.path().join("demo"))
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let progress = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{progress}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["rounds"], 5);
    assert_eq!(report["tenants"].as_array().expect("an array").len(), 5);
    assert!(report["killed"]["round"].as_u64().expect("a number") >= 2, "{report}");
    assert!(progress.contains("kill -9"), "{progress}");
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    assert!(number(&report["base_accuracy"]) > number(&report["initial_accuracy"]), "{report}");
    for tenant in report["tenants"].as_array().expect("an array") {
        assert!((0.01..8.0).contains(&number(&tenant["epsilon"])), "{tenant}");
    }
}

//! The tutorial, typed as it is written.

use std::{path::Path, process::Command};

const BINARY: &str = env!("CARGO_BIN_EXE_tributary-sim");

fn tutorial() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/tutorial.md");
    std::fs::read_to_string(path).expect("docs/tutorial.md is there")
}

/// The `sh` blocks, in their order.
fn commands(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while lines.any(|line| line == "```sh") {
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push(block.join("\n"));
    }
    blocks
}

#[test]
fn every_command_works_as_written() {
    let blocks = commands(&tutorial());
    assert!(blocks.len() >= 6, "{blocks:#?}");
    let folder = tempfile::tempdir().expect("a folder");
    let programs = Path::new(BINARY).parent().expect("a folder").to_owned();
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&inherited)));
    // One shell, as the reader has one; it stops at the first command that fails.
    let output = Command::new("sh")
        .args(["-e", "-u", "-c", &blocks.join("\n")])
        .env("PATH", path.expect("no separator in a path"))
        .current_dir(folder.path())
        .output()
        .expect("there is a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lab = folder.path().join("lab");
    let read = |name: &str| std::fs::read_to_string(lab.join(name)).expect(name);

    // What the text says about the results.
    assert!(said.contains("did you mean `rounds`?"), "{said}");
    assert_eq!(read("results/privacy/sweep.csv").lines().count(), 1 + 6);
    assert!(read("results/report.html").contains("first"));
    let result = |run: &str| -> serde_json::Value {
        serde_json::from_str(&read(&format!("results/{run}/seed-1/result.json"))).expect("JSON")
    };
    let number = |run: &str, key: &str| result(run)[key].as_f64().expect("a number");
    assert!(number("first", "accuracy") > 0.8, "{}", result("first"));
    assert!(number("mine", "accuracy") > 0.7, "{}", result("mine"));
    assert!(number("mine", "epsilon") <= 8.0, "{}", result("mine"));
    let gain = number("personal", "adapter_accuracy") - number("personal", "held_out_accuracy");
    assert!(gain > 0.0, "{}", result("personal"));
}

//! The service units and the container file: the programs know every command and variable in them.

use std::{fs, path::PathBuf};

use serde_json::Value;
use tributary_tests::program;

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a program says about a folder with nothing in it.
fn refusal(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = program(name).args(arguments).envs(variables.iter().copied()).output();
    let output = output.expect("the program runs");
    assert!(!output.status.success(), "there is nothing in the folder");
    String::from_utf8(output.stderr).expect("text")
}

/// Whether a program understood what it was asked, and looked into the folder.
fn understood(name: &str, arguments: &[&str], variables: &[(&str, &str)], folder: &str) {
    let text = refusal(name, arguments, variables);
    assert!(text.contains(folder) && !text.contains("Usage:"), "{name} {arguments:?}: {text}");
}

#[test]
fn the_units_start_the_programs_as_they_want_to_be_started() {
    let empty = tempfile::tempdir().expect("a folder");
    let empty = empty.path().to_str().expect("text");
    for (unit, name, folder) in [
        ("systemd/tributary-coordinator.service", "tributary-coordinator", "/var/lib/tributary"),
        ("systemd/tributary-agent@.service", "tributary-agent", "/var/lib/tributary-agent/%i"),
    ] {
        let text = read(unit);
        let value = |key: &str| {
            let mut lines =
                text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            lines.next().unwrap_or_else(|| panic!("{unit}: {key}")).to_owned()
        };
        let start = value("ExecStart");
        let words: Vec<_> = start.split(' ').collect();
        assert_eq!(words[0], format!("/usr/local/bin/{name}"));
        assert!(words.contains(&folder), "{start}");
        let arguments: Vec<_> =
            words[1..].iter().map(|&word| if word == folder { empty } else { word }).collect();
        understood(name, &arguments, &[], empty);
        let state = value("StateDirectory");
        assert_eq!(format!("/var/lib/{state}"), folder, "the folder outlives the service");
        assert_eq!(value("StateDirectoryMode"), "0700", "keys are in it");
        assert_eq!(value("Restart"), "on-failure");
    }
}

#[test]
fn the_container_file_names_programs_commands_and_variables_that_there_are() {
    let empty = tempfile::tempdir().expect("a folder");
    let empty = empty.path().to_str().expect("text");
    let text = read("container/Containerfile");
    let line = |key: &str| {
        let found =
            text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).next_back();
        found.unwrap_or_else(|| panic!("{key}")).to_owned()
    };
    let command: Vec<Value> = serde_json::from_str(&line("CMD")).expect("a list");
    let command: Vec<_> = command.iter().map(|word| word.as_str().expect("text")).collect();
    let variables = line("ENV");
    let variables: Vec<_> = variables
        .split(' ')
        .map(|pair| pair.split_once('=').expect("a value"))
        .map(|(name, value)| (name, if value == "/data" { empty } else { value }))
        .collect();
    understood(command[0], &command[1..], &variables, empty);
    understood("tributary-agent", &["run"], &variables, empty);
    let toolchain = fs::read_to_string(
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../rust-toolchain.toml"),
    );
    let toolchain = toolchain.expect("a toolchain");
    let version = toolchain.split('"').nth(1).expect("a channel");
    let version = version.rsplit_once('.').expect("three numbers").0;
    assert!(text.contains(&format!("rust:{version}-")), "the container builds with {version}");
}

//! The harness of the black-box tests: real processes, real QUIC, and a hand-driven peer.
//!
//! | module | what it drives |
//! |---|---|
//! | [`coordinator`] | a `tributary-coordinator` process that can be killed and restarted |
//! | [`agent`] | a `tributary-agent` process on synthetic data |
//! | [`peer`] | an agent whose every message the test chooses |
//! | [`research`] | a tenant whose every byte follows from its name and what it is told |
//! | [`browser`] | Chromium over WebDriver, if it is installed |
//! | [`issuer`] | an OpenID Connect issuer that signs in whoever comes |
//! | [`secagg`] | a member of a secure aggregation whose update the test chooses |
//! | [`usage`] | the memory and processor time of a process |
//! | [`wait`] | bounded waiting for a condition |
//! | [`wire`] | datagrams below QUIC: first packets that nothing follows, and a line that records |

pub mod agent;
pub mod browser;
pub mod coordinator;
pub mod issuer;
pub mod peer;
pub mod research;
pub mod secagg;
pub mod usage;
pub mod wait;
pub mod wire;

use std::{path::PathBuf, process::Command};

/// Finds a program that `cargo xtask test` builds before it runs the tests.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn program(name: &str) -> Command {
    let test = std::env::current_exe().expect("a test binary");
    let folder: PathBuf = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned();
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing; run the tests with `cargo xtask test`", path.display());
    Command::new(path)
}

/// The file of a program that this machine may have or not.
#[must_use]
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

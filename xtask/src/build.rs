//! Builds the programs that tests and demo start.

use std::path::PathBuf;

use crate::shell::{cargo, root, run};

/// The packages with a program.
const PROGRAMS: [&str; 3] = ["tributary-coordinator", "tributary-agent", "tributary-sim"];

/// How to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// With overflow checks and debug assertions, as the tests.
    Dev,
    /// As it is shipped.
    Release,
}

/// Builds the three programs; returns the folder that holds them.
pub(crate) fn programs(profile: Profile) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--locked"]);
    match profile {
        // Together with the tests, so that both share one set of features and build once.
        Profile::Dev => {
            command.args(["--workspace", "--bins", "--tests"]);
        }
        Profile::Release => {
            command.args(["--release", "--bins"]);
            for package in PROGRAMS {
                command.args(["--package", package]);
            }
        }
    }
    run(&mut command)?;
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root().join("target"), |path| root().join(path));
    Ok(target.join(match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    }))
}

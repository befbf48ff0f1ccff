//! What each developer command does.

use anyhow::ensure;

use crate::{
    build::{self, Profile},
    shell::{cargo, has_cargo_subcommand, program, root, run, say},
};

/// Formatting, lints and documentation.
pub(crate) fn check() -> anyhow::Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo()
        .args(["clippy", "--locked", "--workspace", "--all-targets"])
        .args(["--", "-D", "warnings"]))?;
    // Without the simulator's feature `research`: seeded noise does not exist for what is shipped.
    run(cargo().args([
        "check",
        "--locked",
        "-p",
        "tributary-coordinator",
        "-p",
        "tributary-agent",
        // Off by default, so nothing else sees that it compiles.
        "--features",
        "tributary-coordinator/otel,tributary-agent/parquet",
    ]))?;
    run(cargo()
        .args(["doc", "--locked", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}

/// All tests, the documentation's examples included.
pub(crate) fn test(arguments: &[String]) -> anyhow::Result<()> {
    build::programs(Profile::Dev)?;
    if has_cargo_subcommand("nextest") {
        run(cargo().args(["nextest", "run", "--locked", "--workspace"]).args(arguments))?;
        // nextest does not run the examples in the documentation; its filters are not theirs.
        if arguments.is_empty() {
            run(cargo().args(["test", "--locked", "--workspace", "--doc"]))?;
        }
        Ok(())
    } else {
        run(cargo().args(["test", "--locked", "--workspace"]).args(arguments))
    }
}

/// Experiments that processes of `mpirun` share.
pub(crate) fn mpi_test() -> anyhow::Result<()> {
    let starts = |name: &str| {
        program(name).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    ensure!(
        starts("mpicc") && starts("mpirun"),
        "there is no Open MPI; on Debian: apt-get install libopenmpi-dev openmpi-bin libclang-dev"
    );
    let feature = ["--package", "tributary-sim", "--features", "mpi"];
    run(cargo().args(["clippy", "--locked"]).args(feature).args(["--", "-D", "warnings"]))?;
    run(cargo()
        .args(["test", "--locked", "--test", "mpi"])
        .args(feature)
        .args(["--", "--nocapture"]))
}

/// Everything that continuous integration runs.
///
/// Tests on real data skip themselves where it is missing; here it is fetched for them first.
pub(crate) fn ci() -> anyhow::Result<()> {
    check()?;
    let folder = build::programs(Profile::Dev)?;
    let mut fetch = program(folder.join("tributary-sim"));
    if let Err(error) = run(fetch.args(["data", "fetch", "fashion-mnist"])) {
        say(&format!("tests on Fashion-MNIST will be skipped: {error:#}"));
    }
    test(&[])
}

/// The demo, from release binaries.
pub(crate) fn demo(arguments: &[String]) -> anyhow::Result<()> {
    let folder = build::programs(Profile::Release)?;
    run(program(folder.join("tributary-sim")).arg("demo").args(arguments))
}

/// All benchmarks; that of the coordinator under load drives the programs.
pub(crate) fn bench(arguments: &[String]) -> anyhow::Result<()> {
    build::programs(Profile::Release)?;
    run(cargo().args(["bench", "--locked", "--workspace", "--benches"]).args(arguments))
}

/// The long test of recovery.
pub(crate) fn soak(seconds: u64) -> anyhow::Result<()> {
    build::programs(Profile::Dev)?;
    // The whole workspace, so that the programs keep their set of features.
    run(cargo()
        .args(["test", "--locked", "--workspace", "--test", "black_box", "--"])
        .args(["--ignored", "--nocapture", "minutes_of_random_kills"])
        .env("TRIBUTARY_SOAK_SECONDS", seconds.to_string()))
}

/// One fuzz target.
pub(crate) fn fuzz(target: &str, arguments: &[String]) -> anyhow::Result<()> {
    let file = root().join("fuzz/fuzz_targets").join(format!("{target}.rs"));
    ensure!(file.is_file(), "there is no fuzz target `{target}`{}", known_targets());
    ensure!(
        has_cargo_subcommand("fuzz"),
        "cargo-fuzz is not installed; it needs a nightly toolchain: \
         cargo install cargo-fuzz && rustup toolchain install nightly"
    );
    say("fuzzing until it finds something; Ctrl-C stops it");
    // `cargo +nightly` is rustup's, not that of the toolchain that started this program.
    run(program("cargo").args(["+nightly", "fuzz", "run", target, "--"]).args(arguments))
}

fn known_targets() -> String {
    let entries = std::fs::read_dir(root().join("fuzz/fuzz_targets"));
    let files = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    if names.is_empty() {
        "; the folder fuzz/fuzz_targets has none".to_owned()
    } else {
        format!("; there are {}", names.join(", "))
    }
}

//! Runs that several processes of `mpirun` share: `cargo xtask mpi-test`.

use std::{path::Path, process::Command};

const BINARY: &str = env!("CARGO_BIN_EXE_tributary-sim");

/// All that crosses processes: sums, measurements, masks, adapters, buffers.
const MODES: [(&str, &str); 4] = [
    ("plain", "[privacy.none]\n[evaluation]\nevery = 2\nper_tenant = true"),
    (
        "secure",
        "[privacy.distributed]\nclipping_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-5\n\
         [secagg]\ndropout_max = 0.3",
    ),
    ("adapters", "[privacy.none]\n[adapters]\nepochs_max = 2"),
    ("buffered", "[privacy.none]\n[clock]\nstraggler_share = 0.2\n[asynchronous]"),
];

fn experiment(mode: &str) -> String {
    format!(
        r#"
        name = "shared"
        rounds = 4
        tenants = 12
        [dataset.synthetic]
        examples = 300
        features = 5
        classes = 3
        [cohort]
        size = 6
        report_goal = 5
        size_min = 4
        dropout_rate = 0.1
        [model.mlp]
        inputs = 5
        hidden = [7]
        classes = 3
        [training.epochs]
        batch_size = 10
        client_learning_rate = 0.1
        {mode}
        "#
    )
}

fn run(command: &mut Command) {
    let output = command.output().expect("starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

#[test]
fn any_number_of_mpi_processes_gives_the_bytes_of_one() {
    if !cfg!(feature = "mpi") {
        println!("skipped: built without the feature `mpi`; `cargo xtask mpi-test` has it");
        return;
    }
    if Command::new("mpirun").arg("--version").output().is_err() {
        println!("skipped: there is no `mpirun`; on Debian it is in openmpi-bin");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (name, mode) in MODES {
        let file = folder.path().join(format!("{name}.toml"));
        std::fs::write(&file, experiment(mode)).expect("written");
        let output = |processes: usize| folder.path().join(format!("{name}-{processes}"));
        let (one, file) = (output(1), &file);
        run(Command::new(BINARY).arg("run").arg(file).arg("--output").arg(&one));
        for processes in [2, 3] {
            run(Command::new("mpirun")
                // Open MPI refuses root and more processes than cores unless told otherwise.
                .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
                .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
                .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
                .args(["-n", &processes.to_string(), BINARY, "run", "--mpi", "--threads", "1"])
                .arg(file)
                .arg("--output")
                .arg(output(processes)));
            for result in ["rounds.csv", "tenants.csv", "result.json", "model.safetensors"] {
                let read = |folder: &Path| std::fs::read(folder.join("seed-1").join(result));
                let (ours, theirs) = (read(&output(processes)), read(&one));
                assert!(ours.expect("written") == theirs.expect("written"), "{name}: {result}");
            }
        }
    }
}

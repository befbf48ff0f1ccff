//! A `tributary-agent` process on synthetic tabular data.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{coordinator::Coordinator, program, wait::until};

/// The policy that allows the test jobs.
pub const POLICY: &str = "
[datasets.points]
epsilon_max = 50.0
delta = 1e-5
units = [\"record\", \"tenant\"]
noise_multiplier_min = 0.5
families = [\"mlp\"]
";

const CONFIG: &str = "
[api]
listen = \"127.0.0.1:0\"
[compute]
threads = 1
[data.points.csv]
path = \"points.csv\"
has_header = true
label = \"side\"
labels = [\"left\", \"right\"]
columns = [
    { name = \"x\", kind = { numeric = { min = -1.0, max = 1.0 } } },
    { name = \"y\", kind = { numeric = { min = -1.0, max = 1.0 } } },
]
[adapter]
epochs_max = 1
";

/// An enrolled agent in a folder of its own; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    folder: TempDir,
    process: Option<Child>,
}

impl Agent {
    /// Makes a folder with 400 points, the given policy, and an identity for `tenant`.
    ///
    /// # Panics
    /// If enrolment fails.
    #[must_use]
    pub fn enroll(coordinator: &Coordinator, tenant: &str, policy: &str) -> Self {
        let agent = Self::prepare(policy);
        let enrolled = agent.enroll_with(coordinator, &coordinator.add_tenant(tenant));
        assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
        agent
    }

    /// Makes an empty folder.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn empty() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), process: None }
    }

    /// Makes the folder without an identity.
    ///
    /// # Panics
    /// If files cannot be written.
    #[must_use]
    pub fn prepare(policy: &str) -> Self {
        let agent = Self::empty();
        agent.write("agent.toml", CONFIG);
        agent.write("policy.toml", policy);
        let mut points = String::from("x,y,side\n");
        for index in 0..400_u32 {
            let x = f64::from(index * 37 % 400) / 200.0 - 1.0;
            let y = f64::from(index * 91 % 400) / 200.0 - 1.0;
            let side = if x + 0.3 * y > 0.0 { "right" } else { "left" };
            writeln!(points, "{x},{y},{side}").expect("writes to a string");
        }
        agent.write("points.csv", &points);
        agent
    }

    /// Runs `enroll` with a token.
    #[must_use]
    pub fn enroll_with(&self, coordinator: &Coordinator, token: &str) -> Output {
        let address = format!("localhost:{}", coordinator.quic().port());
        self.command(&["enroll", "--coordinator", &address, "--token", token])
    }

    /// Starts the process (again).
    ///
    /// # Panics
    /// If it does not start.
    pub fn run(&mut self) {
        self.run_with(&[]);
    }

    /// As [`Self::run`], with more environment variables.
    ///
    /// # Panics
    /// If it does not start.
    pub fn run_with(&mut self, variables: &[(&str, &str)]) {
        self.start(program("tributary-agent"), variables);
    }

    /// As [`Self::run_with`]; files that may not grow any more give an error instead of ending it.
    ///
    /// # Panics
    /// If it does not start.
    pub fn run_on_limited_disk(&mut self, variables: &[(&str, &str)]) {
        let mut shell = Command::new("sh");
        let script = "trap '' XFSZ; exec \"$0\" \"$@\"";
        shell.args(["-c", script]).arg(program("tributary-agent").get_program());
        self.start(shell, variables);
    }

    fn start(&mut self, mut command: Command, variables: &[(&str, &str)]) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let child = command
            .args(["run", "--dir"])
            .arg(self.folder.path())
            .envs(variables.iter().copied())
            .stderr(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the agent starts");
        self.process = Some(child);
    }

    /// The number of its process.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process.as_ref().expect("a running process").id()
    }

    /// Kills the process with SIGKILL.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut child = self.process.take().expect("a running process");
        child.kill().expect("can be killed");
        child.wait().expect("can be waited for");
        let _ = fs::remove_file(self.path("endpoints.json"));
    }

    /// A file in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a file in its folder.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("writes");
    }

    /// Runs a command on its folder.
    ///
    /// # Panics
    /// If the program cannot be run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = program("tributary-agent");
        command.args(arguments).arg("--dir").arg(self.folder.path());
        command.output().expect("the program runs")
    }

    /// Its status document, once it serves.
    ///
    /// # Panics
    /// If it never does.
    #[must_use]
    pub fn status(&self) -> Value {
        until("the agent's status", 30, || {
            let text = fs::read_to_string(self.path("endpoints.json")).ok()?;
            let endpoints: Value = serde_json::from_str(&text).ok()?;
            let api = endpoints["api"].as_str()?;
            let mut response = ureq::get(format!("{api}/v1/status")).call().ok()?;
            response.body_mut().read_json().ok()
        })
    }

    /// The entries of its privacy ledger.
    ///
    /// # Panics
    /// If the ledger does not verify.
    #[must_use]
    pub fn ledger(&self) -> Value {
        let shown = self.command(&["privacy", "show", "--json"]);
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        serde_json::from_slice(&shown.stdout).expect("JSON")
    }

    fn log(&self) -> PathBuf {
        self.path("agent.log")
    }

    /// What it has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    #[expect(clippy::print_stderr, reason = "a failed test shows the process's log")]
    fn show_log(&self) {
        eprintln!("--- agent log\n{}", self.log_text());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            self.show_log();
        }
    }
}

//! A `tributary-coordinator` process.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;
use ureq::Agent;

use crate::{program, wait::until};

/// A coordinator in a folder of its own; killed when dropped.
#[derive(Debug)]
pub struct Coordinator {
    folder: TempDir,
    process: Option<Child>,
    quic: SocketAddr,
    api: String,
    flags: Vec<String>,
}

impl Coordinator {
    /// Initialises and starts one on free loopback ports.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`Self::start`], with more flags for `serve`.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start_with(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let flags = flags.iter().map(ToString::to_string).collect();
        let mut coordinator = Self { folder, process: None, quic: any, api: String::new(), flags };
        let init = coordinator.command(&[
            "init",
            "--quic-listen",
            "127.0.0.1:0",
            "--api-listen",
            "127.0.0.1:0",
        ]);
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        coordinator.serve();
        coordinator
    }

    /// Starts the process (again), on the same QUIC address as before.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn serve(&mut self) {
        self.serve_api_on("0");
    }

    /// As [`Self::serve`], with the API on this port, for somebody who still looks there.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn serve_api_on(&mut self, port: &str) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let _ = fs::remove_file(self.path("endpoints.json"));
        let child = program("tributary-coordinator")
            .args(["serve", "--quic-listen", &self.quic.to_string()])
            .args(["--api-listen", &format!("127.0.0.1:{port}"), "--dir"])
            .arg(self.folder.path())
            .args(&self.flags)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("the coordinator starts");
        self.process = Some(child);
        let endpoints = until("the coordinator's endpoints.json", 30, || {
            let text = fs::read_to_string(self.path("endpoints.json")).ok()?;
            serde_json::from_str::<Value>(&text).ok()
        });
        self.quic = endpoints["quic"].as_str().expect("text").parse().expect("an address");
        self.api = endpoints["api"].as_str().expect("text").to_owned();
    }

    /// Kills the process with SIGKILL.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut child = self.process.take().expect("a running process");
        child.kill().expect("can be killed");
        child.wait().expect("can be waited for");
    }

    /// Restarts it with these lines in place of the table `[api]` of its configuration.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn reconfigure(&mut self, text: &str) {
        self.kill();
        let path = self.path("coordinator.toml");
        let config = fs::read_to_string(&path).expect("reads");
        let listen = config.split("[api").next().expect("the first part").to_owned();
        fs::write(&path, format!("{listen}\n{text}\n")).expect("writes");
        self.serve();
    }

    /// Where agents connect.
    #[must_use]
    pub const fn quic(&self) -> SocketAddr {
        self.quic
    }

    /// The base address of its HTTP API.
    #[must_use]
    pub fn api(&self) -> &str {
        &self.api
    }

    /// A file in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What it has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs a command on its folder.
    ///
    /// # Panics
    /// If the program cannot be run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = program("tributary-coordinator");
        command.args(arguments).arg("--dir").arg(self.folder.path());
        command.output().expect("the program runs")
    }

    /// Runs a command that must succeed and answer with JSON.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn ask(&self, arguments: &[&str]) -> Value {
        let output = self.command(&[arguments, &["--json"]].concat());
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Admits a tenant; returns its token.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn add_tenant(&self, tenant: &str) -> String {
        let added = self.ask(&["tenant", "add", tenant, "--region", "eu"]);
        added["token"].as_str().expect("text").to_owned()
    }

    /// Submits a job document.
    ///
    /// # Panics
    /// If it is not accepted.
    pub fn submit(&self, job: &str) {
        let file = self.path("job.toml");
        fs::write(&file, job).expect("writes");
        let _ = self.ask(&["job", "submit", file.to_str().expect("a text path")]);
    }

    /// A document of its HTTP API.
    ///
    /// # Panics
    /// If it does not answer with JSON.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        let bytes = self.get_bytes(path);
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// The body of an answer of its HTTP API.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn get_bytes(&self, path: &str) -> Vec<u8> {
        let token = fs::read_to_string(self.path("admin.token")).expect("a token");
        let request = Agent::new_with_defaults().get(format!("{}{path}", self.api));
        let mut response =
            request.header("authorization", format!("Bearer {token}")).call().expect("an answer");
        response.body_mut().read_to_vec().expect("a body")
    }

    /// Waits for a job to reach its end.
    ///
    /// # Panics
    /// If it fails or takes too long.
    pub fn finish(&self, job: &str, seconds: u64) {
        until(&format!("job {job} to finish"), seconds, || {
            let document = self.get(&format!("/v1/jobs/{job}"));
            assert_ne!(document["state"], "failed", "{document}");
            (document["state"] == "finished").then_some(())
        });
    }

    fn log(&self) -> PathBuf {
        self.path("coordinator.log")
    }
}

impl Drop for Coordinator {
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

impl Coordinator {
    #[expect(clippy::print_stderr, reason = "a failed test shows the process's log")]
    fn show_log(&self) {
        eprintln!("--- coordinator log\n{}", self.log_text());
    }
}

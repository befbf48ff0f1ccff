//! A `tributary-coordinator` process.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
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

    /// A second coordinator with a copy of the folder of one that does not run, not started yet.
    ///
    /// # Panics
    /// If it runs, or cannot be copied.
    #[must_use]
    pub fn twin(&self) -> Self {
        assert!(self.process.is_none(), "a running coordinator cannot be copied file by file");
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy_folder(self.folder.path(), folder.path());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { folder, process: None, quic: any, api: String::new(), flags: self.flags.clone() }
    }

    /// A coordinator in a folder that a command made, not started yet, to run on the address of `other`.
    #[must_use]
    pub fn in_folder(folder: TempDir, other: &Self) -> Self {
        Self {
            folder,
            process: None,
            quic: other.quic,
            api: String::new(),
            flags: other.flags.clone(),
        }
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// If it does not run, or does not end within `seconds`.
    pub fn wait_for_end(&mut self, seconds: u64) -> std::process::ExitStatus {
        let mut child = self.process.take().expect("a running process");
        until("the coordinator to end", seconds, || child.try_wait().expect("can be waited for"))
    }

    /// Starts the process (again), on the same QUIC address as before.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn serve(&mut self) {
        self.serve_with(&[]);
    }

    /// As [`Self::serve`], with the API on this port, for somebody who still looks there.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn serve_api_on(&mut self, port: &str) {
        self.serve_with(&["--api-listen", &format!("127.0.0.1:{port}")]);
    }

    fn serve_with(&mut self, flags: &[&str]) {
        let launcher = program("tributary-coordinator");
        let ended = self.launch(launcher.get_program(), &[], flags);
        assert_eq!(ended, None, "it ended instead of serving:\n{}", self.log_text());
    }

    /// Starts the process (again) if it can; else waits for its end.
    ///
    /// - `launcher`: what runs, with `before` before the program's own arguments
    /// - returns: how it ended, or `None` if it serves
    ///
    /// # Panics
    /// If it does neither.
    pub fn try_serve(
        &mut self,
        launcher: &std::ffi::OsStr,
        before: &[&str],
    ) -> Option<std::process::ExitStatus> {
        self.launch(launcher, before, &[])
    }

    fn launch(
        &mut self,
        launcher: &std::ffi::OsStr,
        before: &[&str],
        flags: &[&str],
    ) -> Option<std::process::ExitStatus> {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let _ = fs::remove_file(self.path("endpoints.json"));
        let mut child = Command::new(launcher)
            .args(before)
            .args(["serve", "--quic-listen", &self.quic.to_string()])
            .args(flags)
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.flags)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("the coordinator starts");
        let endpoints = until("the coordinator to serve or end", 30, || {
            if let Some(status) = child.try_wait().expect("can be waited for") {
                return Some(Err(status));
            }
            let text = fs::read_to_string(self.path("endpoints.json")).ok()?;
            serde_json::from_str::<Value>(&text).ok().map(Ok)
        });
        let endpoints = match endpoints {
            Err(status) => return Some(status),
            Ok(endpoints) => endpoints,
        };
        self.process = Some(child);
        self.quic = endpoints["quic"].as_str().expect("text").parse().expect("an address");
        self.api = endpoints["api"].as_str().expect("text").to_owned();
        None
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
        self.add_tenant_in(tenant, "eu")
    }

    /// Admits a tenant of a region; returns its token.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn add_tenant_in(&self, tenant: &str, region: &str) -> String {
        let added = self.ask(&["tenant", "add", tenant, "--region", region]);
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

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir(&to).expect("creates");
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).expect("copies");
        }
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

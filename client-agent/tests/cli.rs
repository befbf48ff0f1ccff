//! The program itself, as a tenant's administrator uses it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tributary_agent::{
    identity::{Coordinator, Enrollment, Identity},
    site::Site,
};
use tributary_protocol::id::TenantId;

const CONFIG: &str = "[api]\nlisten = \"127.0.0.1:0\"\n[compute]\nthreads = 1\n[data.adult.csv]\n\
    path = \"adult.csv\"\nlabel = \"income\"\nlabels = [\"low\", \"high\"]\n\
    columns = [{ name = \"age\", kind = { numeric = { min = 0, max = 100 } } }]\n";
const POLICY: &str = "regions = [\"eu\"]\n[datasets.adult]\nepsilon_max = 8.0\ndelta = 1e-5\n\
    units = [\"record\"]\nfamilies = [\"mlp\"]\nnoise_multiplier_min = 0.5\n";
const DATA: &str = "age,income\n30,low\n50,high\n41,low\n";
const JOB: &str = "name = \"census\"\ndataset = \"adult\"\n[model.mlp]\ninputs = 1\nclasses = 2\n\
    [training]\nlocal_steps = 2\nsampling_rate = 0.1\nbatch_size_expected = 20\n\
    client_learning_rate = 0.1\n[privacy]\ntrust = \"local\"\nunit = \"record\"\n\
    clipping_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-5\n[round]\nrounds = 3\n\
    cohort_size = 4\ncohort_size_min = 2\nreport_goal = 3\n";

fn site() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in
        [("agent.toml", CONFIG), ("policy.toml", POLICY), ("adult.csv", DATA), ("job.toml", JOB)]
    {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let tenant = TenantId::new("ash").unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["ash".to_owned()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap().der().clone();
    let enrollment = Enrollment {
        key_pem: key.serialize_pem(),
        chain: vec![certificate.clone(), certificate.clone()],
        authority: certificate,
        // Nobody answers there.
        coordinator: Coordinator { address: "127.0.0.1:9".to_owned(), tenant },
    };
    Identity::save(&Site::new(directory.path()), &enrollment, false).unwrap();
    directory
}

fn command(arguments: &[&str], directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-agent"));
    command.args(arguments).arg("--dir").arg(directory);
    command
}

fn agent(arguments: &[&str], directory: &Path) -> Output {
    command(arguments, directory).stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn change(directory: &Path, file: &str, from: &str, to: &str) {
    let path = directory.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn check_accepts_a_good_site_and_an_allowed_job() {
    let site = site();
    let job = site.path().join("job.toml");
    let output = agent(&["check", "--json", "--job", job.to_str().unwrap()], site.path());
    assert!(output.status.success(), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], true);
    let data = report["checks"].as_array().unwrap().iter().find(|one| one["what"] == "data adult");
    assert!(data.unwrap()["detail"].as_str().unwrap().starts_with("3 records"), "{report}");
}

#[test]
fn check_names_what_is_wrong_and_fails() {
    for (file, from, to, words) in [
        ("agent.toml", "threads", "thread", ["agent.toml", "thread"]),
        ("policy.toml", "epsilon_max", "epsilon", ["policy.toml", "epsilon"]),
        ("adult.csv", "50,high", "50,rich", ["row 3", "rich"]),
        ("adult.csv", "41,low", "41", ["row 4", "adult.csv"]),
        ("identity/key.pem", "PRIVATE", "PUBLIC", ["key.pem", "enrol again"]),
    ] {
        let site = site();
        change(site.path(), file, from, to);
        let output = agent(&["check", "--json"], site.path());
        assert_eq!(output.status.code(), Some(1), "{file}");
        for word in words {
            assert!(text(&output).contains(word), "{word}: {}", text(&output));
        }
    }
}

#[test]
fn check_finds_a_key_of_another_certificate() {
    let site = site();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(site.path().join("identity/key.pem"), other).unwrap();
    let output = agent(&["check", "--json"], site.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("do not fit"), "{}", text(&output));
}

#[test]
fn check_refuses_a_job_that_the_policy_forbids() {
    let site = site();
    change(site.path(), "job.toml", "noise_multiplier = 1.0", "noise_multiplier = 0.1");
    let job = site.path().join("job.toml");
    let output = agent(&["check", "--json", "--job", job.to_str().unwrap()], site.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("noise_multiplier_min"), "{}", text(&output));
}

#[test]
fn a_site_without_identity_or_files_says_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let output = agent(&["run"], empty.path());
    assert!(!output.status.success() && text(&output).contains("agent.toml"), "{}", text(&output));
    let site = site();
    std::fs::remove_dir_all(site.path().join("identity")).unwrap();
    let output = agent(&["run"], site.path());
    assert!(text(&output).contains("tributary-agent enroll"), "{}", text(&output));
    let arguments = ["enroll", "--coordinator", "localhost:1", "--token", "tributary1.ash.oops"];
    let output = agent(&arguments, site.path());
    assert!(text(&output).contains("tenant add"), "{}", text(&output));
}

#[test]
fn enroll_does_not_overwrite_an_identity() {
    let site = site();
    let token = tributary_protocol::enrollment::EnrollmentToken {
        tenant: TenantId::new("ash").unwrap(),
        secret: [1; 32],
        authority: tributary_protocol::id::Digest::of(b"authority"),
    };
    let token = token.to_string();
    let arguments = ["enroll", "--coordinator", "localhost:1", "--token", &token];
    let output = agent(&arguments, site.path());
    assert!(text(&output).contains("--force"), "{}", text(&output));
}

#[test]
fn the_ledger_is_shown_verified_and_damage_is_found() {
    let site = site();
    let output = agent(&["privacy", "show", "--json"], site.path());
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["datasets"][0]["epsilon_left"], 8.0, "{document}");
    assert!(agent(&["privacy", "show"], site.path()).status.success());
    assert!(agent(&["privacy", "verify"], site.path()).status.success());
    std::fs::write(site.path().join("ledger.jsonl"), "nonsense\n").unwrap();
    let output = agent(&["privacy", "verify"], site.path());
    assert!(!output.status.success() && text(&output).contains("line 1"), "{}", text(&output));
}

/// A running agent, held by its standard input.
struct Running(Child);

impl Running {
    fn start(subcommand: &str, directory: &Path) -> Self {
        let mut command = command(&[subcommand, "--exit-with-stdin"], directory);
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        let mut running = Self(command.spawn().unwrap());
        while !directory.join("endpoints.json").exists() {
            assert!(running.0.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        running
    }

    fn stop(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, unless a test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_agent_at_a_time_runs_on_a_site_and_stops_with_its_standard_input() {
    let site = site();
    let running = Running::start("run", site.path());
    let output = agent(&["run"], site.path());
    assert!(!output.status.success());
    assert!(text(&output).contains(&format!("process {}", running.0.id())), "{}", text(&output));
    assert!(agent(&["privacy", "verify"], site.path()).status.success(), "reading is allowed");
    running.stop();
    assert!(!site.path().join("endpoints.json").exists());
}

#[test]
fn serve_needs_no_coordinator() {
    let site = site();
    let running = Running::start("serve", site.path());
    running.stop();
}

#[test]
fn keys_are_made_listed_and_revoked() {
    let site = tempfile::tempdir().unwrap();
    let output = agent(&["key", "add", "--json", "--tenant", "ash", "--note", "desk"], site.path());
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert!(key.len() > 64 && made["roles"].as_array().unwrap().len() == 3, "{made}");
    assert!(!std::fs::read_to_string(site.path().join("keys.json")).unwrap().contains(&key[20..]));
    let listed = |site: &Path| -> Value {
        serde_json::from_slice(&agent(&["key", "list", "--json"], site).stdout).unwrap()
    };
    assert_eq!(listed(site.path())["keys"][0]["note"], "desk");
    assert!(text(&agent(&["key", "list"], site.path())).contains(id));
    assert!(agent(&["key", "revoke", id], site.path()).status.success());
    assert_eq!(listed(site.path())["keys"], serde_json::json!([]));
    let output = agent(&["key", "revoke", id], site.path());
    assert!(!output.status.success() && text(&output).contains("key list"), "{}", text(&output));
    let output = agent(&["key", "add", "--tenant", "ash", "--role", "king"], site.path());
    assert!(!output.status.success() && text(&output).contains("operator"), "{}", text(&output));
}

#[test]
fn feedback_commands_name_what_is_not_there() {
    let site = site();
    let output = agent(&["feedback", "list", "--json"], site.path());
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document, serde_json::json!({"labelled": 0, "feedback": []}));
    let id = "p000000000005000000000000000a";
    let output = agent(&["feedback", "delete", id], site.path());
    assert!(!output.status.success() && text(&output).contains(id), "{}", text(&output));
    let output = agent(&["feedback", "delete", "p5"], site.path());
    assert!(text(&output).contains("28 hexadecimal digits"), "{}", text(&output));
    let file = site.path().join("out.jsonl");
    let output = agent(&["feedback", "export", file.to_str().unwrap()], site.path());
    assert!(output.status.success() && std::fs::read(file).unwrap().is_empty());
    // While an agent runs it holds the store.
    let running = Running::start("serve", site.path());
    let output = agent(&["feedback", "delete", id], site.path());
    assert!(text(&output).contains(&format!("process {}", running.0.id())), "{}", text(&output));
    running.stop();
}

mod language {
    //! A language model in a process of its own, spoken to over sockets.

    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;

    const PROMPT: &str = r#""prompt": [7, 8, 9], "temperature": 0"#;

    /// A site that serves a small model to the tenant elm alone, whose key is returned.
    fn site(isolation: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language/smollm");
        let config = format!(
            "[api]\nlisten = \"127.0.0.1:0\"\n[compute]\nthreads = 1\n[language]\nmodel = {0:?}\n\
             name = \"small\"\n[language.adapters]\nall = {1:?}\n[language.tenants.elm]\n\
             adapters = [\"all\"]\nisolation = {{ {isolation} }}\n",
            fixture,
            fixture.join("all"),
        );
        std::fs::write(directory.path().join("agent.toml"), config).unwrap();
        let output = agent(&["key", "add", "--tenant", "elm"], directory.path());
        let key = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        (directory, key)
    }

    fn connect(directory: &Path) -> TcpStream {
        let text = std::fs::read_to_string(directory.join("endpoints.json")).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let address = document["api"].as_str().unwrap().trim_start_matches("http://").to_owned();
        TcpStream::connect(address).unwrap()
    }

    fn write(stream: &mut TcpStream, key: &str, body: &str) {
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\
             authorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
    }

    fn ask(directory: &Path, key: &str, body: &str) -> String {
        let mut stream = connect(directory);
        write(&mut stream, key, body);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn health(directory: &Path) -> String {
        let mut stream = connect(directory);
        let request = b"GET /healthz HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn completion(directory: &Path, key: &str, model: &str) -> Value {
        let body = format!("{{\"model\": \"{model}\", {PROMPT}, \"max_tokens\": 8}}");
        let answer = ask(directory, key, &body);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str::<Value>(body).unwrap()["choices"][0]["text"].clone()
    }

    /// State and parent of a process, as the system knows them.
    #[cfg(target_os = "linux")]
    fn stat(process: u32) -> Option<(String, u32)> {
        let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let (_, fields) = text.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
    }

    #[cfg(target_os = "linux")]
    fn is_alive(process: u32) -> bool {
        stat(process).is_some_and(|(state, _)| state != "Z" && state != "X")
    }

    /// The tenant's process.
    #[cfg(target_os = "linux")]
    fn child_of(parent: u32) -> u32 {
        let names = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
        let mut all = names.filter_map(|name| name.to_str()?.parse().ok());
        let is_child =
            |&one: &u32| is_alive(one) && stat(one).is_some_and(|(_, found)| found == parent);
        all.find(is_child).expect("a process of its own")
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_of_its_own_answers_the_same_and_is_started_anew_when_it_is_killed() {
        let (shared, key_of_shared) = site("compute = \"shared-queue\"");
        let (own, key) = site("compute = \"dedicated-device\"");
        let running = [shared.path(), own.path()].map(|path| Running::start("serve", path));
        let wanted = ["small", "all"].map(|name| completion(shared.path(), &key_of_shared, name));
        assert_ne!(wanted[0], wanted[1]);
        assert_eq!(["small", "all"].map(|name| completion(own.path(), &key, name)), wanted);
        let child = child_of(running[1].0.id());
        assert!(Command::new("kill").args(["-9", &child.to_string()]).status().unwrap().success());
        // The request that finds it gone may fail; one of the next is answered by a new process.
        let body = format!("{{\"model\": \"small\", {PROMPT}, \"max_tokens\": 8}}");
        let answered = (0..1000).any(|_| ask(own.path(), &key, &body).starts_with("HTTP/1.1 200"));
        assert!(answered);
        assert_eq!(completion(own.path(), &key, "all"), wanted[1]);
        assert_ne!(child_of(running[1].0.id()), child);
        let child = child_of(running[1].0.id());
        running.into_iter().for_each(Running::stop);
        let gone = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            !is_alive(child)
        });
        assert!(gone, "nothing is left behind");
    }

    #[test]
    fn a_new_version_of_an_adapter_is_served_without_a_restart() {
        for isolation in ["compute = \"shared-queue\"", "compute = \"dedicated-device\""] {
            let (directory, key) = site(isolation);
            let fixture =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language/smollm");
            let own = directory.path().join("own");
            std::fs::create_dir(&own).unwrap();
            let put = |adapter: &str| {
                for file in ["adapter_config.json", "adapter_model.safetensors"] {
                    std::fs::copy(fixture.join(adapter).join(file), own.join(file)).unwrap();
                }
            };
            put("all");
            let (from, to) = (format!("all = {:?}", fixture.join("all")), "all = \"own\"");
            change(directory.path(), "agent.toml", &from, to);
            let running = Running::start("serve", directory.path());
            let old = completion(directory.path(), &key, "all");
            put("attention");
            // Every answer is wholly the old version's or the new one's, and none is refused.
            let answers = (0..10_000).map(|_| completion(directory.path(), &key, "all"));
            let new = answers.into_iter().find(|answer| *answer != old).expect("a swap");
            put("all");
            let answers = (0..10_000).map(|_| completion(directory.path(), &key, "all"));
            let back = answers.into_iter().find(|answer| *answer != new).expect("a swap");
            assert_eq!(back, old);
            running.stop();
        }
    }

    #[cfg(unix)]
    #[test]
    fn on_sigterm_answers_end_whole_and_new_requests_are_sent_elsewhere() {
        for isolation in ["compute = \"shared-queue\"", "compute = \"dedicated-device\""] {
            let (directory, key) = site(isolation);
            // One after the other, so that they are under way for a while.
            change(directory.path(), "agent.toml", "name =", "batch_requests_max = 1\nname =");
            let mut running = Running::start("serve", directory.path());
            let body = format!(
                "{{\"model\": \"small\", {PROMPT}, \"max_tokens\": 480, \"n\": 60, \
                 \"stream\": true}}"
            );
            let mut long = connect(directory.path());
            write(&mut long, &key, &body);
            let mut begun = [0; 64];
            long.read_exact(&mut begun).unwrap();
            let id = running.0.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
            let short = format!("{{\"model\": \"small\", {PROMPT}, \"max_tokens\": 1}}");
            // A request that comes before the signal is heard would wait behind the long one.
            while !health(directory.path()).starts_with("HTTP/1.1 503") {}
            let refusal = ask(directory.path(), &key, &short);
            assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
            assert!(refusal.to_ascii_lowercase().contains("retry-after"), "{refusal}");
            let mut rest = String::new();
            long.read_to_string(&mut rest).unwrap();
            let ends = rest.matches("\"finish_reason\":\"").count();
            assert!(ends == 60 && rest.contains("[DONE]") && !rest.contains("error"), "{rest}");
            assert!(running.0.wait().unwrap().success());
        }
    }
}

//! The life of private adapters, as a tenant's administrator sees it: commands and a serving agent.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{Read, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::Value;
use tributary_agent::{
    adapter::{AdapterFolder, Registry, Served},
    durable_file::create_directory,
    engine::{Engine, Serving},
    identity::{Coordinator, Enrollment, Identity},
    site::Site,
};
use tributary_protocol::{
    id::{Digest, TenantId},
    model::{MlpSpec, ModelSpec},
    tensor_file,
};

const CONFIG: &str = "[api]\nlisten = \"127.0.0.1:0\"\n[compute]\nthreads = 1\n\
    [held_out]\nfraction = 0.4\n[adapter]\nrank = 2\nlearning_rate = 0.05\nepochs_max = 40\n\
    patience = 40\nbatch_size = 16\n\
    [data.points.csv]\npath = \"points.csv\"\nlabel = \"side\"\nlabels = [\"left\", \"right\"]\n\
    columns = [{ name = \"x\", kind = { numeric = { min = 0, max = 1 } } },\
               { name = \"y\", kind = { numeric = { min = 0, max = 1 } } }]\n";
const POLICY: &str = "[datasets.points]\nepsilon_max = 8.0\ndelta = 1e-5\n\
    units = [\"record\"]\nfamilies = [\"mlp\"]\nnoise_multiplier_min = 0.5\n";

fn model() -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![4], classes: 2 })
}

/// A site that serves a base without any adapter.
fn site() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut points = String::from("x,y,side\n");
    for index in 0..300_u32 {
        let (x, y) = (f64::from(index * 37 % 300) / 300.0, f64::from(index * 91 % 300) / 300.0);
        writeln!(points, "{x},{y},{}", if x > y { "right" } else { "left" }).unwrap();
    }
    for (name, text) in
        [("agent.toml", CONFIG), ("policy.toml", POLICY), ("points.csv", points.as_str())]
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
        coordinator: Coordinator { address: "127.0.0.1:9".to_owned(), tenant },
    };
    let site = Site::new(directory.path());
    Identity::save(&site, &enrollment, false).unwrap();

    let parameters: Vec<f32> =
        (0..model().num_parameters()).map(|index| (index as f32 * 1.3).sin() * 0.4).collect();
    let bytes = tensor_file::write(&model(), &parameters).unwrap();
    let digest = Digest::of(&bytes);
    create_directory(&site.models()).unwrap();
    std::fs::write(site.model(digest), bytes).unwrap();
    let folder = AdapterFolder::new(&site);
    let mut registry = Registry::new("points".parse().unwrap(), "points".parse().unwrap(), model());
    registry.serve(Served {
        base: digest,
        base_version: 3,
        base_held_out: None,
        adapter: None,
        held_out: None,
        since_ms: 1,
    });
    let lock = folder.lock().unwrap();
    folder.commit(registry, true, &lock).unwrap();
    directory
}

fn agent(arguments: &[&str], directory: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-agent"));
    command.args(arguments).arg("--dir").arg(directory).stdin(Stdio::null()).output().unwrap()
}

/// The JSON answer of a command that succeeds.
fn answer(arguments: &[&str], directory: &Path) -> Value {
    let output = agent(&[arguments, &["--json"]].concat(), directory);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a command that fails says.
fn refusal(arguments: &[&str], directory: &Path) -> String {
    let output = agent(arguments, directory);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn adapters_are_trained_listed_activated_rolled_back_and_moved() {
    let site = site();
    let trained = answer(&["adapter", "train"], site.path());
    assert_eq!((&trained["version"], &trained["activated"]), (&1.into(), &true.into()));
    let (base, found) = (&trained["base_held_out"], &trained["held_out"]);
    assert!(found["accuracy"].as_f64() > base["accuracy"].as_f64(), "{trained}");

    let second = answer(&["adapter", "train", "--no-activate"], site.path());
    assert_eq!((&second["version"], &second["activated"]), (&2.into(), &false.into()));
    let list = answer(&["adapter", "list"], site.path());
    assert_eq!(list["serving"]["adapter"], 1);
    assert_eq!(list["versions"].as_array().unwrap().len(), 2);
    assert!(agent(&["adapter", "list"], site.path()).status.success());

    assert_eq!(answer(&["adapter", "activate", "2"], site.path())["serving"]["adapter"], 2);
    assert_eq!(answer(&["adapter", "rollback"], site.path())["serving"]["adapter"], 1);
    let bare = answer(&["adapter", "rollback", "--job", "points"], site.path());
    assert!(bare["serving"]["adapter"].is_null(), "{bare}");
    assert!(refusal(&["adapter", "rollback"], site.path()).contains("nothing to roll back to"));
    let unknown = refusal(&["adapter", "activate", "7"], site.path());
    assert!(unknown.contains("no adapter 7") && unknown.contains("[1, 2]"), "{unknown}");
    let other = refusal(&["adapter", "list", "--job", "other"], site.path());
    assert!(other.contains("job other") && other.contains("points"), "{other}");

    let folder = site.path().join("peft");
    let folder = folder.to_str().unwrap();
    answer(&["adapter", "export", "1", folder], site.path());
    assert!(Path::new(folder).join("adapter_config.json").exists());
    let imported = answer(&["adapter", "import", folder, "--activate"], site.path());
    assert_eq!((&imported["version"], &imported["activated"]), (&3.into(), &true.into()));
    assert_eq!(imported["held_out"], trained["held_out"], "the same factors do the same");
    std::fs::write(Path::new(folder).join("adapter_model.safetensors"), "broken").unwrap();
    let broken = refusal(&["adapter", "import", folder], site.path());
    assert!(broken.contains("PEFT folder") && broken.contains("safetensors"), "{broken}");
}

#[test]
fn what_cannot_be_served_is_not_activated() {
    let site = site();
    answer(&["adapter", "train"], site.path());
    std::fs::write(site.path().join("adapters/points/1.safetensors"), "broken").unwrap();
    answer(&["adapter", "rollback"], site.path());
    let error = refusal(&["adapter", "activate", "1"], site.path());
    assert!(error.contains("adapter 1 is not usable"), "{error}");
    let list = answer(&["adapter", "list"], site.path());
    assert!(list["serving"]["adapter"].is_null(), "{list}");
}

/// A serving agent, held by its standard input.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn serve(directory: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-agent"));
        command.args(["serve", "--exit-with-stdin", "--dir"]).arg(directory);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let endpoints = directory.join("endpoints.json");
        while !endpoints.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        let document: Value = serde_json::from_slice(&std::fs::read(endpoints).unwrap()).unwrap();
        let address = document["api"].as_str().unwrap().trim_start_matches("http://").to_owned();
        Self { child, address }
    }

    fn predict(&self, body: &str) -> (u16, Value) {
        self.post("predict", body)
    }

    fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "POST /v1/{path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let body = &body[body.find('{').unwrap()..=body.rfind('}').unwrap()];
        (status, serde_json::from_str(body).unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Points of the unit square that no site has among its records.
fn fresh_points(count: u32) -> Vec<[f32; 2]> {
    let place = |index: u32, factor: u32| (index * factor % 509) as f32 / 509.0;
    (0..count).map(|index| [place(index + 1, 113), place(index + 1, 197)]).collect()
}

#[test]
fn outcomes_told_over_http_make_the_next_adapter_better() {
    let site = site();
    // Records of a time when everything was "left"; by now it is what lies above the diagonal.
    let mut points = String::from("x,y,side\n");
    for index in 0..40_u32 {
        let (x, y) = (f64::from(index * 37 % 40) / 40.0, f64::from(index * 11 % 40) / 40.0);
        writeln!(points, "{x},{y},left").unwrap();
    }
    std::fs::write(site.path().join("points.csv"), points).unwrap();
    let truth = |[x, y]: [f32; 2]| u64::from(x > y);
    let before = answer(&["adapter", "train"], site.path());
    assert_eq!((&before["version"], &before["feedback"]), (&1.into(), &0.into()), "{before}");

    let running = Running::serve(site.path());
    let (told, unseen) = {
        let points = fresh_points(500);
        (points[..300].to_vec(), points[300..].to_vec())
    };
    let classes = |points: &[[f32; 2]]| -> (Value, Vec<u64>) {
        let (status, answer) =
            running.predict(&serde_json::json!({ "inputs": points }).to_string());
        assert_eq!(status, 200, "{answer}");
        let rows = answer["predictions"].as_array().unwrap().iter();
        let classes = rows.map(|row| row["class"].as_u64().unwrap()).collect();
        (answer, classes)
    };
    let right = || {
        let (answer, classes) = classes(&unseen);
        let right = classes.iter().zip(&unseen).filter(|(class, at)| **class == truth(**at));
        (answer["model"]["adapter"].as_u64(), right.count())
    };
    let (version, right_before) = right();
    assert_eq!(version, Some(1));
    let (answered, _) = classes(&told);
    for (prediction, &point) in answered["predictions"].as_array().unwrap().iter().zip(&told) {
        let body = serde_json::json!({"id": prediction["id"], "label": truth(point)}).to_string();
        let (status, answer) = running.post("feedback", &body);
        assert_eq!((status, &answer["status"]), (200, &"new".into()), "{answer}");
    }

    // Beside the agent that holds the store.
    let after = answer(&["adapter", "train"], site.path());
    assert_eq!((&after["version"], &after["feedback"]), (&2.into(), &300.into()), "{after}");
    assert_eq!(after["activated"], true, "{after}");
    assert!((0..100_000).any(|_| right().0 == Some(2)), "the agent does not follow");
    let (_, right_after) = right();
    assert!(right_after >= right_before + 50, "{right_before} then {right_after} of 200: {after}");
    let without = CONFIG.to_owned() + "[feedback]\nkeep = false\n";
    std::fs::write(site.path().join("agent.toml"), without).unwrap();
    assert_eq!(
        answer(&["adapter", "train"], site.path())["feedback"],
        0,
        "what is off is not used"
    );
}

/// What each version answers, computed apart from the process under test.
fn expected(directory: &Path, inputs: &[Vec<f32>]) -> BTreeMap<Option<u64>, Vec<f32>> {
    let folder = AdapterFolder::new(&Site::new(directory));
    let registry = folder.registry(None).unwrap();
    let base = registry.current().unwrap().base;
    let parameters = folder.read_base(&registry.model, base).unwrap();
    let versions = registry.versions.iter().map(|known| Some(known.version));
    let answer = |version: Option<u64>| {
        let adapter = version.map(|version| folder.read_adapter(&registry, version).unwrap());
        let on_top = adapter.as_ref().map(|adapter| (version.unwrap(), adapter));
        let engine = Engine::new();
        engine.swap(Serving::new(&registry.model, base, &parameters, on_top).unwrap());
        let predictions = engine.predict(inputs).unwrap().predictions;
        (version, predictions.into_iter().flat_map(|one| one.probabilities).collect())
    };
    std::iter::once(None).chain(versions).map(answer).collect()
}

#[test]
fn a_swap_under_traffic_drops_no_request_and_mixes_no_versions() {
    let site = site();
    answer(&["adapter", "train"], site.path());
    answer(&["adapter", "train"], site.path());
    let inputs: Vec<Vec<f32>> =
        (0..16).map(|index| vec![index as f32 / 16.0, (index * 7 % 16) as f32 / 16.0]).collect();
    let wanted = expected(site.path(), &inputs);
    assert_eq!(wanted.len(), 3);
    let body = serde_json::json!({ "inputs": inputs }).to_string();
    let running = Running::serve(site.path());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = BTreeMap::<Option<u64>, usize>::new();
                    while !done.load(Ordering::Relaxed) {
                        let (status, answer) = running.predict(&body);
                        assert_eq!(status, 200, "{answer}");
                        let version = answer["model"]["adapter"].as_u64();
                        let rows = answer["predictions"].as_array().unwrap().iter();
                        let found = rows.flat_map(|one| one["probabilities"].as_array().unwrap());
                        for (found, wanted) in found.zip(&wanted[&version]) {
                            let distance = found.as_f64().unwrap() - f64::from(*wanted);
                            assert!(distance.abs() < 1e-5, "{version:?} answers as another");
                        }
                        *seen.entry(version).or_default() += 1;
                    }
                    seen
                })
            })
            .collect();
        // Each command is durable when it ends; the agent follows, which its answers show.
        for (arguments, version) in [
            (vec!["adapter", "activate", "1"], Some(1)),
            (vec!["adapter", "activate", "2"], Some(2)),
            (vec!["adapter", "rollback"], Some(1)),
            (vec!["adapter", "activate", "2"], Some(2)),
        ] {
            answer(&arguments, site.path());
            let follows = || running.predict(&body).1["model"]["adapter"].as_u64() == version;
            assert!((0..100_000).any(|_| follows()), "{arguments:?} has no effect");
        }
        done.store(true, Ordering::Relaxed);
        for caller in callers {
            let seen = caller.join().unwrap();
            assert!(seen.len() >= 2, "a caller saw a swap: {seen:?}");
        }
    });
}

//! The sample configuration, policy and job of `examples/`, followed as the README says.

use std::{fmt::Write as _, fs, path::PathBuf};

use tributary_tests::{agent::Agent, coordinator::Coordinator, wait::until};

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn sample(path: &str) -> String {
    fs::read_to_string(repository("examples").join(path)).expect("a sample")
}

/// The census table where it lies beside the checkout, else rows of the same form.
fn census() -> Vec<String> {
    if let Ok(table) = fs::read_to_string(repository("../shared/data/adult-train.csv")) {
        return table
            .lines()
            .filter(|line| !line.is_empty())
            .take(6000)
            .map(str::to_owned)
            .collect();
    }
    let work = ["Private", "State-gov", "?"];
    let row = |index: u32| {
        let (age, education, hours) =
            (17 + index * 7 % 60, 1 + index * 5 % 16, 10 + index * 11 % 60);
        // The occupation tells, so that a few rounds are enough to learn it.
        let (job, label) = if education + hours / 10 > 12 {
            ("Exec-managerial", ">50K")
        } else {
            ("Sales", "<=50K")
        };
        let mut row = format!("{age}, {}, 1, x, {education}, ", work[index as usize % 3]);
        write!(row, "Divorced, {job}, Husband, White, Male, 0, 0, {hours}, x, {label}")
            .expect("a string");
        row
    };
    (0..6000).map(row).collect()
}

#[test]
fn the_census_job_trains_as_the_readme_says() {
    let coordinator = Coordinator::start();
    let config = sample("config/agent.toml").replace("127.0.0.1:7710", "127.0.0.1:0");
    let (config, _images) = config.split_once("# Images in IDX").expect("two datasets");
    let rows = census();
    let mut agents = Vec::new();
    for (tenant, rows) in ["hospital-a", "hospital-b", "hospital-c"].iter().zip(rows.chunks(2000)) {
        let agent = Agent::empty();
        agent.write("agent.toml", config);
        agent.write("policy.toml", &sample("config/policy.toml"));
        agent.write("adult.csv", &rows.join("\n"));
        let enrolled = agent.enroll_with(&coordinator, &coordinator.add_tenant(tenant));
        assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
        agents.push(agent);
    }
    let checked = agents[0].command(&["check"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    for agent in &mut agents {
        agent.run();
    }
    coordinator.submit(&sample("jobs/census.toml").replace("rounds = 30", "rounds = 6"));
    coordinator.finish("census", 120);
    let status = until("the adapter to the final base", 60, || {
        let status = agents[0].status();
        (!status["adapter"].is_null()).then_some(status)
    });
    assert!(status["base"]["accuracy"].as_f64().expect("measured") > 0.6, "{status}");
    let output = coordinator.path("census.safetensors");
    let path = output.to_str().expect("a text path");
    let exported = coordinator.ask(&["model", "export", "census", "--output", path]);
    assert_eq!(
        exported["bytes"].as_u64().expect("a number"),
        fs::metadata(output).expect("a file").len()
    );
}

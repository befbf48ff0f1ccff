//! What an operator does, from signing in to the audit trail.

use serde_json::Value;
use tributary_tests::browser::Key;

use crate::{World, job};

#[test]
fn an_operator_watches_a_job_and_steers_it() {
    let Some(world) = World::start(&["alpha", "beta", "gamma"]) else { return };
    let (browser, coordinator) = (&world.browser, &world.coordinator);
    world.enter("operator");
    browser.see("main", "No jobs yet");
    coordinator.submit(&job("points", 400));
    // Nothing is reloaded: the coordinator says that something changed.
    browser.see(".job-list", "points");
    browser.see(".live", "Live");
    world.committed("points", 6);
    browser.picture("jobs");
    browser.press(Key::Escape);
    browser.run("document.querySelector('.job-row').click()");
    browser.see("h1", "points");
    browser.see("#round-title", "Round");
    for tenant in ["alpha", "beta", "gamma"] {
        browser.see("main .rows", tenant);
    }
    let curves = browser.wait_for(
        "both curves",
        "const drawn = document.querySelectorAll('.curve .line'); \
         return drawn.length === 2 && [...drawn].every((line) => line.getAttribute('d').includes('L')) && drawn.length",
    );
    assert_eq!(curves, 2);
    browser.see(".chart .reading", "±");

    browser.click("Pause");
    browser.see("dialog", "The open round is finished");
    browser.picture("dialog");
    browser.press(Key::Escape);
    // The focus goes back to what opened the dialog.
    browser.wait_for(
        "the dialog to close",
        "return document.querySelector('dialog') === null && document.activeElement.textContent === 'Pause'",
    );
    assert_eq!(coordinator.get("/v1/jobs/points")["state"], "running", "Escape does nothing");
    browser.click("Pause");
    browser.run("document.querySelector('dialog .primary').click()");
    browser.see(".head-name", "paused");
    let paused = tributary_tests::wait::until("the open round to end", 60, || {
        let document = coordinator.get("/v1/jobs/points");
        (document["waiting_for"] == "to be resumed").then_some(document)
    });
    assert_eq!(paused["state"], "paused");
    figures_are_those_of_the_api(&world);
    browser.picture("job");

    browser.run("document.querySelector('#versions-title').closest('section').querySelector('[aria-expanded=false]')?.click()");
    browser.click("Serve version 1");
    browser.see("dialog h2", "version 1");
    browser.run("document.querySelector('dialog .primary').click()");
    browser.see("#versions-title ~ .actions", "Follow the newest");
    browser.see(".rows tr.served", "1");
    assert_eq!(served(&world)["version"], 1);
    browser.click("Roll back");
    browser.run("document.querySelector('dialog .primary').click()");
    browser.see("#announce", "agents serve version 0");
    assert_eq!(served(&world)["version"], 0);
    browser.click("Follow the newest");
    browser.run("document.querySelector('dialog .primary').click()");
    browser.see("#announce", "follow the newest");
    assert_eq!(served(&world)["pinned"], false);

    // Enough for more than one page of the audit log.
    for priority in 1..=50 {
        let _ = coordinator.ask(&["job", "priority", "points", &priority.to_string()]);
    }
    browser.click("Resume");
    browser.run("document.querySelector('dialog .primary').click()");
    browser.see(".head-name", "running");
    browser.click("Stop");
    browser.see("dialog", "cannot be resumed");
    browser.run("document.querySelector('dialog .danger').click()");
    browser.see(".head-name", "stopped");
    assert_eq!(coordinator.get("/v1/jobs/points")["state"], "stopped");

    browser.click("Models");
    browser.see("#descent-title", "Descent");
    browser.picture("models");
    browser.click("Tenants");
    browser.see(".rows", "beta");
    browser.click("Suspend beta");
    browser.type_text("a lost laptop");
    browser.press(Key::Enter);
    browser.see(".rows", "a lost laptop");
    assert_eq!(coordinator.get("/v1/tenants")[1]["standing"], "suspended");
    browser.picture("tenants");
    audit_trail(&world);
    world.no_complaints();
}

fn served(world: &World) -> Value {
    let models = world.coordinator.get("/v1/models");
    let served = models.as_array().expect("a list").iter().find(|model| model["served"] == true);
    served.expect("one is served").clone()
}

/// ε on the page is what the API computes, which is what the agents' ledgers hold.
fn figures_are_those_of_the_api(world: &World) {
    let spending = world.coordinator.get("/v1/jobs/points/spending");
    let tenants = spending["tenants"].as_array().expect("a list");
    assert_eq!(tenants.len(), 3, "{spending}");
    for (agent, tenant) in world.agents.iter().zip(tenants) {
        let counted = tenant["epsilon"].as_f64().expect("computable");
        let updates = tenant["updates"].as_u64().expect("a count");
        let ledger = agent.ledger();
        let entries = ledger["entries"].as_array().expect("a list");
        let released = entries.iter().filter(|entry| entry["kind"].is_null()).count();
        assert_eq!(released as u64, updates, "{ledger}");
        let spent = ledger["datasets"][0]["jobs"][0]["epsilon_alone"].as_f64();
        let spent = spent.unwrap_or_else(|| panic!("no figure in {}", ledger["datasets"]));
        assert!((counted / spent - 1.0).abs() < 1e-6, "{counted} here, {spent} in the ledger");
        let shown: f64 = world
            .browser
            .run(&format!(
                "const rows = [...document.querySelectorAll('#privacy-title')][0].closest('section').querySelectorAll('tbody tr'); \
                 return [...rows].find((row) => row.querySelector('th').textContent === {}).querySelector('b').textContent",
                tenant["tenant"]
            ))
            .as_str()
            .expect("a figure")
            .parse()
            .expect("a number");
        assert!((shown / counted - 1.0).abs() < 0.006, "{shown} is shown, {counted} is counted");
    }
}

fn audit_trail(world: &World) {
    let browser = &world.browser;
    browser.click("Audit");
    browser.see("tbody", "tenant suspend");
    browser.see("tbody", "job stop");
    browser.click("Verify");
    browser.see(".verify", "Whole");
    browser.picture("audit");
    let newest = browser.run("return document.querySelector('tbody td').textContent");
    browser.click("Older");
    let older = browser.wait_for(
        "the page before",
        &format!("const first = document.querySelector('tbody td')?.textContent; return first !== {newest} && first"),
    );
    let number = |value: &Value| value.as_str().expect("text").parse::<u64>().expect("a number");
    assert!(number(&older) < number(&newest));
    browser.click("Newer");
    browser.see("tbody", "tenant suspend");
}

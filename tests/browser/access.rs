//! Who sees what, by keyboard too, and what happens when the coordinator is away.

use serde_json::json;
use tributary_tests::browser::Key;

use crate::{World, job};

#[test]
fn a_viewer_and_a_tenant_admin_see_only_what_is_theirs() {
    let Some(world) = World::start(&["alpha", "beta", "gamma"]) else { return };
    let browser = &world.browser;
    world.coordinator.submit(&job("points", 3));
    world.coordinator.finish("points", 60);
    world.enter("viewer");
    let places = browser.text("nav.places").expect("shown");
    assert!(!places.contains("Audit"), "{places}");
    browser.click("Tenants");
    browser.see(".rows", "gamma");
    assert_eq!(browser.run("return document.querySelectorAll('main button').length"), 0);
    browser.run("location.hash = '#/jobs/points'");
    browser.see("h1", "points");
    browser.see("#versions-title", "Models");
    let buttons =
        "return [...document.querySelectorAll('main button')].map((one) => one.textContent)";
    assert_eq!(browser.run(buttons), json!([]), "a viewer changes nothing");
    // What it may not see is refused by the coordinator, whatever the page would show.
    browser.run("location.hash = '#/audit'");
    browser.see(".note.bad", "may not use");
    browser.click("Sign out");
    browser.see("h1", "Tributary");
    assert_eq!(browser.run("return sessionStorage.length"), 0, "the token is gone");

    world.enter("tenant-admin");
    browser.run("location.hash = '#/jobs/points'");
    browser.see("h1", "points");
    browser.see("main .rows", "alpha");
    let page = browser.text("main").expect("shown");
    assert!(!page.contains("beta") && !page.contains("gamma"), "{page}");
    browser.run("location.hash = '#/tenants'");
    browser.see(".rows", "alpha");
    let buttons = browser.run(buttons);
    assert_eq!(buttons, json!(["Suspend", "Revoke"]), "its own tenant");
    // The refused audit page is a complaint of the browser's, and the only one.
    let complaints = browser.console();
    assert!(complaints.iter().all(|line| line.contains("403")), "{complaints:#?}");
}

#[test]
fn everything_can_be_reached_and_used_by_keyboard() {
    let Some(world) = World::start(&["alpha", "beta", "gamma"]) else { return };
    let browser = &world.browser;
    world.coordinator.submit(&job("points", 4));
    world.coordinator.finish("points", 60);
    world.enter("operator");
    browser.see(".job-list", "finished");
    let focused = "const it = document.activeElement; return (it.getAttribute('aria-label') ?? it.textContent).trim()";
    // A page that is loaded anew begins at its beginning; who signed in stays so in this tab.
    browser.go(world.coordinator.api());
    browser.see(".job-list", "finished");
    browser.press(Key::Tab);
    assert_eq!(browser.run(focused), "Skip to the content");
    browser.press(Key::Enter);
    assert_eq!(browser.run("return document.activeElement.id"), "main");
    browser.press(Key::Tab);
    let visible = browser.run(
        "const style = getComputedStyle(document.activeElement); return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2",
    );
    assert_eq!(visible, true, "the focus is visible");
    browser.press(Key::Enter);
    browser.see("h1", "points");
    let here = "return document.activeElement.id === 'main' && document.getElementById('announce').textContent";
    assert_eq!(browser.run(here), "points", "a new place takes the focus and is announced");
    // Every stop on the way is in the order of the page, and none is lost.
    browser.see("#versions-title", "Models");
    let expected = browser.run(
        "return [...document.querySelectorAll('main a, main button, main summary, main svg[tabindex], main [tabindex=\"0\"]')] \
         .filter((one) => one.checkVisibility()).length",
    );
    let expected = expected.as_u64().expect("a count");
    assert!(expected >= 8, "{expected} stops");
    let mut curve = false;
    for stop in 0..expected {
        browser.press(Key::Tab);
        let inside =
            browser.run("return document.getElementById('main').contains(document.activeElement)");
        assert_eq!(inside, true, "stop {stop} of {expected} is on the page");
        if browser.run("return document.activeElement.classList.contains('curve')") == true
            && !curve
        {
            curve = true;
            browser.press(Key::ArrowLeft);
            browser.see("#announce", "version 0");
        }
    }
    assert!(curve, "the curve can be read by keyboard");
    browser.click("Tenants");
    browser.click("Revoke gamma");
    browser.see("dialog", "for good");
    assert_eq!(browser.run("return document.activeElement.id"), "dialog-text");
    browser.press(Key::Enter);
    assert_eq!(
        world.coordinator.get("/v1/tenants")[2]["standing"],
        "active",
        "nothing happens without a reason"
    );
    browser.type_text("left the federation");
    browser.press(Key::Tab);
    assert_eq!(browser.run(focused), "Cancel");
    browser.press(Key::Tab);
    assert_eq!(browser.run(focused), "Revoke");
    browser.press(Key::Enter);
    browser.see(".rows", "left the federation");
    world.no_complaints();
}

#[test]
fn what_is_shown_stays_while_the_coordinator_is_away_and_goes_on_when_it_is_back() {
    let Some(mut world) = World::start(&[]) else { return };
    world.coordinator.submit(&job("points", 2));
    world.enter("viewer");
    world.browser.see(".job-list", "points");
    let port = world.coordinator.api().rsplit(':').next().expect("a port").to_owned();
    world.coordinator.kill();
    world.browser.see(".live", "Offline");
    world.browser.see(".job-list", "points");
    world.browser.run("location.hash = '#/models'");
    world.browser.see(".note.bad", "does not answer");
    world.browser.picture("away");
    world.coordinator.serve_api_on(&port);
    world.browser.see(".live", "Live");
    world.browser.see("main", "Served by agents");
    // A token that stops to work ends the session, with the reason.
    let _ = world.coordinator.ask(&["token", "revoke", "viewer"]);
    world.browser.run("location.hash = '#/jobs'");
    world.browser.see("#token-error", "was revoked");
}

//! Signing in: what is refused, and what the page may load at all.

use tributary_tests::{browser::Key, issuer::Issuer};

use crate::{World, job};

#[test]
fn a_wrong_token_is_refused_and_the_page_asks_nobody_else() {
    let Some(world) = World::start(&[]) else { return };
    let browser = &world.browser;
    browser.go(world.coordinator.api());
    browser.see("h1", "Tributary");
    browser.picture("sign-in");
    assert_eq!(browser.run("return document.activeElement.id"), "token");
    browser.type_text("guess");
    browser.press(Key::Enter);
    browser.see("#token-error", "send an access token of this coordinator");
    assert_eq!(browser.run("return sessionStorage.length"), 0, "what does not work is not kept");
    let complaints = browser.console();
    assert!(complaints.iter().all(|line| line.contains("401")), "{complaints:#?}");
    world.enter("auditor");
    browser.see("nav.places", "Audit");
    let loaded = browser.run(
        "return performance.getEntriesByType('resource').map((one) => one.name) \
         .filter((name) => !name.startsWith(location.origin + '/'))",
    );
    assert_eq!(loaded, serde_json::json!([]), "nothing comes from elsewhere");
    // Text that somebody else chose never becomes code.
    let blocked = browser.run(
        "const handler = () => { \
             const button = document.createElement('button'); \
             button.setAttribute('onclick', 'window.hit = true'); \
             document.body.append(button); button.click(); button.remove(); \
             if (!window.hit) throw new Error('nothing happened'); \
         }; \
         const script = () => (document.createElement('script').text = 'window.hit = true'); \
         const tried = [() => (document.body.innerHTML = '<b>x</b>'), script, handler]; \
         return tried.map((one) => { try { one(); return 'allowed'; } catch { return 'blocked'; } })",
    );
    assert_eq!(blocked, serde_json::json!(["blocked", "blocked", "blocked"]));
}

#[test]
fn people_sign_in_at_an_issuer_and_are_named_in_the_audit_log() {
    let Some(mut world) = World::start(&[]) else { return };
    let issuer = Issuer::start("operators");
    world.coordinator.reconfigure(&issuer.config());
    let browser = &world.browser;
    browser.go(world.coordinator.api());
    browser.see(".issuer", "Continue with 127.0.0.1");
    browser.picture("sign-in-issuer");
    browser.run("document.querySelector('.issuer button').click()");
    browser.see(".who", "oidc:alice@example.org");
    browser.see(".who", "operator");
    let address = browser.run("return location.href");
    let address = address.as_str().expect("text");
    assert!(!address.contains("code="), "the code does not stay in the address: {address}");
    world.coordinator.submit(&job("points", 2));
    browser.see(".job-list", "points");
    browser.run("location.hash = '#/jobs/points'");
    browser.click("Stop");
    browser.run("document.querySelector('dialog .danger').click()");
    browser.see(".head-name", "stopped");
    let entries = world.coordinator.get("/v1/audit");
    let entries = entries.as_array().expect("a list");
    let stop = entries.iter().find(|entry| entry["act"] == "job-stop").expect("recorded");
    assert_eq!(stop["actor"]["name"], "oidc:alice@example.org");
    world.no_complaints();
    // Whoever comes back with somebody else's answer is not signed in.
    browser.click("Sign out");
    browser.go(&format!("{}/?state=forged&code=x", world.coordinator.api()));
    browser.see("#token-error", "was not begun here");
}

//! Every page on a phone, in the dark, and for those who want no motion.

use crate::{World, job};

/// Elements that stick out of the page, by their text.
const STICKING_OUT: &str = "
    const wide = document.scrollingElement.scrollWidth > innerWidth;
    return wide && [...document.querySelectorAll('body *')]
        .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.scroll'))
        .map((one) => one.tagName + ' ' + one.textContent.slice(0, 40));
";

/// Text whose contrast with what is behind it is below 4.5 (3 where it is large), by WCAG 2.
const TOO_FAINT: &str = "
    const parse = (text) => {
        const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
        return { r, g, b, a };
    };
    const over = (top, under) => ({
        r: top.r * top.a + under.r * (1 - top.a), g: top.g * top.a + under.g * (1 - top.a),
        b: top.b * top.a + under.b * (1 - top.a), a: 1,
    });
    const behind = (one) => {
        const layers = [];
        for (let at = one; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
        return layers.reverse().reduce((under, top) => over(top, under), { r: 255, g: 255, b: 255, a: 1 });
    };
    const light = ({ r, g, b }) => {
        const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const found = [];
    for (const one of document.querySelectorAll('body *')) {
        const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !one.checkVisibility() || one.closest('.unseen') || one.closest('svg') || one.disabled) continue;
        const style = getComputedStyle(one);
        if (style.clipPath !== 'none' || parseFloat(style.fontSize) === 0) continue;
        const ground = behind(one);
        const [a, b] = [light(over(parse(style.color), ground)), light(ground)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
        if (ratio < (large ? 3 : 4.5)) found.push(ratio.toFixed(2) + ' ' + one.className + ': ' + one.textContent.slice(0, 40));
    }
    return found.length ? found : null;
";

/// Buttons and links that a finger misses: below 24 pixels, the least that WCAG 2.2 allows.
const TOO_SMALL: &str = "
    const found = [...document.querySelectorAll('button, nav.places a, .job-row')]
        .filter((one) => one.checkVisibility() && Math.min(one.offsetWidth, one.offsetHeight) < 30)
        .map((one) => one.textContent);
    return found.length ? found : null;
";

/// Animations that run.
const MOVING: &str = "document.getAnimations().filter((one) => one.playState === 'running').length";

#[test]
fn every_page_fits_a_phone_and_can_be_read_in_the_dark() {
    let Some(world) = World::start(&["alpha", "beta", "gamma"]) else { return };
    let (browser, coordinator) = (&world.browser, &world.coordinator);
    coordinator.submit(&job("points", 12));
    coordinator.finish("points", 60);
    let first = coordinator.get("/v1/models")[4]["digest"].as_str().expect("text").to_owned();
    let next = coordinator.path("next.toml");
    std::fs::write(&next, job("points-next", 4)).expect("writes");
    let next = next.to_str().expect("text").to_owned();
    let _ = coordinator.ask(&["job", "submit", &next, "--start-from", &first]);
    coordinator.finish("points-next", 60);
    let _ = coordinator.ask(&["model", "promote", "points-next", "2"]);
    coordinator
        .submit(&job("waiting", 900).replace("dataset = \"points\"", "dataset = \"elsewhere\""));
    let buffered = job("buffered", 900).replace("dataset = \"points\"", "dataset = \"elsewhere\"");
    let table = "[round.asynchronous]\nstaleness_max = 2\nstaleness_exponent = 0.5\n";
    coordinator.submit(&format!("{buffered}\n{table}"));
    browser.resize(360, 740);
    browser.go(coordinator.api());
    browser.see("h1", "Tributary");
    browser.picture("phone-sign-in");
    world.enter("operator");
    for (size, width, height) in [("phone", 360, 740), ("desktop", 1280, 860)] {
        browser.resize(width, height);
        for scheme in ["light", "dark"] {
            browser.prefer("prefers-color-scheme", scheme);
            for (place, shown) in [
                ("jobs", "points-next"),
                ("jobs/points", "Federated evaluation"),
                ("jobs/waiting", "declined"),
                ("jobs/buffered", "buffering"),
                ("jobs/nothing", "there is no job"),
                ("models", "Descent"),
                ("tenants", "alpha"),
                ("audit", "job submit"),
            ] {
                browser.run(&format!("location.hash = '#/{place}'"));
                browser.see("main", shown);
                let name = format!("{size}-{scheme}-{}", place.replace('/', "-"));
                browser.picture(&name);
                for (what, script) in [
                    ("sticks out", STICKING_OUT),
                    ("is too faint", TOO_FAINT),
                    ("is too small", TOO_SMALL),
                ] {
                    let found = browser.run(script);
                    assert!(found.is_null() || found == false, "{name}: {what}: {found:#}");
                }
            }
        }
    }
    browser.wait_for("something to breathe", &format!("return {MOVING} > 0"));
    browser.prefer("prefers-reduced-motion", "reduce");
    browser.wait_for("everything to stand still", &format!("return {MOVING} === 0"));
    let complaints = browser.console();
    // The job that there is not, once for each size and scheme.
    assert!(complaints.iter().all(|line| line.contains("404")), "{complaints:#?}");
}

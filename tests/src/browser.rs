//! A real browser, driven over WebDriver: Debian's Chromium, if it is installed.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{installed, wait::until};

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Where screenshots go, if somebody wants to look at them.
const SCREENSHOTS: &str = "TRIBUTARY_SCREENSHOTS";

/// How long a page may take to show something, in seconds.
const PATIENCE_S: u64 = 20;

/// A browser with a fresh profile; ended when dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    session: String,
    agent: ureq::Agent,
    _profile: TempDir,
}

/// Keys that have no letter.
#[derive(Debug, Clone, Copy)]
pub enum Key {
    /// To the next place.
    Tab,
    /// Presses what has the focus.
    Enter,
    /// Out of a dialog.
    Escape,
    /// Along a curve.
    ArrowLeft,
}

impl Key {
    const fn code(self) -> &'static str {
        match self {
            Self::Tab => "\u{e004}",
            Self::Enter => "\u{e007}",
            Self::Escape => "\u{e00c}",
            Self::ArrowLeft => "\u{e012}",
        }
    }
}

impl Browser {
    /// Starts one, or says why it does not and gives none.
    ///
    /// # Panics
    /// If it is installed but does not start.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    pub fn start() -> Option<Self> {
        let (Some(chromium), Some(chromedriver)) =
            (installed("chromium"), installed("chromedriver"))
        else {
            eprintln!(
                "skipped: no chromium and chromedriver here (Debian: chromium chromium-driver)"
            );
            return None;
        };
        let mut driver = Command::new(chromedriver)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let mut lines = BufReader::new(driver.stdout.take().expect("piped")).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let port = line.split_once("started successfully on port ")?.1;
                port.trim_end_matches('.').parse::<u16>().ok()
            })
            .expect("chromedriver says its port");
        // Its further words go nowhere, but it must be able to say them.
        std::thread::spawn(move || lines.for_each(drop));
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)));
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut browser = Self {
            driver,
            session: format!("http://127.0.0.1:{port}/session"),
            agent: config.build().into(),
            _profile: profile,
        };
        let session = browser.open(&chromium);
        browser.session += &format!("/{session}");
        Some(browser)
    }

    fn open(&self, chromium: &Path) -> String {
        let profile = format!("--user-data-dir={}", self._profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--window-size=1280,900",
            &profile,
        ];
        let wish = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": chromium, "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let opened = self.send("", &wish);
        opened["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {opened}")).to_owned()
    }

    fn send(&self, path: &str, body: &Value) -> Value {
        let sent = self.agent.post(format!("{}{path}", self.session)).send_json(body);
        Self::value(path, sent)
    }

    fn value(path: &str, sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Value {
        let mut response = sent.unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut answer: Value =
            response.body_mut().with_config().limit(1 << 26).read_json().expect("JSON");
        let value = answer["value"].take();
        assert!(response.status().is_success(), "{path}: {value}");
        value
    }

    /// Goes to an address.
    pub fn go(&self, address: &str) {
        self.send("/url", &json!({ "url": address }));
    }

    /// Runs the body of a function in the page; gives what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.send("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Tells the browser something by its own protocol.
    pub fn tell(&self, command: &str, parameters: &Value) {
        self.send("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
    }

    /// Makes the page as large as this, in CSS pixels.
    pub fn resize(&self, width: u32, height: u32) {
        let mobile = width < 700;
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": mobile });
        self.tell("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Sets what the reader prefers, as `prefers-color-scheme`.
    pub fn prefer(&self, feature: &str, value: &str) {
        let features = json!({ "features": [{ "name": feature, "value": value }] });
        self.tell("Emulation.setEmulatedMedia", &features);
    }

    /// The text of what a CSS selector finds first, as it is shown.
    #[must_use]
    pub fn text(&self, selector: &str) -> Option<String> {
        let script = format!("return document.querySelector({selector:?})?.innerText ?? null");
        self.run(&script).as_str().map(str::to_owned)
    }

    /// Waits until a selector's text contains something.
    ///
    /// # Panics
    /// If that takes too long; with what is there instead.
    pub fn see(&self, selector: &str, wanted: &str) {
        let mut last = None;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(&format!("{wanted:?} in {selector}"), PATIENCE_S, || {
                last = self.text(selector);
                last.as_ref()?.contains(wanted).then_some(())
            });
        }));
        assert!(
            found.is_ok(),
            "{wanted:?} is not in {selector}: {last:?}\nthe page: {:?}\nthe console: {:?}",
            self.text("body"),
            self.console()
        );
    }

    /// Waits until a script returns something that is not null or false.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_for(&self, what: &str, script: &str) -> Value {
        until(what, PATIENCE_S, || {
            let value = self.run(script);
            (!value.is_null() && value != false).then_some(value)
        })
    }

    fn element(&self, xpath: &str) -> String {
        until(xpath, PATIENCE_S, || {
            let wish = json!({ "using": "xpath", "value": xpath });
            let found = self.send("/elements", &wish);
            found[0][ELEMENT].as_str().map(str::to_owned)
        })
    }

    /// Clicks the button or link that is called this.
    pub fn click(&self, name: &str) {
        let place = format!(
            "//*[self::button or self::a or self::summary]\
             [not(@disabled)][normalize-space()='{name}' or @aria-label='{name}']"
        );
        until(&format!("{name} to be clickable"), PATIENCE_S, || {
            let element = self.element(&place);
            // Away from the bar at the top, which would catch the click.
            let place = json!({
                "script": "arguments[0].scrollIntoView({ block: 'center' })",
                "args": [{ ELEMENT: element }],
            });
            let _ = self.agent.post(format!("{}/execute/sync", self.session)).send_json(place);
            // It may just have been drawn anew; then it is looked up again.
            let path = format!("{}/element/{element}/click", self.session);
            let sent = self.agent.post(path).send_json(json!({})).ok()?;
            sent.status().is_success().then_some(())
        });
    }

    /// Types into what has the focus.
    pub fn type_text(&self, text: &str) {
        self.press_all(text.chars().map(String::from));
    }

    /// Presses a key.
    pub fn press(&self, key: Key) {
        self.press_all([key.code().to_owned()]);
    }

    fn press_all(&self, keys: impl IntoIterator<Item = String>) {
        let actions: Vec<Value> = keys
            .into_iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let wish = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] });
        self.send("/actions", &wish);
    }

    /// What the page has complained about since the last time: errors and refused loads.
    #[must_use]
    pub fn console(&self) -> Vec<String> {
        let entries = self.send("/se/log", &json!({ "type": "browser" }));
        let text = |entry: &Value| entry["message"].as_str().map(str::to_owned);
        entries.as_array().into_iter().flatten().filter_map(text).collect()
    }

    /// Keeps a picture of the whole page, if `TRIBUTARY_SCREENSHOTS` names a folder.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn picture(&self, name: &str) {
        let Some(folder) = env::var_os(SCREENSHOTS).map(PathBuf::from) else { return };
        let wish =
            json!({ "cmd": "Page.captureScreenshot", "params": { "captureBeyondViewport": true } });
        let taken = self.send("/goog/cdp/execute", &wish);
        let data = taken["data"].as_str().expect("a picture").as_bytes();
        let bytes = data_encoding::BASE64.decode(data).expect("a picture");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(format!("{name}.png")), bytes).expect("writes");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

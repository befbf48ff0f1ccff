//! A request to try on the system that stays up.

use std::path::Path;

use super::{
    agent::PredictRequest, error::DemoError, evaluation::PublicTest, folder, setup::System,
};

/// Writes a request with one public test image and returns the `curl` line that sends it.
pub(super) fn sample_request(
    test: &PublicTest,
    system: &System,
    root: &Path,
) -> Result<String, DemoError> {
    let request = PredictRequest { inputs: vec![test.image(0)] };
    let text = serde_json::to_string(&request).expect("numbers and lists have a JSON form");
    let path = root.join("request.json");
    folder::write(&path, &text)?;
    let agent = system.agents.first().expect("a demo has at least one tenant");
    Ok(format!(
        "curl -s -H 'content-type: application/json' -d @{} {}",
        path.display(),
        agent.predict_url()
    ))
}

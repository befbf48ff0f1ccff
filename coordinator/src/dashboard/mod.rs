//! The dashboard: a page of plain HTML, CSS and ES modules inside the program, served at `/`.
//!
//! It asks the same API as everybody else, with the token of whoever looks, so it can do nothing
//! that the token cannot. The page loads nothing from anywhere else and runs no text as code: the
//! content security policy forbids both, and the modules build elements, never markup.

use axum::{
    extract::Path,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::api::ApiError;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The page itself.
const PAGE: &str = include_str!("static/index.html");

/// Name, content type and content of everything that the page loads.
const FILES: &[(&str, &str, &str)] = &[
    ("app.css", CSS, include_str!("static/app.css")),
    ("mark.svg", SVG, include_str!("static/mark.svg")),
    ("api.js", SCRIPT, include_str!("static/api.js")),
    ("app.js", SCRIPT, include_str!("static/app.js")),
    ("audit.js", SCRIPT, include_str!("static/audit.js")),
    ("chart.js", SCRIPT, include_str!("static/chart.js")),
    ("dialog.js", SCRIPT, include_str!("static/dialog.js")),
    ("dom.js", SCRIPT, include_str!("static/dom.js")),
    ("format.js", SCRIPT, include_str!("static/format.js")),
    ("job.js", SCRIPT, include_str!("static/job.js")),
    ("jobs.js", SCRIPT, include_str!("static/jobs.js")),
    ("models.js", SCRIPT, include_str!("static/models.js")),
    ("sign-in.js", SCRIPT, include_str!("static/sign-in.js")),
    ("tenants.js", SCRIPT, include_str!("static/tenants.js")),
];

/// What the page may do: load its own files and ask its own coordinator, nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The page.
pub(crate) async fn page() -> Response {
    serve(HTML, PAGE)
}

/// A file that the page loads.
pub(crate) async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, content_type, content)) => serve(content_type, content),
        None => ApiError::new(StatusCode::NOT_FOUND, "not-found", "there is no such file")
            .into_response(),
    }
}

fn serve(content_type: &'static str, content: &'static str) -> Response {
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let headers: HeaderMap =
        headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names in quotes after a marker.
    fn named<'a>(text: &'a str, before: &str) -> impl Iterator<Item = &'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split(['"', '\'']).next())
    }

    #[test]
    fn the_page_and_its_modules_load_each_other_and_nothing_else() {
        let mut loaded = BTreeSet::new();
        for attribute in ["href=\"/dashboard/", "src=\"/dashboard/"] {
            loaded.extend(named(PAGE, attribute));
        }
        for (_, _, content) in FILES.iter().filter(|(_, kind, _)| *kind == SCRIPT) {
            loaded.extend(named(content, "from \"./"));
        }
        let known: BTreeSet<_> = FILES.iter().map(|(name, ..)| *name).collect();
        assert_eq!(loaded, known);
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_no_text_becomes_code() {
        let files = FILES.iter().map(|(name, _, content)| (*name, *content));
        for (name, content) in files.chain([("index.html", PAGE)]) {
            for (at, _) in content.match_indices("https://").chain(content.match_indices("http://"))
            {
                let name_space = content[at..].starts_with("http://www.w3.org/2000/svg");
                assert!(name_space, "{name} names an address at byte {at}");
            }
            for unsafe_text in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=\"",
                "onclick=",
            ] {
                assert!(!content.contains(unsafe_text), "{name} uses {unsafe_text}");
            }
        }
    }
}

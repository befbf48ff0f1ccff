//! `tributary-agent check`.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;
use tributary_protocol::{
    error_code::Refusal,
    job::JobSpec,
    transport::{process, tls},
};

use super::{CliError, options::CheckOptions, output, privacy};
use crate::{
    config::Config,
    driver::{records::Records, tokenizer::check_tokenizer},
    durable_file::read_text,
    identity::Identity,
    policy::Policy,
    site::Site,
};

/// One checked thing.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    detail: String,
}

impl Finding {
    fn new<E: std::error::Error>(what: impl Into<String>, outcome: Result<String, E>) -> Self {
        let what = what.into();
        match outcome {
            Ok(detail) => Self { what, ok: true, detail },
            Err(error) => Self { what, ok: false, detail: chain(&error) },
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

pub(super) fn execute(options: &CheckOptions) -> Result<ExitCode, CliError> {
    let site = options.site.site();
    let config = Config::load(&site, &options.overrides.overrides());
    let policy = Policy::load(&site);
    let mut findings = vec![
        Finding::new("configuration", config.as_ref().map(describe_config)),
        Finding::new("policy", policy.as_ref().map(describe_policy)),
        identity(&site),
        ledger(&site),
    ];
    if let Ok(config) = &config {
        findings.extend(data(config, policy.as_ref().ok()));
    }
    if let (Some(path), Ok(config), Ok(policy)) = (&options.job, &config, &policy) {
        let text = read_text(path)?;
        let job: JobSpec = toml::from_str(&text).map_err(|error| CliError::Job {
            path: path.clone(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let configured: Vec<_> = config.datasets.keys().cloned().collect();
        findings.push(match policy.check_job(&job, &configured) {
            Ok(_) => Finding {
                what: format!("job {}", job.name),
                ok: true,
                detail: "the policy allows it".to_owned(),
            },
            Err(refusal) => {
                let Refusal { code, message } = refusal.refusal();
                let detail = format!("{message} ({code})");
                Finding { what: format!("job {}", job.name), ok: false, detail }
            }
        });
        if job.tokenizer.is_some() {
            let outcome = check_tokenizer(&job, config.datasets.get(&job.dataset));
            let outcome = outcome.map(|()| "it is the dataset's".to_owned());
            findings.push(Finding::new(format!("tokenizer of job {}", job.name), outcome));
        }
    }
    let ok = findings.iter().all(|finding| finding.ok);
    if options.site.json {
        output::json(&json!({"ok": ok, "checks": findings}))?;
    } else {
        let rows = findings
            .into_iter()
            .map(|Finding { what, ok, detail }| {
                vec![what, if ok { "ok" } else { "FAILED" }.to_owned(), detail]
            })
            .collect();
        output::table(&["what", "", "detail"], rows)?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe_config(config: &Config) -> String {
    format!("listens on {}, {} threads", config.api_listen, config.threads)
}

fn describe_policy(policy: &Policy) -> String {
    let names: Vec<String> = policy
        .datasets
        .iter()
        .map(|(name, dataset)| {
            format!("{name} up to epsilon {} at delta {:e}", dataset.epsilon_max, dataset.delta)
        })
        .collect();
    if names.is_empty() { "no dataset takes part".to_owned() } else { names.join(", ") }
}

fn identity(site: &Site) -> Finding {
    let what = "identity";
    match Identity::load(site) {
        Err(error) => Finding { what: what.to_owned(), ok: false, detail: chain(&error) },
        Ok(identity) => {
            let now = process::now();
            let days = identity.expires.since(now).as_secs() / 86_400;
            let who = &identity.coordinator;
            let ok = !identity.is_expired(now);
            if let Err(error) = tls::agent(identity.tls.clone(), &identity.authority) {
                let detail = format!(
                    "key.pem and certificate.pem do not fit together ({}); restore them, or enrol \
                     again with a new token",
                    chain(&error)
                );
                return Finding { what: what.to_owned(), ok: false, detail };
            }
            let detail = if ok {
                format!("tenant {} at {}, for {days} more days", who.tenant, who.address)
            } else {
                format!(
                    "the certificate of tenant {} has expired; enrol again with a new token \
                     (`tributary-agent enroll --force`)",
                    who.tenant
                )
            };
            Finding { what: what.to_owned(), ok, detail }
        }
    }
}

fn ledger(site: &Site) -> Finding {
    let outcome = privacy::Copy::read(site).and_then(|copy| {
        let receipt = copy.receipt()?;
        let signed = receipt.map_or(0, |receipt| receipt.head.sequence);
        Ok(format!("{} entries, whole, {signed} countersigned", copy.ledger.entries().len()))
    });
    Finding::new("ledger", outcome)
}

fn data(config: &Config, policy: Option<&Policy>) -> Vec<Finding> {
    let check = |name| {
        let dataset = policy.and_then(|policy| policy.datasets.get(name));
        let examples_max = dataset.and_then(|dataset| dataset.examples_max);
        let outcome = Records::load(config, name, examples_max).map(|records| {
            let Records { data, split } = records;
            format!(
                "{} records of {} features in {} classes; {} train, {} validate, {} are held out",
                data.len(),
                data.num_features(),
                data.num_classes(),
                split.train.len(),
                split.validation.len(),
                split.held_out.len()
            )
        });
        Finding::new(format!("data {name}"), outcome)
    };
    config.datasets.keys().map(check).collect()
}

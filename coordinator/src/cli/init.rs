//! `init`: a new coordinator's folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{Common, ListenFlags, print};
use tributary_coordinator::{
    config::{Agents, Api, ApiTls, Config, Listen},
    pace::Pace,
    tenants::authority::{Authority, PemPair},
};
use tributary_protocol::{time::Timestamp, transport::process};

#[derive(Serialize)]
struct Initialized {
    dir: String,
    hosts: Vec<String>,
    authority: String,
}

/// An authority that is brought along, as PEM files.
#[derive(Debug, Args)]
pub(super) struct OutsideAuthority {
    /// The certificate (PEM) of an authority to use instead of a new one: a root or an intermediate.
    /// Agents trust exactly this certificate.
    #[arg(long, value_name = "FILE", requires = "authority_key")]
    authority_certificate: Option<PathBuf>,
    /// Its key (PEM, PKCS#8); it is copied into the folder.
    #[arg(long, value_name = "FILE", requires = "authority_certificate")]
    authority_key: Option<PathBuf>,
}

impl OutsideAuthority {
    /// Reads and checks it, or makes a new one.
    fn pair(&self, now: Timestamp) -> anyhow::Result<PemPair> {
        let (Some(certificate), Some(key)) = (&self.authority_certificate, &self.authority_key)
        else {
            return Ok(Authority::generate(now)?);
        };
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let pair = PemPair { certificate: read(certificate)?, key: read(key)? };
        let checked = Authority::load(&pair).and_then(|authority| authority.check(now));
        checked.with_context(|| {
            format!("{} with {} is no usable authority", certificate.display(), key.display())
        })?;
        Ok(pair)
    }
}

pub(super) fn run(
    common: &Common,
    hosts: &[String],
    listen: &ListenFlags,
    outside: &OutsideAuthority,
) -> anyhow::Result<()> {
    let now = process::now();
    let listen = Listen {
        quic: listen.quic_listen.unwrap_or(([0, 0, 0, 0], 7700).into()),
        api: listen.api_listen.unwrap_or(([127, 0, 0, 1], 7701).into()),
    };
    // Access tokens do not cross a network in the clear.
    let tls = if listen.api.ip().is_loopback() { ApiTls::Off } else { ApiTls::Authority };
    let api = Api { tls, ..Api::default() };
    let config = Config { listen, api, agents: Agents::default(), pace: Pace::default() };
    let pair = outside.pair(now)?;
    let authority = Authority::load(&pair)?;
    let server = authority
        .issue_server(hosts, now)
        .with_context(|| format!("no certificate can be made for {}", hosts.join(", ")))?;
    let mut token = [0; 32];
    getrandom::fill(&mut token)?;
    let token = data_encoding::BASE64URL_NOPAD.encode(&token);
    let folder = common.folder();
    folder.initialize(&config, &pair, &server, &token)?;
    let answer = Initialized {
        dir: folder.path().display().to_string(),
        hosts: hosts.to_vec(),
        authority: authority.fingerprint().to_string(),
    };
    print(common, &answer, |answer| {
        let Initialized { dir, hosts, .. } = answer;
        format!(
            "made a coordinator in {dir} for {}\nrun it with: tributary-coordinator serve --dir {dir}",
            hosts.join(", ")
        )
    });
    Ok(())
}

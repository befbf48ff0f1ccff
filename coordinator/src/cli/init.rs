//! `init`: a new coordinator's folder.

use anyhow::Context;
use serde::Serialize;

use super::{Common, ListenFlags, print};
use tributary_coordinator::{
    config::{Agents, Api, ApiTls, Config, Listen},
    tenants::authority::Authority,
};
use tributary_protocol::transport::process;

#[derive(Serialize)]
struct Initialized {
    dir: String,
    hosts: Vec<String>,
    authority: String,
}

pub(super) fn run(common: &Common, hosts: &[String], listen: &ListenFlags) -> anyhow::Result<()> {
    let now = process::now();
    let listen = Listen {
        quic: listen.quic_listen.unwrap_or(([0, 0, 0, 0], 7700).into()),
        api: listen.api_listen.unwrap_or(([127, 0, 0, 1], 7701).into()),
    };
    // Access tokens do not cross a network in the clear.
    let tls = if listen.api.ip().is_loopback() { ApiTls::Off } else { ApiTls::Authority };
    let config = Config { listen, api: Api { tls, ..Api::default() }, agents: Agents::default() };
    let pair = Authority::generate(now)?;
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

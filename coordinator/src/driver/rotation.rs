//! Replaces the coordinator's own certificate while it runs: connections and rounds go on, new
//! connections see the new one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tracing::{error, info};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    time::Timestamp,
    transport::{
        TransportError,
        endpoint::{self, Listening},
        process, tls,
    },
};

use super::{CoreError, CoreHandle};
use crate::{
    config::{ApiTls, ConfigError, Folder},
    tenants::authority::{self, Authority, AuthorityError},
};

/// How often the certificate's age is looked at.
const INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Says why the certificate stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// The folder cannot be read or written.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificate cannot be made or read.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Certificate and key do not go together.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The coordinator stops.
    #[error(transparent)]
    Core(#[from] CoreError),
}

/// Renews the folder's certificate if two thirds of its time are over; returns whether it was.
///
/// # Errors
/// [`RotationError`]; the certificate before is then still there.
pub fn renew_if_due(
    folder: &Folder,
    authority: &Authority,
    now: Timestamp,
) -> Result<bool, RotationError> {
    let pair = folder.server()?;
    // One that came from elsewhere is renewed elsewhere, and read again at SIGHUP.
    if now < authority::renewal_due(&pair)? || !authority.issued(&pair)? {
        return Ok(false);
    }
    let renewed = authority.renew_server(&pair, now)?;
    folder.replace_server_certificate(&renewed.certificate)?;
    info!("the coordinator's own certificate was renewed");
    Ok(true)
}

/// Looks after the certificate of a running coordinator.
pub struct Rotation {
    /// Holds certificate and key.
    pub folder: Folder,
    /// Shows the certificate to agents.
    pub quic: quinn::Endpoint,
    /// Signs receipts with it.
    pub core: CoreHandle,
    /// How the endpoint was opened.
    pub listening: Listening,
    /// The HTTP API, if it speaks TLS.
    pub api: Option<ApiRotation>,
}

/// How the HTTP API shows another certificate.
pub struct ApiRotation {
    /// Where its certificate comes from.
    pub tls: ApiTls,
    /// Where it listens.
    pub address: SocketAddr,
    /// When the certificate that it shows is to be renewed.
    pub due: Timestamp,
    /// The configuration of new connections.
    pub shown: watch::Sender<Arc<rustls::ServerConfig>>,
}

impl ApiRotation {
    /// Makes or reads the certificate again if it is due, or whoever runs the coordinator asks for it.
    ///
    /// # Errors
    /// [`RotationError`]; new connections then see the certificate before.
    fn turn(
        &mut self,
        folder: &Folder,
        authority: &Authority,
        asked: bool,
        now: Timestamp,
    ) -> Result<(), RotationError> {
        if now < self.due && !asked {
            return Ok(());
        }
        let pair = folder.api_pair(&self.tls, self.address, authority, now)?;
        let Some(pair) = pair else { return Ok(()) };
        let config = tls::https(authority::identity(&pair)?)?;
        // Only now: a pair that is not usable is looked at again at the next hour.
        self.due = authority::renewal_due(&pair)?;
        self.shown.send_replace(Arc::new(config));
        info!("new connections to the HTTP API see its newest certificate");
        Ok(())
    }
}

impl Rotation {
    /// Renews the certificate in time, and reads it again whenever `hangups` says so; until the
    /// coordinator stops.
    pub async fn run(mut self, mut hangups: mpsc::Receiver<()>) {
        let mut hourly = tokio::time::interval(INTERVAL);
        hourly.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                heard = hangups.recv() => heard.is_some(),
                _ = hourly.tick() => false,
            };
            match self.turn(asked).await {
                Ok(()) => {}
                Err(RotationError::Core(_)) => return,
                Err(error) => said(&error, "the coordinator's own certificate stays"),
            }
            if let Err(error) = self.turn_api(asked) {
                said(&error, "the HTTP API's certificate stays");
            }
        }
    }

    fn turn_api(&mut self, asked: bool) -> Result<(), RotationError> {
        let Some(api) = &mut self.api else { return Ok(()) };
        api.turn(&self.folder, &self.folder.authority()?, asked, process::now())
    }

    async fn turn(&self, asked: bool) -> Result<(), RotationError> {
        let authority = self.folder.authority()?;
        if !renew_if_due(&self.folder, &authority, process::now())? && !asked {
            return Ok(());
        }
        let identity = authority::server_identity(&self.folder.server()?, &authority)?;
        let tls = tls::server(identity.clone(), authority.certificate())?;
        let config = endpoint::server_config(tls, self.listening.idle_timeout)?;
        self.core.call(move |core, _| core.replace_identity(identity)).await?;
        self.quic.set_server_config(Some(config));
        info!("new connections see the coordinator's new certificate");
        Ok(())
    }
}

/// Logs an error with its causes.
fn said(error: &RotationError, what: &str) {
    let Refusal { message, .. } = Refusal::from_error(ErrorCode::Internal, error);
    error!(reason = message, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Agents, Api, Config, Listen};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const HOUR_MS: u64 = 3_600_000;

    /// A coordinator's folder, its authority, and the API's certificate as a start would show it.
    struct Bench {
        _temporary: tempfile::TempDir,
        folder: Folder,
        authority: Authority,
        api: ApiRotation,
        seen: watch::Receiver<Arc<rustls::ServerConfig>>,
    }

    impl Bench {
        fn new(tls: ApiTls) -> Self {
            let temporary = tempfile::tempdir().expect("a folder");
            let folder = Folder::new(temporary.path().join("coordinator"));
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            let config = Config {
                listen: Listen { quic: address, api: address },
                api: Api::default(),
                agents: Agents::default(),
                pace: crate::pace::Pace::default(),
            };
            let pair = Authority::generate(NOW).expect("makes");
            let authority = Authority::load(&pair).expect("loads");
            let server = authority.issue_server(&["localhost".to_owned()], NOW).expect("issues");
            folder.initialize(&config, &pair, &server, "secret").expect("makes");
            std::fs::write(folder.join("api.pem"), &server.certificate).expect("writes");
            std::fs::write(folder.join("api.key"), &server.key).expect("writes");
            let pair = folder.api_pair(&tls, address, &authority, NOW).expect("a pair");
            let pair = pair.expect("the API speaks TLS");
            let identity = authority::identity(&pair).expect("an identity");
            let config = Arc::new(tls::https(identity).expect("a configuration"));
            let (shown, seen) = watch::channel(config);
            let due = authority::renewal_due(&pair).expect("a certificate");
            let api = ApiRotation { tls, address, due, shown };
            Self { _temporary: temporary, folder, authority, api, seen }
        }

        /// Whether new connections see another certificate after this.
        fn turn(&mut self, asked: bool, now: Timestamp) -> Result<bool, RotationError> {
            let turned = self.api.turn(&self.folder, &self.authority, asked, now);
            let changed = self.seen.has_changed().expect("the sender is here");
            self.seen.borrow_and_update();
            turned.map(|()| changed)
        }
    }

    fn files() -> ApiTls {
        ApiTls::Files { certificate: "api.pem".into(), key: "api.key".into() }
    }

    #[test]
    fn the_apis_certificate_is_made_anew_before_it_expires() {
        let mut bench = Bench::new(ApiTls::Authority);
        let due = bench.api.due;
        let before = Timestamp(due.0 - HOUR_MS);
        assert!(!bench.turn(false, before).expect("nothing to do"));
        assert!(bench.turn(false, due).expect("renewed"));
        assert!(bench.api.due > due, "the new one lasts longer");
        assert!(!bench.turn(false, due.after_ms(HOUR_MS)).expect("nothing to do"));
        assert!(bench.turn(true, due.after_ms(HOUR_MS)).expect("asked for"));
    }

    #[test]
    fn a_certificate_from_elsewhere_is_read_again_near_its_end() {
        let mut bench = Bench::new(files());
        let due = bench.api.due;
        // Nobody has replaced the file yet: it is looked at again at the next hour.
        assert!(bench.turn(false, due).expect("read again"));
        assert_eq!(bench.api.due, due);
        let newer = bench.authority.issue_server(&["localhost".to_owned()], due).expect("issues");
        std::fs::write(bench.folder.join("api.pem"), &newer.certificate).expect("writes");
        // Its key is missing: the certificate before stays.
        let error = bench.turn(false, due.after_ms(HOUR_MS)).expect_err("no pair");
        assert!(matches!(error, RotationError::Transport(_)), "{error:?}");
        assert_eq!(bench.api.due, due);
        std::fs::write(bench.folder.join("api.key"), &newer.key).expect("writes");
        assert!(bench.turn(false, due.after_ms(2 * HOUR_MS)).expect("read again"));
        assert!(bench.api.due > due);
        assert!(!bench.turn(false, due.after_ms(3 * HOUR_MS)).expect("nothing to do"));
    }
}

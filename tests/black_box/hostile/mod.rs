//! Peers that mean harm, over real sockets: while each attack goes on, a round of honest agents
//! finishes, and the coordinator's memory stays within a bound.

mod floods;
mod garbage;
mod replays;
mod slow;

use std::{net::SocketAddr, time::Duration};

use quinn::Endpoint;
use tokio::task::{JoinHandle, block_in_place};
use tributary_protocol::{
    enrollment::EnrollmentToken,
    message::{Assignment, CoordinatorMessage, TransferResponse},
};
use tributary_tests::{
    coordinator::Coordinator,
    peer::{self, Credentials, Peer, offer},
    usage::Usage,
};

use crate::job;

/// How much an attack may make the coordinator grow, in bytes.
const GROWTH_MAX: u64 = 48 << 20;

/// An honest round, from the submission of its job on, in seconds.
const ROUND_TIMEOUT: Duration = Duration::from_secs(20);

/// A coordinator with two honest tenants.
struct Site {
    coordinator: Coordinator,
    honest: Vec<Credentials>,
}

impl Site {
    async fn new() -> Self {
        let coordinator = Coordinator::start();
        let mut honest = Vec::new();
        for tenant in ["alpha", "beta"] {
            honest.push(enroll(&coordinator, tenant, "eu").await);
        }
        Self { coordinator, honest }
    }

    fn quic(&self) -> SocketAddr {
        self.coordinator.quic()
    }

    /// Runs an honest round while `attack` goes on, which says when it is under way and then never
    /// ends.
    async fn withstand<F>(&self, attack: impl FnOnce(tokio::sync::oneshot::Sender<()>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let usage = Usage::of(self.coordinator.process());
        usage.reset_peak();
        let before = usage.resident_bytes();
        let (under_way, begun) = tokio::sync::oneshot::channel();
        let attacking: JoinHandle<()> = tokio::spawn(attack(under_way));
        begun.await.expect("the attack begins");
        self.round("points").await;
        assert!(!attacking.is_finished(), "the attack ended before the round");
        attacking.abort();
        // Outside a runtime an attack would fail at once, again and again, and never end.
        assert!(attacking.await.is_err_and(|error| error.is_cancelled()), "the attack failed");
        let grown = usage.peak_bytes().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "it grew by {} KiB", grown >> 10);
    }

    /// A round of both honest tenants, in a job of its own.
    async fn round(&self, name: &str) {
        let job = job(name, 1, 2).replace("dataset = ", "regions = [\"eu\"]\ndataset = ");
        block_in_place(|| self.coordinator.submit(&job));
        let agents = self.honest.iter().map(|credentials| honest(self.quic(), credentials.clone()));
        let agents = tokio::task::JoinSet::from_iter(agents);
        tokio::time::timeout(ROUND_TIMEOUT, agents.join_all()).await.expect("the round finishes");
        block_in_place(|| self.coordinator.finish(name, 5));
    }
}

async fn enroll(coordinator: &Coordinator, tenant: &str, region: &str) -> Credentials {
    let token = block_in_place(|| coordinator.add_tenant_in(tenant, region));
    let token: EnrollmentToken = token.parse().expect("a token");
    peer::enroll(coordinator.quic(), &token).await.expect("admitted")
}

async fn honest(address: SocketAddr, credentials: Credentials) {
    let mut peer = Peer::connect(address, &credentials).await.expect("connects");
    let assignment = peer.assignment().await;
    peer.try_download(assignment.base.file).await.expect("the base");
    peer.accept(&assignment.job.name, assignment.round).await;
    let update = vec![0; update_bytes(&assignment)];
    let offer = offer(&assignment.job.name, assignment.round, &update, 1);
    assert_eq!(peer.upload(&offer, &update).await, TransferResponse::Stored);
    loop {
        let message = peer.next().await.expect("a message");
        if let CoordinatorMessage::RoundClosed { abandoned, .. } = message {
            assert_eq!(abandoned, None);
            return;
        }
    }
}

fn update_bytes(assignment: &Assignment) -> usize {
    (assignment.job.model.num_parameters() * usize::from(assignment.lattice.bits)).div_ceil(8)
}

/// A socket at another address of this machine than the honest agents'.
fn elsewhere(last: u8) -> Endpoint {
    Endpoint::client(([127, 0, 0, last], 0).into()).expect("a loopback address")
}

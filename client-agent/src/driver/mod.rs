//! Sockets, threads, clocks and entropy around the stepped [`Session`].

pub(crate) mod adapting;
pub mod address;
mod agent;
mod cancel;
mod connection;
mod feedback;
pub mod records;
mod renewal;
pub mod serving;
pub mod status;
pub mod tokenizer;
mod training;
mod transfer;

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinSet};
use tributary_protocol::{
    message::{CoordinatorMessage, TransferResponse, UploadOffer},
    transport::{TransportError, process},
};

pub use self::{
    agent::{Agent, AgentError},
    feedback::open_feedback,
};
use self::{
    cancel::Cancellation,
    connection::{Link, LinkEvent},
};
use crate::{
    identity::{Identity, NewKey},
    secagg::{Cohort, TenantKeys},
    session::{Input, Output, RoundKey, Seed, Session, UploadEnd},
    update::{Release, released_evaluation},
};

/// What tasks report to the loop.
enum Event {
    /// From the connection that was started as the n-th.
    Link(u64, LinkEvent),
    /// From an upload on the n-th connection.
    Uploaded(u64, RoundKey, UploadEnd),
    /// From a thread of its own.
    Worked(Input),
}

/// The loop's own state.
struct Driver {
    agent: Arc<Agent>,
    identity: Identity,
    session: Session,
    events: mpsc::UnboundedSender<Event>,
    /// Counts connections, so that nothing from an old one is taken for the new one's.
    connection: u64,
    link: Option<Link>,
    /// Tasks of the current connection; dropped with it.
    link_tasks: JoinSet<()>,
    training: Option<Cancellation>,
    adapting: Option<Cancellation>,
    /// The key that the coordinator was asked to certify.
    renewing: Option<NewKey>,
}

/// Runs an agent until `stop` resolves: connects, trains, uploads, adapts.
pub async fn run(agent: Arc<Agent>, identity: Identity, stop: impl Future<Output = ()>) {
    let (events, mut inbox) = mpsc::unbounded_channel();
    let keys = Arc::new(TenantKeys::of(&identity));
    let session = Session::new(agent.policy.clone(), agent.configured(), keys)
        .renewing_at(identity.renewal_due())
        .at_isolation(agent.config.isolation(&identity.coordinator.tenant));
    let mut driver = Driver {
        agent,
        identity,
        session,
        events,
        connection: 0,
        link: None,
        link_tasks: JoinSet::new(),
        training: None,
        adapting: None,
        renewing: None,
    };
    tokio::pin!(stop);
    let mut stopping = false;
    loop {
        if driver.carry_out() {
            break;
        }
        let timeout = driver.session.poll_timeout();
        let wait = timeout.map(|timeout| timeout.since(process::now()));
        let timer = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = inbox.recv() => {
                let event = event.expect("the driver holds a sender");
                driver.take_in(event);
            }
            () = timer => driver.session.handle_timeout(process::now()),
            () = &mut stop, if !stopping => {
                stopping = true;
                driver.step(Input::Shutdown);
            }
        }
    }
    driver.link_tasks.shutdown().await;
    if let Some(link) = driver.link.take() {
        link.leave().await;
    }
}

impl Driver {
    fn step(&mut self, input: Input) {
        self.session.handle(process::now(), input);
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Link(connection, event) if connection == self.connection => match event {
                LinkEvent::Connected(link) => {
                    self.agent.connection.send_replace(Some(link.connection.clone()));
                    self.link = Some(link);
                    self.step(Input::Connected { ledger_head: self.agent.ledger.head() });
                }
                LinkEvent::Message(CoordinatorMessage::SecaggBegin {
                    job,
                    round,
                    member,
                    cohort_size,
                    cohort_root,
                }) => {
                    let cohort = Cohort { member, size: cohort_size, root: cohort_root };
                    self.begin(RoundKey { job, round }, cohort);
                }
                LinkEvent::Message(message) => self.step(Input::Message(message)),
                LinkEvent::Failed(failure) => {
                    self.disconnect();
                    self.step(Input::ConnectionFailed(failure));
                }
            },
            Event::Uploaded(connection, key, outcome) if connection == self.connection => {
                self.step(Input::Uploaded { key, outcome });
            }
            Event::Link(..) | Event::Uploaded(..) => {}
            Event::Worked(input) => {
                match &input {
                    Input::Trained { .. } => self.training = None,
                    Input::Adapted { .. } => self.adapting = None,
                    _ => {}
                }
                self.step(input);
            }
        }
    }

    fn begin(&mut self, key: RoundKey, cohort: Cohort) {
        let mut seed = [0; 32];
        match getrandom::fill(&mut seed) {
            Ok(()) => self.step(Input::Begin { key, cohort, seed: Seed(seed) }),
            // The agent then counts as a dropout of the round.
            Err(error) => tracing::error!(%error, "no entropy for the keys of a round"),
        }
    }

    /// Carries out everything that the session wants; true once it wants to stop.
    fn carry_out(&mut self) -> bool {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Connect => self.connect(),
                Output::Disconnect => self.disconnect(),
                Output::Send(message) => {
                    if let Some(link) = &self.link {
                        link.send(message);
                    }
                }
                Output::CompareLedger(receipt) => {
                    let outcome = self.agent.compare_ledger(&receipt);
                    self.step(Input::LedgerCompared(outcome));
                }
                Output::RecordDecline(key, declined) => {
                    let RoundKey { job, round } = &key;
                    let added = self.agent.refusals.add(job, *round, &declined, process::now());
                    if let Err(error) = added {
                        tracing::warn!(%error, "the refusal is not on record");
                    }
                }
                Output::Examine(assignment, approved) => {
                    let (agent, events) = (self.agent.clone(), self.events.clone());
                    // Accounting takes its time on a long ledger.
                    tokio::task::spawn_blocking(move || {
                        let outcome = agent.examine(&assignment, &approved);
                        let key = RoundKey::of(&assignment);
                        let _ = events.send(Event::Worked(Input::Examined { key, outcome }));
                    });
                }
                Output::Train(assignment, approved, exchange) => {
                    let key = RoundKey::of(&assignment);
                    let (agent, events) = (self.agent.clone(), self.events.clone());
                    let cancellation = Cancellation::new();
                    self.training = Some(cancellation.clone());
                    tokio::spawn(async move {
                        let outcome =
                            training::run(agent, assignment, approved, exchange, cancellation)
                                .await;
                        let _ = events.send(Event::Worked(Input::Trained { key, outcome }));
                    });
                }
                Output::CancelTraining(_) => cancel(self.training.as_ref()),
                Output::Upload(release) => self.upload(release),
                Output::Adapt(base) => {
                    let (agent, events) = (self.agent.clone(), self.events.clone());
                    let cancellation = Cancellation::new();
                    self.adapting = Some(cancellation.clone());
                    tokio::spawn(async move {
                        let digest = base.file.digest;
                        let complete = adapting::run(agent, base, cancellation).await;
                        let input = Input::Adapted { base: digest, complete };
                        let _ = events.send(Event::Worked(input));
                    });
                }
                Output::CancelAdapting => cancel(self.adapting.as_ref()),
                Output::Renew => self.renew(),
                Output::Install(answer) => self.install(answer),
                Output::Stop => return true,
            }
        }
        self.agent.status.show(self.session.view());
        false
    }

    fn connect(&mut self) {
        self.disconnect();
        let (connection, events) = (self.connection, self.events.clone());
        let identity = self.identity.clone();
        self.link_tasks.spawn(connection::run(identity, move |event| {
            // Fails only when the loop has ended, and nobody waits any more.
            let _ = events.send(Event::Link(connection, event));
        }));
    }

    fn disconnect(&mut self) {
        self.connection += 1;
        self.link_tasks.abort_all();
        self.link_tasks = JoinSet::new();
        self.agent.connection.send_replace(None);
        if let Some(link) = self.link.take() {
            link.connection.close(0_u32.into(), b"the agent leaves");
        }
    }

    fn upload(&mut self, release: Release) {
        let Some(link) = &self.link else { return };
        let Release { job, round, update } = release;
        let key = RoundKey { job: job.clone(), round };
        let (ledger, releases) = (&self.agent.ledger, &self.agent.releases);
        let evaluation = released_evaluation(ledger, releases, &job, round);
        let ledger_head = ledger.head();
        let offer = UploadOffer { job, round, update, ledger_head, evaluation };
        let (agent, connection) = (self.agent.clone(), link.connection.clone());
        let (number, events) = (self.connection, self.events.clone());
        self.link_tasks.spawn(async move {
            let path = agent.releases.path(update.digest);
            let status = agent.status.clone();
            let answer =
                transfer::upload(&connection, offer, &path, |bytes| status.sent(bytes)).await;
            let outcome = upload_end(answer, &key);
            let _ = events.send(Event::Uploaded(number, key, outcome));
        });
    }
}

fn upload_end(answer: Result<TransferResponse, TransportError>, key: &RoundKey) -> UploadEnd {
    match answer {
        Ok(TransferResponse::Stored) => UploadEnd::Stored,
        Ok(TransferResponse::Refused(refusal)) => UploadEnd::Refused(refusal),
        Ok(TransferResponse::Sending { .. } | TransferResponse::SendFrom { .. }) => {
            tracing::error!(job = %key.job, round = %key.round, "unexpected answer to an upload");
            UploadEnd::Interrupted
        }
        Err(error) => {
            tracing::warn!(job = %key.job, round = %key.round, %error, "upload interrupted");
            UploadEnd::Interrupted
        }
    }
}

fn cancel(cancellation: Option<&Cancellation>) {
    if let Some(cancellation) = cancellation {
        cancellation.cancel();
    }
}

//! One tenant's process, disk and clock.
//!
//! What [`tributary_agent::driver`] does with tasks and sockets is done here event by event. Policy,
//! ledger, receipts, releases and masks are the agent's own; only the training is a stand-in.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use rand::{Rng, RngExt};
use tributary_agent::{
    identity::Identity,
    policy::{Approved, Policy},
    receipt_file::ReceiptFile,
    secagg::{Cohort, Exchange, TenantKeys},
    session::{Failure, Input, Output, RoundKey, Seed, Session, UploadEnd},
    site::Site,
    update::{Release, ReleaseFiles, SharedLedger, standing},
};
use tributary_coordinator::scheduler::OfferAnswer;
use tributary_privacy::ledger::{ChainStore, MemoryChainStore};
use tributary_protocol::{
    error_code::Refusal,
    id::{DatasetName, Digest, TenantId},
    message::{AgentMessage, Assignment, CoordinatorMessage, UploadOffer},
    receipt::Receipt,
    time::Timestamp,
};

use super::{
    Rule,
    network::{CONNECT_TIMEOUT_MS, Down, Stream, Up},
    play::{Event, Side, Work, World},
};

const POLICY: &str = "[datasets.records]\nepsilon_max = 1e6\ndelta = 1e-5\n\
    units = [\"record\", \"tenant\"]\ntrusts = [\"local\", \"distributed\"]\nfamilies = [\"mlp\"]\n\
    noise_multiplier_min = 0.5\ncorrelated_bands_max = 8\n";

/// What outlives an agent's process, and the process.
pub(super) struct AgentSite {
    pub(super) tenant: TenantId,
    pub(super) identity: Arc<Identity>,
    keys: Arc<TenantKeys>,
    ledger: MemoryChainStore,
    folder: PathBuf,
    /// Base models that are on the disk.
    pub(super) models: BTreeMap<Digest, Arc<[u8]>>,
    /// `None` while it is down.
    pub(super) process: Option<Process>,
    /// Counts processes, so that nothing from an old one is taken for the new one's.
    incarnation: u64,
    /// What its clock shows too much, in milliseconds.
    pub(super) clock_ms: i64,
    /// How long it is down once the ordered torn write has come, in milliseconds.
    pub(super) torn: Option<u64>,
    /// Its connection, as far as it knows.
    pub(super) link: Option<usize>,
    wake: Option<Timestamp>,
}

/// What a crash forgets.
pub(super) struct Process {
    pub(super) session: Session,
    pub(super) ledger: SharedLedger<MemoryChainStore>,
    pub(super) releases: ReleaseFiles,
    receipts: ReceiptFile,
    pub(super) training: Option<Training>,
    /// Whether the adaptation under way was cut short.
    adapting: Option<bool>,
}

/// A round at work.
pub(super) struct Training {
    pub(super) key: RoundKey,
    pub(super) assignment: Box<Assignment>,
    pub(super) approved: Approved,
    pub(super) exchange: Option<Exchange>,
    pub(super) cancelled: bool,
    /// The base is not here yet.
    pub(super) fetching: bool,
}

impl AgentSite {
    pub(super) fn new(tenant: TenantId, identity: Arc<Identity>, folder: PathBuf) -> Self {
        let keys = Arc::new(TenantKeys::of(&identity));
        Self {
            tenant,
            identity,
            keys,
            ledger: MemoryChainStore::new(),
            folder,
            models: BTreeMap::new(),
            process: None,
            incarnation: 0,
            clock_ms: 0,
            torn: None,
            link: None,
            wake: None,
        }
    }

    /// Orders a torn write; see [`super::FaultKind::TornDebit`].
    pub(super) fn tear(&mut self, bytes: usize, down_ms: u64) {
        if self.process.is_some() {
            self.ledger.crash_after(bytes);
            self.torn = Some(down_ms);
        }
    }

    /// Debits on the disk.
    pub(super) fn num_debits(&self) -> u64 {
        let ledger = SharedLedger::open(self.ledger.clone(), self.tenant.as_str());
        ledger.map_or(0, |ledger| ledger.head().sequence)
    }

    fn is_torn(&self) -> bool {
        self.torn.is_some() && self.ledger.clone().read().is_err()
    }

    fn open(&self) -> Result<Process, String> {
        let text = |error: &dyn std::error::Error| {
            let causes = std::iter::successors(Some(error), |error| error.source());
            causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        };
        let ledger = SharedLedger::open(self.ledger.clone(), self.tenant.as_str())
            .map_err(|error| text(&error))?;
        let receipt = self.folder.join("receipt.json");
        let receipts = ReceiptFile::new(receipt, self.tenant.clone(), &self.identity.authority);
        // No honest crash may look like a restored backup.
        receipts.check(&ledger.lock()).map_err(|error| text(&error))?;
        let releases = ReleaseFiles::open(self.folder.join("releases"), self.folder.join("runs"))
            .map_err(|error| text(&error))?;
        let policy = Policy::parse(POLICY, &Site::new("agent")).map_err(|error| text(&error))?;
        let dataset = DatasetName::new("records").map_err(|error| text(&error))?;
        let session = Session::new(policy, vec![dataset], self.keys.clone());
        Ok(Process { session, ledger, releases, receipts, training: None, adapting: None })
    }
}

impl World {
    pub(super) fn agent_clock(&self, tenant: u32) -> Timestamp {
        let skew = self.agents[tenant as usize].clock_ms;
        Timestamp(self.now.0.saturating_add_signed(skew))
    }

    /// An agent's process starts from what is durable.
    pub(super) fn start_agent(&mut self, tenant: u32) {
        let site = &mut self.agents[tenant as usize];
        if site.process.is_some() {
            return;
        }
        site.ledger.restart();
        site.torn = None;
        site.incarnation += 1;
        match site.open() {
            Ok(process) => site.process = Some(process),
            Err(error) => {
                let text = format!("{} cannot start: {error}", site.tenant);
                return self.breaks((Rule::Soundness, text));
            }
        }
        self.carry_out(tenant);
    }

    /// An agent's process dies.
    pub(super) fn crash_agent(&mut self, tenant: u32, down_ms: u64) {
        let site = &mut self.agents[tenant as usize];
        if site.process.take().is_none() {
            return;
        }
        site.wake = None;
        // Files in the agent's folder are written under another name first: none is ever half there.
        if let Some(link) = site.link.take() {
            self.break_link(link, Side::Coordinator);
        }
        self.queue.add(self.now.after_ms(down_ms), Event::StartAgent(tenant));
    }

    /// A deadline of a session may have come.
    pub(super) fn wake_agent(&mut self, tenant: u32) {
        let now = self.agent_clock(tenant);
        let site = &mut self.agents[tenant as usize];
        site.wake = None;
        let Some(process) = &mut site.process else { return };
        process.session.handle_timeout(now);
        self.carry_out(tenant);
    }

    pub(super) fn give(&mut self, tenant: u32, input: Input) {
        let now = self.agent_clock(tenant);
        if let Some(process) = &mut self.agents[tenant as usize].process {
            process.session.handle(now, input);
            self.carry_out(tenant);
        }
    }

    /// The handshake of a connection is done, or not.
    pub(super) fn established(&mut self, tenant: u32, link: usize) {
        if self.agents[tenant as usize].link != Some(link) {
            return;
        }
        let reachable = self.coordinator.process.is_some()
            && self.network.link(link).open
            && !self.network.is_cut(tenant, self.now);
        if !reachable {
            self.network.close(link);
            let at = self.now.after_ms(CONNECT_TIMEOUT_MS);
            return self.queue.add(at, Event::Gone(link, Side::Agent, None));
        }
        let Some(process) = &self.agents[tenant as usize].process else { return };
        let ledger_head = process.ledger.head();
        self.give(tenant, Input::Connected { ledger_head });
        // A base that is still needed is asked for again.
        let process = self.agents[tenant as usize].process.as_ref();
        let fetching = process.and_then(|process| process.training.as_ref());
        if let Some(training) = fetching.filter(|training| training.fetching) {
            let blob = training.assignment.base.file;
            self.up(tenant, Up::Download(blob), Stream::File);
        }
    }

    /// A connection is gone for the agent.
    pub(super) fn link_lost(&mut self, link: usize, refusal: Option<Refusal>) {
        let tenant = self.network.link(link).tenant;
        let site = &mut self.agents[tenant as usize];
        if site.link != Some(link) {
            return;
        }
        site.link = None;
        let jitter = self.draw.random();
        let failure = match refusal {
            Some(refusal) => Failure { jitter, ..Failure::refused(&refusal) },
            None => Failure { reason: "no answer".to_owned(), lasting: false, jitter },
        };
        self.give(tenant, Input::ConnectionFailed(failure));
    }

    /// Something from the coordinator arrives.
    pub(super) fn hears(&mut self, link: usize, message: Down) {
        let tenant = self.network.link(link).tenant;
        let site = &self.agents[tenant as usize];
        if site.link != Some(link) || site.process.is_none() {
            return;
        }
        match message {
            Down::Control(CoordinatorMessage::SecaggBegin {
                job,
                round,
                member,
                cohort_size,
                cohort_root,
            }) => {
                let cohort = Cohort { member, size: cohort_size, root: cohort_root };
                let mut seed = [0; 32];
                self.draw.fill_bytes(&mut seed);
                let key = RoundKey { job, round };
                self.give(tenant, Input::Begin { key, cohort, seed: Seed(seed) });
            }
            Down::Control(message) => self.give(tenant, Input::Message(message)),
            Down::Base(blob, Ok(bytes)) => {
                self.agents[tenant as usize].models.insert(blob.digest, bytes);
                self.begin_training(tenant);
            }
            Down::Base(_, Err(refusal)) => self.base_refused(tenant, refusal),
            Down::Offered(offer, Ok(OfferAnswer::Receive)) => self.send_payload(tenant, offer),
            Down::Offered(offer, Ok(OfferAnswer::Stored)) | Down::Stored(offer, Ok(())) => {
                self.uploaded(tenant, offer, UploadEnd::Stored);
            }
            Down::Offered(offer, Err(refusal)) | Down::Stored(offer, Err(refusal)) => {
                self.uploaded(tenant, offer, UploadEnd::Refused(refusal));
            }
        }
    }

    fn uploaded(&mut self, tenant: u32, offer: UploadOffer, outcome: UploadEnd) {
        let key = RoundKey { job: offer.job, round: offer.round };
        self.give(tenant, Input::Uploaded { key, outcome });
    }

    fn send_payload(&mut self, tenant: u32, offer: UploadOffer) {
        let process = self.agents[tenant as usize].process.as_ref();
        let bytes = process.and_then(|process| process.releases.read(offer.update.digest));
        match bytes {
            Some(bytes) => self.up(tenant, Up::Payload(offer, bytes), Stream::File),
            // The round was closed here meanwhile, and a newer release took its place.
            None => self.uploaded(tenant, offer, UploadEnd::Interrupted),
        }
    }

    pub(super) fn up(&mut self, tenant: u32, message: Up, stream: Stream) {
        let Some(link) = self.agents[tenant as usize].link else { return };
        let arrival = self.network.arrival(link, stream, self.now, &mut self.draw);
        self.queue.add(arrival, Event::Up(link, message));
    }

    /// Carries out everything that the session wants.
    fn carry_out(&mut self, tenant: u32) {
        while let Some(output) = self.agents[tenant as usize]
            .process
            .as_mut()
            .and_then(|process| process.session.poll_output())
        {
            self.do_one(tenant, output);
        }
        let now = self.agent_clock(tenant);
        let site = &mut self.agents[tenant as usize];
        let timeout = site.process.as_ref().and_then(|process| process.session.poll_timeout());
        if let Some(timeout) = timeout {
            let at = self.now.after_ms((timeout.since(now).as_millis() as u64).max(1));
            if site.wake.is_none_or(|wake| at < wake) {
                site.wake = Some(at);
                self.queue.add(at, Event::Agent(tenant));
            }
        }
    }

    fn do_one(&mut self, tenant: u32, output: Output) {
        match output {
            Output::Connect => self.connect(tenant),
            // The session is never told of a certificate here, so it renews none.
            Output::Renew | Output::Install(_) => {}
            Output::Disconnect => self.leave(tenant),
            Output::Send(message) => {
                if let AgentMessage::Secagg { job, round, payload } = &message {
                    let who = &self.agents[tenant as usize].tenant;
                    if let Err(broken) = self.checks.says(who, job, *round, payload) {
                        self.breaks(broken);
                    }
                }
                self.up(tenant, Up::Control(message), Stream::ControlUp);
            }
            Output::CompareLedger(receipt) => self.compare_ledger(tenant, &receipt),
            Output::RecordDecline(..) => {}
            Output::Examine(assignment, approved) => {
                let work = Work::Examine(assignment, approved);
                self.work(tenant, (1, 20), work);
            }
            Output::Train(assignment, approved, exchange) => {
                let (key, fetching) = (RoundKey::of(&assignment), true);
                let cancelled = false;
                let file = assignment.base.file;
                let training =
                    Training { key, assignment, approved, exchange, cancelled, fetching };
                let site = &mut self.agents[tenant as usize];
                let process = site.process.as_mut().expect("its session asked for this");
                process.training = Some(training);
                if site.models.contains_key(&file.digest) {
                    self.begin_training(tenant);
                } else {
                    self.up(tenant, Up::Download(file), Stream::File);
                }
            }
            Output::CancelTraining(key) => self.cancel_training(tenant, &key),
            Output::Upload(release) => self.upload(tenant, release),
            Output::Adapt(base) => {
                let site = &mut self.agents[tenant as usize];
                site.process.as_mut().expect("its session asked for this").adapting = Some(false);
                self.work(tenant, (50, 1_500), Work::Adapt(base.file.digest));
            }
            Output::CancelAdapting => {
                let process = self.agents[tenant as usize].process.as_mut();
                if let Some(cut) = process.and_then(|process| process.adapting.as_mut()) {
                    *cut = true;
                }
            }
            Output::Stop => {}
        }
    }

    fn connect(&mut self, tenant: u32) {
        self.leave(tenant);
        let link = self.network.open(tenant);
        self.agents[tenant as usize].link = Some(link);
        let round_trip = 2 * self.network.delay_ms(tenant, self.now, &mut self.draw);
        self.queue.add(self.now.after_ms(round_trip), Event::Established(tenant, link));
    }

    fn leave(&mut self, tenant: u32) {
        if let Some(link) = self.agents[tenant as usize].link.take() {
            self.network.close(link);
            let delay_ms = self.network.delay_ms(tenant, self.now, &mut self.draw);
            self.queue.add(self.now.after_ms(delay_ms), Event::Gone(link, Side::Coordinator, None));
        }
    }

    fn compare_ledger(&mut self, tenant: u32, receipt: &Receipt) {
        let site = &self.agents[tenant as usize];
        let process = site.process.as_ref().expect("its session asked for this");
        let taken = process.receipts.take(receipt, &process.ledger.lock());
        if let Err(error) = taken {
            let text = format!("{} takes its own ledger for another: {error}", site.tenant);
            return self.breaks((Rule::Soundness, text));
        }
        self.give(tenant, Input::LedgerCompared(Ok(())));
    }

    pub(super) fn work(&mut self, tenant: u32, range_ms: (u64, u64), work: Work) {
        let takes_ms = self.draw.random_range(range_ms.0..=range_ms.1);
        let incarnation = self.agents[tenant as usize].incarnation;
        self.queue.add(self.now.after_ms(takes_ms), Event::Worked { tenant, incarnation, work });
    }

    /// Work that takes time is done.
    pub(super) fn worked(&mut self, tenant: u32, incarnation: u64, work: Work) {
        let now = self.agent_clock(tenant);
        let site = &mut self.agents[tenant as usize];
        if site.incarnation != incarnation {
            return;
        }
        let Some(process) = &mut site.process else { return };
        match work {
            Work::Examine(assignment, approved) => {
                let Process { ledger, releases, .. } = process;
                let outcome = standing(ledger, releases, &assignment, &approved, now.0)
                    .map_err(|error| error.refusal().into());
                let key = RoundKey::of(&assignment);
                self.give(tenant, Input::Examined { key, outcome });
            }
            Work::Adapt(base) => {
                let complete = process.adapting.take() == Some(false);
                self.give(tenant, Input::Adapted { base, complete });
            }
            Work::Train(key) => {
                let Some(training) = process.training.take_if(|at| at.key == key) else { return };
                let outcome = self.release(tenant, &training);
                if self.agents[tenant as usize].is_torn() {
                    let down_ms = self.agents[tenant as usize].torn.take().unwrap_or(1);
                    return self.crash_agent(tenant, down_ms);
                }
                self.give(tenant, Input::Trained { key, outcome });
            }
        }
    }

    fn upload(&mut self, tenant: u32, release: Release) {
        let site = &self.agents[tenant as usize];
        let process = site.process.as_ref().expect("its session asked for this");
        let ledger_head = process.ledger.head();
        let Release { job, round, update } = release;
        let offer = UploadOffer { job, round, update, ledger_head, evaluation: Vec::new() };
        if let Err(broken) = self.checks.leaves(&site.tenant, &offer, &site.ledger) {
            self.breaks(broken);
        }
        self.up(tenant, Up::Offer(offer), Stream::File);
    }
}

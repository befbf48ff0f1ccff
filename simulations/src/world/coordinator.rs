//! The coordinator's process, disk and clock.
//!
//! What [`tributary_coordinator::driver`] does with tasks and sockets is done here event by event, in
//! the same order: a request changes the scheduler, passed deadlines follow, every action is carried
//! out in turn, and only then is the request answered. A crash may come between any two actions.

use std::{collections::BTreeMap, sync::Arc};

use tributary_coordinator::{
    aggregation::{self, AggregationError, NextModel, RoundSums},
    blobs::BlobStore,
    registry::ModelRegistry,
    scheduler::{Action, Commit, JobRecord, JobState, OfferAnswer, Scheduler, SchedulerError},
    store::{MemoryStore, Store, StoreError, Table, load},
};
use tributary_privacy::secagg::PeerKeys;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{Digest, TenantId},
    message::{AgentMessage, CoordinatorMessage, LedgerHead, UploadOffer},
    receipt::Receipt,
    time::Timestamp,
    transport::credential::Recognizer,
};

use super::{
    Rule,
    certificates::{Certificates, name},
    checks::Broken,
    network::{Down, Stream, Up},
    play::{Event, Side, World},
};

/// The whole store is compared with the scheduler after so many steps.
const STORE_CHECK_EVERY: u64 = 32;

/// What outlives the coordinator's process, and the process.
pub(super) struct CoordinatorSite {
    store: MemoryStore,
    pub(super) blobs: BlobStore,
    /// `None` while it is down.
    pub(super) process: Option<Process>,
    /// What its clock shows too much, in milliseconds.
    pub(super) clock_ms: i64,
    /// What a durable write takes, in milliseconds.
    pub(super) write_ms: u64,
    /// Actions until an ordered crash, and how long it is down then, in milliseconds.
    pub(super) crash: Option<(u32, u64)>,
    /// When it has done what it was asked before.
    pub(super) busy_until: Timestamp,
    /// The next time that it wants to be woken.
    wake: Option<Timestamp>,
    steps: u64,
}

/// What a crash forgets.
pub(super) struct Process {
    pub(super) scheduler: Scheduler,
    sums: RoundSums,
    pub(super) sessions: BTreeMap<TenantId, usize>,
}

/// Recognises tenants as the coordinator does.
struct Peers(Timestamp);

impl Peers {
    fn recognizer(&self) -> Recognizer<'static> {
        Recognizer { authority: &Certificates::shared().authority, at: self.0 }
    }
}

impl PeerKeys for Peers {
    fn name(&self, credential: &[u8]) -> Option<String> {
        self.recognizer().tenant(credential).map(|tenant| tenant.to_string())
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.recognizer().verifies(credential, message, signature)
    }
}

impl CoordinatorSite {
    pub(super) fn new(blobs: BlobStore, start: Timestamp) -> Self {
        let process = Process {
            scheduler: Scheduler::default(),
            sums: RoundSums::default(),
            sessions: BTreeMap::new(),
        };
        Self {
            store: MemoryStore::default(),
            blobs,
            process: Some(process),
            clock_ms: 0,
            write_ms: 0,
            crash: None,
            busy_until: start,
            wake: None,
            steps: 0,
        }
    }
}

impl World {
    pub(super) fn coordinator_clock(&self) -> Timestamp {
        Timestamp(self.now.0.saturating_add_signed(self.coordinator.clock_ms))
    }

    /// Runs a request and everything that follows from it; `None` if the process is down or dies.
    pub(super) fn coordinate<R>(
        &mut self,
        request: impl FnOnce(&mut Self, &mut Process) -> R,
    ) -> Option<R> {
        let mut process = self.coordinator.process.take()?;
        let result = request(self, &mut process);
        process.scheduler.handle_timeout(self.coordinator_clock());
        let alive = self.settle(&mut process);
        if !alive {
            self.coordinator_died();
            return None;
        }
        self.coordinator.steps += 1;
        if self.coordinator.steps.is_multiple_of(STORE_CHECK_EVERY) {
            self.check_store(&process.scheduler);
        }
        self.wake_coordinator(&process);
        self.coordinator.process = Some(process);
        Some(result)
    }

    pub(super) fn check_store(&mut self, scheduler: &Scheduler) {
        let now = self.coordinator_clock();
        let checked = self.checks.store(&self.coordinator.store, scheduler, now);
        self.checked(checked);
    }

    fn wake_coordinator(&mut self, process: &Process) {
        let Some(timeout) = process.scheduler.poll_timeout() else { return };
        let at = Timestamp(timeout.0.saturating_add_signed(-self.coordinator.clock_ms));
        let at = at.max(self.now.after_ms(1));
        if self.coordinator.wake.is_none_or(|wake| at < wake || wake <= self.now) {
            self.coordinator.wake = Some(at);
            self.queue.add(at, Event::Coordinator);
        }
    }

    /// Carries out every action in order; false if the process dies before the end.
    fn settle(&mut self, process: &mut Process) -> bool {
        let mut done = self.now;
        while let Some(action) = process.scheduler.poll_action() {
            if let Some((left, _)) = &mut self.coordinator.crash {
                if *left == 0 {
                    return false;
                }
                *left -= 1;
            }
            match action {
                Action::Persist(batch) => {
                    self.coordinator.store.apply(&batch).expect("memory does not fail");
                    done = done.after_ms(self.coordinator.write_ms);
                    let checked = self.checks.rounds(&self.coordinator.store);
                    self.checked(checked);
                }
                Action::Audit(_) => {}
                Action::Send(tenant, message) => self.tell(process, &tenant, message, done),
                Action::Welcome(tenant, head) => {
                    self.send_receipt(process, tenant, head, done, CoordinatorMessage::Welcome);
                }
                Action::Receipt(tenant, head) => {
                    self.send_receipt(process, tenant, head, done, CoordinatorMessage::Receipt);
                }
                Action::Discard(files) => {
                    for file in files {
                        self.coordinator.blobs.remove(file).expect("the folder is there");
                    }
                }
                Action::Unstage(..) => {}
                Action::Commit(commit) => self.commit(process, &commit),
            }
        }
        self.coordinator.busy_until = done;
        true
    }

    fn tell(
        &mut self,
        process: &Process,
        tenant: &TenantId,
        message: CoordinatorMessage,
        at: Timestamp,
    ) {
        if let Some(&link) = process.sessions.get(tenant) {
            self.down(link, Down::Control(message), Stream::ControlDown, at);
        }
    }

    fn down(&mut self, link: usize, message: Down, stream: Stream, at: Timestamp) {
        let arrival = self.network.arrival(link, stream, at, &mut self.draw);
        self.queue.add(arrival, Event::Down(link, message));
    }

    fn send_receipt(
        &mut self,
        process: &Process,
        tenant: TenantId,
        head: LedgerHead,
        at: Timestamp,
        message: fn(Box<Receipt>) -> CoordinatorMessage,
    ) {
        if !process.sessions.contains_key(&tenant) {
            return;
        }
        let now = self.coordinator_clock();
        let identity = &Certificates::shared().coordinator;
        let receipt = Receipt::sign(identity, tenant.clone(), head, now).expect("the key signs");
        self.tell(process, &tenant, message(Box::new(receipt)), at);
    }

    fn commit(&mut self, process: &mut Process, commit: &Commit) {
        let now = self.coordinator_clock();
        let job = process.scheduler.job(&commit.job).expect("the commit came from this job");
        let checked = self.checks.commits(commit, job);
        self.checked(checked);
        match self.aggregate(process, commit) {
            Ok(model) => process.scheduler.committed(commit, model, now),
            Err(error @ (AggregationError::Masked(_) | AggregationError::Implausible(_))) => {
                // All agents are honest here, so every sum that is asked for can be unmasked.
                self.breaks((Rule::Model, format!("{}/{}: {error}", commit.job, commit.round)));
            }
            Err(error) => self.breaks((Rule::Soundness, error.to_string())),
        }
    }

    fn aggregate(
        &mut self,
        process: &mut Process,
        commit: &Commit,
    ) -> Result<NextModel, AggregationError> {
        let blobs = &self.coordinator.blobs;
        let model = process.sums.commit(&process.scheduler, commit, blobs)?;
        let job = process.scheduler.job(&commit.job).expect("the commit came from this job");
        let (record, base) = (job.record(), job.round().base);
        let lattice = aggregation::lattice(record.lattice)?;
        let digest = model.file.digest;
        let checked = self.checks.model(commit, &record.spec, lattice, base, digest, blobs);
        self.checked(checked);
        Ok(model)
    }

    /// Something arrives on a connection.
    pub(super) fn arrives(&mut self, link: usize, message: Up) {
        let tenant = self.network.link(link).tenant;
        let who = name(tenant);
        match message {
            Up::Control(AgentMessage::Hello { ledger_head, .. }) => self.greeted(link, ledger_head),
            Up::Control(message) => {
                self.coordinate(|world, process| {
                    if process.sessions.get(&who) == Some(&link) {
                        // An answer to a round that closed in the meantime is no fault.
                        let _ = world.answered(process, &who, message);
                    }
                });
            }
            Up::Download(blob) => {
                let answer = self.coordinate(|world, process| {
                    let now = world.coordinator_clock();
                    let counted = process.scheduler.count_request(&who, now);
                    let (file, length) = (blob.digest, blob.length);
                    counted
                        .and_then(|()| process.scheduler.download(&who, file, length, now))
                        .map_err(|error| error.refusal())?;
                    let bytes = world.coordinator.blobs.read(file);
                    Ok(Arc::from(bytes.expect("what may be downloaded is there")))
                });
                if let Some(answer) = answer {
                    self.reply(link, Down::Base(blob, answer));
                }
            }
            Up::Offer(offer) => self.offered(link, &who, offer),
            Up::Payload(offer, bytes) => {
                if self.coordinator.process.is_some() {
                    let stored = self.coordinator.blobs.put(&bytes).expect("the folder is there");
                    assert_eq!(stored, offer.update.digest, "the network keeps bytes whole");
                }
                self.reported(link, &who, offer);
            }
        }
    }

    fn reply(&mut self, link: usize, message: Down) {
        let at = self.coordinator.busy_until.max(self.now);
        self.down(link, message, Stream::File, at);
    }

    fn greeted(&mut self, link: usize, head: LedgerHead) {
        let tenant = self.network.link(link).tenant;
        let who = name(tenant);
        self.coordinate(|world, process| {
            let now = world.coordinator_clock();
            let shown = Digest::of(&Certificates::shared().tenant(tenant).tls.chain[0]);
            if let Err(error) = process.scheduler.authenticate(&who, shown, now) {
                return world.close_link(link, Some(error.refusal()));
            }
            if let Some(earlier) = process.sessions.insert(who.clone(), link) {
                let text = "a newer connection of this tenant took over";
                world.close_link(earlier, Some(Refusal::new(ErrorCode::Superseded, text)));
            }
            process.scheduler.connected(&who, head, now);
        });
    }

    fn answered(
        &mut self,
        process: &mut Process,
        who: &TenantId,
        message: AgentMessage,
    ) -> Result<(), SchedulerError> {
        let now = self.coordinator_clock();
        let scheduler = &mut process.scheduler;
        scheduler.count_request(who, now)?;
        match message {
            AgentMessage::Accept { job, round } => {
                let tenant = self.agents.iter().find(|site| site.tenant == *who);
                let leaf = tenant.map(|site| site.identity.tls.chain[0].to_vec());
                scheduler.accepted(who, &job, round, &leaf.unwrap_or_default(), now)
            }
            AgentMessage::Decline { job, round, refusal } => {
                scheduler.declined(who, &job, round, refusal, now)
            }
            AgentMessage::Secagg { job, round, payload } => {
                scheduler.secagg(who, &job, round, &payload, &Peers(now), now)
            }
            // Greetings were taken before.
            _ => Ok(()),
        }
    }

    fn offered(&mut self, link: usize, who: &TenantId, offer: UploadOffer) {
        let answer = self.coordinate(|world, process| {
            let now = world.coordinator_clock();
            let counted = process.scheduler.count_request(who, now);
            let answer = counted.and_then(|()| process.scheduler.offered(who, &offer));
            answer.map_err(|error| error.refusal())
        });
        let wanted = !self.coordinator.blobs.contains(offer.update.digest);
        match answer {
            None => {}
            Some(Ok(OfferAnswer::Receive)) if wanted => {
                self.reply(link, Down::Offered(offer, Ok(OfferAnswer::Receive)));
            }
            Some(Ok(_)) => self.reported(link, who, offer),
            Some(Err(refusal)) => self.reply(link, Down::Offered(offer, Err(refusal))),
        }
    }

    fn reported(&mut self, link: usize, who: &TenantId, offer: UploadOffer) {
        let answer = self.coordinate(|world, process| {
            let now = world.coordinator_clock();
            let wanted = process.scheduler.offered(who, &offer).map_err(|e| e.refusal())?;
            if wanted == OfferAnswer::Receive {
                world.add_to_sum(process, who, &offer);
            }
            process.scheduler.reported(who, &offer, now).map_err(|error| error.refusal())
        });
        if let Some(answer) = answer {
            self.reply(link, Down::Stored(offer, answer));
        }
    }

    fn add_to_sum(&mut self, process: &mut Process, who: &TenantId, offer: &UploadOffer) {
        let job = process.scheduler.job(&offer.job).expect("the offer was checked");
        if let Err(error) = process.sums.add(job, who, offer, &self.coordinator.blobs) {
            self.breaks((Rule::Soundness, error.to_string()));
        }
    }

    /// A connection ended on the coordinator's side.
    pub(super) fn session_ended(&mut self, link: usize) {
        let who = name(self.network.link(link).tenant);
        self.coordinate(|world, process| {
            if process.sessions.get(&who) == Some(&link) {
                process.sessions.remove(&who);
                process.scheduler.disconnected(&who, world.coordinator_clock());
            }
        });
    }

    /// The process is gone: connections break, and whatever was not durable is forgotten.
    pub(super) fn coordinator_died(&mut self) {
        let down_ms = self.coordinator.crash.take().map_or(1, |(_, down_ms)| down_ms);
        self.coordinator.process = None;
        self.coordinator.wake = None;
        for site in 0..self.agents.len() {
            if let Some(link) = self.agents[site].link {
                self.break_link(link, Side::Agent);
            }
        }
        self.queue.add(self.now.after_ms(down_ms), Event::StartCoordinator);
    }

    fn restored(&self) -> Result<Scheduler, StoreError> {
        let store = &self.coordinator.store;
        let jobs = JobRecord::load_all(store)?;
        let models = ModelRegistry::load(store)?;
        let tenants = load(store, Table::Tenants)?;
        Ok(Scheduler::restore(tenants, jobs, models, self.coordinator_clock()))
    }

    /// The process starts from what is durable.
    pub(super) fn start_coordinator(&mut self) {
        let restored = self.restored();
        let scheduler = match restored {
            Ok(scheduler) => scheduler,
            Err(error) => return self.breaks((Rule::Soundness, error.to_string())),
        };
        let files = self.coordinator.blobs.retain(&scheduler.referenced_files());
        files.expect("the folder is there");
        self.coordinator.busy_until = self.now;
        let process = Process { scheduler, sums: RoundSums::default(), sessions: BTreeMap::new() };
        self.coordinator.process = Some(process);
        self.coordinate(|_, _| ());
    }

    /// Whether every job has ended; a job that failed breaks a rule.
    pub(super) fn jobs_finished(&mut self) -> Option<usize> {
        let process = self.coordinator.process.as_ref()?;
        let states: Vec<_> = process
            .scheduler
            .jobs()
            .map(|job| (job.record().state, job.record().failure.clone()))
            .collect();
        if let Some((_, failure)) = states.iter().find(|(state, _)| *state == JobState::Failed) {
            let failure = failure.clone().unwrap_or_default();
            self.breaks((Rule::Liveness, failure));
        }
        Some(states.iter().filter(|(state, _)| *state == JobState::Finished).count())
    }

    /// What the jobs wait for, for people.
    pub(super) fn waiting_for(&self) -> String {
        let Some(process) = &self.coordinator.process else { return "the coordinator".to_owned() };
        let now = self.coordinator_clock();
        let line = |job| process.scheduler.waiting_for(job, now);
        process.scheduler.jobs().map(line).collect::<Vec<_>>().join(" | ")
    }

    /// Runs a check of the whole store at the end.
    pub(super) fn check_end(&mut self) {
        if let Some(process) = self.coordinator.process.take() {
            self.check_store(&process.scheduler);
            self.coordinator.process = Some(process);
        }
    }

    fn checked(&mut self, outcome: Result<(), Broken>) {
        if let Err(broken) = outcome {
            self.breaks(broken);
        }
    }
}
